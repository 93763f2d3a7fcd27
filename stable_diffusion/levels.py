"""The noise levels that a run visits, and the plan of a run.

diffusers' classes differ in their grids as much as in their algorithms. Each function `..._steps` lays out n steps over
a noise schedule as the class of that sampler does, by the settings of `scheduler_settings.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from . import samplers
from .loading.config import ConfigError
from .loading.scheduler_settings import clip_bound, settings_for
from .request import RequestError, check_schedule, steps_for_strength
from .samplers import Noise, Sampling, Steps
from .schedule import CLEAN, Level, NoiseSchedule, Spacing, Transition, beta_sigmas, exponential_sigmas, karras_sigmas

Settings = Mapping[str, Any]

SPACED_SIGMAS: dict[str, Spacing] = {
    "use_karras_sigmas": karras_sigmas,
    "use_lu_lambdas": exponential_sigmas,  # even in log-SNR, which is the same
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
}
"""Spacings of sigmas in place of timesteps, by their setting; the first one that is on counts, as in diffusers."""


def ddpm_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Lay out trained timesteps; each step leads to the next of the grid, the last one to the clean image."""
    timesteps = schedule.timesteps(n, schedule.spacing("leading")).round()
    return _consecutive([schedule.level(int(t)) for t in timesteps])


def ddim_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Lay out trained timesteps; each step leads T // n below, the last one to timestep 0 or the clean image.

    set_alpha_to_one chooses the clean image. Only on a leading grid is T // n below the next timestep; on other grids
    this function repeats the small error of diffusers' class.
    """
    end = CLEAN if schedule.config.set_alpha_to_one else schedule.level(0)
    stride = schedule.num_train_timesteps // n
    timesteps = [int(t) for t in schedule.timesteps(n, schedule.spacing("leading")).round()]
    return [(schedule.level(t), schedule.level(t - stride) if t >= stride else end) for t in timesteps]


def sigma_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Lay out levels with alpha 1; timesteps may be fractional. Spaced sigmas span the sigmas of the grid."""
    timesteps = schedule.timesteps(n, schedule.spacing("linspace"))
    sigmas = schedule.sigma_at(timesteps)
    spaced = _spaced(settings)
    if spaced is not None:
        sigmas = SPACED_SIGMAS[spaced](sigmas[-1], sigmas[0], n)
        timesteps = schedule.timestep_at(sigmas)
    levels = [Level(1.0, float(sigma), float(t)) for sigma, t in zip(sigmas, timesteps, strict=True)]
    ends_noisy = settings.get("final_sigmas_type") == "sigma_min"
    return _consecutive(levels, Level(1.0, schedule.sigmas[0].item(), 0.0) if ends_noisy else CLEAN)


def heun_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Lay out as `sigma_steps` does, but with the betas as they are, as diffusers' Heun does."""
    config = dataclasses.replace(schedule.config, rescale_betas_zero_snr=False)
    return sigma_steps(NoiseSchedule(config), n, settings)


