"""The match of pictures and words, by the CLIP in a model's directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from stable_diffusion.loading.config import ModelError
from stable_diffusion.request import Request, without_loras

if TYPE_CHECKING:
    from stable_diffusion.clip import CLIP

log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def load_clip(folder: Path, device: str) -> CLIP:
    """Load the CLIP of a model directory and keep it for the next run."""
    from stable_diffusion.clip import CLIP

    return CLIP.from_pretrained(folder, device=device)


def clip_for(model: Path, prompt: str, device: str) -> CLIP | None:
    """Return the CLIP in a model's directory; None without a prompt, and where CLIP is missing or damaged."""
    folder = model / "clip"
    if not folder.is_dir() or not prompt.strip():
        return None
    try:
        return load_clip(folder, device)
    except ModelError as error:
        log.warning("pictures are not compared with their words: %s", error)
        return None


def closest(model: Path, request: Request, files: Sequence[str]) -> int | None:
    """Return the place of the picture that matches a request's prompt best.

    None for a single picture, without a prompt, and for a model whose directory has no CLIP.
    """
    prompt = without_loras(request.prompt)
    # A few pictures take it milliseconds on a processor, and an accelerator is the engine's.
    clip = None if len(files) == 1 else clip_for(model, prompt, "cpu")
    return None if clip is None else int(clip.similarity([Image.open(file) for file in files], [prompt]).argmax())
