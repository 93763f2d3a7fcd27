"""Sizes and settings of each part, read from the JSON files of a diffusers model directory.

Every number of the networks comes from here, so the same code is the small bundled model, Stable Diffusion 1.x and
2.x. A field or value that the code does not honour raises `ConfigError` instead of giving a subtly different network.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar


class ModelError(ValueError):
    """A model can't be used: a file is missing, damaged or hostile, or the model is of a kind we don't run."""


class ConfigError(ModelError):
    """A model's configuration asks for something this package does not implement."""


Config = TypeVar("Config")


def read_json(path: Path) -> dict[str, Any]:
    """Read one configuration file; a missing or malformed file raises `ConfigError` naming it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: a model directory needs it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def _read(cls: type[Config], values: dict[str, Any], only: dict[str, Any], ignored: set[str], part: str) -> Config:
    """Build `cls` from `values`: known fields are read, `only` fields must hold their one value, the rest raises."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kept = {}
    for name, value in values.items():
        if name.startswith("_") or name in ignored:
            continue
        value = tuple(value) if isinstance(value, list) else value
        if name in fields:
            kept[name] = value
        elif name in only:
            if value != only[name] and value is not None:
                raise ConfigError(f"{part}: {name}={value!r} is not supported, only {only[name]!r}")
        elif value is not None and value is not False:
            raise ConfigError(f"{part}: unknown setting {name}={value!r}")
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in kept
    ]
    if missing:
        raise ConfigError(f"{part}: the settings {', '.join(missing)} are missing")
    try:
        return cls(**kept)
    except TypeError as error:
        raise ConfigError(f"{part}: a setting has the wrong type ({error})") from None


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class CLIPTextConfig:
    """`text_encoder/config.json`: the CLIP text tower (arXiv:2103.00020, section 2.4)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int = 512

    def __post_init__(self) -> None:
        require(
            self.hidden_act in ("quick_gelu", "gelu"),
            f"text encoder: hidden_act={self.hidden_act!r} is not supported, only 'quick_gelu' and 'gelu'",
        )
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"text encoder: hidden_size={self.hidden_size} must be a multiple of "
            f"num_attention_heads={self.num_attention_heads}",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPTextConfig:
        """Read `text_encoder/config.json`; generation settings that transformers adds do not matter here."""
        fields = {field.name for field in dataclasses.fields(cls)}
        relevant = {name: value for name, value in values.items() if name in fields}
        return _read(cls, relevant, {}, set(), "text encoder")


@dataclass(frozen=True)
class VAEConfig:
    """`vae/config.json`: the autoencoder of latent diffusion (arXiv:2112.10752, section 3.1)."""

    block_out_channels: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            require(
                channels % self.norm_num_groups == 0,
                f"vae: block_out_channels={self.block_out_channels} must be multiples of "
                f"norm_num_groups={self.norm_num_groups}",
            )

    @property
    def downscale(self) -> int:
        """How many pixels wide one latent is: 8 for Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VAEConfig:
        """Read `vae/config.json`."""
        levels = len(values.get("block_out_channels", ()))
        only = {
            "act_fn": "silu",
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        }
        return _read(cls, values, only, {"force_upcast"}, "vae")


ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


@dataclass(frozen=True)
class UNetConfig:
    """`unet/config.json`: the conditional U-Net (arXiv:2112.10752, section 3.3)."""

    block_out_channels: tuple[int, ...]
    cross_attention_dim: int
    attention_head_dim: int | tuple[int, ...]  # diffusers' name; it holds the number of heads
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64
    down_block_types: tuple[str, ...] = (ATTENTION_DOWN, ATTENTION_DOWN, ATTENTION_DOWN, PLAIN_DOWN)
    up_block_types: tuple[str, ...] = (PLAIN_UP, ATTENTION_UP, ATTENTION_UP, ATTENTION_UP)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    upcast_attention: bool = False
    time_cond_proj_dim: int | None = None  # width of the guidance-scale embedding, in distilled models (LCM)

    def __post_init__(self) -> None:
        require(
            self.in_channels == self.out_channels,
            f"unet: in_channels={self.in_channels} differs from out_channels={self.out_channels}: "
            "inpainting, depth and editing models are not supported",
        )
        levels = len(self.block_out_channels)
        require(
            len(self.down_block_types) == levels and set(self.down_block_types) <= {ATTENTION_DOWN, PLAIN_DOWN},
            f"unet: down_block_types={self.down_block_types} is not supported for {levels} levels",
        )
        mirrored = tuple(ATTENTION_UP if block == ATTENTION_DOWN else PLAIN_UP for block in self.down_block_types[::-1])
        require(
            self.up_block_types == mirrored,
            f"unet: up_block_types={self.up_block_types} must mirror down_block_types={self.down_block_types}",
        )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            require(
                channels % heads == 0 and channels % self.norm_num_groups == 0,
                f"unet: {channels} channels must be a multiple of {heads} heads and {self.norm_num_groups} groups",
            )

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads at each level."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        require(
            len(self.attention_head_dim) == len(self.block_out_channels),
            f"unet: attention_head_dim={self.attention_head_dim} needs one entry for each of "
            f"{len(self.block_out_channels)} levels",
        )
        return self.attention_head_dim

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetConfig:
        """Read `unet/config.json`; SDXL and other relatives are refused by the setting that makes them different."""
        only = {
            "act_fn": "silu",
            "attention_type": "default",
            "center_input_sample": False,
            "class_embeddings_concat": False,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "downsample_padding": 1,
            "dropout": 0.0,
            "dual_cross_attention": False,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "only_cross_attention": False,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional",
            "transformer_layers_per_block": 1,
        }
        return _read(cls, values, only, {"addition_embed_type_num_heads"}, "unet")


# What diffusers' scheduler classes take for a setting that their JSON leaves out, where it is not our default.
LINSPACE_BY_DEFAULT = {
    f"{name}Scheduler"
    for name in (
        *("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
        *("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"),
    )
}
ALPHA_ONE_BY_DEFAULT = {"DDIMScheduler", "LCMScheduler", "TCDScheduler"}

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler/scheduler_config.json`: the noise schedule and how its timesteps are spaced."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = False
    use_karras_sigmas: bool = False
    class_name: str = "DDPMScheduler"

    def __post_init__(self) -> None:
        for name, choices in (
            ("beta_schedule", BETA_SCHEDULES),
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", TIMESTEP_SPACINGS),
        ):
            value = getattr(self, name)
            require(value in choices, f"scheduler: {name}={value!r} is not supported, only {', '.join(choices)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SchedulerConfig:
        """Read `scheduler_config.json` of any of diffusers' schedulers; only what shapes the schedule is kept."""
        class_name = values.get("_class_name", cls.class_name)
        defaults: dict[str, Any] = {"class_name": class_name}
        if class_name in LINSPACE_BY_DEFAULT:
            defaults["timestep_spacing"] = "linspace"
        if class_name in ALPHA_ONE_BY_DEFAULT:
            defaults["set_alpha_to_one"] = True
        values = {**defaults, **values}
        for name in ("clip_sample", "thresholding"):
            require(
                not values.get(name, False),
                f"scheduler: {name}=true is not supported: latents of Stable Diffusion are never clipped",
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        return _read(cls, {k: v for k, v in values.items() if k in fields}, {}, set(), "scheduler")
