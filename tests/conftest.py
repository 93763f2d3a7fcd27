"""What several test folders share: the model that tests run with."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_diffusion.model_loader import BUNDLED

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The directory of the bundled model."""
    return BUNDLED
