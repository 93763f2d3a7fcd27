"""Routes for deployers: `/health`, whether the page can draw, and `/metrics`, how its runs went."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def health(model: str, status: Callable[[], str]) -> Route:
    """Return a route that answers 200 while `status` is "ready", else 503, with the status and the model's name."""

    async def answer(request: Request) -> Response:
        now = status()
        return JSONResponse({"status": now, "model": model}, 200 if now == "ready" else 503)

    return Route("/health", answer)


def metrics(registry: CollectorRegistry) -> Route:
    """Return a route that answers with the registry's counts in Prometheus' format."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    async def answer(request: Request) -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return Route("/metrics", answer)
