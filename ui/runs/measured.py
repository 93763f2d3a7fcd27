"""Counts of runs, waits and failures, for `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from stable_diffusion.request import Request, RequestError

from .backend import Backend, T, View
from .events import Event, News, Waiting
from .visitors import Visitor

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)
"""Upper ends of the histograms' buckets, in seconds."""


class Measured:
    """A `Backend` that counts the runs of another one in a Prometheus registry."""

    def __init__(self, backend: Backend, registry: CollectorRegistry):
        from prometheus_client import Counter, Gauge, Histogram

        self._backend = backend
        self._going = Gauge("sd_runs_going", "Runs that wait or are drawn.", registry=registry)
        self._ended = Counter("sd_runs", "Runs that ended, by how.", ["end"], registry=registry)
        self._waits = Histogram(
            "sd_wait_seconds", "From the request to the first step.", buckets=SECONDS, registry=registry
        )
        self._times = Histogram(
            "sd_run_seconds", "From the first step to the last.", buckets=SECONDS, registry=registry
        )

    @property
    def status(self) -> str:
        """See `Backend.status`."""
        return self._backend.status

    def stop(self, run_id: str, *, pictures: bool = True) -> None:
        """See `Backend.stop`."""
        self._backend.stop(run_id, pictures=pictures)

    def inspect(self, view: View[T], requests: Sequence[Request], owner: Visitor) -> AsyncGenerator[Waiting | T]:
        """See `Backend.inspect`; not counted."""
        return self._backend.inspect(view, requests, owner)

    async def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        """See `Backend.stream`."""
        asked, first, end = time.monotonic(), None, "stopped"
        self._going.inc()
        try:
            async with aclosing(self._backend.stream(run_id, request, owner)) as stream:
                async for news in stream:
                    if isinstance(news, Event):
                        if first is None:
                            first = time.monotonic()
                            self._waits.observe(first - asked)
                        if news.images is not None and not news.stopped:
                            end = "finished"
                            self._times.observe(time.monotonic() - first)
                    yield news
        except (GeneratorExit, asyncio.CancelledError):
            end = "finished" if end == "finished" else "left"
            raise
        except RequestError:
            end = "refused"
            raise
        except Exception:
            end = "failed"
            raise
        finally:
            self._going.dec()
            self._ended.labels(end).inc()
