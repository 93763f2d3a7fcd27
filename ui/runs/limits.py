"""Limits on one request, one visitor and all visitors together, below those of the library."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stable_diffusion.request import Defaults, Request, RequestError, shown

from ..keep.settings import SETTINGS

MAX_SLIDER_STEPS = 150
"""The largest number of steps on the page's slider; programs may ask for more."""
QUEUE_SIZE = 256
"""Number of Gradio events that may wait for a worker at once."""
SMALL_EVENTS = 64
"""Number of Gradio's workers beyond those that runs need."""
MAX_RUNNING = 32
"""Number of runs that share the network at once."""
PARKED_RUNS, PARKED_SECONDS = 64, 1800.0
"""How many runs whose page is gone are kept, and how long: the page may be loaded again, or a phone may sleep."""
REMEMBERED_RUNS = 256
"""Number of runs, beside those that pages show, that a page can find again by name."""
MAX_FILM, MAX_LEFT_BYTES = 8 * 2**20, 256 * 2**20
"""Bytes of pictures: in the film of a run, and in all runs together that no page shows and that have not finished."""


def limit(default: float, text: str, public: float | None = None) -> Any:
    """Return a field of `Limits` with its help text, and its value for a public page if that differs."""
    return field(default=default, metadata={"help": text, "public": default if public is None else public})


@dataclass(frozen=True)
class Limits:
    """The limits that a deployer can set: app.py has a flag and an environment variable for each."""

    max_seconds: float = limit(
        3600.0,
        "the longest estimated duration of a request, in seconds of this machine; one picture with the model's own "
        "settings is always drawn",
        60.0,
    )
    max_side: int = limit(4096, "the longest side of a picture, in pixels")
    max_steps: int = limit(1000, "the most steps of a picture")
    max_images: int = limit(4, "the most pictures of one request")
    max_visitor_runs: int = limit(16, "how many runs of one visitor may wait or be drawn at once")
    max_address_runs: int = limit(512, "how many runs of one network address may wait or be drawn at once", 128)
    max_waiting: int = limit(256, "how many runs may wait for a place")
    max_upload: int = limit(64, "the largest file that is taken, in megabytes", 20)
    sessions: int = limit(200, "how many visits are remembered, the least recent forgotten first")
    unheard: float = limit(
        60.0,
        "end a run that nobody has listened to for so many seconds; one that never had a listener after 10 at most",
    )
    preview_share: float = limit(1 / 3, "the most of a processor's time that live previews may take, below 1")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low = 0 if name == "preview_share" else 1e-3
            if not low <= value < (1 if name == "preview_share" else math.inf):
                bounds = "at least 0 and below 1" if name == "preview_share" else "above 0"
                raise ValueError(f"{name} must be {bounds}, got {value}")

    def of_model(self, defaults: Defaults) -> Defaults:
        """Return a model's defaults, with size and number of steps reduced to these limits."""
        step = defaults.side_step
        side = min(defaults.side, max(step, self.max_side // step * step))
        return replace(defaults, side=side, num_inference_steps=min(defaults.num_inference_steps, self.max_steps))

    def check(self, request: Request, defaults: Defaults | None = None) -> None:
        """Raise `RequestError` for a number above its limit here or, with the model's `defaults`, above the model's."""
        for setting in SETTINGS:
            most = getattr(self, setting.most) if isinstance(setting.most, str) else setting.most
            value, where = getattr(request, setting.name), "here"
            if most is None or value is None:
                continue
            if setting.most == "max_side" and defaults is not None and defaults.max_side < most:
                most, where = defaults.max_side, "with this model"
            if value > most:
                raise RequestError(
                    f"{setting.name} must be at most {most:,} {where}, got {shown(value)}: choose a smaller number"
                )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in asdict(self).items())


LOCAL_LIMITS = Limits()
"""The limits of a page that only this machine reaches."""
