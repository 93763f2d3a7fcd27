"""The samplers: how a run gets from noise to an image, given the network's x_0 at each step.

A sampler is a generator and does no I/O. It yields the latents to evaluate with their noise level, receives the
network's estimate of x_0 there, and returns the final latents:

    sampling = ddim(x, steps, noise)
    x, level = next(sampling)
    while True:
        x_0 = ...  # predict_x_0(network(x / level.scale, level.timestep), x, level.alpha, level.sigma, prediction_type)
        try:
            x, level = sampling.send(x_0)
        except StopIteration as stop:
            return stop.value

`steps` are pairs of noise levels, from `here` to `there`; `levels.plan` lays them out. Latents are
x = alpha * x_0 + sigma * eps with the level's alpha and sigma. The Euler family keeps alpha at 1, as its paper does;
the others keep alpha^2 + sigma^2 at 1. No sampler changes a tensor in place. Each calls `noise` for standard normal
draws of x's shape in the order in which diffusers draws them, so that a seed gives diffusers' image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

import numpy as np
from torch import Tensor

from .ddpm import Posterior
from .schedule import Level, Transition

Steps = Sequence[Transition]
Noise = Callable[[], Tensor]
Sampling = Generator[tuple[Tensor, Level], Tensor, Tensor]
"""Yields latents and their level, receives x_0, returns the final latents."""


def ddpm(x: Tensor, steps: Steps, noise: Noise, clip: float = math.inf, large: bool = False) -> Sampling:
    """Ancestral sampling: draw from the posterior at each step (Algorithm 2, arXiv:2006.11239)."""
    for here, there in steps:
        x_0 = (yield x, here).clamp(-clip, clip)
        posterior = Posterior.between(here.alpha**2, there.alpha**2, large=large)
        x = posterior.sample(x_0, x, noise()) if here.timestep > 0 else posterior.mean(x_0, x)
    return x


def ddim(x: Tensor, steps: Steps, noise: Noise, eta: float = 0.0, clip: float = math.inf) -> Sampling:
    """Denoising diffusion implicit models (Eq. 12, arXiv:2010.02502); eta 0 is deterministic, eta 1 is ancestral."""
    for here, there in steps:
        x_0 = yield x, here
        eps = (x - here.alpha * x_0) / here.sigma
        std = eta * math.sqrt(Posterior.between(here.alpha**2, there.alpha**2).variance)  # Eq. 16
        x = there.alpha * x_0.clamp(-clip, clip) + math.sqrt(max(0.0, there.sigma**2 - std**2)) * eps
        if eta > 0:
            x = x + std * noise()
    return x


def euler(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """Euler steps along the probability flow (Algorithm 2 without churn or correction, arXiv:2206.00364)."""
    for here, there in steps:
        x_0 = yield x, here
        # x + (x - x_0) / sigma * (sigma_next - sigma), without the cancellation between sigmas as large as 4096.
        x = x_0 + (x - x_0) * (there.sigma / here.sigma)
    return x


def euler_a(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """Euler ancestral: step below the next sigma, then add noise up to it (Eq. 6-7 of arXiv:2006.11239 for alpha 1)."""
    for here, there in steps:
        x_0 = yield x, here
        shrink = there.sigma / here.sigma
        # Down to sigma_down = there.sigma * shrink; sigma_up^2 = there.sigma^2 - sigma_down^2.
        x = x_0 + (x - x_0) * shrink**2 + there.sigma * math.sqrt(1 - shrink**2) * noise()
    return x


def heun(x: Tensor, steps: Steps, noise: Noise, clip: float = math.inf) -> Sampling:
    """Heun's second-order steps: average the slopes at both ends (Algorithm 1, arXiv:2206.00364)."""
    for here, there in steps:
        x_0 = (yield x, here).clamp(-clip, clip)
        x = x_0 + (x - x_0) * (there.sigma / here.sigma)
        if there.sigma > 0:
            x_0_there = (yield x, there).clamp(-clip, clip)
            # Euler's step keeps the slope (x - x_0) / sigma, so that the slopes differ by (x_0 - x_0_there) / sigma.
            x = x + (x_0_there - x_0) * ((here.sigma / there.sigma - 1) / 2)
    return x


