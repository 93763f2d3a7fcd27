"""Fixtures that several folders of tests share, in an environment without the caller's settings."""

from __future__ import annotations

import asyncio
import os
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
