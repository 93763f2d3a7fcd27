"""The recordings of the runs that visitors look into, so that a stop need not run them again at every question."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from stable_diffusion.request import Request

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
    """Return the recording of a request, complete and seeded; a recent one is not run again, and `told` of nothing.

    Runs over a photo and runs with LoRA files, which may change meanwhile, are recorded each time.
    """
    from stable_diffusion.inspect.recording import record

    constant = request.image is None and not request.loras
    with _lock:
        kept = _kept.get(request) if constant else None
        if kept is not None:
            _kept.move_to_end(request)
            return kept
    recording = yield from record(pipeline, request, told)
    if constant:
        with _lock:
            _kept[request] = recording
            while len(_kept) > MOST or sum(map(size_of, _kept.values())) > MOST_BYTES:
                _kept.popitem(last=False)
    return recording


def size_of(recording: Recording) -> int:
    """Return the bytes of a recording's latents."""
    answers = [part for answer in recording.answers for part in answer if part is not None]
    return sum(part.nbytes for part in [*recording.latents, *answers, recording.final])
