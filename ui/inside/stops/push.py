"""Stop 7: guidance pushes a picture away from the guess without words, from no words at all to far too much of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stable_diffusion.request import Request

from ...form.controls import SWITCHED
from ..recordings import recording_of
from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

SCALES = (4.0, 1.0, 0.0, 25.0, 7.0, 12.0, 2.0, 0.5)
"""In the order of their runs: what is apart first, what lies between later."""
SIDE = 224


def requests(question: Question, request: Request) -> list[Request]:
    """Return a request for each guidance scale; for a fast run, whose weights have guidance in them, a usual one."""
    if request.fast:
        request = request.with_values(fast=False, **dict.fromkeys(SWITCHED))
    return [request, *[request.with_values(guidance_scale=2.0)] * (len(SCALES) - 1)]


def view(question: Question, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the picture of a run at each guidance scale, as soon as it is drawn; its own scale is the first."""
    from stable_diffusion.inspect.guesses import with_guidance
    from stable_diffusion.inspect.recording import finish
    from stable_diffusion.inspection import rendered

    request, own = requests[0], requests[0].guidance_scale
    assert own is not None, "a view's requests are complete"
    recorded = own >= 1  # below, a run evaluates the words alone, as at 1
    scales = [own, *(scale for scale in SCALES if scale != own)] if recorded else list(SCALES)
    for scale in scales:
        words = with_guidance(pipeline, request, scale)
        run = pipeline.begin(request, conditioning=words)
        if recorded and scale == own:
            final = (yield from recording_of(pipeline, request)).final
        else:
            final = yield from finish(run)
        pictures = yield from rendered(run.render, final)
        show(
            {
                "scale": scale,
                "scales": len(scales),
                "picture": picture_uri(pictures.images[0], SIDE),
                "halves": words.negative is not None,  # a distilled model has one answer, and is told the scale
            }
        )


PUSH = Stop(
    name="push",
    title="The words push",
    sentence="It guesses without and with words, then goes further that way.",
    part="push",
    formula="x̂ = x̂<sub>without</sub> + w · (x̂<sub>with</sub> − x̂<sub>without</sub>) &nbsp; (Eq. 6, arXiv:2207.12598)",
    source="guidance.py:Query.guide",
    question=Question,
    view=view,
    requests=requests,
)
