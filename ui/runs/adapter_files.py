"""LoRA files, which prompts may name, and embeddings, which add words to a prompt, in folders beside the models."""

from __future__ import annotations

import logging
import os
import re
import threading
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.files import Version, version

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

log = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parents[2] / "models"
ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt")

_added: WeakKeyDictionary[Pipeline, dict[str, tuple[Path, Version | None]]] = WeakKeyDictionary()
"""The embeddings that were offered to each model, including those that it refused, with the version that it read."""
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
                found.setdefault(unicodedata.normalize("NFC", path.stem), path)
            elif (path / "adapter_config.json").is_file():  # PEFT's
                found.setdefault(unicodedata.normalize("NFC", path.name), path)
    return found


def can_be_named(lora: str) -> bool:
    """Return whether a prompt can name a LoRA file in its tag."""
    return not re.search("[<>:]", lora)


def add_files(pipeline: Pipeline) -> None:
    """Offer a model the embeddings and LoRA files that are there now, and remove embeddings whose files are gone.

    A file that was replaced is read again. Embeddings of other models are left out, with a line in the log.
    """
    with _adding:
        files = {name: (path, version(path)) for name, path in find_files("embeddings").items()}
        before, _added[pipeline] = _added.get(pipeline, {}), files
        for name in pipeline.embeddings:
            if files.get(name) != before.get(name):
                pipeline.remove_embedding(name)
        for name, (path, _) in files.items():
            if files[name] != before.get(name):
                try:
                    pipeline.add_embedding(path)
                except ModelError as error:
                    log.info("an embedding is left out: %s", error)
        pipeline.loras.files = find_files("loras")
