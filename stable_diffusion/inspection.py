"""Questions to a network from outside a run: a view of a run asks them here, or in an engine's turns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .guidance import Answer, Query
from .preview import Pictures, Preview, Renderer
from .run import Run, Step
from .schedule import CLEAN

T = TypeVar("T")

Network = Callable[[Sequence[Query]], list[Answer]]
"""A function that evaluates a network: a `Denoiser`, one that is observed, or a decoder."""


@dataclass(frozen=True)
class Question:
    """A query, and the network that answers it, image by image if need be."""

    query: Query
    network: Network


Inquiry = Generator[Question, Answer, T]
"""A computation that yields questions, is sent their answers, and returns a T. `yield from` joins inquiries."""


@torch.no_grad()
def conduct(inquiry: Inquiry[T]) -> T:
    """Answer the questions of an inquiry here, one after the other, and return its result."""
    try:
        question = next(inquiry)
        while True:
            [answer] = question.network([question.query])
            question = inquiry.send(answer)
    except StopIteration as end:
        return end.value


def next_step(run: Run, preview: Preview, network: Network | None = None) -> Inquiry[Step]:
    """Take a run's next step, and return it with its pictures, as `Run.steps` does.

    network: answers the query in place of the run's own denoiser.
    """
    query = run.query
    assert query is not None, "a run that is over has no next step"
    step = run.answer((yield Question(query, network or run.denoise)))
    if step.final is not None:
        return (yield from decoded(step))
    return step.previewed(preview) if step.index % run.request.preview_every == 0 else step


def decoded(step: Step) -> Inquiry[Step]:
    """Return a step with pictures by the VAE, as `Step.decoded` does."""
    pictures = yield from rendered(step.render, step.denoised if step.final is None else step.final)
    return replace(step, images=pictures.images, found=pictures.found)


def rendered(render: Renderer, latents: Tensor) -> Inquiry[Pictures]:
    """Return pictures of scaled latents (N, C, h, w) by the VAE. The decoding is a question of its own."""

    def decode(queries: Sequence[Query]) -> list[Answer]:
        pictures = [render.models.vae.decode_finite(query.x) for query in queries]
        return [Answer(pixels, pixels, None) for pixels in pictures]

    words = latents.new_empty(len(latents), 0, 0)
    pixels, _, _ = yield Question(Query(latents, CLEAN, words, None, 1.0), decode)
    return render(latents, lambda _: pixels)


class Inspection:
    """An inquiry in an engine's turns, with the part of `Run` that an engine reads.

    Each turn answers one question and goes on to the next; the engine charges the owner for both. evaluations: about
    the number of questions, for estimates.
    """

    def __init__(self, inquiry: Inquiry[None], evaluations: int):
        self._inquiry, self.index, self.total = inquiry, 0, evaluations
        self.query: Query | None
        self.denoise: Network
        self._go_on(lambda: next(inquiry))

    def answer(self, answer: Answer) -> None:
        """Go on to the next question, or to the end: then `query` is None."""
        self.index += 1
        self._go_on(lambda: self._inquiry.send(answer))

    @torch.no_grad()
    def _go_on(self, go: Callable[[], Question]) -> None:
        try:
            question = go()
        except StopIteration:
            self.query = None
        else:
            self.query, self.denoise = question.query, question.network
