"""The recordings of the runs that visitors look into, so that a stop need not run them again at every question."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from stable_diffusion.request import Request

from .stop import Show

if TYPE_CHECKING:
    from stable_diffusion.inspect.recording import Recording, Told
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

MOST = 32
MOST_BYTES = 128 * 2**20
"""Bytes of the latents of all recordings; one of Stable Diffusion's with 50 steps takes 13 MB."""

_kept: OrderedDict[Request, Recording] = OrderedDict()
_lock = Lock()


def recording_of(pipeline: Pipeline, request: Request, told: Told | None = None) -> Inquiry[Recording]:
    """Return the recording of a request, complete and seeded; a recent one is not run again, and `told` is not called.

    Runs over a photo and runs with LoRA files, which may change meanwhile, are recorded each time.
    """
    from stable_diffusion.inspect.recording import record

    if request.image is not None or request.loras:
        return (yield from record(pipeline, request, told))
    with _lock:
        if request in _kept:
            _kept.move_to_end(request)
            return _kept[request]
    recording = yield from record(pipeline, request, told)
    with _lock:
        _kept[request] = recording
        while len(_kept) > MOST or sum(map(size_of, _kept.values())) > MOST_BYTES:
            _kept.popitem(last=False)
    return recording


def counted(show: Show) -> Told:
    """Return a function that shows the number of each step of a run that is being recorded."""
    return lambda step: show({"recorded": step.index, "total": step.total})


def size_of(recording: Recording) -> int:
    """Return the bytes of a recording's latents."""
    answers = [part for answer in recording.answers for part in answer if part is not None]
    return sum(part.nbytes for part in [*recording.latents, *answers, recording.final])