def dpm_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Lay out as `multistep_steps` does, but truncate all timesteps of a cosine schedule, as diffusers does."""
    cosine = schedule.config.beta_schedule == "squaredcos_cap_v2"
    return multistep_steps(schedule, n, settings, rounded=() if cosine else ("use_karras_sigmas", "use_lu_lambdas"))


def multistep_steps(
    schedule: NoiseSchedule, n: int, settings: Settings, rounded: tuple[str, ...] = ("use_karras_sigmas",)
) -> list[Transition]:
    """Lay out trained timesteps above a spare last one. Spaced sigmas span all the trained ones.

    rounded: the spacings whose timesteps are rounded; the timesteps of the others are truncated.
    """
    timesteps = schedule.timesteps(n, schedule.spacing("linspace"), spare=1).round()
    sigmas = schedule.sigma_at(timesteps)
    spaced = _spaced(settings)
    if spaced is not None:
        sigmas, timesteps = schedule.spaced(SPACED_SIGMAS[spaced], n)
        timesteps = timesteps.round() if spaced in rounded else np.floor(timesteps)
    alphas = 1 / np.hypot(sigmas, 1)
    levels = [Level(*map(float, level)) for level in zip(alphas, sigmas * alphas, timesteps, strict=True)]
    if settings["final_sigmas_type"] == "zero":
        return _consecutive(levels)
    return _consecutive(levels, levels[-1] if spaced is not None else schedule.level(0))


def lcm_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Lay out n of the timesteps of a latent consistency model's distillation; the last leads to the clean image."""
    trained_steps, total = settings["original_inference_steps"], schedule.num_train_timesteps
    if trained_steps not in range(1, total + 1):
        raise ConfigError(f"sampler lcm: original_inference_steps must be in [1, {total}], got {trained_steps}")
    if not 1 <= n <= trained_steps:
        raise RequestError(
            f"num_inference_steps must be between 1 and {trained_steps} for lcm, got {n}: choose fewer steps"
        )
    trained = np.arange(trained_steps, 0, -1) * (total // trained_steps) - 1
    chosen = np.floor(np.linspace(0, trained_steps, n, endpoint=False)).astype(int)
    return _consecutive([schedule.level(int(t)) for t in trained[chosen]])


def _spaced(settings: Settings) -> str | None:
    return next((name for name in SPACED_SIGMAS if settings.get(name)), None)


def _consecutive(levels: list[Level], end: Level = CLEAN) -> list[Transition]:
    return list(zip(levels, [*levels[1:], end], strict=True))


Options = dict[str, Any]
"""Keyword arguments of a sampler, from its settings and the number of steps of a whole run."""


def _clip(settings: Settings, n: int) -> Options:
    return {"clip": clip_bound(settings)}


def _ddpm_options(settings: Settings, n: int) -> Options:
    return {"clip": clip_bound(settings), "large": settings["variance_type"] == "fixed_large"}


def _dpm_options(settings: Settings, n: int) -> Options:
    """Return the order and its ending.

    The second-order solver takes its last step in first order in runs of fewer than 15 steps, or if `euler_at_final` is
    set; the others lower their order step by step.
    """
    order, curved = settings["solver_order"], settings["solver_type"] == "heun"
    ending = 2 if settings["lower_order_final"] and n < 15 else int(settings["euler_at_final"])
    if order == 2 and not curved:
        return {"euler_last": ending > 0}
    return {"order": order, "ending": ending, "curved": curved}


def _unipc_options(settings: Settings, n: int) -> Options:
    return {"order": settings["solver_order"], "ending": settings["solver_order"]}


def _lcm_options(settings: Settings, n: int) -> Options:
    return {"clip": clip_bound(settings), "timestep_scaling": settings["timestep_scaling"]}


@dataclass(frozen=True)
class Sampler:
    """A sampler by name: its algorithm, the levels it visits, and the diffusers class that gives the same image."""

    name: str
    function: Callable[..., Sampling]
    steps: Callable[[NoiseSchedule, int, Settings], list[Transition]]
    scheduler: str
    options: Callable[[Settings, int], Options] = lambda settings, n: {}
    draws_noise: bool = False
    evaluations_per_step: int = 1
    """Network evaluations per step; the last step always takes one."""


def _dpmpp_2m(x: Tensor, steps: Steps, noise: Noise, **options: Any) -> Sampling:
    return (samplers.dpmpp_2m if "euler_last" in options else samplers.dpmpp_multistep)(x, steps, noise, **options)


def _dpmpp_2m_sde(x: Tensor, steps: Steps, noise: Noise, **options: Any) -> Sampling:
    if "euler_last" in options:
        return samplers.dpmpp_2m_sde(x, steps, noise, **options)
    return samplers.dpmpp_multistep(x, steps, noise, **options, stochastic=True)


DPM_SOLVER = "DPMSolverMultistepScheduler"  # with algorithm_type="sde-dpmsolver++" for the stochastic form

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddpm", samplers.ddpm, ddpm_steps, "DDPMScheduler", _ddpm_options, draws_noise=True),
        Sampler("ddim", samplers.ddim, ddim_steps, "DDIMScheduler", _clip),
        Sampler("euler", samplers.euler, sigma_steps, "EulerDiscreteScheduler"),
        Sampler("euler_a", samplers.euler_a, sigma_steps, "EulerAncestralDiscreteScheduler", draws_noise=True),
        Sampler("heun", samplers.heun, heun_steps, "HeunDiscreteScheduler", _clip, evaluations_per_step=2),
        Sampler("dpmpp_2m", _dpmpp_2m, dpm_steps, DPM_SOLVER, _dpm_options),
        Sampler("dpmpp_2m_sde", _dpmpp_2m_sde, dpm_steps, DPM_SOLVER, _dpm_options, draws_noise=True),
        Sampler("unipc", samplers.unipc, multistep_steps, "UniPCMultistepScheduler", _unipc_options),
        Sampler("lcm", samplers.lcm, lcm_steps, "LCMScheduler", _lcm_options, draws_noise=True),
    )
}


