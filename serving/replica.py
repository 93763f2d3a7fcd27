"""A replica: a process, here or on another machine, whose engine draws runs for the page in front."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from ui.runs.backend import Local
from ui.runs.events import News, Started
from ui.runs.models import KEPT, ModelHolder

PICTURES = ("image", "mask")
"""The settings whose values are paths, which mean nothing on another machine."""
Files = dict[str, tuple[str, bytes]]
"""The name and the content of each that is given."""


class Replica:
    """A deployment of Ray Serve: `Local` with models of its own, for a page in another process."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, model: str | None = None, **options: Any
    ) -> None:
        """Load the first model: the arguments of `ModelHolder`. ValueError where it can't be loaded."""
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("ui").setLevel(logging.INFO)
        self._local = Local(ModelHolder(model, **options))
        self._folder = tempfile.TemporaryDirectory(prefix="photos-")
        self._readers: Counter[Path] = Counter()
        await self._load(self._local.holder.first)

    async def stream(self, run_id: str, settings: dict[str, Any], files: Files, owner: str) -> AsyncGenerator[News]:
        """See `Backend.stream`; the request that Started tells is without the files, which only the front can name."""
        loading = asyncio.create_task(self._load(settings.get("model") or self._local.holder.first))
        loading.add_done_callback(lambda task: task.exception())  # seen: the stream raises the same
        with self._written(run_id, files) as paths:
            async with aclosing(self._local.stream(run_id, settings | paths, owner)) as told:
                async for news in told:
                    if isinstance(news, Started):
                        news = replace(news, request=replace(news.request, image=None, mask=None))
                    yield news

    def stop(self, run_id: str) -> None:
        """See `Backend.stop`; nothing where the run is another replica's."""
        self._local.stop(run_id)

    def check_health(self) -> None:
        """Raise where nothing can be drawn any more: Ray Serve then starts another replica in this one's place."""
        if self._local.status == "broken":
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
        self._readers[folder] += 1  # two, where another page takes the run over
        try:
            for setting, path in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[setting][1])
            yield {setting: str(path) for setting, path in paths.items()}
        finally:
            self._readers[folder] -= 1
            if not self._readers[folder]:
                del self._readers[folder]
                shutil.rmtree(folder, ignore_errors=True)
