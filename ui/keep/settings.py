"""Define the table of a request's settings: how to read each from text, and its largest value on the page.

A table over the fields of `Request`: form, links, API and limits go through it instead of naming each setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stable_diffusion.request import FIT_LABELS, PREVIEW_LABELS, SAMPLER_LABELS, SCHEDULE_LABELS, SYNTAX_LABELS

PAGE_MAX_SEED = 2**32 - 1
PAGE_MAX_GUIDANCE = 30


@dataclass(frozen=True)
class Setting:
    """One setting.

    kind: the type that its text is read as. choices: the names to choose from. for_photos: whether only image-to-image
    uses it. linked: whether links carry it, because it changes the picture.
    most: the largest value here, or the name of the field of `Limits` that holds it.
    """

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    choices: Mapping[str, str] | None = None
    for_photos: bool = False
    linked: bool = True
    most: int | str | None = None


SETTINGS = (
    Setting("prompt", str),
    Setting("strength", float, for_photos=True),
    Setting("fit", str, choices=FIT_LABELS, for_photos=True),
    Setting("negative_prompt", str),
    Setting("num_inference_steps", int, most="max_steps"),
    Setting("guidance_scale", float, most=PAGE_MAX_GUIDANCE),
    Setting("height", int, most="max_side"),
    Setting("width", int, most="max_side"),
    Setting("sampler", str, choices=SAMPLER_LABELS),
    Setting("schedule", str, choices=SCHEDULE_LABELS),
    Setting("clip_skip", int),
    Setting("seed", int, most=PAGE_MAX_SEED),
    Setting("num_images", int, most="max_images"),
    Setting("preview", str, choices=PREVIEW_LABELS, linked=False),
    Setting("preview_every", int, linked=False),
    Setting("prompt_syntax", str, choices=SYNTAX_LABELS),
    Setting("model", str),
    Setting("mask_blur", int, for_photos=True),
    Setting("then", str),
    Setting("then_at", int),
    Setting("fast", bool),
)
"""In the order in which the API takes them."""
