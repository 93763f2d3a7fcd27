"""The network's guesses of a picture with noise, with its words and without, and guidance between and beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..guidance import Answer, Query
from ..inspection import Inquiry, Question
from ..pipeline import Pipeline
from ..request import Request, RequestError
from ..run import Conditioning
from ..schedule import Level


@dataclass(frozen=True)
class Guess:
    """Latents x_t (N, C, h, w) at a noise level, and the network's x_0 from them alone."""

    level: Level
    x_t: Tensor
    answer: Answer


def guesses(
    pipeline: Pipeline, request: Request, x_0: Tensor, timesteps: Sequence[int], noise: Tensor
) -> Inquiry[list[Guess]]:
    """Add the noise of each timestep to latents x_0 (Eq. 4, arXiv:2006.11239), and guess x_0 from there.

    x_0, noise: (N, C, h, w), for the request's number of images N; all timesteps get the same noise. The answers are
    with the prompt and, for a guided request, with the negative prompt too. Raises `RequestError` for a t that is not
    a trained timestep.
    """
    words, found = pipeline.condition(request), list[Guess]()
    last = pipeline.schedule.num_train_timesteps - 1
    for t in timesteps:
        if not 0 <= t <= last:
            raise RequestError(f"t must be in [0, {last}], got {t}")
        level = pipeline.schedule.level(t)
        x_t = level.alpha * x_0 + level.sigma * noise
        query = Query(x_t, level, words.context, words.negative, words.guidance_scale)
        found.append(Guess(level, x_t, (yield Question(query, words.denoise))))
    return found


def share_seen(guess: Tensor, x_0: Tensor, blind: Tensor) -> Tensor:
    """Return the share (N,) of latents x_0 (N, C, h, w) that a guess sees in their noise, beyond its words.

    blind: the guess from nothing but noise. Of its squared error, the share is what the guess does without: 1 for x_0
    itself, 0 for no better a guess than blind, and below 0 for a worse one.
    """
    return 1 - (guess - x_0).square().flatten(1).sum(dim=1) / (blind - x_0).square().flatten(1).sum(dim=1)


def with_guidance(pipeline: Pipeline, request: Request, scale: float) -> Conditioning:
    """Return a request's conditioning whose guidance is the formula's at any scale, 0 and below 1 too.

    `Pipeline.condition` evaluates only the prompt at a scale of 1 or less, as diffusers does; here both halves are
    evaluated, so that 0 draws the negative prompt alone, and 0.5 the middle of both. A distilled model, which has no
    second half, is told the scale.
    """
    guided = pipeline.condition(request.with_values(guidance_scale=2.0))  # any scale with both halves
    return replace(guided, guidance_scale=scale)
