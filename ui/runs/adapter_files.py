"""LoRA files, which prompts may name, and embeddings, which add words to a prompt, in folders beside the models."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from stable_diffusion.loading.config import ModelError

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

log = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parents[2] / "models"
ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt")

_added: WeakKeyDictionary[Pipeline, dict[str, Path]] = WeakKeyDictionary()
"""The embeddings that were offered to each model, including those that it refused."""
_adding = threading.Lock()


def folders() -> list[Path]:
    """Return the folders that hold models: `models/` beside `ui/`, and those of $SD_MODELS."""
    return [
        MODELS,
        *(Path(folder).expanduser() for folder in os.environ.get("SD_MODELS", "").split(os.pathsep) if folder),
    ]


def find_files(kind: str) -> dict[str, Path]:
    """Return the files in the folders `loras` or `embeddings` beside the models, by their names in a prompt."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / kind).glob("*")):
            if path.suffix in ENDINGS and path.is_file():
                found.setdefault(path.stem, path)
            elif (path / "adapter_config.json").is_file():  # PEFT's
                found.setdefault(path.name, path)
    return {name: path for name, path in found.items() if not re.search("[<>:]", name)}


def add_files(pipeline: Pipeline) -> None:
    """Offer a model the embeddings and LoRA files that are there now, and remove embeddings whose files are gone.

    Embeddings of other models are left out, with a line in the log.
    """
    with _adding:
        before, now = _added.get(pipeline, {}), find_files("embeddings")
        _added[pipeline] = now
        for name in pipeline.embeddings:
            if name not in now:
                pipeline.remove_embedding(name)
        for name in now.keys() - before.keys():
            try:
                pipeline.add_embedding(now[name])
            except ModelError as error:
                log.info("an embedding is left out: %s", error)
        for path in find_files("loras").values():
            pipeline.loras.register(path)
