"""The noise schedule: the shares of signal and noise in a latent at each timestep, and the timesteps of a run.

One convention holds everywhere in this package: a latent is `x = alpha * x_0 + sigma * eps`, and travels with its
`alpha` and `sigma`. DDPM and the multistep solvers keep `alpha^2 + sigma^2 = 1` (the variance-preserving form, finite
even without any signal); the Euler family keeps `alpha = 1` (the form of arXiv:2206.00364). The same formulas turn a
network's prediction into x_0 in both.

The schedule is computed in float64 and cast once, to the dtype of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .loading.config import SchedulerConfig
from .request import RequestError

# Replaces a terminal alphas_cumprod of zero for solvers that need a finite sigma: the smallest float16, sigma 4096.
FINITE_TERMINAL_ALPHA_CUMPROD = 2.0**-24


class Level(NamedTuple):
    """A noise level: its latents are `alpha * x_0 + sigma * eps`, and the network gets `timestep` as its input."""

    alpha: float
    sigma: float
    timestep: float

    @property
    def scale(self) -> float:
        """sqrt(alpha^2 + sigma^2); the network's input is `x / scale`, which is variance-preserving."""
        return math.hypot(self.alpha, self.sigma)

    @property
    def noise_to_signal(self) -> float:
        """sigma / alpha, the sigma of arXiv:2206.00364; infinite without any signal."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma), the lambda of arXiv:2206.00927; infinite at the clean image."""
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf


CLEAN = Level(alpha=1.0, sigma=0.0, timestep=-1.0)

Transition = tuple[Level, Level]
"""A step of a run: from a noise level to a lower one."""

Spacing = Callable[[float, float, int], np.ndarray]
"""(lowest sigma, highest sigma, n) -> n sigmas, highest first."""


class NoiseSchedule:
    """The betas of a scheduler configuration and the quantities derived from them (Section 2, arXiv:2006.11239).

    `betas`, `alphas_cumprod` and `sigmas` are float64 of shape (num_train_timesteps,) on the CPU. `sigmas` is
    sqrt((1 - alphas_cumprod) / alphas_cumprod), kept finite at a terminal step whose SNR is zero.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.betas = _betas(config)
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        if config.rescale_betas_zero_snr:
            self.betas, self.alphas_cumprod = rescale_zero_terminal_snr(self.betas)
        finite = self.alphas_cumprod.clone()
        if config.rescale_betas_zero_snr:
            finite[-1] = FINITE_TERMINAL_ALPHA_CUMPROD
        self.sigmas = ((1.0 - finite) / finite).sqrt()

    @property
    def num_train_timesteps(self) -> int:
        """Return the number of trained timesteps, 1000 for Stable Diffusion."""
        return len(self.betas)

    # Training and the forward process: t is an int64 tensor of shape (B,), one timestep an example.

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), shaped (B, 1, ...) to multiply `like` (B, ...)."""
        alphas_cumprod = self.alphas_cumprod[t.cpu()].reshape(-1, *[1] * (like.ndim - 1))
        return alphas_cumprod.sqrt().to(like), (1.0 - alphas_cumprod).sqrt().to(like)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps (Eq. 4, arXiv:2006.11239)."""
        alpha, sigma = self.alpha_sigma(t, x_0)
        return alpha * x_0 + sigma * noise

    def velocity(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = alpha_t eps - sigma_t x_0, the target of v-prediction (Appendix D, arXiv:2202.00512)."""
        alpha, sigma = self.alpha_sigma(t, x_0)
        return alpha * noise - sigma * x_0

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_t^2 / sigma_t^2, float64 of t's shape."""
        alphas_cumprod = self.alphas_cumprod[t.cpu()]
        return alphas_cumprod / (1.0 - alphas_cumprod)

    def predict_x_0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the x_0 that the network's `prediction` at (x_t, t) implies, by the configured prediction type."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        return predict_x_0(prediction, x_t, alpha, sigma, self.config.prediction_type)

    # Noise levels, for samplers.

    def level(self, t: int) -> Level:
        """Return the variance-preserving level of timestep t, exact even at zero SNR; the clean image for t < 0."""
        if t < 0:
            return CLEAN
        alphas_cumprod = self.alphas_cumprod[t].item()
        return Level(math.sqrt(alphas_cumprod), math.sqrt(1.0 - alphas_cumprod), float(t))

    def sigma_at(self, timesteps: np.ndarray) -> np.ndarray:
        """Return sigma at timesteps, linear between the trained ones."""
        return np.interp(timesteps, np.arange(self.num_train_timesteps), self.sigmas.numpy())

    def timestep_at(self, sigmas: np.ndarray) -> np.ndarray:
        """Return fractional timesteps of sigmas, linear in log sigma and clipped to the trained range."""
        return np.interp(np.log(sigmas), self.sigmas.log().numpy(), np.arange(self.num_train_timesteps))

    def spaced(self, space: Spacing, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return n sigmas by `space` over all the trained ones, with their timesteps.

        Computed in float32 as in diffusers, because callers truncate these timesteps: rounding leaves the first of
        Stable Diffusion's at 998.999.
        """
        betas = _betas(self.config, torch.float32)
        if self.config.rescale_betas_zero_snr:
            betas, _ = rescale_zero_terminal_snr(betas)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        if self.config.rescale_betas_zero_snr:
            alphas_cumprod[-1] = FINITE_TERMINAL_ALPHA_CUMPROD
        trained = (((1.0 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()
        sigmas = space(trained[0].item(), trained[-1].item(), n)
        return sigmas, np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))

    # Grids: the timesteps of a run of n steps, highest first.

    def spacing(self, default: str) -> str:
        """Return the configuration's timestep_spacing or, if it has none, a sampler's `default`, as in diffusers."""
        return default if self.config.timestep_spacing is None else self.config.timestep_spacing

    def timesteps(self, num_inference_steps: int, spacing: str, *, spare: int = 0) -> np.ndarray:
        """Return n descending timesteps, spaced as in Table 2 of arXiv:2305.08891; float64, fractional for linspace.

        spare: number of further points of the grid below the returned ones. The multistep solvers lay out n + 1
        points and replace the last by the clean image; trailing grids end above zero anyway and ignore it.
        """
        total, points = self.num_train_timesteps, num_inference_steps + spare
        if not 1 <= num_inference_steps <= total - spare:
            raise RequestError(
                f"num_inference_steps must be between 1 and {total - spare}, got {num_inference_steps}: "
                "choose a number in that range"
            )
        if spacing == "linspace":
            grid = np.linspace(0, total - 1, points)[::-1]
        elif spacing == "leading":
            grid = np.arange(points, dtype=np.float64)[::-1] * (total // points) + self.config.steps_offset
        elif spacing == "trailing":
            # The stride is rounded, so that counting down may give one step too many, for example at n = 61.
            grid = np.arange(total, 0, -total / num_inference_steps)[:num_inference_steps].round() - 1
        else:
            raise ValueError(f"timestep_spacing must be leading, linspace or trailing, got {spacing!r}")
        if grid[0] > total - 1:
            raise RequestError(
                f"num_inference_steps {num_inference_steps} with steps_offset {self.config.steps_offset} reaches "
                f"timestep {grid[0]:g} of {total}: ask for fewer steps"
            )
        return grid[:num_inference_steps].copy()


def karras_sigmas(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> np.ndarray:
    """Return n sigmas from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho) (Eq. 5, arXiv:2206.00364)."""
    ramp = np.linspace(0, 1, n)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def exponential_sigmas(sigma_min: float, sigma_max: float, n: int) -> np.ndarray:
    """Return n sigmas from sigma_max down to sigma_min, evenly spaced in log sigma."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), n))


