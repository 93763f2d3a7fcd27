"""Stop 4: a run, one small step at a time, and the pictures of runs with fewer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stable_diffusion.request import Request

from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

COUNTS = (1, 2, 3, 4, 6, 20)
"""Numbers of steps whose pictures stand below the run."""
THUMB = 96


def requests(question: Question, request: Request) -> list[Request]:
    """Return the request, and the same with each number of steps."""
    return [request, *(request.with_values(num_inference_steps=count) for count in COUNTS)]


def view(question: Question, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show each step of a run, x_t and the guess, and after it the pictures of runs with fewer steps."""
    from stable_diffusion.inspect.recording import finish
    from stable_diffusion.inspection import Question as Asked
    from stable_diffusion.inspection import decoded, rendered

    request, *shorter = requests
    run, before = pipeline.begin(request), None
    while run.query is not None:
        step = yield from decoded(run.answer((yield Asked(run.query, run.denoise))))
        assert step.images is not None
        show(
            {
                "index": step.index,
                "total": step.total,
                "xt": picture_uri(step.noisy()[0]),
                "guess": picture_uri(step.images[0]),
                "change": 0.0 if before is None else (step.denoised - before).square().mean().sqrt().item(),
            }
        )
        before = step.denoised
    for one in shorter:
        assert one.then_at is not None, "a view's requests are complete"
        evaluations = pipeline.plan(one).evaluations
        # Other words come as far on the way as in the run.
        run = pipeline.begin(one.with_values(then_at=math.ceil(one.then_at * evaluations / step.total)))
        pictures = yield from rendered(run.render, (yield from finish(run)))
        show({"steps": evaluations, "picture": picture_uri(pictures.images[0], THUMB)})


STEP = Stop(
    name="step",
    title="A small step",
    sentence="Each step takes away some noise; then it guesses again.",
    part="step",
    formula="x<sub>t−1</sub> = √ᾱ<sub>t−1</sub> x̂<sub>0</sub> + √(1 − ᾱ<sub>t−1</sub>) ε̂"
    " &nbsp; (Eq. 12, arXiv:2010.02502)",
    source="samplers.py:ddim",
    question=Question,
    view=view,
    requests=requests,
)
