"""Sizes and settings of CLIP: its two towers, their image preprocessing and the tokenizer, read as in `config.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..request import shown
from .config import (
    CORRECT_IT,
    STRICT,
    Epsilon,
    Factor,
    FileSettings,
    Json,
    Layers,
    Pixels,
    Token,
    Width,
    require,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Activation = Literal["quick_gelu", "gelu"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, config=STRICT)
class _TowerConfig(FileSettings):
    """The sizes of one transformer of CLIP."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width

    def __post_init__(self) -> None:
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"{self.PART}: hidden_size={self.hidden_size} must be a multiple of "
            f"num_attention_heads={self.num_attention_heads}: {CORRECT_IT}",
        )


@dataclass(frozen=True, config=STRICT)
class CLIPTextConfig(_TowerConfig):
    """`text_encoder/config.json`: the CLIP text tower (arXiv:2103.00020, section 2.4)."""

    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    max_position_embeddings: Annotated[int, Field(ge=3, le=2**16)] = 77  # at least start, a word and end
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: Token = 49407
    pad_token_id: Token | None = None
    projection_dim: Width = 512

    PART = "text encoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.eos_token_id < self.vocab_size,
            f"text encoder: eos_token_id={self.eos_token_id} must be below vocab_size={self.vocab_size}: {CORRECT_IT}",
        )


@dataclass(frozen=True, config=STRICT)
class CLIPVisionConfig(_TowerConfig):
    """`vision_config` of a CLIP model: the image tower, a vision transformer (arXiv:2010.11929)."""

    image_size: Pixels
    patch_size: Pixels
    num_channels: Literal[3] = 3
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    PART = "image encoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.patch_size <= self.image_size,
            f"image encoder: patch_size={self.patch_size} must be at most image_size={self.image_size}: {CORRECT_IT}",
        )

    @property
    def num_positions(self) -> int:
        """One position for each patch, and one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _tower(name: str, kind: type[_TowerConfig], values: Json, part: str) -> _TowerConfig:
    """Read one tower's settings, which lie within those of a CLIP model."""
    settings: Json = {}
    for key in (name, f"{name}_dict"):  # OpenAI's first uploads repeat them under the second
        section = values.get(key) or {}
        require(isinstance(section, dict), f"{part}: {key}={shown(section)} must be a JSON object: {CORRECT_IT}")
        settings |= section
    require(bool(settings), f"{part}: config.json has no {name}: give the directory of a whole CLIP model")
    return kind.from_dict(settings, f"{part} {name}")


@dataclass(frozen=True, config=STRICT)
class CLIPConfig(FileSettings):
    """`config.json` of a whole CLIP model: both towers and their common space (arXiv:2103.00020, Figure 3)."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: Width = 512

    PART = "clip"

    @classmethod
    def from_dict(cls, values: Json, part: str | None = None) -> Self:
        """Read transformers' `CLIPModel` layout; raises as `FileSettings.from_dict`."""
        text = _tower("text_config", CLIPTextConfig, values, cls.PART)
        vision = _tower("vision_config", CLIPVisionConfig, values, cls.PART)
        return super().from_dict({**values, "text": text, "vision": vision}, part)


@dataclass(frozen=True, config=STRICT)
class SafetyConfig(FileSettings):
    """`safety_checker/config.json`: an image tower, and the width of the space in which its concepts lie."""

    vision: CLIPVisionConfig
    projection_dim: Width = 512

    PART = "safety_checker"

    @classmethod
    def from_dict(cls, values: Json, part: str | None = None) -> Self:
        """Read diffusers' `StableDiffusionSafetyChecker`, laid out as a CLIP model; see `FileSettings.from_dict`."""
        vision = _tower("vision_config", CLIPVisionConfig, values, cls.PART)
        return super().from_dict({**values, "vision": vision}, part)


@dataclass(frozen=True, config=STRICT)
class CLIPImageConfig(FileSettings):
    """`preprocessor_config.json`: resizing, cropping and normalisation of a picture; sizes are (height, width).

    shortest_edge is the new length of the shorter side; None where the file names both sides, in `size`.
    """

    crop_size: Annotated[tuple[Pixels, Pixels], Field(strict=False)]
    shortest_edge: Pixels | None
    size: Annotated[tuple[Pixels, Pixels], Field(strict=False)] | None
    image_mean: Annotated[tuple[Share, Share, Share], Field(strict=False)]
    image_std: Annotated[tuple[Factor, Factor, Factor], Field(strict=False)]
    rescale_factor: Annotated[float, Field(ge=1e-6, le=1.0)] = 1 / 255
    resample: Annotated[int, Field(ge=0, le=5)] = 3  # Pillow's `Resampling`

    PART = "clip preprocessor"

    def __post_init__(self) -> None:
        require(
            (self.shortest_edge is None) != (self.size is None),
            f"clip preprocessor: size must be a shortest_edge, or height and width: {CORRECT_IT}",
        )

    @classmethod
    def from_dict(cls, values: Json, part: str | None = None) -> Self:
        """Read the settings of a `CLIPImageProcessor`; every step must be on, as CLIP was trained with all of them."""
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"):
            require(values.get(name) in (True, None), f"clip preprocessor: {name}=false is not supported")
        settings, size, crop = dict(values), values.get("size"), values.get("crop_size")
        if isinstance(crop, dict):
            settings["crop_size"] = (crop.get("height"), crop.get("width"))
        elif crop is not None:
            settings["crop_size"] = (crop, crop)
        if isinstance(size, dict) and "shortest_edge" not in size:
            settings |= {"shortest_edge": None, "size": (size.get("height"), size.get("width"))}
        elif size is not None:
            settings |= {"shortest_edge": size["shortest_edge"] if isinstance(size, dict) else size, "size": None}
        return super().from_dict(settings, part)


@dataclass(frozen=True, config=STRICT)
class TokenizerConfig(FileSettings):
    """The settings of a CLIP tokenizer of any layout, once it is read; tokens are numbered as in its vocabulary."""

    model_max_length: Annotated[int, Field(ge=3)]  # transformers writes 1e30 where there is no limit
    bos_token_id: Token
    eos_token_id: Token
    pad_token_id: Token

    PART = "tokenizer"