def beta_sigmas(sigma_min: float, sigma_max: float, n: int) -> np.ndarray:
    """Return n sigmas from sigma_max down to sigma_min, close together at both ends (arXiv:2407.12173)."""
    return sigma_min + beta_quantiles(1 - np.linspace(0, 1, n)) * (sigma_max - sigma_min)


def beta_quantiles(p: np.ndarray, shape: float = 0.6) -> np.ndarray:
    """Return the quantiles of Beta(shape, shape) for p in [0, 1], by bisection; scipy is not a run-time dependency.

    Below 1/2 the distribution function is a power series, x^a / B(a, a) sum_k (1 - a)_k / k! x^k / (a + k), whose terms
    shrink faster than 2^-k; above 1/2 it follows by symmetry.
    """
    k = np.arange(64)
    series = np.cumprod(np.append(1.0, (k[1:] - shape) / k[1:])) / (shape + k)
    scale = math.gamma(2 * shape) / math.gamma(shape) ** 2
    tail = np.minimum(p, 1 - p)
    low, high = np.zeros_like(tail), np.full_like(tail, 0.5)
    for _ in range(64):
        middle = (low + high) / 2
        below = scale * middle**shape * (middle[:, None] ** k @ series) < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(p < 0.5, high, 1 - high)


def predict_x_0(
    prediction: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction_type: str
) -> Tensor:
    """Return x_0 from a prediction made at `x = alpha * x_0 + sigma * eps`, for any alpha^2 + sigma^2.

    The network's input is `x / scale` with `scale = sqrt(alpha^2 + sigma^2)`; its velocity is
    `(alpha * eps - sigma * x_0) / scale`, so that `x_0 = (alpha * x - sigma * scale * v) / scale^2`
    (Appendix D, arXiv:2202.00512, for scale 1).
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        power = alpha**2 + sigma**2
        return x * (alpha / power) - prediction * (sigma / power**0.5)
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {prediction_type!r}")


def rescale_zero_terminal_snr(betas: Tensor) -> tuple[Tensor, Tensor]:
    """Return betas and alphas_cumprod, shifted and scaled to zero signal at the end (Algorithm 1, arXiv:2305.08891)."""
    alpha = torch.cumprod(1.0 - betas, dim=0).sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    alphas_cumprod = alpha**2
    previous = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
    return 1.0 - alphas_cumprod / previous, alphas_cumprod


def _betas(config: SchedulerConfig, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the variances of the forward process's steps (Section 2, arXiv:2006.11239)."""
    n, low, high = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=dtype)
    if config.beta_schedule == "linear":
        return torch.linspace(low, high, n, dtype=dtype)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, n, dtype=dtype) ** 2
    if config.beta_schedule == "squaredcos_cap_v2":  # Eq. 17, arXiv:2102.09672
        time = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        alphas_cumprod = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999).to(dtype)
    raise ValueError(f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, got {config.beta_schedule!r}")
