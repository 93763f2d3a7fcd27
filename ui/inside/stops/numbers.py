"""Stop 9: the numbers that the network works on, to paint into."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from stable_diffusion.request import Request, RequestError

from ..recordings import recording_of
from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.run import Step

SIDE, PATCHED = 224, 192
"""Longest sides, in pixels, of the picture, and of those of patches."""
FULL = 4.0
"""The number that is painted with at most; few of a run's are larger."""
UNIT = 1 / 256
"""Numbers are sent as multiples of this."""
MOST_SIDE, MOST_POINTS, MOST_STROKES, MOST_CHANNELS = 512, 64, 32, 16


class Stroke(BaseModel):
    """A stroke of a square brush: the columns and rows of its places, its side, and the number that it leaves."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    channel: int = Field(ge=0, lt=MOST_CHANNELS)
    value: float = Field(ge=-FULL, le=FULL)
    size: int = Field(ge=1, le=MOST_SIDE)
    points: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=MOST_POINTS)


class Numbers(Question):
    """Question: the strokes so far, first to last."""

    strokes: tuple[Stroke, ...] = Field(default=(), max_length=MOST_STROKES)


def view(question: Numbers, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the picture of a run's last latents with the strokes.

    Without strokes show the numbers too, and what a patch in each channel does.
    """
    from stable_diffusion.inspection import rendered
    from stable_diffusion.preview import Renderer

    def told(step: Step) -> None:
        show({"recorded": step.index, "total": step.total})

    recording = yield from recording_of(pipeline, requests[0], told)
    render, final = Renderer(pipeline.models), recording.final[:1]
    pictures = yield from rendered(render, painted(final, question.strokes))
    shown = picture_uri(pictures.images[0], SIDE)
    if question.strokes:
        show({"picture": shown})
        return
    _, channels, height, width = final.shape
    numbers = (final[0] / UNIT).round().clamp(-32768, 32767).short().cpu().numpy().astype("<i2")
    show(
        {
            "picture": shown,
            "shape": [channels, height, width],
            "unit": UNIT,
            "numbers": base64.b64encode(numbers.tobytes()).decode("ascii"),
        }
    )
    for channel in range(min(channels, MOST_CHANNELS)):
        stroke = patch(final, channel)
        pictures = yield from rendered(render, painted(final, [stroke]))
        show({"patch": stroke.model_dump(), "picture": picture_uri(pictures.images[0], PATCHED)})


def patch(latents: Tensor, channel: int) -> Stroke:
    """Return one touch of a large brush, in the upper right, with a number far from those that are there."""
    height, width = latents.shape[2:]
    size, x, y = max(1, height // 4), 3 * width // 4, height // 4
    value = -FULL if latents[0, channel, y, x] > 0 else FULL
    return Stroke(channel=channel, value=value, size=size, points=((x, y),))


def painted(latents: Tensor, strokes: Sequence[Stroke]) -> Tensor:
    """Return latents (1, C, h, w) with strokes, of which parts beyond the border are left out."""
    _, channels, height, width = latents.shape
    changed = latents.clone()
    for stroke in strokes:
        if stroke.channel >= channels:
            raise RequestError(f"channel must be below {channels}, the channels of this model, got {stroke.channel}")
        for x, y in stroke.points:
            if not (0 <= x < width and 0 <= y < height):
                raise RequestError(f"points must lie in the {width} x {height} latents, got ({x}, {y})")
            left, top = x - (stroke.size - 1) // 2, y - (stroke.size - 1) // 2
            changed[0, stroke.channel, max(0, top) : top + stroke.size, max(0, left) : left + stroke.size] = (
                stroke.value
            )
    return changed


NUMBERS = Stop(
    name="numbers",
    title="Its numbers",
    sentence="It never sees a pixel, only these numbers. Paint into them.",
    part="picture",
    formula="x̃ = D(z) &nbsp; (3.1, arXiv:2112.10752): the numbers z become pixels x̃",
    source="vae.py:VAE.decode",
    question=Numbers,
    view=view,
)
