"""Pictures for everybody: who gets one next, by which decoder, and how much time that may take from the network."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ..pipeline import Step
from ..preview import Preview
from .run_handle import Ticket

CPU_SHARE = 1 / 3
"""How much of a processor's time goes into previews at most."""
ACCELERATOR_SHARE = 1 / 21
"""The same on an accelerator: a twentieth of what the network takes."""
CHEAPEST_FIRST = ("linear", "auto", "tiny", "vae")


class Painter:
    """Paints the newest step of whoever waited longest for a picture: final ones at once, previews within a share.

    The network's time earns credit, and a preview is due while there is any; what it costs, as measured, is taken off,
    and a debt has to be earned first. Previews thin out by that when many want them, and cheaper decoders go first.

    On CUDA a thread of its own paints, on a stream that gives way to the network's. On a processor `work` paints
    between two turns of the network instead: there both would want all cores, two threads that compute at once slow
    each other down, and the account would not know who took the time.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        share: float | None = None,
        own_thread: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """share, in [0, 1), is the part of the whole time that previews get; None for what suits the device."""
        device = torch.device(device)
        if share is None:
            share = CPU_SHARE if device.type == "cpu" else ACCELERATOR_SHARE
        if not 0 <= share < 1:
            raise ValueError(f"share must be in [0, 1), got {share}: previews can't take all the time")
        self._per_second = share / (1 - share)  # of the network's time
        self._clock = clock
        self._credit = 0.0
        self._waiting: dict[Ticket, tuple[Step, Preview]] = {}  # whoever waited longest comes first
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if device.type == "cuda" if own_thread is None else own_thread:
            self._thread = threading.Thread(target=self._run, args=(device,), name="painter", daemon=True)
            self._thread.start()

    def add(self, ticket: Ticket, step: Step, preview: Preview) -> None:
        """Have a step painted, instead of the ticket's older one if that still waits; a last step by the VAE."""
        with self._changed:
            self._waiting[ticket] = step, preview
            self._changed.notify()

    def drop(self, ticket: Ticket) -> None:
        """Forget what a ticket waits for."""
        with self._changed:
            self._waiting.pop(ticket, None)

    def earn(self, seconds: float, *, alone: bool = False) -> None:
        """Count time that the network took. Credit that was left over is gone: a quiet hour allows no flood.

        A run that is alone on a processor keeps nobody waiting but who asked for its previews: all of them are due.
        """
        with self._changed:
            free = alone and self._thread is None
            self._credit = math.inf if free else min(self._credit, 0.0) + self._per_second * seconds
            self._changed.notify()

    def work(self) -> None:
        """Between two turns of the network: paint all that is due, unless a thread does."""
        if self._thread is None:
            while self.paint():
                pass

    @torch.no_grad()
    def paint(self) -> bool:
        """Paint and publish whoever is next; False where nobody is due. An error ends that run alone."""
        with self._changed:
            ticket = self._next()
            if ticket is None:
                return False
            step, preview = self._waiting.pop(ticket)
        if ticket.over:
            return True
        started = self._clock()
        try:
            ticket.publish(step.painted(preview))
        except Exception as error:
            ticket.fail(error)
        if step.final is None:
            with self._changed:
                self._credit -= self._clock() - started
        return True

    def close(self, error: Exception) -> None:
        """End the thread, and by the error those who still wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for ticket in self._waiting:
            ticket.fail(error)
        self._waiting.clear()

    def _next(self) -> Ticket | None:
        for ticket, (step, _) in self._waiting.items():
            if step.final is not None:
                return ticket
        if not self._waiting or self._credit <= 0:
            return None
        return min(self._waiting, key=lambda ticket: CHEAPEST_FIRST.index(self._waiting[ticket][1].name))

    def _run(self, device: torch.device) -> None:
        with stream(device):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._next() is not None)
                    if self._closed:
                        return
                self.paint()


def stream(device: torch.device, priority: int = 0) -> AbstractContextManager[object]:
    """What a thread computes goes to a stream of its own where the device has them; lower priorities go first."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device, priority=priority))


def finish(device: torch.device) -> None:
    """Wait for what this thread asked of an accelerator: so that others may read the results, and the clock."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)
