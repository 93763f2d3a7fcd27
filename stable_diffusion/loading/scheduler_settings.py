"""What each sampler makes of the settings in `scheduler_config.json` beyond the noise schedule: one table.

A file names settings of whichever class wrote it. diffusers' `from_config` hands each to the class in use, with that
class's default where the file is silent, and so does `settings_for`. A value that our sampler does not have raises when
that sampler is asked for, so that the model still runs with others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from .config import ConfigError, SchedulerConfig
from .fields import Positive, Within, expected, fits, shown


class Rule(NamedTuple):
    """A setting that shapes the run: the default of diffusers' class, and the values we have, or their annotation."""

    default: Any
    values: Any


NO_EFFECT = None
"""What the run does is the same with any value: others switch it on, or the sampler's name has decided it."""


def _only(default: Any, *others: Any) -> Rule:
    return Rule(default, (default, *others))


ON_OFF, OFF_ON = _only(True, False), _only(False, True)

Rules = dict[str, Rule | None]

SPACED: Rules = {"use_karras_sigmas": OFF_ON, "use_exponential_sigmas": OFF_ON, "use_beta_sigmas": OFF_ON}
ENDING: Rules = {"final_sigmas_type": _only("zero", "sigma_min")}
SIGMA_RANGE: Rules = {"sigma_min": _only(None), "sigma_max": _only(None)}  # with SPACED, in classes without them too
CLIPPED: Rules = {"clip_sample": ON_OFF, "clip_sample_range": Rule(1.0, Positive)}
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
        "original_inference_steps": Rule(50, Annotated[int, Within(1, 10**5)]),
        "timestep_scaling": Rule(10.0, Positive),
    },
}
"""By sampler what it takes, beyond the fields of `SchedulerConfig` that are the noise schedule's own."""


def settings_for(sampler: str, config: SchedulerConfig) -> dict[str, Any]:
    """Every setting that shapes a run of `sampler`: the file's value or, where it is silent, the class's default.

    Raises `ConfigError` naming a setting whose value the sampler does not have.
    """
    settings = {}
    for name, rule in RULES[sampler].items():
        if rule is NO_EFFECT:
            continue
        value = config.others.get(name, rule.default)
        if value is None:  # as diffusers reads null: a switch that is off, and of other settings the usual
            value = False if isinstance(rule.default, bool) else rule.default
        if isinstance(rule.values, tuple):
            known = ", ".join(map(repr, rule.values))
            had = any(type(value) is type(one) and value == one for one in rule.values)
        else:
            known, had = expected(rule.values), fits(rule.values, value)
        if not had:
            raise ConfigError(
                f"sampler {sampler}: the model's scheduler asks for {name}={shown(value)}, and only {known} can be "
                f"had: choose another sampler, or change {name} in scheduler_config.json"
            )
        settings[name] = value
    spaced = [name for name in SPACED if settings.get(name)]
    if len(spaced) > 1:
        raise ConfigError(
            f"sampler {sampler}: the model's scheduler asks for {' and '.join(spaced)}, and only one can be had: "
            "keep one of them in scheduler_config.json"
        )
    return settings


def clip_bound(settings: Mapping[str, Any]) -> float:
    """To which absolute value x_0 is clipped; infinite where it is not."""
    return settings["clip_sample_range"] if settings["clip_sample"] else math.inf
