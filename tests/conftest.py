"""What several test folders share: the model that tests run with, and one browser."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from stable_diffusion.model_loader import BUNDLED
from tests.e2e.browser import launch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The directory of the bundled model."""
    return BUNDLED


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser; the tests fail where there is none."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns, run in a thread of its own: in this one the browser may have a loop running."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(asyncio.run, coroutine).result()
