"""Sizes and settings of each part, read from the JSON files of a diffusers model directory.

Every number of the networks comes from here, so the same code is the small bundled model, Stable Diffusion 1.x and
2.x. A field or value that the code does not honour raises `ConfigError` instead of giving a subtly different network.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

from ..request import RequestError
from .fields import Epsilon, Levels, Pixels, Positive, Width, Within, bare, expected, fits, shown

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "models" / "emoji"
ONLY_IN_A_CLONE = "an installed package does not have: clone the repository and run `pip install --editable .` in it"
"""How to get the files of `assets/`."""
"""The directory of the included model."""


class ModelError(RequestError):
    """A model can't be used: a file is missing, damaged or hostile, or the model is of a kind we don't run."""


class ConfigError(ModelError):
    """A model's configuration asks for something this package does not implement."""


Config = TypeVar("Config")
LayersPerBlock = Annotated[int, Within(1, 32)]
BlocksPerLevel = Annotated[tuple[LayersPerBlock, ...], Within(1, 8)]

CORRECT_IT = "correct it in the model's settings, or download them again"


def read(cls: type[Config], values: dict[str, Any], only: dict[str, Any], ignored: set[str], part: str) -> Config:
    """Build `cls` from `values`: known fields must be what their annotations say, `only` fields hold their one value.

    Any other setting raises, unless it is null or false, `ignored`, or for the file's own use (`_class_name`).
    """
    hints = get_type_hints(cls, include_extras=True)
    kept: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        (kept if name in hints else others)[name] = value
    for name, value in kept.items():
        hint = hints[name]
        require(fits(hint, value), f"{part}: {name}={shown(value)} must be {expected(hint)}: {CORRECT_IT}")
    for name, value in others.items():
        if name.startswith("_") or name in ignored or value is None:
            continue
        if name not in only:
            require(
                value is False, f"{part}: unknown setting {bare(name)}={shown(value)}: its model is of another kind"
            )
        elif value != only[name]:
            raise ConfigError(f"{part}: {name}={shown(value)} is not supported, only {only[name]!r}")
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in kept
    ]
    require(not missing, f"{part}: the settings {', '.join(missing)} are missing: {CORRECT_IT}")
    return cls(**kept)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def relevant(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that `cls` has fields for."""
    fields = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in fields}


def section(values: dict[str, Any], name: str, part: str) -> dict[str, Any]:
    """A setting that holds settings; empty where there is none."""
    section = {} if values.get(name) is None else values[name]
    require(isinstance(section, dict), f"{part}: {name}={shown(section)} must be a JSON object: {CORRECT_IT}")
    return section


@dataclass(frozen=True)
class VAEConfig:
    """`vae/config.json`: the autoencoder of latent diffusion (arXiv:2112.10752, section 3.1)."""

    block_out_channels: Levels
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Width = 4
    layers_per_block: LayersPerBlock = 1
    norm_num_groups: Width = 32
    sample_size: Pixels = 32
    scaling_factor: Positive = 0.18215
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
        channels = values.get("block_out_channels")
        levels = len(channels) if isinstance(channels, (list, tuple)) else 0
        only = {
            "act_fn": "silu",
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        }
        return read(cls, values, only, {"force_upcast"}, "vae")


@dataclass(frozen=True)
class TinyVAEConfig:
    """`vae/config.json` of diffusers' `AutoencoderTiny`: blocks for each level, of one width in each half."""

    encoder_block_out_channels: Levels = (64, 64, 64, 64)
    decoder_block_out_channels: Levels = (64, 64, 64, 64)
    num_encoder_blocks: BlocksPerLevel = (1, 3, 3, 3)
    num_decoder_blocks: BlocksPerLevel = (3, 3, 3, 1)
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Width = 4
    scaling_factor: Positive = 1.0

    def __post_init__(self) -> None:
        levels = len(self.num_decoder_blocks)
        for half in ("decoder", "encoder"):
            widths, counts = getattr(self, f"{half}_block_out_channels"), getattr(self, f"num_{half}_blocks")
            require(
                len(widths) == len(counts) == levels and len(set(widths)) == 1,
                f"vae: {half}_block_out_channels={widths} and num_{half}_blocks={counts} must have an entry for each "
                f"of {levels} levels, and one width: {CORRECT_IT}",
            )

    @property
    def downscale(self) -> int:
        """How many pixels wide one latent is: 8 for Stable Diffusion."""
        return 2 ** (len(self.num_decoder_blocks) - 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TinyVAEConfig:
        """Read `vae/config.json`; the range of latents is for storing them, and no picture depends on it."""
        only = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
        ignored = {"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift", "shift_factor"}
        return read(cls, values, only, ignored, "vae")


ATTENTION_DOWN: Final = "CrossAttnDownBlock2D"
PLAIN_DOWN: Final = "DownBlock2D"
ATTENTION_UP: Final = "CrossAttnUpBlock2D"
PLAIN_UP: Final = "UpBlock2D"
DownBlocks = Annotated[tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...], Within(1, 8)]
UpBlocks = Annotated[tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...], Within(1, 8)]


