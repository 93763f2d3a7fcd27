"""Pictures for all runs: which one is rendered next, and how much of the network's time that may take."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext

import torch

from ..preview import Preview
from ..run import Step
from .batch_size import LONGEST_TURN
from .run_handle import RunHandle

CPU_SHARE = 1 / 3
"""The part of a processor's time that previews take at most."""
ACCELERATOR_SHARE = 1 / 21
"""The same on an accelerator: a twentieth of the network's time."""
CHEAPEST_FIRST = ("linear", "auto", "tiny", "vae")


class PreviewWorker:
    """Renders the newest step of the run that waited longest: final images first, previews within a share of the time.

    The network's time earns credit, and a preview is due while there is any; the measured cost of a preview is taken
    off, and a debt has to be earned back first. So previews thin out when many runs want them, and cheap decoders go
    first.

    On CUDA a thread of its own renders, on a stream of lower priority than the network's. On a processor `work` renders
    between two turns of the network: there both would want all cores, and two threads that compute at once slow each
    other down and can't be billed.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        share: float | None = None,
        own_thread: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """share, in [0, 1), is the part of the whole time that previews get; None for the device's usual share."""
        device = torch.device(device)
        if share is None:
            share = CPU_SHARE if device.type == "cpu" else ACCELERATOR_SHARE
        if not 0 <= share < 1:
            raise ValueError(f"share must be in [0, 1), got {share}: previews can't take all the time")
        self._per_second = share / (1 - share)  # of the network's time
        self._clock = clock
        self._credit = 0.0
        self._waiting: dict[RunHandle, tuple[Step, Preview]] = {}  # the one that waited longest comes first
        self._costs: Counter[Hashable] = Counter()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if device.type == "cuda" if own_thread is None else own_thread:
            self._thread = threading.Thread(target=self._run, args=(device,), name="preview worker", daemon=True)
            self._thread.start()

    @property
    def has_final_images_to_do(self) -> bool:
        """Whether `work` would render final images; False if a thread of its own does."""
        with self._changed:
            return self._thread is None and any(step.final is not None for step, _ in self._waiting.values())

    def add(self, handle: RunHandle, step: Step, preview: Preview) -> None:
        """Have a step rendered, in place of the run's older one if that still waits; a last step by the VAE."""
        with self._changed:
            self._waiting[handle] = step, preview
            self._changed.notify()

    def drop(self, handle: RunHandle) -> None:
        """Forget the step that waits for this run."""
        with self._changed:
            self._waiting.pop(handle, None)

    def earn(self, seconds: float, *, alone: bool = False) -> None:
        """Add credit for time that the network took. Unused credit expires, so that an hour without runs does not pay
        for many previews at once.

        alone: a single run on a processor delays nobody else with its previews, so all of them are due.
        """
        with self._changed:
            free = alone and self._thread is None
            self._credit = math.inf if free else min(self._credit, 0.0) + self._per_second * seconds
            self._changed.notify()

    def work(self) -> None:
        """Render what is due, between two turns of the network and for about a turn; nothing if a thread does it."""
        started = self._clock()
        while self._thread is None and self._clock() - started <= LONGEST_TURN:
            if not self.render_next():
                return

    @torch.no_grad()
    def render_next(self) -> bool:
        """Render and publish the next step; return False if none is due. An error ends the step's own run."""
        with self._changed:
            handle = self._next()
            if handle is None:
                return False
            step, preview = self._waiting.pop(handle)
        if handle.ended:
            return True
        started = self._clock()
        try:
            handle.publish(step.previewed(preview))
        except Exception as error:
            handle.fail(error)
        seconds = self._clock() - started
        with self._changed:
            self._costs[handle.owner] += seconds  # type: ignore[assignment]  # a Counter of floats
            if step.final is None:
                self._credit -= seconds
        return True

    def take_costs(self) -> dict[Hashable, float]:
        """Return the seconds rendered for each owner since the last call."""
        with self._changed:
            costs, self._costs = self._costs, Counter()
        return dict(costs)

    def close(self, error: Exception) -> None:
        """End the thread, and with the error the runs that still wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for handle in self._waiting:
            handle.fail(error)
        self._waiting.clear()

    def _next(self) -> RunHandle | None:
        for handle, (step, _) in self._waiting.items():
            if step.final is not None:
                return handle
        if not self._waiting or self._credit <= 0:
            return None
        return min(self._waiting, key=lambda handle: CHEAPEST_FIRST.index(self._waiting[handle][1].name))

    def _run(self, device: torch.device) -> None:
        with stream(device):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._next() is not None)
                    if self._closed:
                        return
                self.render_next()


def stream(device: torch.device, priority: int = 0) -> AbstractContextManager[object]:
    """Run a thread's work on a CUDA stream of its own; a smaller priority number goes first."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device, priority=priority))
