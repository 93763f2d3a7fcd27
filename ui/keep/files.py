"""Files that visitors may download, in Gradio's cache, which deletes them after a day."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gradio.utils import get_upload_folder

from stable_diffusion.request import RequestError

FOLDER = "kept"
HOUR, DAY = 3600, 86400
SECRET = secrets.token_bytes(16)
UPLOADS: set[str] = set()
"""The files of uploads that came as text, which Gradio deletes after a day."""


class NoRoom(RequestError):
    """A file can't be written: the disk is full or read-only."""


def keep(name: str, content: bytes) -> str:
    """Write a file under that name, in a folder that nobody can guess, and return its path. Raises `NoRoom`."""
    folder = Path(get_upload_folder()) / FOLDER / uuid.uuid4().hex
    path = folder / name
    try:
        folder.mkdir(parents=True)
        path.write_bytes(content)
    except OSError as error:
        discard(path)  # the half that was written takes room from the next file
        raise NoRoom(f"The server can't keep a file ({error.strerror}): try again later.") from error
    return str(path)


def discard(path: str | Path) -> None:
    """Delete a kept file, and its folder."""
    shutil.rmtree(Path(path).parent, ignore_errors=True)


def keep_data(name: str, uri: str) -> str:
    """Write the content of a base64 data URI unless it is there already, and return its path.

    The page sends a mask with every event. Raises `RequestError` for text that is cut off, and `NoRoom`.
    """
    try:
        content = base64.b64decode(uri.partition(",")[2])
    except ValueError:
        raise RequestError(f"{name} is damaged on its way: send it again") from None
    path = Path(get_upload_folder()) / FOLDER / hashlib.sha256(SECRET + name.encode() + content).hexdigest() / name
    try:
        for used in (path, path.parent):
            os.utime(used)  # it stays for a day from now on
    except FileNotFoundError:
        new = Path(keep(name, content))
        with suppress(OSError):  # another event was quicker
            new.parent.rename(path.parent)
    UPLOADS.add(str(path))
    return str(path)


def sweep() -> None:
    """Delete files that were kept a day ago, and uploads that broke off an hour ago or earlier.

    Gradio deletes neither folders, nor unfinished uploads, nor the files of a server that was killed.
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
    """Return a picture's file name without its ending: "a red fox!" with seed 7 -> "a-red-fox-7"."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    return f"{words or 'picture'}-{seed}"