@dataclass(frozen=True)
class UNetConfig:
    """`unet/config.json`: the conditional U-Net (arXiv:2112.10752, section 3.3)."""

    block_out_channels: Levels
    cross_attention_dim: Width
    attention_head_dim: Width | Levels  # diffusers' name; it holds the number of heads
    in_channels: Width = 4
    out_channels: Width = 4
    sample_size: Pixels = 64
    down_block_types: DownBlocks = (ATTENTION_DOWN, ATTENTION_DOWN, ATTENTION_DOWN, PLAIN_DOWN)
    up_block_types: UpBlocks = (PLAIN_UP, ATTENTION_UP, ATTENTION_UP, ATTENTION_UP)
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] | None = "UNetMidBlock2DCrossAttn"  # none: arXiv:2305.15798
    layers_per_block: LayersPerBlock = 2
    norm_num_groups: Width = 32
    norm_eps: Epsilon = 1e-5
    use_linear_projection: bool = False
    time_cond_proj_dim: Width | None = None  # width of the guidance-scale embedding, in distilled models (LCM)

    def __post_init__(self) -> None:
        require(
            self.in_channels == self.out_channels,
            f"unet: in_channels={self.in_channels} differs from out_channels={self.out_channels}: "
            "inpainting, depth and editing models are not supported",
        )
        levels = len(self.block_out_channels)
        require(
            len(self.down_block_types) == levels,
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
            "only_cross_attention": False,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional",
            "transformer_layers_per_block": 1,
        }
        # Scores in float32 is what `attend` gives every model, whether it asks for that or not.
        return read(cls, values, only, {"addition_embed_type_num_heads", "upcast_attention"}, "unet")


Beta = Annotated[float, Within(1e-8, 0.999)]
MAX_DECAY = 2 * math.log(65504)  # then sigma / alpha is what float16 ends at
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing", None)


@dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler/scheduler_config.json`: the noise schedule and how its timesteps are spaced.

    timestep_spacing is None where the file names none: each sampler then has its own, as each class of diffusers does.
    others are the file's other settings, of which every sampler reads its own: `scheduler_settings.py` says which.
    """

    num_train_timesteps: Annotated[int, Within(10, 10**5)] = 1000
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: Annotated[tuple[Beta, ...], Within(10, 10**5)] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: Annotated[int, Within(0, 9)] = 0  # published are 0 and 1; a run needs it below its timesteps
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
            require(value in choices, f"scheduler: {name}={shown(value)} is not supported, only {choices}")
        require(
            self.trained_betas is None or len(self.trained_betas) == self.num_train_timesteps,
            f"scheduler: trained_betas has {len(self.trained_betas or ())} entries, one for each of "
            f"num_train_timesteps={self.num_train_timesteps} is needed: {CORRECT_IT}",
        )
        require(
            self._decay() <= MAX_DECAY,
            f"scheduler: beta_start={self.beta_start}, beta_end={self.beta_end} or trained_betas leave less signal "
            f"after num_train_timesteps={self.num_train_timesteps} than float16 can tell from none: {CORRECT_IT}",
        )

    def _decay(self) -> float:
        """At least -log(alphas_cumprod) of the last timestep, in nats: -log(1 - beta) is convex, and so is its rise."""
        if self.trained_betas is not None:
            return sum(-math.log1p(-beta) for beta in self.trained_betas)
        if self.beta_schedule == "squaredcos_cap_v2":  # it takes no betas
            return 0.0
        return self.num_train_timesteps * -(math.log1p(-self.beta_start) + math.log1p(-self.beta_end)) / 2

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SchedulerConfig:
        """Read `scheduler_config.json` of any of diffusers' schedulers."""
        values = {**values, "class_name": values.get("_class_name", cls.class_name)}
        for name in ("beta_start", "beta_end", "beta_schedule"):
            require(
                name in values or values.get("trained_betas") is not None,
                f"scheduler: the setting {name} is missing, and diffusers' classes disagree on its default",
            )
        own = relevant(cls, values)
        others = {name: value for name, value in values.items() if name not in own and not name.startswith("_")}
        return read(cls, {**own, "others": others}, {}, set(), "scheduler")
