"""What the page allows, and programs too: less than the library could, so that one visitor leaves room for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stable_diffusion.request import Request, shown

from .extras import bring

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

    from .models import ModelHolder

MAX_SEED = 2**32 - 1
MAX_GUIDANCE = 30
MAX_IMAGES = 4
MAX_SLIDER_STEPS = 150
"""As far as the page's slider goes; programs may ask for more."""
QUEUE_SIZE = 20
"""How many events may wait at once."""
SESSIONS = 200
"""How many visits the server remembers, the least recent forgotten first: each takes half a megabyte of settings and
results, and ten times those who can wait for a run are more than one machine serves."""

MAX_WORK = 600.0
"""What one request may ask for: evaluations of the network x pictures x pixels, counted in pictures of the model's own
size. 150 steps of four such pictures; 37 of them at twice the width and height."""
PUBLIC_WORK = MAX_WORK / 4
"""The same where anybody may come."""
MAX_RUNNING, MAX_WAITING = 32, 256
"""How many runs are drawn at once, and how many more may wait for a place."""
PREVIEW_SHARE = 1 / 3
"""The most of a processor's time that goes into previews."""
PARKED_RUNS, PARKED_SECONDS = 64, 1800.0
"""How many runs are kept whose page is gone, and how long: for one that is loaded again, and a phone that slept."""
REMEMBERED_RUNS = 256
"""Of how many runs the films are found again: half a megabyte each until they are over."""
UNHEARD = 60.0
"""Seconds after which a run ends whose messages nobody reads."""

LIMITS = {"guidance_scale": (0, MAX_GUIDANCE, ""), "num_images": (1, MAX_IMAGES, "")}
LIMITS["seed"] = (-1, MAX_SEED, "; -1, or leaving it empty, gives a random one")


def check(settings: dict[str, Any]) -> None:
    """Raise ValueError, naming argument, value and remedy, where the settings can't be meant, whatever the model."""
    for name, (low, high, remedy) in LIMITS.items():
        value = settings.get(name)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(
                f"{name} must be between {low} and {high}, got {shown(value)}: choose a number in that range{remedy}"
            )
    Request(**{name: value for name, value in settings.items() if value is not None})


def check_work(holder: ModelHolder, settings: dict[str, Any]) -> Request:
    """The request of the settings, with the model's defaults; ValueError where it asks for more than one may.

    Of a model that is not loaded yet, what its JSON files say is what is known.
    """
    defaults = holder.defaults_of(settings.get("model"))
    request = defaults.request(**settings)
    assert request.width is not None
    assert request.height is not None
    evaluations = request.steps * (2 if request.sampler == "heun" else 1)
    work = evaluations * request.num_images * request.width * request.height / defaults.side**2
    if work > holder.max_work:
        raise ValueError(
            f"{request.steps} {request.sampler} steps x {request.num_images} of {request.width}x{request.height} are "
            f"the work of {work:,.0f} steps at {defaults.side}x{defaults.side}, and one request may ask for "
            f"{holder.max_work:,g}: choose fewer steps, fewer pictures or a smaller size"
        )
    return request


def prepare(holder: ModelHolder, settings: dict[str, Any]) -> tuple[Pipeline, Request]:
    """The model that the settings name, and the request, with the model's defaults for what is missing or None.

    Raises ValueError, and before the model is loaded where that can be.
    """
    check(settings)
    pipeline = holder.pipeline(settings.get("model"))
    request = check_work(holder, settings)
    bring(pipeline)
    # So that whoever draws finds them merged and fetched.
    pipeline.loras.using(request.loras)
    pipeline.models.decoder_for(request.preview)
    return pipeline, request
