"""Which levels a run visits. diffusers' classes differ in this as much as in their algorithms, and so do ours.

Each function lays out n steps over a noise schedule, by the settings of its sampler (`scheduler_settings.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .loading.config import ConfigError
from .request import RequestError
from .schedule import CLEAN, Level, NoiseSchedule, Spacing, Transition, beta_sigmas, exponential_sigmas, karras_sigmas

Settings = Mapping[str, Any]

SPACED_SIGMAS: dict[str, Spacing] = {
    "use_karras_sigmas": karras_sigmas,
    "use_lu_lambdas": exponential_sigmas,  # even in log-SNR, which is the same
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
}
"""How sigmas can be spaced instead of the timesteps; the first setting that is on counts, as in diffusers."""


def ddpm_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Trained timesteps, each step leading to the next of the grid and the last to the clean image."""
    timesteps = schedule.timesteps(n, schedule.spacing("leading")).round()
    return _consecutive([schedule.level(int(t)) for t in timesteps])


def ddim_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Trained timesteps, each step leading T // n below; the last to timestep 0 or, set_alpha_to_one, the clean image.

    T // n below is the next timestep of leading grids only. In others diffusers' class is a little off; so are we.
    """
    end = CLEAN if schedule.config.set_alpha_to_one else schedule.level(0)
    stride = schedule.num_train_timesteps // n
    timesteps = [int(t) for t in schedule.timesteps(n, schedule.spacing("leading")).round()]
    return [(schedule.level(t), schedule.level(t - stride) if t >= stride else end) for t in timesteps]


def sigma_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """Levels with alpha 1; timesteps may be fractional. Spaced sigmas span those of the grid."""
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
    """As `sigma_steps`, but diffusers' Heun leaves the betas as they are, whatever their terminal SNR."""
    config = dataclasses.replace(schedule.config, rescale_betas_zero_snr=False)
    return sigma_steps(NoiseSchedule(config), n, settings)


def dpm_steps(schedule: NoiseSchedule, n: int, settings: Settings) -> list[Transition]:
    """As `multistep_steps`, but on a cosine schedule diffusers' DPM-Solver cuts the fractions of all timesteps."""
    cosine = schedule.config.beta_schedule == "squaredcos_cap_v2"
    return multistep_steps(schedule, n, settings, rounded=() if cosine else ("use_karras_sigmas", "use_lu_lambdas"))


def multistep_steps(
    schedule: NoiseSchedule, n: int, settings: Settings, rounded: tuple[str, ...] = ("use_karras_sigmas",)
) -> list[Transition]:
    """Trained timesteps above a spare last one. Spaced sigmas span all the trained ones.

    rounded: the spacings whose timesteps are rounded; those of the others are cut to whole ones.
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
    """n of the timesteps at which latent consistency models are distilled, the last leading to the clean image."""
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
