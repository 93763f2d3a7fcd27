"""Sizes and settings of each part, read from the JSON files of a diffusers model directory.

The networks take every number from here, so that the same code builds the bundled model, Stable Diffusion 1.x and 2.x.
pydantic checks types and ranges; a setting that the code does not honour raises `ConfigError` instead of giving a
slightly different network.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from ..request import RequestError, shown

if TYPE_CHECKING:
    from typing_extensions import Self

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "models" / "emoji"
"""The directory of the bundled model."""
ONLY_IN_A_CLONE = "an installed package does not have: clone the repository and run `pip install --editable .` in it"
"""How to get the files of `assets/`."""

Json = dict[str, Any]
"""A JSON object."""


class ModelError(RequestError):
    """A model can't be used: a file is missing, damaged or hostile, or the model is of an unsupported kind."""


class ConfigError(ModelError):
    """A model's settings are damaged, or ask for something that this package does not implement."""


# Strict: a bool is not accepted as a number, nor 2.0 as an int; an int is accepted where a float is expected.
STRICT = ConfigDict(strict=True, allow_inf_nan=False)

# The bounds keep out networks that no weight file could fill and numbers that float16 could not hold. Published models
# lie far within. Tuples are not strict, so that JSON's lists pass.
_UP_TO_8 = Field(min_length=1, max_length=8, strict=False)
Width = Annotated[int, Field(ge=1, le=2**16)]  # channels, heads, groups, positions; the widest published is 5,120
Layers = Annotated[int, Field(ge=1, le=128)]  # the deepest published tower has 48
Levels = Annotated[tuple[Width, ...], _UP_TO_8]  # one width a resolution
LayersPerBlock = Annotated[int, Field(ge=1, le=32)]
BlocksPerLevel = Annotated[tuple[LayersPerBlock, ...], _UP_TO_8]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Token = Annotated[int, Field(ge=0, le=2**24)]
Epsilon = Annotated[float, Field(ge=1e-12, le=1.0)]  # added to a variance; 0 would divide a flat input by zero
Factor = Annotated[float, Field(ge=1e-4, le=1e4)]  # multiplied and divided by, far from both ends of float16
Beta = Annotated[float, Field(ge=1e-8, le=0.999)]

CORRECT_IT = "correct it in the model's settings, or download them again"
LINE = 250  # characters


def one_line(text: object) -> str:
    """Return a text from a file as one printable line of at most 250 characters."""
    line = str(text) if str(text).isprintable() else repr(str(text))[1:-1]
    return line if len(line) <= LINE else f"{line[:LINE]}…"


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


class FileSettings:
    """Base of the dataclasses whose fields are settings of a JSON file.

    PART names the file in errors. FIXED lists settings that must have one value, a list nothing but that value; None
    means that settings without a field do not matter. IGNORED settings may have any value.
    """

    PART: ClassVar[str]
    FIXED: ClassVar[Mapping[str, object] | None] = None
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, values: Json, part: str | None = None) -> Self:
        """Build the dataclass from a file's settings; `part` replaces PART in errors.

        Raises `ConfigError` for a missing, wrong or unsupported setting, and for one without a field unless it is null
        or false or its name begins with "_".
        """
        part = part or cls.PART
        names = field_names(cls)
        if cls.FIXED is not None:
            cls._check_others({name: value for name, value in values.items() if name not in names}, cls.FIXED, part)
        try:
            return cls(**{name: value for name, value in values.items() if name in names})
        except ValidationError as error:
            raise ConfigError(_sentence(error, part, values)) from None

    @classmethod
    def _check_others(cls, values: Json, fixed: Mapping[str, object], part: str) -> None:
        for name, value in values.items():
            if name in cls.IGNORED or name.startswith("_") or value is None:
                continue
            setting = f"{part}: {one_line(name)}={shown(value)}"
            if name not in fixed:
                require(value is False, f"{setting} is an unknown setting: its model is of another kind")
                continue
            only, entries = fixed[name], value if isinstance(value, list) else [value]
            require(bool(entries) and all(one == only for one in entries), f"{setting} is not supported, only {only!r}")


