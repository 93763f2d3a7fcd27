"""Denoising diffusion probabilistic models (arXiv:2006.11239): forward process, posterior, sampling, loss, likelihood.

The equations are the paper's, with its numbers. The paper steps from t to t - 1; these functions step to any earlier
timestep, because a run has fewer steps than the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .loading.scheduler_settings import clip_bound, settings_for
from .request import steps_for_strength
from .schedule import NoiseSchedule

ModelFn = Callable[[Tensor, Tensor], Tensor]
"""A network: latents x_t (B, ...) and timesteps t (B,) to a prediction of x_t's shape."""


def q_sample(schedule: NoiseSchedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Draw x_t from q(x_t | x_0) in one jump (Eq. 4). x_0 and noise: (B, ...), t: int64 (B,)."""
    return schedule.add_noise(x_0, noise, t)


@dataclass(frozen=True)
class Posterior:
    """q(x_prev | x_t, x_0) = N(x_0_weight * x_0 + x_t_weight * x_t, variance), Eq. 6-7, for one pair of timesteps."""

    x_0_weight: float
    x_t_weight: float
    variance: float

    @classmethod
    def between(cls, alphas_cumprod: float, alphas_cumprod_prev: float, *, large: bool = False) -> Posterior:
        """Compute the posterior from alphas_cumprod at t and at an earlier timestep (1 for the clean image).

        large: take beta_t, the variance of the forward step, which is the upper of the two bounds of Section 3.2.
        """
        alpha = alphas_cumprod / alphas_cumprod_prev
        left, left_prev = 1.0 - alphas_cumprod, 1.0 - alphas_cumprod_prev
        return cls(
            x_0_weight=math.sqrt(alphas_cumprod_prev) * (1.0 - alpha) / left,
            x_t_weight=math.sqrt(alpha) * left_prev / left,
            variance=(1.0 - alpha) * (1.0 if large else left_prev / left),
        )

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """Return the mean of Eq. 7."""
        return self.x_0_weight * x_0 + self.x_t_weight * x_t

    def sample(self, x_0: Tensor, x_t: Tensor, noise: Tensor) -> Tensor:
        """Draw from Eq. 6 by standard normal `noise`."""
        return self.mean(x_0, x_t) + math.sqrt(self.variance) * noise


class DDPMSampler:
    """Ancestral sampling (Algorithm 2), a step at a time, for reading and for the notebooks.

        sampler = DDPMSampler(schedule, torch.Generator().manual_seed(0))
        sampler.set_timesteps(50)
        for t in sampler.timesteps:
            x = sampler.step(model(x, t), t, x)

    Draws noise on the CPU from `generator`, so that a seed gives the same start on every device.
    """

    def __init__(self, schedule: NoiseSchedule, generator: torch.Generator | None = None) -> None:
        self.schedule = schedule
        self.generator = generator
        settings = settings_for("ddpm", schedule.config)
        self._clip, self._large = clip_bound(settings), settings["variance_type"] == "fixed_large"
        self._grid = list(range(schedule.num_train_timesteps))[::-1]
        self._start = 0

    @property
    def timesteps(self) -> list[int]:
        """The timesteps of the run, highest first."""
        return self._grid[self._start :]

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Lay out a whole run of n steps over the trained timesteps, with the configuration's spacing."""
        grid = self.schedule.timesteps(num_inference_steps, self.schedule.spacing("leading"))
        self._grid = [int(t) for t in grid.round()]
        self._start = 0

    def set_strength(self, strength: float) -> None:
        """Keep the last int(n * strength) steps of the whole run, at least one; a second call starts from n again."""
        self._start = len(self._grid) - steps_for_strength(len(self._grid), strength)

    def add_noise(self, x_0: Tensor, t: int) -> Tensor:
        """x_t for image-to-image: the image's latents with fresh noise at timestep t (Eq. 4)."""
        timesteps = torch.full((len(x_0),), t)
        return q_sample(self.schedule, x_0, timesteps, self._noise(x_0))

    def step(self, prediction: Tensor, t: int, x_t: Tensor) -> Tensor:
        """Draw the next timestep's latents from x_t and the network's prediction at t (Algorithm 2)."""
        grid = [*self._grid, -1]
        t_prev = grid[grid.index(t) + 1]
        x_0 = self.schedule.predict_x_0(prediction, x_t, torch.full((len(x_t),), t)).clamp(-self._clip, self._clip)
        alphas_cumprod = (self.schedule.level(step).alpha ** 2 for step in (t, t_prev))
        posterior = Posterior.between(*alphas_cumprod, large=self._large)
        if t == 0:
            return posterior.mean(x_0, x_t)
        return posterior.sample(x_0, x_t, self._noise(x_t))

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like)


