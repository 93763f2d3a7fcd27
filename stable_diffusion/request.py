"""A request: one frozen value, checked once, with the names and limits that page, programs and library share.

This module imports no torch, so that a page can offer every choice before the networks are loaded.
"""

from __future__ import annotations

import copy
import math
import re
import secrets
from collections.abc import Container
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TypedDict, TypeGuard

from PIL import Image

SAMPLER_LABELS: dict[str, str] = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
"""Samplers by name, with the labels that other programs use; `samplers.py` holds the algorithms."""

SCHEDULE_LABELS: dict[str, str] = {
    "model": "Automatic",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "uniform": "Uniform",
}
"""Spacings of a run's noise levels, with the labels that other programs use; "model": as the model's scheduler says."""

SPACED_SAMPLERS = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""Samplers whose noise levels can be spaced by name; the others need the timesteps of their training."""

PREVIEW_LABELS: dict[str, str] = {
    "auto": "Automatic",
    "vae": "Sharp (VAE)",
    "tiny": "Sharp, fast (tiny VAE)",
    "linear": "Rough, fast (matrix)",
    "none": "None",
}
"""Decoders of the pictures of a run's steps (`preview.py`)."""

FIT_LABELS: dict[str, str] = {"crop": "Crop", "pad": "Pad", "stretch": "Stretch"}
"""Ways to bring a photo to the requested size (`images.fit_image`)."""

SYNTAX_LABELS: dict[str, str] = {"read": "What the model knows of it", "plain": "As typed", "weighted": "Weighted"}
"""Prompt syntaxes (`prompt.py`). "read": in the words of the model's vocabulary, which the page has (`ui/words`); the
library, and a model without a vocabulary, take such a prompt as a plain one."""

LORA_TAG = re.compile(r"<lora:(?P<name>[^:<>]*)(?::(?P<weight>[^<>]*))?>")
"""The tag by which a prompt names a LoRA file, as in AUTOMATIC1111's web UI: `<lora:name:weight>`."""

BREAK = re.compile(r"\bBREAK\b\s*")
"""The word that ends a chunk of a weighted prompt (`prompt.py`)."""

SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a letter in UTF-16, which no encoding of text has room for."""

SIZE_UNIT = 8  # pixels that one latent of Stable Diffusion stands for, on a side; other models have their own
MAX_SIDE = 4096
MAX_STEPS = 1000  # the number of trained timesteps; some samplers allow a few less, and say so
MAX_GUIDANCE = 100.0
MAX_IMAGES = 1000
MAX_PROMPT = 20_000  # characters
MAX_CONTEXT = 640  # tokens of all chunks of a prompt: eight chunks of CLIP's 77, which is 8 times the usual memory
MAX_CLIP_SKIP = 11  # CLIP's text encoder has 12 layers; a smaller one refuses more than its own
MAX_LORAS = 8
MAX_MASK_BLUR = 64  # as in AUTOMATIC1111
MAX_SEED = 2**63 - 1 - MAX_IMAGES  # image i uses seed + i
RANDOM_SEEDS = 2**32
SEED_REMEDY = "or leave it empty for a random one"


FAST_STEPS = 4
FAST: dict[str, object] = {"guidance_scale": 1.0, "sampler": "ddim"}
"""The settings of a fast request. Its weights were trained for these, with guidance in them, and for so many steps."""


Picture = Image.Image | str | Path
"""A picture, or the path of its file."""


class RequestError(ValueError):
    """A request that can't be served. The message names argument, value and remedy, and is written for the caller.

    Code that serves requests raises this class, or a subclass, and no other error for a caller's mistake: any other
    exception is a mistake of ours.
    """


class Settings(TypedDict, total=False):
    """The fields of `Request` apart from the prompt, for signatures that take them as keyword arguments."""

    negative_prompt: str
    then: str
    then_at: int | None
    image: Picture | None
    mask: Picture | None
    mask_blur: int
    strength: float | None
    fit: str
    num_inference_steps: int | None
    guidance_scale: float | None
    height: int | None
    width: int | None
    sampler: str | None
    schedule: str
    clip_skip: int
    seed: int | None
    num_images: int
    preview: str | None
    preview_every: int
    prompt_syntax: str
    model: str | None
    fast: bool


@dataclass(frozen=True)
class Request:
    """One request for images. The constructor raises `RequestError`, naming argument, value and remedy.

    None means "what suits the model": `Defaults.complete` fills it in before the run begins.

    prompt: the text; `<lora:name:weight>` in it merges a LoRA file for this run.
    then: the text that takes the prompt's place from step `then_at` on, counted from 1; empty: the prompt to the end.
    then_at: None: half of the steps.
    image: the picture that image-to-image starts from; None for text-to-image.
    mask: a picture laid over `image`: white areas are drawn anew, black ones stay, grey ones mix both.
    mask_blur: pixels around the mask's white over which the picture fades into `image`.
    strength: in (0, 1]; the share of the steps that image-to-image runs.
    fit: how `image` is brought to width x height, one of `FIT_LABELS`.
    height, width: pixels. None: the size of a photo that suits the model, otherwise the model's own.
    clip_skip: how many of the text encoder's last layers to leave out.
    seed: image i of num_images uses seed + i. None or -1: a random seed.
    preview: decoder of the steps' pictures, one of `PREVIEW_LABELS`. preview_every: n for a picture of every n-th step.
    model: which of several models draws; a `Pipeline` ignores it.
    fast: draw in few steps, with the adapter in the directory of the model (`Models.turbo`). Guidance is part of it:
        guidance_scale is 1, there is no negative prompt, and the sampler is ddim.
    """

    prompt: str = ""
    _: KW_ONLY
    negative_prompt: str = ""
    then: str = ""
    then_at: int | None = None
    image: Picture | None = None
    mask: Picture | None = None
    mask_blur: int = 4
    strength: float | None = None
    fit: str = "crop"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    sampler: str | None = None
    schedule: str = "model"
    clip_skip: int = 0
    seed: int | None = None
    num_images: int = 1
    preview: str | None = None
    preview_every: int = 1
    prompt_syntax: str = "plain"
    model: str | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        checked = {
            "prompt": _text("prompt", self.prompt),
            "negative_prompt": _text("negative_prompt", self.negative_prompt),
            "then": _text("then", self.then),
            "then_at": _optional_int("then_at", self.then_at, 1, MAX_STEPS),
            "mask_blur": _int("mask_blur", self.mask_blur, 0, MAX_MASK_BLUR),
            "strength": None if self.strength is None else _strength(self.strength),
            "num_inference_steps": _optional_int("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS),
            "guidance_scale": None
            if self.guidance_scale is None
            else _number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE),
            "height": _optional_int("height", self.height, 1, MAX_SIDE),
            "width": _optional_int("width", self.width, 1, MAX_SIDE),
            "clip_skip": _int("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP),
            "seed": None if self.seed == -1 else _optional_int("seed", self.seed, 0, MAX_SEED, SEED_REMEDY),
            "num_images": _int("num_images", self.num_images, 1, MAX_IMAGES),
            "preview_every": _int("preview_every", self.preview_every, 1, MAX_STEPS),
        }
        for name in ("image", "mask"):
            if not isinstance(getattr(self, name), (Image.Image, str, Path, type(None))):
                raise RequestError(f"{name} must be a picture or the path of one, got {shown(getattr(self, name))}")
        if self.mask is not None and self.image is None:
            raise RequestError(
                f"mask must come with an image, got {shown(self.mask)} alone: it says what to draw anew in it"
            )
        for name, choices in (
            ("sampler", SAMPLER_LABELS),
            ("preview", PREVIEW_LABELS),
            ("fit", FIT_LABELS),
            ("prompt_syntax", SYNTAX_LABELS),
            ("schedule", SCHEDULE_LABELS),
        ):
            if getattr(self, name) is not None or name not in ("sampler", "preview"):
                _choice(name, getattr(self, name), choices)
        if self.sampler is not None:
            check_schedule(self.sampler, self.schedule)
        if not isinstance(self.fast, bool):
            raise RequestError(f"fast must be True or False, got {shown(self.fast)}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.fast:
            self._check_fast()
        if LORA_TAG.search(self.then):
            raise RequestError("then must not name a LoRA: the LoRAs of the prompt hold for the whole run")
        if len(self.loras) > MAX_LORAS:
            raise RequestError(f"prompt may name at most {MAX_LORAS} LoRAs, got {len(self.loras)}: take some out")

    def _check_fast(self) -> None:
        if self.negative_prompt.strip():
            raise RequestError(
                f"negative_prompt must be empty in a fast request, got {shown(self.negative_prompt)}: its weights were "
                "trained without one, so empty it, or draw without fast"
            )
        for name, only in FAST.items():
            value = getattr(self, name)
            if value not in (None, only):
                raise RequestError(
                    f"{name} must be {only} in a fast request, got {shown(value)}: its weights were trained for that, "
                    "so choose it, or draw without fast"
                )

    @property
    def steps(self) -> int:
        """Number of sampler steps of a complete request: all of them, or for a photo the last ones, by strength."""
        assert self.num_inference_steps is not None, "a request is completed before its steps are counted"
        if self.image is None:
            return self.num_inference_steps
        assert self.strength is not None, "a request is completed before its steps are counted"
        return steps_for_strength(self.num_inference_steps, self.strength)

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """Name and weight of each LoRA tag in the prompt; the weight is 1 where the tag gives none."""
        return tuple((tag["name"], _lora_weight(tag)) for tag in LORA_TAG.finditer(self.prompt))

    def seeded(self) -> Request:
        """Return this request with a seed: its own or, where it has none, a random one below 2^32."""
        return self if self.seed is not None else self.with_values(seed=secrets.randbelow(RANDOM_SEEDS))

    def with_values(self, **values: object) -> Request:
        """Return a copy with `values`, which are known to be valid and are not checked again."""
        changed = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(changed, name, value)
        return changed


@dataclass(frozen=True)
class Defaults:
    """A model's own settings, for requests that leave them open, and the sizes that it can draw, in pixels."""

    side: int = 512
    """Side of the square images that the model was trained on."""
    size_unit: int = SIZE_UNIT
    """Width and height are multiples of this: the number of pixels that one latent stands for, on a side."""
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    strength: float = 0.7
    preview: str = "auto"
    max_clip_skip: int = MAX_CLIP_SKIP
    own_size_only: bool = False
    """Whether the model draws well at its own size and at no other."""
    fast: bool = False
    """Whether the model has an adapter for fast requests."""

    @property
    def sketch_side(self) -> int:
        """Side of a quick drawing: half the trained one, or the trained one of a model that draws no other well."""
        return self.side if self.own_size_only else self.min_side

    @property
    def min_side(self) -> int:
        """Smallest side that a form offers: half the trained one."""
        return self.side // 2

    @property
    def max_side(self) -> int:
        """Largest side: beyond twice the trained one, motifs repeat."""
        return self.side * 2

    @property
    def side_step(self) -> int:
        """Distance between two sizes that a form offers: an eighth of the trained side, in whole latents."""
        return max(self.size_unit, self.side // 8 // self.size_unit * self.size_unit)

    def complete(self, request: Request, photo_size: tuple[int, int] | None = None) -> Request:
        """Return `request` with these defaults for every setting that it leaves open; a fast one has some of its own.

        photo_size: width and height of the request's photo. A size that the request leaves open is the photo's, in
        whole latents, from half to one and a half times the trained side; others are drawn at the model's own.
        Raises `RequestError` where the schedule does not go with the default sampler, a size has part latents, or a
        fast request meets a model without the adapter.
        """
        if request.fast and not self.fast:
            raise RequestError(
                "fast must be False with this model, got True: it has no weights for few steps, so draw without fast, "
                "or choose another model"
            )
        names = ("num_inference_steps", "guidance_scale", "sampler", "strength", "preview")
        own = {name: getattr(self, name) for name in names} | (self._fast(request) if request.fast else {})
        values = {name: value for name, value in own.items() if getattr(request, name) is None}
        sizes = zip(("width", "height"), self._size(photo_size), strict=True)
        values |= {name: side for name, side in sizes if getattr(request, name) is None}
        complete = request.with_values(**values) if values else request
        if complete.then_at is None:
            complete = complete.with_values(then_at=max(1, complete.steps // 2))
        if "sampler" in values:
            check_schedule(str(complete.sampler), request.schedule)
        for name in ("width", "height"):
            side = getattr(complete, name)
            if side % self.size_unit:
                lower = max(1, side // self.size_unit) * self.size_unit  # a larger one may exceed a limit
                raise RequestError(
                    f"{name} must be a multiple of {self.size_unit} with this model, got {side}: try {lower}"
                )
        return complete

    def _fast(self, request: Request) -> dict[str, object]:
        """Return the settings of a fast request: as many steps as leave four over a photo, by its strength."""
        strength = 1.0 if request.image is None else request.strength or self.strength
        return {**FAST, "num_inference_steps": steps_that_leave(FAST_STEPS, strength)}

    def _size(self, photo_size: tuple[int, int] | None) -> tuple[int, int]:
        if photo_size is None or min(photo_size) < self.min_side or max(photo_size) > 1.5 * self.side:
            return self.side, self.side
        width, height = (max(self.size_unit, side // self.size_unit * self.size_unit) for side in photo_size)
        return width, height


def without_loras(prompt: str) -> str:
    """Return the prompt without its LoRA tags: the text that the text encoder reads."""
    return LORA_TAG.sub("", prompt)


def check_schedule(sampler: str, schedule: str) -> None:
    """Raise `RequestError` unless `schedule` exists and `sampler` supports it."""
    _choice("schedule", schedule, SCHEDULE_LABELS)
    if schedule not in ("model", "uniform") and sampler not in SPACED_SAMPLERS:
        raise RequestError(
            f"schedule must be model or uniform for the sampler {sampler}, got {schedule!r}: choose one of those, "
            f"or a sampler of {', '.join(SPACED_SAMPLERS)}"
        )


def steps_for_strength(num_inference_steps: int, strength: float) -> int:
    """Return how many of n steps an image-to-image run takes: int(n * strength), at least one.

    The run takes the last steps of the grid, so that a lower strength starts from less noise. Like diffusers, it
    truncates and does not round: int(50 * 0.58) is 28. Raises `RequestError` unless strength is in (0, 1].
    """
    return max(1, int(num_inference_steps * _strength(strength)))


def steps_that_leave(evaluated: int, strength: float) -> int:
    """Return how many steps leave at least `evaluated` of them to an image-to-image run, up to `MAX_STEPS`."""
    return min(MAX_STEPS, math.ceil(evaluated / strength))


def shown(value: object) -> str:
    """Return a refused value as text, cut to the length that an error message has room for."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # repr fails for integers of thousands of digits and for deeply nested lists
        return "a value that is too long to show"
    return text if len(text) <= 100 else f"{text[:100]}…"


def _lora_weight(tag: re.Match[str]) -> float:
    text = tag["weight"] or "1"
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise RequestError(
            f"the weight of a LoRA must be a number, got {shown(tag[0])}: write <lora:{tag['name']}:0.8>"
        )
    return weight


def _text(name: str, value: object) -> str:
    text = "" if value is None else value
    if not isinstance(text, str):
        raise RequestError(f"{name} must be text, got {shown(value)}")
    if half := SURROGATE.search(text):
        raise RequestError(f"{name} has half of a letter at place {half.start()}, a lone surrogate: write it again")
    if len(text) > MAX_PROMPT:
        raise RequestError(f"{name} must be at most {MAX_PROMPT:,} characters long, got {len(text):,}: shorten it")
    return text


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, Python's or NumPy's; bool is not accepted as one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(name: str, value: object, low: float, high: float, remedy: str = "") -> float:
    # NaN is not between any two numbers.
    if not _is_number(value) or not low <= value <= high:
        limit = f"{high:,g}" if high < 1e6 else f"{high}"
        tail = f"choose a number in that range{', ' + remedy if remedy else ''}"
        raise RequestError(f"{name} must be between {low:g} and {limit}, got {shown(value)}: {tail}")
    return int(value) if isinstance(value, Integral) else float(value)


def _strength(value: object) -> float:
    if not _is_number(value) or not 0 < value <= 1:
        raise RequestError(f"strength must be in (0, 1], got {shown(value)}: low stays close to the photo")
    return float(value)


def _int(name: str, value: object, low: int, high: int, remedy: str = "") -> int:
    number = _number(name, value, low, high, remedy)
    if number != math.floor(number):
        raise RequestError(f"{name} must be a whole number, got {value!r}: try {round(number)}")
    return int(number)


def _optional_int(name: str, value: object, low: int, high: int, remedy: str = "") -> int | None:
    return None if value is None else _int(name, value, low, high, remedy)


def _choice(name: str, value: object, choices: Container[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise RequestError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")  # type: ignore[arg-type]
