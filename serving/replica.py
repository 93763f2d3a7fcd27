"""A replica: a process, here or on another machine, whose engine draws runs for the page in front."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from ui.backend import Local
from ui.limits import PREVIEW_SHARE
from ui.models import KEPT, ModelHolder
from ui.run import News, Started

Files = dict[str, tuple[str, bytes]]
"""The settings that are files: the name and the content of each."""


class Replica:
    """A deployment of Ray Serve: `Local` with models of its own, for a page in another process."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, model: str | None = None, *, preview_share: float = PREVIEW_SHARE, **options: Any
    ) -> None:
        """Load the first model: the arguments of `ModelHolder` and `Local`. ValueError where it can't be loaded."""
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("ui").setLevel(logging.INFO)
        self._local = Local(ModelHolder(model, **options), preview_share=preview_share)
        self._folder = tempfile.TemporaryDirectory(prefix="photos-")
        self._here: set[str] = set()
        await self._load(self._local.holder.first)

    async def stream(self, run_id: str, settings: dict[str, Any], files: Files, owner: str) -> AsyncGenerator[News]:
        """See `Backend.stream`; the request that Started tells is without the files, which only the front can name."""
        loading = asyncio.create_task(self._load(settings.get("model") or self._local.holder.first))
        loading.add_done_callback(lambda task: task.exception())  # seen: the stream raises the same
        self._here.add(run_id)
        try:
            with self._written(run_id, files) as paths:
                async for news in self._local.stream(run_id, settings | paths, owner):
                    if isinstance(news, Started):
                        news = replace(news, request=replace(news.request, **dict.fromkeys(files)))
                    yield news
        finally:
            self._here.discard(run_id)

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`; nothing where the run is another replica's."""
        if run_id in self._here:
            self._local.stop(run_id)

    def check_health(self) -> None:
        """Raise where nothing can be drawn any more: Ray Serve then starts another replica in this one's place."""
        if self._local.broken:
            raise RuntimeError("the engine ended by a fault of its own")

    @serve.multiplexed(max_num_models_per_replica=KEPT)
    async def _load(self, name: str) -> str:
        """Have a model in memory. Ray Serve notes it, and others who want it are sent here."""
        await asyncio.to_thread(self._local.holder.pipeline, name)
        return name

    @contextmanager
    def _written(self, run_id: str, files: Files) -> Iterator[dict[str, str]]:
        """The paths of the files on this machine: the same ones again for a run that was parked before it read them."""
        folder = Path(self._folder.name, hashlib.sha256(run_id.encode()).hexdigest())
        paths = {setting: folder / setting / name for setting, (name, _) in files.items()}
        try:
            for setting, path in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[setting][1])
            yield {setting: str(path) for setting, path in paths.items()}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
