"""The cost of a request in seconds on this machine, estimated from the measured pace of its model."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from PIL import Image

from stable_diffusion.request import FAST_STEPS, Defaults, Request, RequestError

from .limits import Limits

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

log = logging.getLogger(__name__)

EVALUATIONS = 4
LONG = 1.0
"""Seconds after which a first evaluation, which may also prepare weights, is not repeated."""
MEASURED_SIDE = 256
"""Longest side, in pixels, at which the autoencoder is measured; its time grows with the area."""
LARGEST_SIDE = 1024
"""Longest side, in pixels, at which the network is measured: a model whose settings name thousands must load, too."""
SKETCH_STEPS = 5
"""Steps of a sketch (ui/sketch.py) without weights for fewer: as many evaluations, with Heun nearly twice as many."""
QUICK = 0.5
"""Seconds below which a sketch feels immediate."""
ONE_PICTURE = Request()
"""One picture with the settings that suit the model."""


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a run take: one picture of side x side pixels, with the model's own guidance."""

    side: int
    text: float
    """Encoding of one chunk of tokens."""
    photo: float
    evaluation: float
    """One evaluation of the network."""
    decoding: float


_paces: WeakKeyDictionary[Pipeline, Pace] = WeakKeyDictionary()
_measuring = threading.Lock()


def pace_of(pipeline: Pipeline) -> Pace:
    """Return the pace of a model, measured once: when it is loaded, while no run uses it.

    A model that can't draw with its own settings gets a pace of infinite seconds, and no limit.
    """
    pace = _paces.get(pipeline)
    if pace is not None:  # without the lock: another model may be measured for a while
        return pace
    with _measuring:
        if pipeline not in _paces:
            try:
                _paces[pipeline] = _measure(pipeline)
            except Exception:  # measured again at the next request: memory may have run out for a moment
                log.exception("the model can't draw with its own settings")
                return Pace(pipeline.default_size, math.inf, math.inf, math.inf, math.inf)
        return _paces[pipeline]


def estimate(pipeline: Pipeline, request: Request) -> float:
    """Return the seconds that a complete request takes on this machine, without waiting and previews.

    Raises `RequestError` for a prompt that is too long.
    """
    assert request.width is not None
    assert request.height is not None
    assert request.guidance_scale is not None
    from stable_diffusion.prompt import tokenize_request

    pace, tokens = pace_of(pipeline), tokenize_request(pipeline.models.tokenizer, request)
    # The shorter ones are filled with empty chunks; clip_skip encodes both again.
    chunks = len(tokens) * max(len(read.ids) for read in tokens.values()) * (2 if request.clip_skip else 1)
    area = request.width * request.height / pace.side**2
    evaluations = request.steps * (2 if request.sampler == "heun" else 1)
    per_image = evaluations * _seconds_a_step(pipeline, request.guidance_scale) + pace.decoding
    photo = 0.0 if request.image is None else pace.photo * area
    return chunks * pace.text + photo + request.num_images * area * per_image


def _seconds_a_step(pipeline: Pipeline, guidance_scale: float) -> float:
    """Return the seconds of an evaluation of one picture: measured is that with the model's own guidance scale."""
    asked, own = map(pipeline.evaluates_twice, (guidance_scale, pipeline.defaults.guidance_scale))
    return pace_of(pipeline).evaluation * (1 + asked) / (1 + own)


def check_seconds(pipeline: Pipeline, request: Request, defaults: Defaults, limits: Limits, *others: Request) -> None:
    """Raise `RequestError` if a complete request, with others that belong to it, takes longer than allowed here.

    One picture with the model's own settings, `defaults`, is always allowed.
    """
    seconds = sum(estimate(pipeline, one) for one in (request, *others))
    most = max(limits.max_seconds, estimate(pipeline, defaults.complete(ONE_PICTURE)))
    if seconds > most:
        runs = Counter(f"{one.steps} {one.sampler}" for one in (request, *others))
        steps = " + ".join(run if count == 1 else f"{count} x {run}" for run, count in runs.items())
        raise RequestError(
            f"{steps} steps x {request.num_images} of {request.width}x{request.height} take about {duration(seconds)} "
            f"here, and one request may take {duration(most)}: choose fewer steps, fewer pictures or a smaller size"
        )


def is_quick(pipeline: Pipeline, side: int | None = None) -> bool:
    """Whether the evaluations of a sketch of side x side pixels, by default the model's, feel immediate here."""
    pace = pace_of(pipeline)
    fast = pipeline.defaults.fast
    steps, guidance_scale = (FAST_STEPS, 1.0) if fast else (SKETCH_STEPS, pipeline.defaults.guidance_scale)
    return steps * _seconds_a_step(pipeline, guidance_scale) * ((side or pace.side) / pace.side) ** 2 < QUICK


def describe(pipeline: Pipeline) -> str:
    """Return "A picture of 20 steps takes about 0.8 s here.", or nothing if the pace is not known."""
    request = pipeline.defaults.complete(ONE_PICTURE)
    seconds = estimate(pipeline, request)
    return "" if math.isinf(seconds) else f"A picture of {request.steps} steps takes about {duration(seconds)} here."


def duration(seconds: float) -> str:
    """Return seconds as people say them: 0.04 s, 12 s, 4 min."""
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.1f} s"


def _measure(pipeline: Pipeline) -> Pace:
    side = pipeline.default_size
    small = min(side, MEASURED_SIDE)
    area = (side / small) ** 2
    request = Request(seed=0, width=small, height=small)
    text = _seconds(lambda: pipeline.condition(request))
    begin = _seconds(lambda: pipeline.begin(request).close())
    photo = _seconds(lambda: pipeline.begin(request.with_values(image=Image.new("RGB", (small, small)))).close())
    large = min(side, LARGEST_SIDE)
    run = pipeline.begin(Request(seed=0, width=large, height=large))
    query = run.query
    assert query is not None, "a run that begins has a query"
    evaluation = _seconds(lambda: run.denoise([query])[0].x_0.cpu(), EVALUATIONS)  # .cpu() waits for the accelerator
    height, width = (length * small // large for length in query.x.shape[-2:])
    decoding = _seconds(lambda: run.render(query.x[..., :height, :width]))
    run.close()
    return Pace(side, text / 2, max(0.0, photo - begin) * area, evaluation * (side / large) ** 2, decoding * area)


def _seconds(function: Callable[[], object], tries: int = 2) -> float:
    """Return the least seconds of a few calls, because the first may also prepare weights; of one call that is long."""
    taken: list[float] = []
    while len(taken) < tries and not (taken and taken[0] > LONG):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return min(taken)
