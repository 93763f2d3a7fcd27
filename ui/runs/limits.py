"""What the page allows, and programs too: less than the library could, so that one visitor leaves room for others."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stable_diffusion.request import Defaults, Request, RequestError, shown

from .adapter_files import bring

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

    from .models import ModelHolder

MAX_SEED = 2**32 - 1
MAX_GUIDANCE = 30
MAX_SLIDER_STEPS = 150
"""As far as the page's slider goes; programs may ask for more."""
QUEUE_SIZE = 256
"""How many events may come in one moment, in which none of them is given its place yet."""
SMALL_EVENTS = 64
"""How many of them have a place beside all runs."""
MAX_RUNNING = 32
"""How many runs are drawn at once."""
PARKED_RUNS, PARKED_SECONDS = 64, 1800.0
"""How many runs are kept whose page is gone, and how long: for one that is loaded again, and a phone that slept."""
REMEMBERED_RUNS = 256
"""Of how many runs the films are found again: half a megabyte each until they are over."""


def limit(default: float, text: str, public: float | None = None) -> Any:
    """A field of `Limits`: what it says, and its value where others can come, if that is another one."""
    return field(default=default, metadata={"help": text, "public": default if public is None else public})


@dataclass(frozen=True)
class Limits:
    """What one request, one visitor and all together may ask for. app.py has a flag and a variable for each."""

    max_work: float = limit(
        600.0, "the most that one request may ask for, in steps of one picture of the model's own size", 150.0
    )  # 150 steps of four pictures; 37 of them at twice the width and height
    max_side: int = limit(4096, "the longest side of a picture, in pixels")
    max_steps: int = limit(1000, "the most steps of a picture")
    max_images: int = limit(4, "the most pictures of one request")
    max_visitor_runs: int = limit(16, "how many runs of one visitor may wait or be drawn at once")
    max_waiting: int = limit(256, "how many runs may wait for a place")
    max_upload: int = limit(64, "the largest file that is taken, in megabytes", 20)
    sessions: int = limit(200, "how many visits are remembered, the least recent forgotten first")
    unheard: float = limit(60.0, "end a run that nobody has listened to for so many seconds")
    preview_share: float = limit(1 / 3, "the most of a processor's time that live previews may take, below 1")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low = 0 if name == "preview_share" else 1e-3
            if not low <= value < (1 if name == "preview_share" else math.inf):
                bounds = "at least 0 and below 1" if name == "preview_share" else "above 0"
                raise ValueError(f"{name} must be {bounds}, got {value}")

    def of_model(self, defaults: Defaults) -> Defaults:
        """What suits a model, where that is more than is allowed here brought down to it."""
        step = defaults.side_step
        side = min(defaults.side, max(step, self.max_side // step * step))
        return replace(defaults, side=side, num_inference_steps=min(defaults.num_inference_steps, self.max_steps))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in asdict(self).items())


USUAL = Limits()
"""Where only this machine can come."""


RANGES = {
    "guidance_scale": (0, MAX_GUIDANCE, ""),
    "seed": (-1, MAX_SEED, "; -1, or leaving it empty, gives a random one"),
}


def check(settings: dict[str, Any]) -> None:
    """Raise ValueError, naming argument, value and remedy, where the settings can't be meant, whatever the model."""
    for name, (low, high, remedy) in RANGES.items():
        value = settings.get(name)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(
                f"{name} must be between {low} and {high}, got {shown(value)}: choose a number in that range{remedy}"
            )
    Request(**{name: value for name, value in settings.items() if value is not None})


def check_numbers(limits: Limits, settings: dict[str, Any]) -> None:
    """Raise ValueError where a number is above what is allowed here, whatever the model."""
    for name, most in (
        ("num_images", limits.max_images),
        ("num_inference_steps", limits.max_steps),
        ("width", limits.max_side),
        ("height", limits.max_side),
    ):
        value = settings.get(name)
        if isinstance(value, (int, float)) and value > most:
            raise ValueError(f"{name} must be at most {most:,} here, got {shown(value)}: choose a smaller number")


def check_work(holder: ModelHolder, settings: dict[str, Any]) -> Request:
    """The request of the settings, with the model's defaults; ValueError where it asks for more than one may.

    Of a model that is not loaded yet, what its JSON files say is what is known.
    """
    defaults = holder.defaults_of(settings.get("model"))
    request = defaults.complete(Request(**{name: value for name, value in settings.items() if value is not None}))
    for name in ("width", "height"):
        if getattr(request, name) > defaults.max_side:
            raise RequestError(
                f"{name} must be at most {defaults.max_side} with this model, got {getattr(request, name)}: "
                "choose a smaller size"
            )
    assert request.width is not None
    assert request.height is not None
    check_numbers(holder.limits, vars(request))
    limits, work = holder.limits, work_of(holder, request)
    if work > limits.max_work:
        raise ValueError(
            f"{request.steps} {request.sampler} steps x {request.num_images} of {request.width}x{request.height} are "
            f"the work of {work:,.0f} steps at {defaults.side}x{defaults.side}, and one request may ask for "
            f"{limits.max_work:,g}: choose fewer steps, fewer pictures or a smaller size"
        )
    return request


def work_of(holder: ModelHolder, request: Request) -> float:
    """What a request with its size asks for, in steps of one picture of the model's own size."""
    assert request.width is not None
    assert request.height is not None
    evaluations = request.steps * (2 if request.sampler == "heun" else 1)
    return (
        evaluations * request.num_images * request.width * request.height / holder.defaults_of(request.model).side ** 2
    )


def prepare(holder: ModelHolder, settings: dict[str, Any]) -> tuple[Pipeline, Request]:
    """The model that the settings name, and the request, with the model's defaults for what is missing or None.

    Raises ValueError, and before the model is loaded where that can be.
    """
    check(settings)
    pipeline = holder.pipeline(settings.get("model"))
    request = check_work(holder, settings)
    bring(pipeline)
    # So that whoever draws finds them merged and fetched.
    pipeline.loras.models_for(request.loras)
    assert request.preview is not None
    pipeline.models.decoder_for(request.preview)
    return pipeline, request
