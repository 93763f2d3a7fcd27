"""Stop 6: a run that is told other words on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from stable_diffusion.request import Request

from ..recordings import counted, recording_of
from ..stop import Question, Show, Stop, evenly, picture_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

MOST_TEXT, SIDE = 300, 224
OTHERS = ("a fox, on a blue background", "a rocket, on a blue background", "an owl, on a blue background")
BRANCHES = 8
"""Steps of the run at most, evenly spaced, from which it goes on with the other words."""


class Change(Question):
    """A question with the other words that take over; empty for words about another thing than the prompt's."""

    other: str = Field("", max_length=MOST_TEXT)

    def words(self, prompt: str) -> str:
        """Return the words that take over from a prompt."""
        return self.other or next((one for one in OTHERS if one.split()[1] not in prompt), OTHERS[0])


def requests(question: Change, request: Request) -> list[Request]:
    """Return the request, and with the other words as many as all branches take: half a run each, and a step."""
    changed = replace(request, then=question.words(request.prompt), then_at=1)  # which checks the words
    return [request, *[changed] * (BRANCHES // 2 + 1)]


def view(question: Change, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the pictures of a run that goes on with the other words from a step on, the last of the steps first.

    From step k the picture is that of the request with the other words as its `then`, and `then_at` k.
    """
    from stable_diffusion.inspect.recording import branch, finish
    from stable_diffusion.inspection import rendered

    request, changed, *_ = requests
    words = pipeline.condition(changed)

    recording = yield from recording_of(pipeline, request, counted(show))
    steps = evenly(BRANCHES, len(recording.answers))
    show({"other": changed.then, "steps": steps, "total": len(recording.answers)})
    for step in reversed(steps):
        run = branch(pipeline, recording, step, conditioning=words)
        pictures = yield from rendered(run.render, (yield from finish(run)))
        show({"step": step, "picture": picture_uri(pictures.images[0], SIDE)})


CHANGE = Stop(
    name="change",
    title="Change its mind",
    sentence="Change the words on the way: how late does it still listen?",
    part="words",
    formula="ε̂<sub>t</sub> = ε(x<sub>t</sub>, t, <i>words</i>) before step k,"
    " &nbsp; ε(x<sub>t</sub>, t, <i>other words</i>) from it on &nbsp; (prompt switching, arXiv:2211.01324)",
    source="inspect/recording.py:branch",
    question=Change,
    view=view,
    requests=requests,
)
