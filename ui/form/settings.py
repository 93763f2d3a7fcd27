"""The settings of a request as the page handles them: how each is read and written outside the form.

A table over the fields of `Request`: links and the API go through it, so that no setting is named in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stable_diffusion.request import FIT_LABELS, PREVIEW_LABELS, SAMPLER_LABELS, SCHEDULE_LABELS, SYNTAX_LABELS


@dataclass(frozen=True)
class Setting:
    """One setting.

    kind is what its text is read as. choices are the names to choose from. Where it is for_photos only, text-to-image
    has no use for it; one that is not linked says nothing about the picture.
    """

    name: str
    kind: type[str] | type[int] | type[float]
    choices: Mapping[str, str] | None = None
    for_photos: bool = False
    linked: bool = True


SETTINGS = (
    Setting("prompt", str),
    Setting("strength", float, for_photos=True),
    Setting("fit", str, choices=FIT_LABELS, for_photos=True),
    Setting("negative_prompt", str),
    Setting("num_inference_steps", int),
    Setting("guidance_scale", float),
    Setting("height", int),
    Setting("width", int),
    Setting("sampler", str, choices=SAMPLER_LABELS),
    Setting("schedule", str, choices=SCHEDULE_LABELS),
    Setting("clip_skip", int),
    Setting("seed", int),
    Setting("num_images", int),
    Setting("preview", str, choices=PREVIEW_LABELS, linked=False),
    Setting("preview_every", int, linked=False),
    Setting("prompt_syntax", str, choices=SYNTAX_LABELS),
    Setting("model", str),
)
"""In the order in which the API takes them."""
