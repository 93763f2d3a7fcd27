"""The samplers: how a run gets from noise to a picture, given what the network makes of each latent on the way.

A sampler is a generator and does no I/O. It yields the latents that it wants evaluated with their noise level, and is
sent the network's estimate of x_0 there; it returns the final latents:

    run = plan("euler", schedule, num_inference_steps=30)
    sampler = run.run(run.start(noise()), noise)
    x, level = next(sampler)
    while True:
        x_0 = ...  # predict_x_0(network(x / level.scale, level.timestep), x, level.alpha, level.sigma, prediction_type)
        try:
            x, level = sampler.send(x_0)
        except StopIteration as stop:
            return stop.value

Latents are `x = alpha * x_0 + sigma * eps`, with the alpha and sigma of the level that comes along. The Euler family
keeps alpha at 1, as its paper does; the others keep alpha^2 + sigma^2 at 1. No sampler changes a tensor in place, and
each asks `noise` for standard normal draws of x's shape in the order in which diffusers draws them, so that a seed
gives diffusers' picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from . import levels
from .ddpm import Posterior
from .levels import Settings
from .loading.scheduler_settings import clip_bound, settings_for
from .request import check_schedule, steps_for_strength
from .schedule import Level, NoiseSchedule, Transition

Steps = Sequence[Transition]
Noise = Callable[[], Tensor]
Sampling = Generator[tuple[Tensor, Level], Tensor, Tensor]
"""Yields latents and their level, is sent x_0, returns the final latents."""


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
        x = _euler_step(x, x_0, here, there)
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
        x = _euler_step(x, x_0, here, there)
        if there.sigma > 0:
            x_0_there = (yield x, there).clamp(-clip, clip)
            # Euler's step keeps the slope (x - x_0) / sigma, so that the slopes differ by (x_0 - x_0_there) / sigma.
            x = x + (x_0_there - x_0) * ((here.sigma / there.sigma - 1) / 2)
    return x


def dpmpp_2m(x: Tensor, steps: Steps, noise: Noise, order: int = 2, ending: int = 0, curved: bool = False) -> Sampling:
    """DPM-Solver++(2M), a multistep solver in half log-SNR (Algorithm 2, arXiv:2211.01095)."""
    past: History = []
    for (here, there), reached in zip(steps, _orders(steps, order, ending), strict=True):
        x_0 = yield x, here
        past = [(here, x_0), *past[: order - 1]]
        x = _exponential_step(x, here, there, _extrapolate(past[:reached], there, curved))
    return x


def dpmpp_2m_sde(
    x: Tensor, steps: Steps, noise: Noise, order: int = 2, ending: int = 0, curved: bool = False
) -> Sampling:
    """SDE-DPM-Solver++(2M), its stochastic form (Eq. 19 with Algorithm 2, arXiv:2211.01095)."""
    past: History = []
    for (here, there), reached in zip(steps, _orders(steps, order, ending), strict=True):
        x_0 = yield x, here
        past = [(here, x_0), *past[: order - 1]]
        decay = there.noise_to_signal / here.noise_to_signal  # e^-h, h the step in half log-SNR
        estimate = _extrapolate(past[:reached], there, curved, speed=2)
        drift = there.sigma / here.sigma * decay * x + there.alpha * (1 - decay**2) * estimate
        x = drift + there.sigma * math.sqrt(1 - decay**2) * noise()
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


History = list[tuple[Level, Tensor]]
"""Where the network was asked, and the x_0 it gave; newest first."""


def _euler_step(x: Tensor, x_0: Tensor, here: Level, there: Level) -> Tensor:
    """x + (x - x_0) / sigma * (sigma_next - sigma), without its difference of numbers as large as sigma, up to 4096."""
    return x_0 + (x - x_0) * (there.sigma / here.sigma)


def _exponential_step(x: Tensor, here: Level, there: Level, x_0: Tensor) -> Tensor:
    """Solve the probability flow exactly from `here` to `there` for a constant x_0 (Eq. 8, arXiv:2211.01095)."""
    decay = there.noise_to_signal / here.noise_to_signal
    return there.sigma / here.sigma * x + there.alpha * (1 - decay) * x_0


def _orders(steps: Steps, order: int, ending: int) -> list[int]:
    """Of which order each step of a multistep solver is: `order`, once there are as many evaluations.

    Over the last `ending` steps it falls to one, and it is one on the step to the clean image, where h is infinite.
    """
    orders = [min(order, evaluations) for evaluations in range(1, len(steps) + 1)]
    for left in range(1, min(ending, len(steps)) + 1):
        orders[-left] = min(orders[-left], left)
    return [1 if there.sigma == 0 else reached for (_, there), reached in zip(steps, orders, strict=True)]


def _extrapolate(past: History, there: Level, curved: bool, speed: float = 1) -> Tensor:
    """The x_0 that, held constant over the step to `there`, stands for the line through the newest evaluations.

    Half-way to `there` on it, or curved: its mean by the weights of the step (Eq. 13-14, arXiv:2211.01095). A third
    evaluation bends it, by half of what a parabola would, as in diffusers.
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
    """The x_0 that, held constant over the step to `there`, makes it exact to the order of len(past).

    UniP and, with the x_0 found there, UniC, to one order more (Eq. 5-10 and Appendix A of arXiv:2302.04867): the
    weights of the differences to the newest x_0 solve a small linear system. A single one weighs 1/2.
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


Options = dict[str, Any]
"""Keyword arguments of a sampler, from its settings and the number of steps of a whole run."""


def _clip(settings: Settings, n: int) -> Options:
    return {"clip": clip_bound(settings)}


def _ddpm_options(settings: Settings, n: int) -> Options:
    return {"clip": clip_bound(settings), "large": settings["variance_type"] == "fixed_large"}


def _dpm_options(settings: Settings, n: int) -> Options:
    """Short runs end in lower orders; so does, by one step, whatever is told to."""
    ending = 2 if settings["lower_order_final"] and n < 15 else int(settings["euler_at_final"])
    return {"order": settings["solver_order"], "ending": ending, "curved": settings["solver_type"] == "heun"}


def _unipc_options(settings: Settings, n: int) -> Options:
    return {"order": settings["solver_order"], "ending": settings["solver_order"]}


def _lcm_options(settings: Settings, n: int) -> Options:
    return {"clip": clip_bound(settings), "timestep_scaling": settings["timestep_scaling"]}


@dataclass(frozen=True)
class Sampler:
    """A sampler by name: its algorithm, the steps it takes, and the diffusers class that gives the same picture."""

    name: str
    function: Callable[..., Sampling]
    steps: Callable[[NoiseSchedule, int, Settings], list[Transition]]
    scheduler: str
    options: Callable[[Settings, int], Options] = lambda settings, n: {}
    draws_noise: bool = False
    evaluations_per_step: int = 1
    """Network evaluations a step takes; the last one always takes one."""


DPM_SOLVER = "DPMSolverMultistepScheduler"  # with algorithm_type="sde-dpmsolver++" for the stochastic form

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddpm", ddpm, levels.ddpm_steps, "DDPMScheduler", _ddpm_options, draws_noise=True),
        Sampler("ddim", ddim, levels.ddim_steps, "DDIMScheduler", _clip),
        Sampler("euler", euler, levels.sigma_steps, "EulerDiscreteScheduler"),
        Sampler("euler_a", euler_a, levels.sigma_steps, "EulerAncestralDiscreteScheduler", draws_noise=True),
        Sampler("heun", heun, levels.heun_steps, "HeunDiscreteScheduler", _clip, evaluations_per_step=2),
        Sampler("dpmpp_2m", dpmpp_2m, levels.dpm_steps, DPM_SOLVER, _dpm_options),
        Sampler("dpmpp_2m_sde", dpmpp_2m_sde, levels.dpm_steps, DPM_SOLVER, _dpm_options, draws_noise=True),
        Sampler("unipc", unipc, levels.multistep_steps, "UniPCMultistepScheduler", _unipc_options),
        Sampler("lcm", lcm, levels.lcm_steps, "LCMScheduler", _lcm_options, draws_noise=True),
    )
}


@dataclass(frozen=True)
class Plan:
    """What one run does: the sampler and the steps it takes, of the `num_inference_steps` of a whole run."""

    sampler: Sampler
    steps: tuple[Transition, ...]
    num_inference_steps: int
    strength: float | None
    start_scale: float
    """The standard deviation of the noise that a text-to-image run starts from."""
    options: Options

    @property
    def evaluations(self) -> int:
        """How often the sampler will ask for x_0."""
        return self.sampler.evaluations_per_step * (len(self.steps) - 1) + 1

    def start(self, noise: Tensor, x_0: Tensor | None = None) -> Tensor:
        """The latents that the run starts from: scaled noise, or for image-to-image x_0 with noise (Eq. 4 of DDPM)."""
        if x_0 is not None:
            level, _ = self.steps[0]
            return level.alpha * x_0 + level.sigma * noise
        if self.strength is not None:
            raise ValueError(f"x_0 must be given for strength {self.strength}: pass the image's latents or no strength")
        return noise * self.start_scale

    def run(self, x: Tensor, noise: Noise) -> Sampling:
        """The sampler at its start, latents x from `start`; `noise` draws standard normal tensors of x's shape."""
        return self.sampler.function(x, self.steps, noise, **self.options)


