"""Files from unknown sources: only regular ones are opened, and no more is read than their kind can need."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from .config import ConfigError, Json, ModelError

# The largest settings that are published, an index of shards with a name for each weight, are about 100 kB.
MAX_SETTINGS = 4 * 2**20
# With averaged weights and in float32, Stable Diffusion 2.x is 8 GB.
MAX_WEIGHTS = 32 * 2**30

Version = tuple[int, int, int]
"""Number, time of the last change in ns, and bytes of a file: different ones where it was replaced or written to."""


def version(path: Path) -> Version | None:
    """Return the version of a file or folder; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def check_file(path: Path, limit: int) -> None:
    """Raise `ModelError` unless `path` is a regular file of at most `limit` bytes; a FIFO, say, would never end."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist: check the name, or download the model again") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}): change its rights, or copy it again") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file: put the model's own file in its place")
    if status.st_size > limit:
        raise ModelError(
            f"{path} has {status.st_size:,} bytes, more than the {limit:,} that such a file can need: "
            "it is not a file of a Stable Diffusion model, download it again"
        )


def read_text(path: Path, limit: int = MAX_SETTINGS) -> str:
    """Return the text of a file of at most `limit` bytes of UTF-8; raises `ModelError` for any other file."""
    check_file(path, limit)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)  # files in /proc are longer than their size
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}): change its rights, or copy it again") from None
    if len(content) > limit:
        raise ModelError(f"{path} has more than {limit:,} bytes: it is not a file of a model, download it again")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not text ({error}): download it again") from None


def parse_json(text: str, origin: Path) -> Json:
    """Return the JSON object in `text`; raises `ConfigError` naming `origin` if it is anything else."""
    try:
        values: object = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{origin} is not valid JSON (nested too deep): download it again") from None
    except ValueError as error:  # of JSON's grammar, and of integers with thousands of digits
        raise ConfigError(f"{origin} is not valid JSON ({error}): download it again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold a JSON object, got {type(values).__name__}: download it again")
    return values


def read_json(path: Path) -> Json:
    """Read one settings file; raises `ModelError` naming it if it is missing, malformed or not a regular file."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: a model directory needs it")
    return parse_json(read_text(path), path)