def dpmpp_2m(x: Tensor, steps: Steps, noise: Noise, euler_last: bool = False) -> Sampling:
    """DPM-Solver++(2M), a multistep solver in lambda = log(alpha / sigma) (Algorithm 2, arXiv:2211.01095).

    euler_last: take the last step in first order.
    """
    last = None
    for i, (here, there) in enumerate(steps, start=1):
        x_0 = yield x, here
        h = there.half_log_snr - here.half_log_snr  # lambda_t - lambda_s
        phi = 1 - there.noise_to_signal / here.noise_to_signal  # 1 - e^-h
        D = x_0
        if last is not None and h not in (0, math.inf) and not (euler_last and i == len(steps)):
            before, x_0_before = last
            r = h / (here.half_log_snr - before.half_log_snr)  # 1 / r_i of the paper
            D = x_0 + (x_0 - x_0_before) * r / 2
        x = there.sigma / here.sigma * x + there.alpha * phi * D
        last = here, x_0
    return x


def dpmpp_2m_sde(x: Tensor, steps: Steps, noise: Noise, euler_last: bool = False) -> Sampling:
    """SDE-DPM-Solver++(2M), the stochastic form of `dpmpp_2m` (Eq. 19 with Algorithm 2, arXiv:2211.01095)."""
    last = None
    for i, (here, there) in enumerate(steps, start=1):
        x_0 = yield x, here
        h = there.half_log_snr - here.half_log_snr
        decay = there.noise_to_signal / here.noise_to_signal  # e^-h
        D = x_0
        if last is not None and h not in (0, math.inf) and not (euler_last and i == len(steps)):
            before, x_0_before = last
            r = h / (here.half_log_snr - before.half_log_snr)
            D = x_0 + (x_0 - x_0_before) * r / 2
        x = there.sigma / here.sigma * decay * x + there.alpha * (1 - decay**2) * D
        x = x + there.sigma * math.sqrt(1 - decay**2) * noise()
        last = here, x_0
    return x


def lcm(x: Tensor, steps: Steps, noise: Noise, clip: float = math.inf, timestep_scaling: float = 10.0) -> Sampling:
    """Latent consistency sampling: jump to the clean image, add fresh noise, repeat (Algorithm 3, arXiv:2310.04378)."""
    sigma_data = 0.5
    for here, there in steps:
        x_0 = (yield x, here).clamp(-clip, clip)
        t = here.timestep * timestep_scaling
        skip, out = sigma_data**2 / (t**2 + sigma_data**2), t / math.hypot(t, sigma_data)
        x = skip * x + out * x_0
        if there.sigma > 0:
            x = there.alpha * x + there.sigma * noise()
    return x


def unipc(x: Tensor, steps: Steps, noise: Noise, order: int = 2, ending: int = 0) -> Sampling:
    """UniPC with B_2(h): each evaluation also corrects the step that led to it (Algorithm 1, arXiv:2302.04867)."""
    past: History = []
    origin, last = x, 0
    for (here, there), reached in zip(steps, _orders(steps, order, ending), strict=True):
        x_0 = yield x, here
        if past:
            x = _exponential_step(origin, past[0][0], here, _unify(past[:last], here, x_0))
        past = [(here, x_0), *past[: order - 1]]
        origin, last = x, reached
        x = _exponential_step(x, here, there, _unify(past[:reached], there))
    return x


# Variants that only the scheduler files of other programs ask for: other orders and solver types.

History = list[tuple[Level, Tensor]]
"""Levels at which the network was evaluated, with its x_0 there; newest first."""


