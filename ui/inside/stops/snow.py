"""Stop 1: a picture, and the noise that hides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stable_diffusion.request import Request

from ..recordings import recording_of
from ..stop import Question, Show, Stop, evenly, picture_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

POINTS = 101
"""Places of the schedule that the script is told."""


def view(question: Question, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the picture of a run, and the model's schedule: the script adds the noise itself."""
    from stable_diffusion.inspection import rendered
    from stable_diffusion.preview import Renderer

    [request] = requests
    recording = yield from recording_of(pipeline, request)
    pictures = yield from rendered(Renderer(pipeline.models), recording.final)
    show({"alphas": alphas_of(pipeline), "picture": picture_uri(pictures.images[0])})


def alphas_of(pipeline: Pipeline) -> list[float]:
    """Return alphas_cumprod at evenly spaced timesteps, from the first to the last."""
    alphas = pipeline.schedule.alphas_cumprod
    return [round(alphas[place - 1].item(), 5) for place in evenly(POINTS, len(alphas))]


SNOW = Stop(
    name="snow",
    title="Snow",
    sentence="Add noise to a picture, until you can't see it any more.",
    part="noise",
    formula="x<sub>t</sub> = √ᾱ<sub>t</sub> x<sub>0</sub> + √(1 − ᾱ<sub>t</sub>) ε &nbsp; (Eq. 4, arXiv:2006.11239)",
    source="schedule.py:NoiseSchedule.add_noise",
    question=Question,
    view=view,
)
