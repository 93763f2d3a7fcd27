"""What deployers ask: whether the page can draw, at `/health`, and how its runs went, at `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..runs.backend import Backend
from ..runs.events import Event, News
from ..runs.models import ModelHolder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)
"""Where Prometheus' buckets of durations end."""


def health(holder: ModelHolder, backend: Backend) -> Route:
    """Answers 200 where the first model is in memory and the backend draws, else 503 with what is the matter."""

    async def answer(request: Request) -> Response:
        status = backend.status
        return JSONResponse({"status": status, "model": holder.first}, 200 if status == "ready" else 503)

    return Route("/health", answer)


class Measured:
    """A `Backend` that counts the runs of another one, in the names of Prometheus' client library."""

    def __init__(self, backend: Backend, registry: CollectorRegistry):
        from prometheus_client import Counter, Gauge, Histogram

        self._backend = backend
        self._going = Gauge("sd_runs_going", "Runs that wait or are drawn.", registry=registry)
        self._ended = Counter("sd_runs", "Runs that ended, by how.", ["end"], registry=registry)
        self._waits = Histogram(
            "sd_wait_seconds", "From the question to the first step.", buckets=SECONDS, registry=registry
        )
        self._times = Histogram(
            "sd_run_seconds", "From the first step to the last.", buckets=SECONDS, registry=registry
        )

    @property
    def status(self) -> str:
        """See `Backend.status`."""
        return self._backend.status

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`."""
        self._backend.stop(run_id)

    async def stream(self, run_id: str, settings: dict[str, Any], owner: str) -> AsyncGenerator[News]:
        """See `Backend.stream`."""
        asked, first, end = time.monotonic(), None, "stopped"
        self._going.inc()
        try:
            async with aclosing(self._backend.stream(run_id, settings, owner)) as stream:
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
        except ValueError:
            end = "refused"
            raise
        except Exception:
            end = "failed"
            raise
        finally:
            self._going.dec()
            self._ended.labels(end).inc()


def metrics(registry: CollectorRegistry) -> Route:
    """Answers with what is counted in the registry, in Prometheus' format."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    async def answer(request: Request) -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return Route("/metrics", answer)