def training_loss(
    model_fn: ModelFn,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    prediction_type: str | None = None,
    snr_gamma: float | None = None,
) -> Tensor:
    """Return the simple loss E ||target - model(x_t, t)||^2 over random t and noise (Eq. 14), a scalar.

    model_fn: (x_t (B, ...), t int64 (B,)) -> prediction of eps, of v or of x_0, by `prediction_type`, which is the
        schedule's own unless given. Predicting eps learns nothing at a timestep of zero SNR; predicting v does.
    t, noise: drawn from `generator` (uniform, standard normal) unless given.
    snr_gamma: weigh timesteps by min(SNR, gamma), expressed for the predicted quantity (arXiv:2303.09556).
    """
    device = generator.device if generator is not None else "cpu"
    if t is None:
        t = torch.randint(schedule.num_train_timesteps, (len(x_0),), generator=generator, device=device).to(x_0.device)
    if noise is None:
        noise = torch.randn(x_0.shape, generator=generator, device=device).to(x_0)
    prediction_type = prediction_type or schedule.config.prediction_type

    snr = schedule.snr(t)
    if prediction_type == "epsilon":
        target, power = noise, snr
    elif prediction_type == "v_prediction":
        target, power = schedule.velocity(x_0, noise, t), snr + 1
    elif prediction_type == "sample":
        target, power = x_0, torch.ones_like(snr)
    else:
        raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}")

    error = model_fn(q_sample(schedule, x_0, t, noise), t) - target
    loss = error.float().square().flatten(1).mean(dim=1)
    if snr_gamma is not None:
        # The squared error of x_0 is the one of eps divided by SNR, and the one of v divided by SNR + 1.
        weight = torch.where(power > 0, snr.clamp(max=snr_gamma) / power, 1.0)
        loss = loss * weight.to(loss)
    return loss.mean()


@dataclass(frozen=True)
class VariationalBound:
    """The three terms of Eq. 5 in nats, float64, one row an example; `total` bounds -log p(x_0) from above."""

    prior: Tensor
    """L_T: KL(q(x_T | x_0) || N(0, I)), (B,)"""
    kl: Tensor
    """L_{t-1}: KL(q(x_prev | x_t, x_0) || p(x_prev | x_t)), (B, steps - 1), the highest timestep first"""
    reconstruction: Tensor
    """L_0: -log p(x_0 | x_1) under a Gaussian decoder, (B,); a density, so that it may be negative"""
    dimensions: int

    @property
    def total(self) -> Tensor:
        """The negative variational bound, (B,)."""
        return self.prior + self.kl.sum(dim=1) + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """`total` in bits for each dimension of x_0, (B,)."""
        return self.total / (self.dimensions * math.log(2))


@torch.no_grad()
def variational_bound(
    model_fn: ModelFn,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    generator: torch.Generator | None = None,
    timesteps: Sequence[int] | None = None,
) -> VariationalBound:
    """Return the variational bound on -log p(x_0) (Eq. 5), each expectation estimated by one draw of x_t (Eq. 4).

    The reverse process has the variance of the posterior, so that a KL term is the squared distance of the two means
    over twice the variance (Eq. 8) and cannot be negative. Latents are continuous: the last term is the density of a
    Gaussian around the predicted x_0, not the paper's discrete decoder (Eq. 13).

    timesteps: a descending chain to bound instead of all T steps (a shorter chain gives a looser bound); its first
        entry is taken for T. One network evaluation each.
    """
    chain = list(timesteps) if timesteps is not None else list(range(schedule.num_train_timesteps))[::-1]
    if not chain or any(t <= t_next for t, t_next in pairwise(chain)):
        raise ValueError(f"timesteps must be strictly descending and not empty, got {chain[:5]}")
    dimensions = x_0[0].numel()

    kl = []
    for t, t_prev in zip(chain, [*chain[1:], -1], strict=True):
        noise = torch.randn(x_0.shape, generator=generator).to(x_0)
        batch_t = torch.full((len(x_0),), t, device=x_0.device)
        x_t = q_sample(schedule, x_0, batch_t, noise)
        predicted = schedule.predict_x_0(model_fn(x_t, batch_t), x_t, batch_t)
        squared_error = (predicted.double() - x_0.double()).square().flatten(1).sum(dim=1)
        if t_prev >= 0:
            posterior = Posterior.between(*(schedule.alphas_cumprod[step].item() for step in (t, t_prev)))
            kl.append(posterior.x_0_weight**2 * squared_error / (2 * posterior.variance))

    variance = 1.0 - schedule.alphas_cumprod[chain[-1]].item()
    reconstruction = 0.5 * (dimensions * math.log(2 * math.pi * variance) + squared_error / variance)

    terminal = schedule.alphas_cumprod[chain[0]].item()
    squared_norm = x_0.double().square().flatten(1).sum(dim=1)
    prior = 0.5 * (terminal * (squared_norm - dimensions) - dimensions * math.log1p(-terminal))
    stacked = torch.stack(kl, dim=1) if kl else squared_norm.new_zeros(len(x_0), 0)
    return VariationalBound(prior, stacked, reconstruction, dimensions)
