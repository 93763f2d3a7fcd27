"""A tiny model, a server that draws with it, and how much of the whole a test does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stable_diffusion import Pipeline
from tests.e2e.conftest import free_port
from tests.tiny import save_model

from .server import Process, running

SHARE = float(os.environ.get("SOAK", "1"))
"""How much of the whole `make soak` does."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model that draws a step in milliseconds."""
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def pipe(tiny: Path) -> Pipeline:
    """The same, in this process."""
    return Pipeline.from_pretrained(tiny, device="cpu")


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that draws with it."""
    with running(tmp_path_factory.mktemp("server"), free_port(), "--model", str(tiny), "--unheard", "10") as process:
        yield process


@pytest.fixture
def much() -> float:
    """How much of the whole a test does that is too long for every day."""
    return SHARE


@pytest.fixture(params=[0.02, pytest.param(SHARE, marks=pytest.mark.soak)], ids=["few", "many"])
def share(request: pytest.FixtureRequest) -> float:
    """How much of the whole this run of a test does."""
    return request.param
