"""How long a picture takes here, measured from a step of the model and not promised."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from stable_diffusion.request import Request

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

STEPS = 4
LONG = 1.0
"""Seconds after which a first step, which may also lay out weights, has to do as the measure."""

_measured: WeakKeyDictionary[Pipeline, float] = WeakKeyDictionary()
_measuring = threading.Lock()


def seconds_per_step(pipeline: Pipeline) -> float:
    """What a step of one picture of the model's own size and guidance takes, measured once for a model.

    The quickest of a few: what else the machine does makes them only slower.
    """
    with _measuring:
        if pipeline not in _measured:
            _measured[pipeline] = _measure(pipeline)
        return _measured[pipeline]


def _measure(pipeline: Pipeline) -> float:
    run = pipeline.begin(Request(seed=0))
    assert run.query is not None, "a run that begins has a question"
    taken: list[float] = []
    for _ in range(STEPS):
        started = time.perf_counter()
        [x_0] = run.denoise([run.query])
        x_0.cpu()  # which waits for it
        taken.append(time.perf_counter() - started)
        if taken[-1] > LONG:
            break
    run.close()
    return min(taken)


def describe(pipeline: Pipeline) -> str:
    """A sentence about the pace: "A picture of 20 steps takes about 0.8 s here."."""
    steps = pipeline.defaults.num_inference_steps
    return f"A picture of {steps} steps takes about {duration(steps * seconds_per_step(pipeline))} here."


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.04 s, 12 s, 4 min."""
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.1f} s"
