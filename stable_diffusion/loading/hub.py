"""Models from the hub: the needed files only, checked, kept in its cache and usable offline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from .checkpoints import PARTS, SUFFIXES, find_weights, shards, weight_names
from .config import ModelError
from .model_config import SAFETY_FILES, SETTINGS_FILES, TINY_VAE_FILES, TOKENIZER_FILES, TURBO_FILE, read_config

OnProgress = Callable[[str, float], None]
"""Receives the name of the current activity and its progress from 0 to 1; a download calls it from its threads."""

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def locate(
    source: str | Path,
    *,
    files: list[str] | None = None,
    prefer_half: bool = False,
    safety_checker: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Return the path that `source` names, after a download if it is a model on the hub, `owner/name`.

    files: download only these, as far as the repository has them. prefer_half: choose float16 weights where the hub
    has them. safety_checker: download it too. Raises `ModelError` if there is no such model.
    """
    path = Path(source).expanduser()
    if os.path.exists(path):  # pathlib's own raises for a name that is too long
        return path
    if REPOSITORY.fullmatch(str(source)) and path.suffix not in SUFFIXES:
        if files is not None:
            return fetch_files(str(source), files)
        return fetch_model(str(source), prefer_half=prefer_half, safety_checker=safety_checker, on_progress=on_progress)
    raise ModelError(
        f"{source} does not exist: give a model directory, a single file, or a name on the hub, owner/name"
    )


def fetch_model(
    repository: str,
    *,
    prefer_half: bool = False,
    safety_checker: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Return the directory of the model `repository` in the hub's cache, after downloading missing files.

    Settings come first, so that an unsupported model is refused before gigabytes are downloaded. Cached weights of the
    model's latest version are used in either precision. Complete files survive an interrupted download.
    Raises `ModelError` with the remedy.
    """
    tokenizer_files = [f"tokenizer/{name}" for name in TOKENIZER_FILES]
    safety_files = SAFETY_FILES if safety_checker else ()
    optional_files = (*TINY_VAE_FILES, TURBO_FILE, *safety_files)
    folder = fetch_files(repository, [*SETTINGS_FILES.values(), *tokenizer_files, *optional_files])
    try:
        read_config(folder)
    except ModelError as error:
        raise ModelError(f"{repository} on the hub can't be used: {error}") from None
    parts = list(PARTS)
    if safety_checker and (folder / SAFETY_FILES[0]).exists():
        parts.append("safety_checker")
    if all(_has_weights(folder, part) for part in parts):
        return folder
    with _explained(repository):
        listing = HfApi().list_repo_tree(repository, recursive=True, revision=folder.name)
        files = {file.path: file for file in listing if isinstance(file, RepoFile)}
        chosen = [name for part in parts for name in _choose(repository, part, files, prefer_half)]
        missing = [files[name] for name in chosen if not (folder / name).exists()]
        bar = None if on_progress is None else _reporting_bar(repository, sum(f.size for f in missing), on_progress)
        snapshot_download(repository, revision=folder.name, allow_patterns=chosen, tqdm_class=bar)
        for file in missing:
            _verify(repository, folder / file.path, file)
    return folder


def _has_weights(folder: Path, part: str) -> bool:
    try:
        path = find_weights(folder, part)
        return path.suffix != ".json" or all(shard.is_file() for shard in shards(path).values())
    except ModelError:
        return False


def fetch_files(repository: str, patterns: list[str]) -> Path:
    """Download matching files of `repository`, unless offline; return its directory in the hub's cache."""
    with _explained(repository):
        return Path(snapshot_download(repository, allow_patterns=patterns))


def _choose(repository: str, part: str, names: Collection[str], prefer_half: bool) -> list[str]:
    """Return the best weight file of a part, or an index and its shards."""
    best = next((name for name in weight_names(part, prefer_half=prefer_half) if name in names), None)
    if best is None:
        raise ModelError(f"{repository} on the hub has no weights of the {part}: choose another model")
    if not best.endswith(".json"):
        return [best]
    kind = "safetensors" if "safetensors" in best else "bin"
    shards = (name for name in names if name.startswith(f"{part}/") and "-of-" in name and name.endswith(kind))
    return [best, *(name for name in shards if ("fp16" in name) == ("fp16" in best))]


def _verify(repository: str, path: Path, file: RepoFile) -> None:
    """Compare a new file's checksum with the hub's, which its library does not do; remove a damaged file."""
    with path.open("rb") as stream:
        intact = (
            git_hash(stream.read()) == file.blob_id
            if file.lfs is None
            else sha_fileobj(stream).hex() == file.lfs.sha256
        )
    if not intact:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ModelError(f"{file.path} of {repository} arrived damaged and was removed: load the model again")


def _reporting_bar(repository: str, total: int, on_progress: OnProgress) -> type[tqdm]:
    """Return a progress bar class for the hub's library that also calls `on_progress`."""
    done = 0.0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # The library has several bars: bytes from the network, bytes on the disk, and files.
            self.bytes: float | None = 0 if kwargs.get("unit") == "B" else None
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            if self.bytes is not None:
                self.bytes += n or 0
                done = max(done, min(self.bytes, total))
                on_progress(f"Downloading {repository}, {done / 1e6:.0f} of {total / 1e6:.0f} MB", done / total)
            return super().update(n)

    return Bar


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the exceptions of the hub's library into a `ModelError` with the remedy."""
    try:
        yield
    except ModelError:
        raise
    except GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no directory {repository} here, and no such model on the hub, or it is private: "
            "check the spelling of owner/name, or log in with `hf auth login`"
        ) from None
    except (LocalEntryNotFoundError, ConnectionError):
        raise ModelError(
            f"the hub can't be reached, and {repository} is not, or not completely, in its cache: "
            "connect to the network and try again, or use the bundled model, which needs none"
        ) from None
    except Exception as error:  # of several libraries, or a full disk
        raise ModelError(
            f"the download of {repository} stopped ({error}): try again, finished files are kept"
        ) from None
