"""Sizes and settings of CLIP: its two towers, what they see of a picture, and its tokenizer, read as in `config.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from .config import CORRECT_IT, read, relevant, require, section
from .fields import Epsilon, Layers, Pixels, Positive, Token, Width, Within

Activation = Literal["quick_gelu", "gelu"]
Share = Annotated[float, Within(0.0, 1.0)]


def _check_tower(config: CLIPTextConfig | CLIPVisionConfig, part: str) -> None:
    """What holds for both towers of CLIP."""
    require(
        config.hidden_size % config.num_attention_heads == 0,
        f"{part}: hidden_size={config.hidden_size} must be a multiple of "
        f"num_attention_heads={config.num_attention_heads}",
    )


@dataclass(frozen=True)
class CLIPTextConfig:
    """`text_encoder/config.json`: the CLIP text tower (arXiv:2103.00020, section 2.4)."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    vocab_size: Annotated[int, Within(1, 2**24)]
    max_position_embeddings: Annotated[int, Within(3, 2**16)] = 77  # start, end and a word
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: Token = 49407
    pad_token_id: Token | None = None
    projection_dim: Width = 512

    def __post_init__(self) -> None:
        _check_tower(self, "text encoder")
        require(
            self.eos_token_id < self.vocab_size,
            f"text encoder: eos_token_id={self.eos_token_id} must be below vocab_size={self.vocab_size}: {CORRECT_IT}",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPTextConfig:
        """Read `text_encoder/config.json`; generation settings that transformers adds do not matter here."""
        return read(cls, relevant(cls, values), {}, set(), "text encoder")


@dataclass(frozen=True)
class CLIPVisionConfig:
    """`vision_config` of a CLIP model: the image tower, a vision transformer (arXiv:2010.11929)."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    image_size: Pixels
    patch_size: Pixels
    num_channels: Literal[3] = 3
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    def __post_init__(self) -> None:
        _check_tower(self, "image encoder")
        require(
            self.patch_size <= self.image_size,
            f"image encoder: patch_size={self.patch_size} must be at most image_size={self.image_size}: {CORRECT_IT}",
        )

    @property
    def num_positions(self) -> int:
        """One for each patch, and one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _tower(part: str, kind: type, values: dict[str, Any], of: str) -> Any:
    """The settings of a tower within those of a whole model."""
    # OpenAI's first uploads repeat some settings under `..._config_dict`, and those count.
    settings = {**section(values, f"{part}_config", of), **section(values, f"{part}_config_dict", of)}
    require(bool(settings), f"{of}: config.json has no {part}_config: give the directory of a whole CLIP model")
    return read(kind, relevant(kind, settings), {}, set(), f"{of} {part}_config")


@dataclass(frozen=True)
class CLIPConfig:
    """`config.json` of a whole CLIP model: both towers and the space that they share (arXiv:2103.00020, Figure 3)."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: Width = 512

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPConfig:
        """Read transformers' `CLIPModel` layout; generation settings that it adds do not matter here."""
        both = {
            part: _tower(part, kind, values, "clip")
            for part, kind in (("text", CLIPTextConfig), ("vision", CLIPVisionConfig))
        }
        return read(cls, relevant(cls, values) | both, {}, set(), "clip")


@dataclass(frozen=True)
class SafetyConfig:
    """`safety_checker/config.json`: an image tower, and how wide the space is that its concepts lie in."""

    vision: CLIPVisionConfig
    projection_dim: Width = 512

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SafetyConfig:
        """Read the layout of diffusers' `StableDiffusionSafetyChecker`, that of a whole CLIP model."""
        vision = _tower("vision", CLIPVisionConfig, values, "safety_checker")
        return read(cls, relevant(cls, values) | {"vision": vision}, {}, set(), "safety_checker")


@dataclass(frozen=True)
class CLIPImageConfig:
    """`preprocessor_config.json`: how a picture becomes what the image tower sees; sizes are (height, width).

    shortest_edge is the length that the shorter side is brought to; None where the file names both sides, in `size`.
    """

    crop_size: tuple[Pixels, Pixels]
    shortest_edge: Pixels | None
    size: tuple[Pixels, Pixels] | None
    image_mean: tuple[Share, Share, Share]
    image_std: tuple[Positive, Positive, Positive]
    rescale_factor: Annotated[float, Within(1e-6, 1.0)] = 1 / 255
    resample: Annotated[int, Within(0, 5)] = 3  # Pillow's `Resampling`

    def __post_init__(self) -> None:
        require(
            (self.shortest_edge is None) != (self.size is None),
            f"clip preprocessor: size must be a shortest_edge, or height and width: {CORRECT_IT}",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPImageConfig:
        """Read the settings of a `CLIPImageProcessor`; every step must be on, as CLIP was trained with them all."""
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"):
            require(values.get(name) in (True, None), f"clip preprocessor: {name}=false is not supported")
        settings = relevant(cls, values)
        size, crop = settings.get("size"), settings.get("crop_size")
        if isinstance(crop, dict):
            settings["crop_size"] = (crop.get("height"), crop.get("width"))
        elif crop is not None:
            settings["crop_size"] = (crop, crop)
        if isinstance(size, dict) and "shortest_edge" not in size:
            settings |= {"shortest_edge": None, "size": (size.get("height"), size.get("width"))}
        elif size is not None:
            settings |= {"shortest_edge": size["shortest_edge"] if isinstance(size, dict) else size, "size": None}
        return read(cls, settings, {}, set(), "clip preprocessor")


@dataclass(frozen=True)
class TokenizerConfig:
    """What a CLIP tokenizer of any layout says, once it is read; the tokens are numbered as in its vocabulary."""

    model_max_length: Annotated[int, Within(3, math.inf)]  # transformers writes 1e30 where there is no limit
    bos_token_id: Token
    eos_token_id: Token
    pad_token_id: Token

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenizerConfig:
        """Read these settings; others do not matter here."""
        return read(cls, relevant(cls, values), {}, set(), "tokenizer")