def plan(
    sampler: str,
    noise_schedule: NoiseSchedule,
    num_inference_steps: int,
    strength: float | None = None,
    schedule: str = "model",
) -> Plan:
    """Lay out a run: which levels it visits and what it starts from.

    strength: for image-to-image, in (0, 1]; the run takes the last int(n * strength) steps, at least one.
    schedule: how the levels are spaced (`SCHEDULE_LABELS`); model: as its configuration says.
    Raises ValueError for an unknown sampler, a schedule that it does not have and a number of steps that the noise
    schedule does not have, and `ConfigError` where the configuration asks for what the sampler does not do.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    check_schedule(sampler, schedule)
    chosen = SAMPLERS[sampler]
    settings = settings_for(sampler, noise_schedule.config)
    if schedule != "model":
        settings |= {name: name.split("_")[1] == schedule for name in levels.SPACED_SIGMAS if name in settings}
    steps = chosen.steps(noise_schedule, num_inference_steps, settings)
    options = chosen.options(settings, num_inference_steps)
    first, _ = steps[0]
    # Latents of the Euler family start as noise of variance sigma^2, the limit of sigma^2 + 1, where a grid reaches the
    # last trained timestep; leading grids stop short of it.
    reaches_end = noise_schedule.spacing("linspace") != "leading"
    start_scale = first.sigma if first.alpha == 1 and reaches_end else first.scale
    if strength is not None:
        steps = steps[-steps_for_strength(num_inference_steps, strength) :]
    return Plan(chosen, tuple(steps), num_inference_steps, strength, start_scale, options)
