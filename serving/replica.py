"""`Replica`, a process on this or another machine whose engine draws runs for the page in front."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray
from ray import serve
from ray.serve._private import replica as internals

from stable_diffusion.request import Request
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import News
from ui.runs.models import MAX_LOADED, LoadedModels
from ui.runs.visitors import Visitor


class Replica:
    """A deployment of Ray Serve: `Local` with models of its own, for a page in another process."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, catalogue: Catalogue, **options: Any
    ) -> None:
        """Load the first model of the page's catalogue; options: see `LoadedModels`. RequestError if that fails."""
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("ui").setLevel(logging.INFO)
        stay_on_loopback()
        self._local = Local(LoadedModels(catalogue, **options))
        await self._load(self._local.models.catalogue.first)

    async def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        """See `Backend.stream`."""
        loading = asyncio.create_task(self._load(request.model or self._local.models.catalogue.first))
        loading.add_done_callback(lambda task: task.exception())  # retrieved: the stream raises the same
        async with aclosing(self._local.stream(run_id, request, owner)) as stream:
            async for news in stream:
                yield news

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`; nothing happens for another replica's run."""
        self._local.stop(run_id)

    def check_health(self) -> None:
        """Raise RuntimeError if nothing can be drawn any more, so that Ray Serve replaces this replica."""
        if self._local.status == "broken":
            raise RuntimeError("the engine ended by an error of its own")

    @serve.multiplexed(max_num_models_per_replica=MAX_LOADED)
    async def _load(self, name: str) -> str:
        """Load a model. Ray Serve notes it, and sends other requests for it here."""
        await asyncio.to_thread(self._local.models.pipeline, name)
        return name


def stay_on_loopback() -> None:
    """Let Ray Serve listen on loopback for other replicas, as the rest of Ray does on a machine that is no cluster.

    Ray Serve 2.60 listens on all interfaces, and starts to do so after the replica was made.
    """
    if ray.util.get_node_ip_address() == "127.0.0.1":
        add = internals.add_port_to_grpc_server
        internals.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))
