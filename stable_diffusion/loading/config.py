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

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "models" / "emoji"
"""The directory of the included model."""


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


def _relevant(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that `cls` has fields for."""
    fields = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in fields}


def _check_tower(config: CLIPTextConfig | CLIPVisionConfig, part: str) -> None:
    """What holds for both towers of CLIP."""
    require(
        config.hidden_act in ("quick_gelu", "gelu"),
        f"{part}: hidden_act={config.hidden_act!r} is not supported, only 'quick_gelu' and 'gelu'",
    )
    require(
        config.hidden_size % config.num_attention_heads == 0,
        f"{part}: hidden_size={config.hidden_size} must be a multiple of "
        f"num_attention_heads={config.num_attention_heads}",
    )


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
        _check_tower(self, "text encoder")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPTextConfig:
        """Read `text_encoder/config.json`; generation settings that transformers adds do not matter here."""
        return _read(cls, _relevant(cls, values), {}, set(), "text encoder")


@dataclass(frozen=True)
class CLIPVisionConfig:
    """`vision_config` of a CLIP model: the image tower, a vision transformer (arXiv:2010.11929)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_tower(self, "image encoder")

    @property
    def num_positions(self) -> int:
        """One for each patch, and one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class CLIPConfig:
    """`config.json` of a whole CLIP model: both towers and the space that they share (arXiv:2103.00020, Figure 3)."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPConfig:
        """Read transformers' `CLIPModel` layout; generation settings that it adds do not matter here."""
        towers: dict[str, Any] = {}
        for part, kind in (("text", CLIPTextConfig), ("vision", CLIPVisionConfig)):
            # OpenAI's first uploads repeat some settings under `..._config_dict`, and those count.
            settings = {**(values.get(f"{part}_config") or {}), **(values.get(f"{part}_config_dict") or {})}
            require(bool(settings), f"clip: config.json has no {part}_config: give the directory of a whole CLIP model")
            towers[part] = _read(kind, _relevant(kind, settings), {}, set(), f"clip {part}_config")
        return cls(**towers, projection_dim=values.get("projection_dim", cls.projection_dim))


@dataclass(frozen=True)
class CLIPImageConfig:
    """`preprocessor_config.json`: how a picture becomes what the image tower sees; sizes are (height, width).

    shortest_edge is the length that the shorter side is brought to; None where the file names both sides, in `size`.
    """

    crop_size: tuple[int, int]
    shortest_edge: int | None
    size: tuple[int, int] | None
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    resample: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPImageConfig:
        """Read the settings of a `CLIPImageProcessor`; every step must be on, as CLIP was trained with them all."""
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"):
            require(values.get(name) in (True, None), f"clip preprocessor: {name}=false is not supported")
        try:
            size, crop = values["size"], values["crop_size"]
            whole = isinstance(size, dict) and "shortest_edge" not in size
            return cls(
                crop_size=(crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop),
                shortest_edge=None if whole else size["shortest_edge"] if isinstance(size, dict) else size,
                size=(size["height"], size["width"]) if whole else None,
                image_mean=tuple(values["image_mean"]),
                image_std=tuple(values["image_std"]),
                rescale_factor=values.get("rescale_factor", 1 / 255),
                resample=values.get("resample", 3),
            )
        except KeyError as error:
            raise ConfigError(f"clip preprocessor: the setting {error} is missing") from None


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
        # Scores in float32 is what `attend` gives every model, whether it asks for that or not.
        return _read(cls, values, only, {"addition_embed_type_num_heads", "upcast_attention"}, "unet")


BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing", None)


@dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler/scheduler_config.json`: the noise schedule and how its timesteps are spaced.

    timestep_spacing is None where the file names none: each sampler then has its own, as each class of diffusers does.
    others are the file's other settings, of which every sampler reads its own: `scheduler_settings.py` says which.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    class_name: str = "DDPMScheduler"
    others: dict[str, Any] = dataclasses.field(default_factory=lambda: {"clip_sample": False})

    def __post_init__(self) -> None:
        for name, choices in (
            ("beta_schedule", BETA_SCHEDULES),
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", TIMESTEP_SPACINGS),
        ):
            value = getattr(self, name)
            require(value in choices, f"scheduler: {name}={value!r} is not supported, only {choices}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SchedulerConfig:
        """Read `scheduler_config.json` of any of diffusers' schedulers."""
        values = {**values, "class_name": values.get("_class_name", cls.class_name)}
        for name in ("beta_start", "beta_end", "beta_schedule"):
            require(
                name in values or values.get("trained_betas") is not None,
                f"scheduler: the setting {name} is missing, and diffusers' classes disagree on its default",
            )
        own = _relevant(cls, values)
        others = {name: value for name, value in values.items() if name not in own and not name.startswith("_")}
        return _read(cls, {**own, "others": others}, {}, set(), "scheduler")
