"""A replica that tests can look into and break; a module of its own, which Ray's processes import."""

from __future__ import annotations

import os

from serving.replica import Replica


class Mortal(Replica):
    """A replica with methods for tests."""

    def pid(self) -> int:
        return os.getpid()

    def at_work(self) -> int:
        """Return the number of runs that the engine draws."""
        engine = self._local._engine
        return 0 if engine is None else engine.running

    def stop(self, run_id: str) -> None:
        self._stops = [*getattr(self, "_stops", []), run_id]
        super().stop(run_id)

    def stops(self) -> tuple[int, list[str]]:
        """The process, and the runs that it was asked to stop."""
        return os.getpid(), getattr(self, "_stops", [])

    def lose_engine(self) -> None:
        self._local._engine.close()
