"""The vocabulary of a model, in a file beside it: a sentence about what it draws, and the words for `lexicon.py`.

`training/data/sentences/lexicon.py` writes the file of the bundled model. Other models have none.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.files import read_json

from .lexicon import VOCABULARY


@cache
def subjects_of(folder: Path) -> str:
    """Return a sentence about the pictures that a model draws; an empty one for a model without a vocabulary."""
    try:
        return str(read_json(folder / VOCABULARY)["draws"])
    except (ModelError, LookupError, TypeError):
        return ""
