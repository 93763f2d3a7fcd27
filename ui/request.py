"""What a visitor or a program asks for, checked in full before any work starts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import FITS, MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT, MAX_SEED, MAX_STEPS, PREVIEWS, SAMPLERS, SIZE_UNIT


@dataclass(frozen=True)
class Request:
    """One request, under the names of `Pipeline.stream`. Building one raises ValueError: argument, value, remedy.

    photo is the path of the picture that image-to-image starts from, and None for text-to-image; fit says how it is
    brought to width x height. None for height, width and seed means: the model's own side, and a random seed.
    """

    prompt: str = ""
    negative_prompt: str = ""
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    height: int | None = None
    width: int | None = None
    sampler: str = "dpmpp_2m"
    seed: int | None = None
    num_images: int = 1
    preview: str = "auto"
    preview_every: int = 1
    photo: str | None = None
    strength: float = 0.7
    fit: str = "crop"
    model: str | None = None
    """The name of a model of the page's list; None is the first one."""

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731, frozen, and this is its birth
        set_("prompt", _text("prompt", self.prompt))
        set_("negative_prompt", _text("negative_prompt", self.negative_prompt))
        set_("num_inference_steps", _whole("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS))
        set_("guidance_scale", _number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE))
        for name in ("height", "width"):
            set_(name, _side(name, getattr(self, name)))
        if self.seed is not None:
            set_("seed", _whole("seed", self.seed, 0, MAX_SEED, "or leave it empty for a random one"))
        set_("num_images", _whole("num_images", self.num_images, 1, MAX_IMAGES))
        set_("preview_every", _whole("preview_every", self.preview_every, 1, MAX_STEPS))
        _choice("sampler", self.sampler, SAMPLERS)
        _choice("preview", self.preview, PREVIEWS)
        _choice("fit", self.fit, FITS)
        strength = _number("strength", self.strength, 0, 1)
        if strength == 0:
            raise ValueError("strength must be above 0 and at most 1, got 0: with 0 the photo would stay as it is")
        set_("strength", strength)

    def for_side(self, side: int) -> Request:
        """The request with its sizes filled in and checked for a model that was trained on pictures of this side."""
        sizes = {name: getattr(self, name) or side for name in ("width", "height")}
        for name, value in sizes.items():
            if value > 2 * side:
                raise ValueError(
                    f"{name} must be at most {2 * side} with this model, got {value}: choose a smaller size"
                )
        return dataclasses.replace(self, **sizes)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Pipeline.stream`, without prompt and picture."""
        names = ("negative_prompt", "num_inference_steps", "guidance_scale", "height", "width", "sampler", "seed")
        names += ("num_images", "preview", "preview_every", "strength")
        return {name: getattr(self, name) for name in names}


def photo_path(value: str | Path | None) -> str:
    """The uploaded photo's path; ValueError where none was given."""
    if value is None:
        raise ValueError("image is missing: upload a photo, or pick an example below")
    return str(value)


def _text(name: str, value: object) -> str:
    text = "" if value is None else value
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"{name} must be at most {MAX_PROMPT:,} characters long, got {len(text):,}: shorten it")
    return text


def _number(name: str, value: object, low: float, high: float, remedy: str = "") -> float:
    rule = (
        f"{name} must be between {low:g} and {high:,g}" if high < 1e6 else f"{name} must be between {low:g} and {high}"
    )
    tail = f": choose a number in that range{', ' + remedy if remedy else ''}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{rule}, got {value!r}{tail}")
    if not low <= value <= high:
        raise ValueError(f"{rule}, got {value:,}{tail}" if high < 1e6 else f"{rule}, got {value}{tail}")
    return float(value)


def _whole(name: str, value: object, low: int, high: int, remedy: str = "") -> int:
    number = _number(name, value, low, high, remedy)
    if number != int(number):
        raise ValueError(f"{name} must be a whole number, got {value!r}: try {round(number)}")
    return int(number)


def _side(name: str, value: object) -> int | None:
    if value is None:
        return None
    side = _whole(name, value, SIZE_UNIT, 4096)
    if side % SIZE_UNIT:
        nearest = side // SIZE_UNIT * SIZE_UNIT
        raise ValueError(
            f"{name} must be a multiple of {SIZE_UNIT}, got {side}: try {nearest} or {nearest + SIZE_UNIT}"
        )
    return side


def _choice(name: str, value: object, choices: dict[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
