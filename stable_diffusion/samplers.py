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

import dataclasses
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .ddpm import Posterior
from .request import steps_for_strength
from .schedule import CLEAN, Level, NoiseSchedule, Transition, karras_sigmas

Steps = Sequence[Transition]
Noise = Callable[[], Tensor]
Sampling = Generator[tuple[Tensor, Level], Tensor, Tensor]
"""Yields latents and their level, is sent x_0, returns the final latents."""


def ddpm(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """Ancestral sampling: draw from the posterior at each step (Algorithm 2, arXiv:2006.11239)."""
    for here, there in steps:
        x_0 = yield x, here
        posterior = Posterior.between(here.alpha**2, there.alpha**2)
        x = posterior.sample(x_0, x, noise()) if here.timestep > 0 else posterior.mean(x_0, x)
    return x


def ddim(x: Tensor, steps: Steps, noise: Noise, eta: float = 0.0) -> Sampling:
    """Denoising diffusion implicit models (Eq. 12, arXiv:2010.02502); eta 0 is deterministic, eta 1 is ancestral."""
    for here, there in steps:
        x_0 = yield x, here
        eps = (x - here.alpha * x_0) / here.sigma
        std = eta * math.sqrt(Posterior.between(here.alpha**2, there.alpha**2).variance)  # Eq. 16
        x = there.alpha * x_0 + math.sqrt(max(0.0, there.sigma**2 - std**2)) * eps
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


def heun(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """Heun's second-order steps: average the slopes at both ends (Algorithm 1, arXiv:2206.00364)."""
    for here, there in steps:
        x_0 = yield x, here
        x = _euler_step(x, x_0, here, there)
        if there.sigma > 0:
            x_0_there = yield x, there
            # Euler's step keeps the slope (x - x_0) / sigma, so that the slopes differ by (x_0 - x_0_there) / sigma.
            x = x + (x_0_there - x_0) * ((here.sigma / there.sigma - 1) / 2)
    return x


def dpmpp_2m(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """DPM-Solver++(2M), a multistep solver in half log-SNR (Algorithm 2, arXiv:2211.01095)."""
    past = None
    for here, there in steps:
        x_0 = yield x, here
        x = _exponential_step(x, here, there, _extrapolate(x_0, here, there, past))
        past = here, x_0
    return x


def dpmpp_2m_sde(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """SDE-DPM-Solver++(2M), its stochastic form (Eq. 19 with Algorithm 2, arXiv:2211.01095)."""
    past = None
    for here, there in steps:
        x_0 = yield x, here
        decay = there.noise_to_signal / here.noise_to_signal  # e^-h, h the step in half log-SNR
        estimate = _extrapolate(x_0, here, there, past)
        drift = there.sigma / here.sigma * decay * x + there.alpha * (1 - decay**2) * estimate
        x = drift + there.sigma * math.sqrt(1 - decay**2) * noise()
        past = here, x_0
    return x


def unipc(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """UniPC-2 with B_2(h): each evaluation also corrects the step that led to it (Algorithm 1, arXiv:2302.04867)."""
    past = older = origin = None
    for here, there in steps:
        x_0 = yield x, here
        if past is not None:
            x = _exponential_step(origin, past[0], here, _correct(x_0, here, past, older))
        origin, older = x, past
        x = _exponential_step(x, here, there, _extrapolate(x_0, here, there, past))
        past = here, x_0
    return x


def lcm(x: Tensor, steps: Steps, noise: Noise) -> Sampling:
    """Latent consistency sampling: jump to the clean image, add fresh noise, repeat (Algorithm 3, arXiv:2310.04378)."""
    sigma_data, timestep_scaling = 0.5, 10.0
    for here, there in steps:
        x_0 = yield x, here
        t = here.timestep * timestep_scaling
        skip, out = sigma_data**2 / (t**2 + sigma_data**2), t / math.hypot(t, sigma_data)
        x = skip * x + out * x_0
        if there.sigma > 0:
            x = there.alpha * x + there.sigma * noise()
    return x


Evaluation = tuple[Level, Tensor]
"""Where the network was asked, and the x_0 it gave."""


def _euler_step(x: Tensor, x_0: Tensor, here: Level, there: Level) -> Tensor:
    """x + (x - x_0) / sigma * (sigma_next - sigma), without its difference of numbers as large as sigma, up to 4096."""
    return x_0 + (x - x_0) * (there.sigma / here.sigma)


def _exponential_step(x: Tensor, here: Level, there: Level, x_0: Tensor) -> Tensor:
    """Solve the probability flow exactly from `here` to `there` for a constant x_0 (Eq. 8, arXiv:2211.01095)."""
    decay = there.noise_to_signal / here.noise_to_signal
    return there.sigma / here.sigma * x + there.alpha * (1 - decay) * x_0


def _extrapolate(x_0: Tensor, here: Level, there: Level, past: Evaluation | None) -> Tensor:
    """x_0 half-way to `there`, on the line through the last two evaluations (Eq. 13-14, arXiv:2211.01095).

    First order, that is x_0 itself, with no past and on the step to the clean image, where h is infinite.
    """
    if past is None or there.sigma == 0:
        return x_0
    level, past_x_0 = past
    r = (here.half_log_snr - level.half_log_snr) / (there.half_log_snr - here.half_log_snr)
    return x_0 + (x_0 - past_x_0) / (2 * r)


def _correct(x_0: Tensor, here: Level, past: Evaluation, older: Evaluation | None) -> Tensor:
    """The x_0 that, held constant over the step that led `here`, makes the step exact to one order more.

    UniC with B_2(h) (Eq. 9-10 and Appendix A of arXiv:2302.04867). Weighs the differences to the x_0 where the step
    began of the x_0 here and, at second order, of the x_0 before; the two weights solve a 2 x 2 system.
    """
    start, start_x_0 = past
    if older is None:
        return start_x_0 + (x_0 - start_x_0) / 2
    level, older_x_0 = older
    h = here.half_log_snr - start.half_log_snr
    r = (level.half_log_snr - start.half_log_snr) / h
    b_h = math.expm1(-h)
    phi_2 = b_h / -h - 1
    phi_3 = phi_2 / -h - 0.5
    older_weight = (phi_2 - 2 * phi_3) / b_h / (1 - r)
    weight = phi_2 / b_h - older_weight
    return start_x_0 + older_weight / r * (older_x_0 - start_x_0) + weight * (x_0 - start_x_0)


# Which levels a run visits. diffusers' classes differ in this as much as in their algorithms, and so do ours.


def _ddpm_steps(schedule: NoiseSchedule, n: int) -> list[Transition]:
    """Trained timesteps, each step leading to the next of the grid and the last to the clean image."""
    timesteps = schedule.timesteps(n, schedule.spacing("leading")).round()
    return _consecutive([schedule.level(int(t)) for t in timesteps])


def _ddim_steps(schedule: NoiseSchedule, n: int) -> list[Transition]:
    """Trained timesteps, each step leading T // n below; the last to timestep 0 or, set_alpha_to_one, the clean image.

    T // n below is the next timestep of leading grids only. In others diffusers' class is a little off; so are we.
    """
    end = CLEAN if schedule.config.set_alpha_to_one else schedule.level(0)
    stride = schedule.num_train_timesteps // n
    timesteps = [int(t) for t in schedule.timesteps(n, schedule.spacing("leading")).round()]
    return [(schedule.level(t), schedule.level(t - stride) if t >= stride else end) for t in timesteps]


def _sigma_steps(schedule: NoiseSchedule, n: int) -> list[Transition]:
    """Levels with alpha 1; timesteps may be fractional. Karras' sigmas span those of the grid."""
    timesteps = schedule.timesteps(n, schedule.spacing("linspace"))
    sigmas = schedule.sigma_at(timesteps)
    if schedule.config.use_karras_sigmas:
        sigmas = karras_sigmas(sigmas[-1], sigmas[0], n)
        timesteps = schedule.timestep_at(sigmas)
    return _consecutive([Level(1.0, float(sigma), float(t)) for sigma, t in zip(sigmas, timesteps, strict=True)])


def _euler_a_steps(schedule: NoiseSchedule, n: int) -> list[Transition]:
    """As `_sigma_steps`, but diffusers' ancestral sampler knows no Karras sigmas."""
    return _sigma_steps(_with(schedule, use_karras_sigmas=False), n)


def _heun_steps(schedule: NoiseSchedule, n: int) -> list[Transition]:
    """As `_sigma_steps`, but diffusers' Heun leaves the betas as they are, whatever their terminal SNR."""
    return _sigma_steps(_with(schedule, rescale_betas_zero_snr=False), n)


def _multistep_steps(schedule: NoiseSchedule, n: int) -> list[Transition]:
    """Trained timesteps above a spare last one. Karras' sigmas span all the trained ones."""
    timesteps = schedule.timesteps(n, schedule.spacing("linspace"), spare=1).round()
    sigmas = schedule.sigma_at(timesteps)
    if schedule.config.use_karras_sigmas:
        sigmas = karras_sigmas(schedule.sigmas[0].item(), schedule.sigmas[-1].item(), n)
        timesteps = schedule.timestep_at(sigmas).round()
    alphas = 1 / np.hypot(sigmas, 1)
    return _consecutive([Level(*map(float, level)) for level in zip(alphas, sigmas * alphas, timesteps, strict=True)])


def _lcm_steps(schedule: NoiseSchedule, n: int, trained_steps: int = 50) -> list[Transition]:
    """n of the 50 timesteps at which latent consistency models are distilled, the last leading to the clean image."""
    if not 1 <= n <= trained_steps:
        raise ValueError(f"num_inference_steps must be in [1, {trained_steps}] for lcm, got {n}")
    trained = np.arange(trained_steps, 0, -1) * (schedule.num_train_timesteps // trained_steps) - 1
    chosen = np.floor(np.linspace(0, trained_steps, n, endpoint=False)).astype(int)
    return _consecutive([schedule.level(int(t)) for t in trained[chosen]])


def _consecutive(levels: list[Level]) -> list[Transition]:
    return list(zip(levels, [*levels[1:], CLEAN], strict=True))


def _with(schedule: NoiseSchedule, **changes: bool) -> NoiseSchedule:
    return NoiseSchedule(dataclasses.replace(schedule.config, **changes))


@dataclass(frozen=True)
class Sampler:
    """A sampler by name: its algorithm, the steps it takes, and the diffusers class that gives the same picture."""

    name: str
    function: Callable[[Tensor, Steps, Noise], Sampling]
    steps: Callable[[NoiseSchedule, int], list[Transition]]
    scheduler: str
    draws_noise: bool = False
    evaluations_per_step: int = 1
    """Network evaluations a step takes; the last one always takes one."""


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddpm", ddpm, _ddpm_steps, "DDPMScheduler", draws_noise=True),
        Sampler("ddim", ddim, _ddim_steps, "DDIMScheduler"),
        Sampler("euler", euler, _sigma_steps, "EulerDiscreteScheduler"),
        Sampler("euler_a", euler_a, _euler_a_steps, "EulerAncestralDiscreteScheduler", draws_noise=True),
        Sampler("heun", heun, _heun_steps, "HeunDiscreteScheduler", evaluations_per_step=2),
        Sampler("dpmpp_2m", dpmpp_2m, _multistep_steps, "DPMSolverMultistepScheduler"),
        Sampler(
            "dpmpp_2m_sde",
            dpmpp_2m_sde,
            _multistep_steps,
            "DPMSolverMultistepScheduler",  # with algorithm_type="sde-dpmsolver++"
            draws_noise=True,
        ),
        Sampler("unipc", unipc, _multistep_steps, "UniPCMultistepScheduler"),
        Sampler("lcm", lcm, _lcm_steps, "LCMScheduler", draws_noise=True),
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
        return self.sampler.function(x, self.steps, noise)


def plan(sampler: str, schedule: NoiseSchedule, num_inference_steps: int, strength: float | None = None) -> Plan:
    """Lay out a run: which levels it visits and what it starts from.

    strength: for image-to-image, in (0, 1]; the run takes the last int(n * strength) steps, at least one.
    Raises ValueError for an unknown sampler, and for a number of steps that the schedule does not have.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    chosen = SAMPLERS[sampler]
    steps = chosen.steps(schedule, num_inference_steps)
    first, _ = steps[0]
    # Latents of the Euler family start as noise of variance sigma^2, the limit of sigma^2 + 1, where a grid reaches the
    # last trained timestep; leading grids stop short of it.
    reaches_end = schedule.spacing("linspace") != "leading"
    start_scale = first.sigma if first.alpha == 1 and reaches_end else first.scale
    if strength is not None:
        steps = steps[-steps_for_strength(num_inference_steps, strength) :]
    return Plan(chosen, tuple(steps), num_inference_steps, strength, start_scale)
