"""What lies beside the models: LoRA files, which prompts may name, and embeddings, which are words of the prompt."""

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


_brought: WeakKeyDictionary[Pipeline, dict[str, Path]] = WeakKeyDictionary()
"""The embeddings that each model was given, those among them that it could not take."""
_bringing = threading.Lock()


def folders() -> list[Path]:
    """Where models are looked for: `models/` here, and the folders of $SD_MODELS."""
    return [
        MODELS,
        *(Path(folder).expanduser() for folder in os.environ.get("SD_MODELS", "").split(os.pathsep) if folder),
    ]


def find_files(kind: str) -> dict[str, Path]:
    """The files in the folders `loras` or `embeddings` beside the models, by what a prompt calls them."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / kind).glob("*")):
            if path.suffix in ENDINGS and path.is_file():
                found.setdefault(path.stem, path)
            elif (path / "adapter_config.json").is_file():  # PEFT's
                found.setdefault(path.name, path)
    return {name: path for name, path in found.items() if not re.search("[<>:]", name)}


def bring(pipeline: Pipeline) -> None:
    """Give a model the words and the LoRA files that are there now, and take words away whose files are gone.

    Embeddings of other models are left out, which the log tells.
    """
    with _bringing:
        before, there = _brought.get(pipeline, {}), find_files("embeddings")
        _brought[pipeline] = there
        for name in pipeline.embeddings:
            if name not in there:
                pipeline.remove_embedding(name)
        for name in there.keys() - before.keys():
            try:
                pipeline.add_embedding(there[name])
            except ModelError as error:
                log.info("an embedding is left out: %s", error)
        for path in find_files("loras").values():
            pipeline.loras.register(path)