def field_names(cls: type) -> frozenset[str]:
    """Return the names of a dataclass's fields."""
    return frozenset(field.name for field in dataclasses.fields(cls))


def _sentence(error: ValidationError, part: str, values: Json) -> str:
    """Return one sentence about a validation error: our own, the missing settings, or the first wrong one."""
    problems = error.errors(include_url=False, include_input=False)
    own = problems[0].get("ctx", {}).get("error")
    if isinstance(own, ConfigError):
        return str(own)
    missing = [str(one["loc"][0]) for one in problems if one["type"] == "missing" and len(one["loc"]) == 1]
    if missing:
        return f"{part}: the settings {', '.join(missing)} are missing: {CORRECT_IT}"
    name = str(problems[0]["loc"][0])
    messages = (one["msg"] for one in problems if one["loc"][0] == name)
    reasons = dict.fromkeys(re.sub(r"^\w+ should", "must", text).replace("tuple", "list") for text in messages)
    return f"{part}: {name}={shown(values[name])} {' or '.join(reasons)}: {CORRECT_IT}"


@dataclass(frozen=True, config=STRICT)
class VAEConfig(FileSettings):
    """`vae/config.json`: the autoencoder of latent diffusion (arXiv:2112.10752, section 3.1)."""

    block_out_channels: Levels
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Width = 4
    layers_per_block: LayersPerBlock = 1
    norm_num_groups: Width = 32
    sample_size: Pixels = 32
    scaling_factor: Factor = 0.18215
    mid_block_add_attention: bool = True

    PART = "vae"
    FIXED: ClassVar[Mapping[str, object]] = {
        "act_fn": "silu",
        "down_block_types": "DownEncoderBlock2D",
        "up_block_types": "UpDecoderBlock2D",
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }
    IGNORED = frozenset({"force_upcast"})

    def __post_init__(self) -> None:
        require(
            all(channels % self.norm_num_groups == 0 for channels in self.block_out_channels),
            f"vae: block_out_channels={self.block_out_channels} must be multiples of "
            f"norm_num_groups={self.norm_num_groups}: {CORRECT_IT}",
        )

    @property
    def downscale(self) -> int:
        """The width of one latent in pixels: 8 for Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, config=STRICT)
class TinyVAEConfig(FileSettings):
    """`vae/config.json` of diffusers' `AutoencoderTiny`: a number of blocks a level, one width in each half."""

    encoder_block_out_channels: Levels = (64, 64, 64, 64)
    decoder_block_out_channels: Levels = (64, 64, 64, 64)
    num_encoder_blocks: BlocksPerLevel = (1, 3, 3, 3)
    num_decoder_blocks: BlocksPerLevel = (3, 3, 3, 1)
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Width = 4
    scaling_factor: Factor = 1.0

    PART = "vae"
    FIXED: ClassVar[Mapping[str, object]] = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
    # The range of latents is for storing them; no picture depends on it.
    IGNORED = frozenset({"block_out_channels", "force_upcast", "latent_magnitude", "latent_shift", "shift_factor"})

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
        """The width of one latent in pixels: 8 for Stable Diffusion."""
        return 2 ** (len(self.num_decoder_blocks) - 1)


ATTENTION_DOWN: Final = "CrossAttnDownBlock2D"
PLAIN_DOWN: Final = "DownBlock2D"
ATTENTION_UP: Final = "CrossAttnUpBlock2D"
PLAIN_UP: Final = "UpBlock2D"
DownBlocks = Annotated[tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...], _UP_TO_8]
UpBlocks = Annotated[tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...], _UP_TO_8]


