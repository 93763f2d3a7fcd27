"""A replica that tests can look into and break; a module of its own, which Ray's processes import."""

from __future__ import annotations

import os
from pathlib import Path

from serving.replica import Replica


class Mortal(Replica):
    """A replica, and what is not for the page to know."""

    def pid(self) -> int:
        return os.getpid()

    def at_work(self) -> tuple[int, int]:
        """How many runs the engine draws, and how many files of visitors are there."""
        engine = self._local._engine
        return 0 if engine is None else engine.running, len(list(Path(self._folder.name).rglob("*.*")))

    def stop(self, run_id: str) -> None:
        self._stops = [*getattr(self, "_stops", []), run_id]
        super().stop(run_id)

    def stops(self) -> tuple[int, list[str]]:
        """The process, and the runs that it was asked to stop."""
        return os.getpid(), getattr(self, "_stops", [])

    def lose_engine(self) -> None:
        self._local._engine.close()