@dataclass(frozen=True)
class Plan:
    """The sampler of a run and its steps, out of the `num_inference_steps` of a whole run."""

    sampler: Sampler
    steps: tuple[Transition, ...]
    num_inference_steps: int
    strength: float | None
    start_scale: float
    """The standard deviation of the noise that a text-to-image run starts from."""
    options: Options

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that the run takes."""
        return self.sampler.evaluations_per_step * (len(self.steps) - 1) + 1

    def start(self, noise: Tensor, x_0: Tensor | None = None) -> Tensor:
        """Return the first latents: scaled noise, or for image-to-image x_0 with noise (Eq. 4, arXiv:2006.11239)."""
        if x_0 is not None:
            level, _ = self.steps[0]
            return level.alpha * x_0 + level.sigma * noise
        if self.strength is not None:
            raise ValueError(f"x_0 must be given for strength {self.strength}: pass the image's latents or no strength")
        return noise * self.start_scale

    def run(self, x: Tensor, noise: Noise) -> Sampling:
        """Return the sampler at its start, with latents x from `start`; `noise` draws standard normals of x's shape."""
        return self.sampler.function(x, self.steps, noise, **self.options)


def plan(
    sampler: str,
    noise_schedule: NoiseSchedule,
    num_inference_steps: int,
    strength: float | None = None,
    schedule: str = "model",
) -> Plan:
    """Lay out a run: the levels that it visits and the scale of its first noise.

    strength: for image-to-image, in (0, 1]; the run takes the last int(n * strength) steps, at least one.
    schedule: spacing of the levels (`SCHEDULE_LABELS`); "model": as the model's scheduler configuration says.
    Raises `RequestError` for an unknown sampler, a schedule that the sampler does not support and a number of steps
    that the noise schedule does not have, and `ConfigError` for settings that the sampler does not implement.
    """
    if sampler not in SAMPLERS:
        raise RequestError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    check_schedule(sampler, schedule)
    chosen = SAMPLERS[sampler]
    settings = settings_for(sampler, noise_schedule.config)
    if schedule != "model":
        settings |= {name: name.split("_")[1] == schedule for name in SPACED_SIGMAS if name in settings}
    steps = chosen.steps(noise_schedule, num_inference_steps, settings)
    options = chosen.options(settings, num_inference_steps)
    first, _ = steps[0]
    # Latents of the Euler family start as noise of variance sigma^2, the limit of sigma^2 + 1, on grids that reach the
    # last trained timestep; leading grids stop short of it.
    reaches_end = noise_schedule.spacing("linspace") != "leading"
    start_scale = first.sigma if first.alpha == 1 and reaches_end else first.scale
    if strength is not None:
        steps = steps[-steps_for_strength(num_inference_steps, strength) :]
    return Plan(chosen, tuple(steps), num_inference_steps, strength, start_scale, options)