@dataclass(frozen=True, config=STRICT)
class UNetConfig(FileSettings):
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

    PART = "unet"
    FIXED: ClassVar[Mapping[str, object]] = {
        "act_fn": "silu",
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "resnet_out_scale_factor": 1.0,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
    }
    # `attend` keeps its scores in float32 for every model, as upcast_attention requests.
    IGNORED = frozenset({"addition_embed_type_num_heads", "upcast_attention"})

    def __post_init__(self) -> None:
        levels, down, up = len(self.block_out_channels), self.down_block_types, self.up_block_types
        mirrored = tuple(ATTENTION_UP if block == ATTENTION_DOWN else PLAIN_UP for block in down[::-1])
        require(
            self.in_channels == self.out_channels,
            f"unet: in_channels={self.in_channels} differs from out_channels={self.out_channels}: "
            "inpainting, depth and editing models are not supported",
        )
        require(len(down) == levels, f"unet: down_block_types={down} is not supported for {levels} levels")
        require(up == mirrored, f"unet: up_block_types={up} must mirror down_block_types={down}")
        require(
            len(self.heads) == levels,
            f"unet: attention_head_dim={self.attention_head_dim} needs one entry for each of {levels} levels",
        )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            require(
                channels % heads == 0 and channels % self.norm_num_groups == 0,
                f"unet: {channels} channels must be a multiple of {heads} heads and {self.norm_num_groups} groups",
            )

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads at each level."""
        heads = self.attention_head_dim
        return (heads,) * len(self.block_out_channels) if isinstance(heads, int) else heads


MAX_DECAY = 2 * math.log(65504)  # nats; then sigma / alpha is the largest number of float16


@dataclass(frozen=True, config=STRICT)
class SchedulerConfig(FileSettings):
    """`scheduler/scheduler_config.json`: the noise schedule and the spacing of its timesteps.

    timestep_spacing is None where the file names none: each sampler then uses its own default, as diffusers' classes
    do. others holds the file's other settings, of which `scheduler_settings.py` reads those that a sampler has.
    """

    num_train_timesteps: Annotated[int, Field(ge=10, le=10**5)] = 1000
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    trained_betas: Annotated[tuple[Beta, ...], Field(min_length=10, max_length=10**5, strict=False)] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    steps_offset: Annotated[int, Field(ge=0, le=9)] = 0  # published are 0 and 1; it must stay below a run's timesteps
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    class_name: str = "DDPMScheduler"
    others: Json = dataclasses.field(default_factory=lambda: {"clip_sample": False})

    PART = "scheduler"

    def __post_init__(self) -> None:
        require(
            self.trained_betas is None or len(self.trained_betas) == self.num_train_timesteps,
            f"scheduler: trained_betas has {len(self.trained_betas or ())} entries and needs one for each of "
            f"num_train_timesteps={self.num_train_timesteps}: {CORRECT_IT}",
        )
        require(
            self._decay() <= MAX_DECAY,
            f"scheduler: beta_start={self.beta_start}, beta_end={self.beta_end} or trained_betas leave less signal "
            f"after num_train_timesteps={self.num_train_timesteps} than float16 can tell from none: {CORRECT_IT}",
        )

    def _decay(self) -> float:
        """Return a lower bound of -log(alphas_cumprod) at the last timestep, in nats.

        It is exact for trained_betas. For the others the betas are a convex rise, and -log(1 - beta) is convex too.
        """
        if self.trained_betas is not None:
            return sum(-math.log1p(-beta) for beta in self.trained_betas)
        if self.beta_schedule == "squaredcos_cap_v2":  # it has no beta_start and beta_end
            return 0.0
        return self.num_train_timesteps * -(math.log1p(-self.beta_start) + math.log1p(-self.beta_end)) / 2

    @classmethod
    def from_dict(cls, values: Json, part: str | None = None) -> Self:
        """Read the `scheduler_config.json` of any of diffusers' schedulers; raises as `FileSettings.from_dict`."""
        for name in ("beta_start", "beta_end", "beta_schedule"):
            require(
                name in values or values.get("trained_betas") is not None,
                f"scheduler: the setting {name} is missing, and diffusers' classes disagree on its default",
            )
        names = field_names(cls)
        others = {name: value for name, value in values.items() if name not in names and not name.startswith("_")}
        class_name = values.get("_class_name", cls.class_name)
        return super().from_dict({**values, "class_name": class_name, "others": others}, part)