def dpmpp_multistep(
    x: Tensor,
    steps: Steps,
    noise: Noise,
    order: int = 2,
    ending: int = 0,
    curved: bool = False,
    stochastic: bool = False,
) -> Sampling:
    """DPM-Solver++ of orders 1 to 3, and with the weights of the solver type heun (arXiv:2211.01095).

    ending: number of last steps over which the order falls to one. curved: weigh the evaluations by the step's own
    weights (Eq. 13-14) and not at its midpoint. stochastic: solve the SDE, as `dpmpp_2m_sde` does.
    """
    past: History = []
    for (here, there), reached in zip(steps, _orders(steps, order, ending), strict=True):
        x_0 = yield x, here
        past = [(here, x_0), *past[: order - 1]]
        D = _extrapolate(past[:reached], there, curved, speed=2 if stochastic else 1)
        if not stochastic:
            x = _exponential_step(x, here, there, D)
            continue
        decay = there.noise_to_signal / here.noise_to_signal  # e^-h
        x = there.sigma / here.sigma * decay * x + there.alpha * (1 - decay**2) * D
        x = x + there.sigma * math.sqrt(1 - decay**2) * noise()
    return x


def _exponential_step(x: Tensor, here: Level, there: Level, x_0: Tensor) -> Tensor:
    """Solve the probability flow exactly from `here` to `there` for a constant x_0 (Eq. 8, arXiv:2211.01095)."""
    decay = there.noise_to_signal / here.noise_to_signal  # e^-h
    return there.sigma / here.sigma * x + there.alpha * (1 - decay) * x_0


def _orders(steps: Steps, order: int, ending: int) -> list[int]:
    """Return the order of each step of a multistep solver: `order`, once there are as many evaluations.

    Over the last `ending` steps it falls to one. It is one on the step to the clean image, where h is infinite.
    """
    orders = [min(order, evaluations) for evaluations in range(1, len(steps) + 1)]
    for left in range(1, min(ending, len(steps)) + 1):
        orders[-left] = min(orders[-left], left)
    return [1 if there.sigma == 0 else reached for (_, there), reached in zip(steps, orders, strict=True)]


def _extrapolate(past: History, there: Level, curved: bool, speed: float = 1) -> Tensor:
    """Return the constant x_0 that replaces the line through the newest evaluations over the step to `there`.

    It is the line's value at the midpoint or, curved, its mean by the weights of the step (Eq. 13-14,
    arXiv:2211.01095). A third evaluation bends the line, half as much as a parabola, as in diffusers.
    speed: 2 for the stochastic solver, whose weights decay as e^-2h.
    """
    (here, x_0), *before = past
    h = there.half_log_snr - here.half_log_snr
    if not before or h == 0:
        return x_0
    times, values = zip(*((level.half_log_snr, value) for level, value in past), strict=True)
    first = (values[0] - values[1]) * (h / (times[0] - times[1]))
    if len(past) == 2 and not curved:
        return x_0 + first / 2
    reach = -math.expm1(-speed * h)
    mean = 1 / reach - 1 / (speed * h)
    if len(past) == 2:
        return x_0 + mean * first
    bend = (first - (values[1] - values[2]) * (h / (times[1] - times[2]))) / (times[0] - times[2])
    first = first + (times[0] - times[1]) * bend
    return x_0 + mean * first + (0.5 - (h - reach) / h**2) / reach * h * bend


def _unify(past: History, there: Level, x_0_there: Tensor | None = None) -> Tensor:
    """Return the constant x_0 that makes the step to `there` exact to the order of len(past).

    UniP and, with the x_0 found there, UniC, to one order more (Eq. 5-10 and Appendix A of arXiv:2302.04867): the
    weights of the differences to the newest x_0 solve a small linear system. A single difference has weight 1/2.
    """
    (start, start_x_0), *before = past
    if not before and x_0_there is None:
        return start_x_0
    h = there.half_log_snr - start.half_log_snr
    ratios = [(level.half_log_snr - start.half_log_snr) / h for level, _ in before]
    values = [value for _, value in before]
    if x_0_there is not None:
        ratios, values = [*ratios, 1.0], [*values, x_0_there]
    phi = b_h = math.expm1(-h)
    sides = []
    for k in range(1, len(ratios) + 1):
        phi = phi / -h - 1 / math.factorial(k)
        sides.append(phi * math.factorial(k) / b_h)
    weights = np.linalg.solve(np.vander(ratios, increasing=True).T, sides) if len(ratios) > 1 else [0.5]
    terms = zip(weights, ratios, values, strict=True)
    return start_x_0 + sum(float(weight / ratio) * (value - start_x_0) for weight, ratio, value in terms)
