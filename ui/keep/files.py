"""Files that visitors may download: written straight into Gradio's cache, which deletes them after a day."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gradio.utils import get_upload_folder

FOLDER = "kept"
HOUR, DAY = 3600, 86400


class NoRoom(ValueError):
    """A file can't be kept: the disk is full, or not to be written to."""


def keep(name: str, content: bytes) -> str:
    """Write a file under that name, in a folder that nobody can guess; returns its path. NoRoom where that fails."""
    folder = Path(get_upload_folder()) / FOLDER / uuid.uuid4().hex
    path = folder / name
    try:
        folder.mkdir(parents=True)
        path.write_bytes(content)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # half a file is in nobody's way but the next one's
        raise NoRoom(f"The server can't keep a file ({error.strerror}): try again later.") from error
    return str(path)


def sweep() -> None:
    """Remove what was kept a day ago, and uploads that were cut off an hour ago or more.

    Gradio deletes neither folders, nor half an upload, nor the files of a server that was killed.
    """
    cache, now = Path(get_upload_folder()), time.time()
    old: list[tuple[Path, float, Callable[[Path], object]]] = [
        *((folder, DAY, shutil.rmtree) for folder in (cache / FOLDER).glob("*")),
        *((upload, HOUR, Path.unlink) for upload in cache.glob("tmp*")),
    ]
    for path, age, remove in old:
        with suppress(OSError):  # another sweep may be quicker
            if path.stat().st_mtime <= now - age:
                remove(path)


def stem(prompt: str, seed: int) -> str:
    """A file name for a picture, without its ending: "a red fox!" with seed 7 -> "a-red-fox-7"."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return f"{words or 'picture'}-{seed}"
