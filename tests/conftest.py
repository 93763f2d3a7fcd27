"""Fixtures that several folders of tests share, in an environment without the caller's settings."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.e2e.browser import launch

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ("SD_", "SPACE", "GRADIO_", "HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_")
"""Beginnings of the variables that change what the page, the library or their packages do."""

# The packages read theirs when they are imported, so nothing above imports one of them.
for variable in [name for name in os.environ if name.startswith(SETTINGS)]:
    del os.environ[variable]


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """Return the directory of the bundled model."""
    from stable_diffusion.loading.config import BUNDLED

    return BUNDLED


@pytest.fixture(scope="session", params=["sd1", "sd2"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of a tiny model: Stable Diffusion 1.x, then 2.x."""
    return request.param


@pytest.fixture(scope="session")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the tiny model of a kind, to be read only."""
    from tests.tiny import save_model

    return save_model(tmp_path_factory.mktemp("model") / kind, kind)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the tiny model of kind sd1, to be read only."""
    from tests.tiny import save_model

    return save_model(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """Return the directory of a tiny model that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Yield a browser; RuntimeError, with the remedies, where none starts."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread of its own, since the browser may have a loop in this one; return its result."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(asyncio.run, coroutine).result()
