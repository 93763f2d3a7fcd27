"""What several test folders share: the model that tests run with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The directory of the bundled model."""
    return Path(os.environ.get("SD_TEST_MODEL", ROOT / "assets" / "models" / "emoji"))
