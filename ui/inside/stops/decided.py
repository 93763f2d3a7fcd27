"""Stop 5: the futures of a run with fresh noise from one of its steps on, and when its parts were settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stable_diffusion.request import MAX_SEED, MAX_STEPS, Request

from ..recordings import counted, recording_of
from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

FUTURES, TOGETHER = 8, 2
"""Number of futures, and of those that are drawn together: a batch is faster, and one by one is sooner seen."""
MOST_ROLLS = 1000
SIDE = 128


class Decided(Question):
    """A question with the steps from which to roll, and how often the noise was rolled before.

    At first there are two steps: one at which the picture is open, and one at which it is decided.
    """

    steps: tuple[Annotated[int, Field(ge=1, le=MAX_STEPS)], ...] = Field(default=(2, 4), min_length=1, max_length=2)
    roll: int = Field(default=0, ge=0, lt=MOST_ROLLS)


def requests(question: Decided, request: Request) -> list[Request]:
    """Return the request, and again for each future."""
    return [request] * (1 + FUTURES * len(question.steps))


def view(question: Decided, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show how much of the picture each step has, and the futures from the steps, some at a time.

    Beyond the last step of a short run it is the last.
    """
    import torch

    from stable_diffusion.inspect.forks import fresh_noise, settled, shares
    from stable_diffusion.inspection import rendered
    from stable_diffusion.preview import Renderer

    recording = yield from recording_of(pipeline, requests[0], counted(show))
    total, found = len(recording.answers), settled(pipeline, recording)
    steps = list(dict.fromkeys(min(step, total) for step in question.steps))
    show(
        {
            "total": total,
            "steps": steps,
            "shares": [rounded(one) for one in found.shares],
            "settled": [found.pose, found.colour, found.detail],
        }
    )
    render, own = Renderer(pipeline.models), recording.request.seed
    assert own is not None, "a recorded request is seeded"
    seed = (own + 1 + question.roll * FUTURES) % (MAX_SEED - FUTURES)  # not the run's own noise
    for step in steps:
        futures: list[Tensor] = []
        for first in range(0, FUTURES, TOGETHER):
            futures.append((yield from fresh_noise(pipeline, recording, step, TOGETHER, seed + first)))
            pictures = yield from rendered(render, futures[-1])
            show({"step": step, "first": first, "pictures": [picture_uri(one, SIDE) for one in pictures.images]})
        show({"step": step, "agree": rounded(shares(pipeline, torch.cat(futures), recording.final[:1]))})


def rounded(shares: Sequence[float]) -> list[float]:
    """Return shares to three places."""
    return [round(share, 3) for share in shares]


DECIDED = Stop(
    name="decided",
    title="When is it decided?",
    sentence="Add new noise early or late: what can still change?",
    part="noise",
    formula="x<sub>t</sub> = √ᾱ<sub>t</sub> x̂<sub>0</sub> + √(1 − ᾱ<sub>t</sub>) ε, with fresh ε"
    " &nbsp; (Eq. 4, arXiv:2006.11239; SDEdit, arXiv:2108.01073)",
    source="inspect/forks.py:fresh_noise",
    question=Decided,
    view=view,
    requests=requests,
)
