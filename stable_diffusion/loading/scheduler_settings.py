"""The settings that each sampler reads from `scheduler_config.json` beyond the noise schedule: one table.

A file holds settings of the diffusers class that wrote it. diffusers' `from_config` hands them to the class in use and
takes that class's default where the file is silent; `settings_for` does the same. A value that our sampler does not
have raises only when that sampler is asked for, so that the model still runs with others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from ..request import shown
from .config import STRICT, ConfigError, Factor, SchedulerConfig


class Rule(NamedTuple):
    """A setting that shapes the run: the default of diffusers' class, and the supported values, or their type."""

    default: Any
    values: Any


NO_EFFECT = None
"""The rule of a setting whose value changes nothing: another setting switches it on, or the sampler implies it."""


def _only(default: Any, *others: Any) -> Rule:
    return Rule(default, (default, *others))


ON_OFF, OFF_ON = _only(True, False), _only(False, True)

Rules = dict[str, Rule | None]

SPACED: Rules = {"use_karras_sigmas": OFF_ON, "use_exponential_sigmas": OFF_ON, "use_beta_sigmas": OFF_ON}
ENDING: Rules = {"final_sigmas_type": _only("zero", "sigma_min")}
SIGMA_RANGE: Rules = {"sigma_min": _only(None), "sigma_max": _only(None)}  # in classes without SPACED too
CLIPPED: Rules = {"clip_sample": ON_OFF, "clip_sample_range": Rule(1.0, Factor)}
NOT_CLIPPED: Rules = {**CLIPPED, "clip_sample": OFF_ON}
THRESHOLD: Rules = {
    "thresholding": _only(False),
    "dynamic_thresholding_ratio": NO_EFFECT,
    "sample_max_value": NO_EFFECT,
}
NO_FLOW: Rules = {
    "use_flow_sigmas": _only(False),
    "use_dynamic_shifting": _only(False),
    "flow_shift": NO_EFFECT,
    "time_shift_type": NO_EFFECT,
}
DPM_SOLVER: Rules = {
    **SPACED,
    **SIGMA_RANGE,
    **ENDING,
    **THRESHOLD,
    **NO_FLOW,
    "use_lu_lambdas": OFF_ON,
    "solver_order": _only(2, 1, 3),
    "solver_type": _only("midpoint", "heun", "logrho", "bh1", "bh2"),
    "lower_order_final": ON_OFF,
    "euler_at_final": OFF_ON,
    "lambda_min_clipped": _only(-math.inf),
    "variance_type": _only(None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "algorithm_type": NO_EFFECT,
}

RULES: dict[str, Rules] = {
    "ddpm": {**CLIPPED, **THRESHOLD, "variance_type": _only("fixed_small", "fixed_small_log", "fixed_large")},
    "ddim": {**CLIPPED, **THRESHOLD},
    "euler": {
        **SPACED,
        **SIGMA_RANGE,
        **ENDING,
        "interpolation_type": _only("linear"),
        "timestep_type": _only("discrete"),
    },
    "euler_a": {},
    "heun": {**SPACED, **SIGMA_RANGE, **NOT_CLIPPED},
    "dpmpp_2m": DPM_SOLVER,
    # The third order of diffusers' stochastic solver is not of third order: one of its weights has the wrong sign.
    "dpmpp_2m_sde": {**DPM_SOLVER, "solver_order": _only(2, 1)},
    "unipc": {
        **SPACED,
        **SIGMA_RANGE,
        **ENDING,
        **THRESHOLD,
        **NO_FLOW,
        "solver_order": _only(2, 1, 3),
        "solver_type": _only("bh2", "midpoint", "heun", "logrho"),
        "lower_order_final": _only(True),
        "disable_corrector": _only([]),
        "predict_x0": _only(True),
        "shift_terminal": _only(None),
        "solver_p": _only(None),
    },
    "lcm": {
        **NOT_CLIPPED,
        **THRESHOLD,
        "original_inference_steps": Rule(50, Annotated[int, Field(ge=1, le=10**5)]),
        "timestep_scaling": Rule(10.0, Factor),
    },
}
"""The settings of each sampler, apart from the fields of `SchedulerConfig`, which describe the noise schedule."""


def settings_for(sampler: str, config: SchedulerConfig) -> dict[str, Any]:
    """Return every setting that shapes a run of `sampler`: the file's value or else the default of diffusers' class.

    Raises `ConfigError` naming a setting whose value the sampler does not support.
    """
    settings = {}
    for name, rule in RULES[sampler].items():
        if rule is NO_EFFECT:
            continue
        value = config.others.get(name, rule.default)
        if value is None:  # as in diffusers: a switch is off, any other setting has its default
            value = False if isinstance(rule.default, bool) else rule.default
        refusal = _refusal(rule, value)
        if refusal is not None:
            raise ConfigError(
                f"sampler {sampler}: the model's scheduler asks for {name}={shown(value)}, {refusal}: "
                f"choose another sampler, or change {name} in scheduler_config.json"
            )
        settings[name] = value
    spaced = [name for name in SPACED if settings.get(name)]
    if len(spaced) > 1:
        raise ConfigError(
            f"sampler {sampler}: the model's scheduler asks for {' and '.join(spaced)} at once: "
            "keep one of them in scheduler_config.json"
        )
    return settings


def _refusal(rule: Rule, value: object) -> str | None:
    """Return the end of a sentence about an unsupported value; None for a supported one."""
    if isinstance(rule.values, tuple):
        supported = any(type(value) is type(one) and value == one for one in rule.values)
        return None if supported else f"and only {', '.join(map(repr, rule.values))} is supported"
    try:
        TypeAdapter(rule.values, config=STRICT).validate_python(value)
    except ValidationError as error:
        return str(error.errors(include_url=False)[0]["msg"]).replace("Input should", "which must")
    return None


def clip_bound(settings: Mapping[str, Any]) -> float:
    """Return the largest absolute value of x_0, to which it is clipped; infinity where it is not clipped."""
    return settings["clip_sample_range"] if settings["clip_sample"] else math.inf
