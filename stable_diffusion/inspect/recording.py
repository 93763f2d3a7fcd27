"""A run's states and answers at each step, and branches from any step without evaluating the steps before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..guidance import Answer
from ..inspection import Inquiry, Question
from ..pipeline import Pipeline
from ..request import Request, RequestError
from ..run import Conditioning, Run, Step
from ..schedule import Level

Told = Callable[[Step], None]
"""A function that is told every step of a run, without pictures, as soon as the step is taken."""


@dataclass(frozen=True)
class Recording:
    """A finished run without its model: what the network was asked at each evaluation, and what it answered.

    request: complete and seeded. levels, latents, answers: the noise level, x_t (N, C, h, w) in sampler space and the
    three x_0 of each evaluation, first to last. final: the latents (N, C, h, w) that the run ended with.
    """

    request: Request
    levels: tuple[Level, ...]
    latents: tuple[Tensor, ...]
    answers: tuple[Answer, ...]
    final: Tensor

    def check(self, step: int) -> None:
        """Raise `RequestError` unless `step` is one of the run's: 1 to its number of evaluations."""
        if not 1 <= step <= len(self.answers):
            raise RequestError(f"step must be in [1, {len(self.answers)}], the steps of this run, got {step}")


def record(pipeline: Pipeline, request: Request, told: Told | None = None) -> Inquiry[Recording]:
    """Run a request to its end and return its recording."""
    run, steps = pipeline.begin(request), list[Step]()

    def keep(step: Step) -> None:
        steps.append(step)
        if told is not None:
            told(step)

    final = yield from finish(run, keep)
    levels, latents, answers = zip(*((step.level, step.latents, step.answer) for step in steps), strict=True)
    return Recording(run.request, levels, latents, answers, final)


def branch(pipeline: Pipeline, recording: Recording, step: int, *, conditioning: Conditioning | None = None) -> Run:
    """Return the recorded run as it stood before step `step`, without evaluating the network.

    A sampler is a generator, which can't be copied: the run begins anew with its seed, and its sampler receives the
    recorded x_0. conditioning: other words or another guidance from here on, by `Pipeline.condition`; by default the
    run's own, with which it goes on as recorded. Raises `RequestError` for a step that the run did not take.
    """
    recording.check(step)
    run = pipeline.begin(recording.request, conditioning=conditioning)
    for answer in recording.answers[: step - 1]:
        run.answer(answer)
    return run


def finish(run: Run, told: Told | None = None) -> Inquiry[Tensor]:
    """Take the steps of a run that are left, and return its final latents (N, C, h, w)."""
    step = None
    while run.query is not None:
        step = run.answer((yield Question(run.query, run.denoise)))
        if told is not None:
            told(step)
    assert step is not None, "a run that is over has no step left"
    assert step.final is not None, "a run's last step has its final latents"
    return step.final
