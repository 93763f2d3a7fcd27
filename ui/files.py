"""Files that visitors may download: written straight into Gradio's cache, which deletes them after a day."""

from __future__ import annotations

import re
import time
import uuid
from pathlib import Path

from gradio.utils import get_upload_folder

FOLDER = "kept"


def keep(name: str, content: bytes) -> str:
    """Write a file under that name, in a folder that nobody can guess; returns its path."""
    folder = Path(get_upload_folder()) / FOLDER / uuid.uuid4().hex
    folder.mkdir(parents=True)
    path = folder / name
    path.write_bytes(content)
    return str(path)


def sweep(age: float = 3600) -> None:
    """Remove the folders that have been empty for `age` seconds: Gradio deletes files alone."""
    for folder in (Path(get_upload_folder()) / FOLDER).glob("*"):
        try:
            if folder.stat().st_mtime <= time.time() - age:
                folder.rmdir()
        except OSError:  # not empty, or another visitor's leaving was quicker
            continue


def stem(prompt: str, seed: int) -> str:
    """A file name for a picture, without its ending: "a red fox!" with seed 7 -> "a-red-fox-7"."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return f"{words or 'picture'}-{seed}"
