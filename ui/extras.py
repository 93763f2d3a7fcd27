"""What lies beside the models: LoRA files, which prompts may name, and embeddings, which are words of the prompt."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stable_diffusion.loading.config import ModelError

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

log = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parent.parent / "models"
ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt")


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
    """Give a model the words and the LoRA files; embeddings of other models are left out, which the log tells."""
    for path in find_files("embeddings").values():
        try:
            pipeline.add_embedding(path)
        except ModelError as error:
            log.info("an embedding is left out: %s", error)
    for path in find_files("loras").values():
        pipeline.loras.offer(path)
