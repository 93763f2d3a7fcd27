"""Stop 3: the network's first guess, from nothing but noise and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stable_diffusion.request import Request

from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

NOISES = 4
"""Noises that get a guess each: that of the run's seed, and of the seeds after it."""
MOST_WORDS = 200
"""Characters."""


class First(Question):
    """A question with words for the network; None for the run's prompt."""

    words: str | None = Field(None, max_length=MOST_WORDS)


def requests(question: First, request: Request) -> list[Request]:
    """Return the request of the words, from pure noise and without guidance: a guided guess is no mean."""
    words = request.prompt if question.words is None else question.words
    return [request.with_values(prompt=words, then="", image=None, mask=None, num_images=1, guidance_scale=1.0)]


def view(question: First, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the noises that runs of several seeds begin with, and the guess in the first step of each."""
    from stable_diffusion.inspection import Question as Asked
    from stable_diffusion.inspection import rendered

    [request] = requests
    assert request.seed is not None, "a view's requests are seeded"
    words = pipeline.condition(request)
    for index in range(NOISES):
        run = pipeline.begin(request.with_values(seed=request.seed + index), conditioning=words)
        query = run.query
        assert query is not None, "a run begins with a query"
        guess = (yield Asked(query, run.denoise)).x_0
        pictures = yield from rendered(run.render, guess)
        [noise] = run.render.coarse(query.x / query.level.scale, pictures.found)
        show(
            {
                "index": index,
                "words": request.prompt,
                "noise": picture_uri(noise),
                "guess": picture_uri(pictures.images[0]),
            }
        )


FIRST = Stop(
    name="first",
    title="Nothing but noise",
    sentence="From noise alone, it guesses the average of all pictures that fit.",
    part="noise",
    formula="x̂<sub>0</sub>(x<sub>T</sub>) ≈ E[x<sub>0</sub> | x<sub>T</sub>, words] &nbsp; (Eq. 57, arXiv:2206.00364)",
    source="schedule.py:predict_x_0",
    question=First,
    view=view,
    requests=requests,
)
