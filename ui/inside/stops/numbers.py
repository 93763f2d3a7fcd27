"""Stop 9: the numbers that the network works on, to paint into."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from stable_diffusion.request import Request

from ..recordings import counted, recording_of
from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

SIDE, PATCHED = 224, 192
"""Longest sides, in pixels, of the picture, and of those of patches."""
FULL = 4.0
"""The number that is painted with at most; few of a run's are larger."""
UNIT = 1 / 256
"""Numbers are sent as multiples of this."""
LEAST_RADIUS = 0.1
"""In latents; far smaller ones have a square of 0, by which a stroke is divided."""
MOST_SIDE, MOST_POINTS, MOST_STROKES, MOST_CHANNELS = 512, 64, 32, 16


class Stroke(BaseModel):
    """A stroke of a soft round brush: its places, in latents from the top left corner, and the number it leaves."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    channel: int = Field(ge=0, lt=MOST_CHANNELS)
    value: float = Field(ge=-FULL, le=FULL)
    radius: float = Field(ge=LEAST_RADIUS, le=MOST_SIDE)
    points: tuple[tuple[float, float], ...] = Field(min_length=1, max_length=MOST_POINTS)


class Numbers(Question):
    """A question with the strokes so far, first to last."""

    strokes: tuple[Stroke, ...] = Field(default=(), max_length=MOST_STROKES)


def view(question: Numbers, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the picture of a run's last latents with the strokes.

    Without strokes show the numbers too, and what a patch in each channel does.
    """
    from stable_diffusion.inspection import rendered
    from stable_diffusion.preview import Renderer

    recording = yield from recording_of(pipeline, requests[0], counted(show))
    render, final = Renderer(pipeline.models), recording.final[:1]
    pictures = yield from rendered(render, with_strokes(final, question.strokes))
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
        pictures = yield from rendered(render, with_strokes(final, [stroke]))
        show({"patch": stroke.model_dump(), "picture": picture_uri(pictures.images[0], PATCHED)})


def with_strokes(latents: Tensor, strokes: Sequence[Stroke]) -> Tensor:
    """Return latents (1, C, h, w) with strokes; `RequestError` for a channel that they lack."""
    from stable_diffusion.inspect import painting

    for stroke in strokes:
        points = [painting.Stroke(x, y, stroke.radius, stroke.value) for x, y in stroke.points]
        latents = painting.painted(latents, stroke.channel, points)
    return latents


def patch(latents: Tensor, channel: int) -> Stroke:
    """Return one touch of a large brush, in the upper right, with a number far from those that are there."""
    height, width = latents.shape[2:]
    x, y = 3 * width // 4, height // 4
    value = -FULL if latents[0, channel, y, x] > 0 else FULL
    return Stroke(channel=channel, value=value, radius=height / 4, points=((x + 0.5, y + 0.5),))


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
