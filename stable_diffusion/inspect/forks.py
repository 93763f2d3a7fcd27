"""The futures of a run: other noise from one of its steps on, and when pose, colour and detail were settled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..inspection import Inquiry
from ..pipeline import Pipeline
from ..preview import latent_colours
from ..run import Run
from .recording import Recording, finish

COARSE = 8
"""Number of cells on a side of the coarse picture that has pose and colour."""
SETTLED = 0.9
"""The share of a part above which it is settled."""
FAINT = 0.02
"""A difference of colours, about in [-1, 1], that nobody sees: it keeps shares of pictures without a part finite."""


def fresh_noise(pipeline: Pipeline, recording: Recording, step: int, count: int, seed: int) -> Inquiry[Tensor]:
    """Make the noise of a step anew for each of `count` futures, run them to their ends together, return their latents.

    Future i has the x_t = alpha x_0 + sigma eps of the step's level, with noise eps of seed + i and the x_0 that the
    network guessed at that step: image-to-image (SDEdit, arXiv:2108.01073) from the guess of the run's first image.
    The guess is the guided one, because the recorded run goes on from it. The final latents are (count, C, h, w).
    """
    recording.check(step)
    request = recording.request.with_values(num_images=count, seed=seed)
    given = pipeline.condition(request)
    given = replace(given, then_at=given.then_at - (step - 1))
    level, plan = recording.levels[step - 1], pipeline.plan(request)
    rest = replace(plan, steps=tuple((here, there) for here, there in plan.steps if here.sigma <= level.sigma))
    draw = pipeline.noise_source(request)
    x = rest.start(draw(), recording.answers[step - 1].x_0[:1])
    render = pipeline.begin(recording.request.with_values(num_images=1), conditioning=given).render
    if render.mask is not None:  # outside the mask is the photo, with the noise of the recorded run
        x = render.mask.blend(x, level)
    return (yield from finish(Run(request, rest, given, x, draw, render)))


class Shares(NamedTuple):
    """Shares, 0 to 1, of a picture's pose, colour and detail that latents have already."""

    pose: float
    colour: float
    detail: float


def shares(pipeline: Pipeline, latents: Tensor, final: Tensor) -> Shares:
    """Return the shares of a picture `final` (1, C, h, w) that latents (N, C, h, w) have, a mean over the N.

    Measured on the colours of the latents. Pose is the grey of the coarse picture of 8 x 8 cells, colour its hue, and
    detail the rest. A share is 1 - |latents - final|^2 / |final - its mean|^2 of a part, and 0 where that is negative.
    """
    vae = pipeline.models.vae
    found = []
    for ours, wanted in zip(_parts(latent_colours(vae, latents)), _parts(latent_colours(vae, final)), strict=True):
        energy = (wanted - wanted.mean(dim=(2, 3), keepdim=True)).square().mean() + FAINT**2
        found.append((1 - (ours - wanted).square().mean(dim=(1, 2, 3)) / energy).clamp(min=0).mean().item())
    return Shares(*found)


def _parts(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pose, colour and detail, which add up to the colours (N, 3, h, w)."""
    size = colours.shape[2:]
    cells = F.adaptive_avg_pool2d(colours, (min(COARSE, size[0]), min(COARSE, size[1])))
    coarse = F.interpolate(cells, size=size, mode="bilinear")
    grey = coarse.mean(dim=1, keepdim=True)
    return grey, coarse - grey, colours - coarse


@dataclass(frozen=True)
class Settled:
    """When a picture was settled. shares: how much of it the guess of each step has already.

    pose, colour, detail: the first step, from 1, from which the share of that part stays above `SETTLED`.
    """

    shares: tuple[Shares, ...]
    pose: int
    colour: int
    detail: int


def settled(pipeline: Pipeline, recording: Recording) -> Settled:
    """Return the steps at which the first image of a recorded run had its final pose, colour and detail.

    Measured on the prompt's own guesses: the guided ones overshoot at first. Futures with fresh noise may agree some
    steps earlier, because guidance magnifies a small lean of the guess: `shares` measures these as well.
    """
    found = tuple(shares(pipeline, answer.conditional[:1], recording.final[:1]) for answer in recording.answers)
    steps = []
    for part in zip(*found, strict=True):
        below = [step for step, share in enumerate(part, start=1) if share < SETTLED]
        steps.append(min(max(below, default=0) + 1, len(found)))
    return Settled(found, *steps)
