"""CompVis single file <-> model directory: `python -m stable_diffusion.model_converter SOURCE TARGET [--half]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .loading.checkpoints import (
    SUFFIXES,
    WEIGHT_STEMS,
    State,
    check,
    finite,
    first_five,
    outline,
    read_directory,
    write_tensors,
)
from .loading.config import ModelError
from .loading.hub import locate
from .loading.key_table import KeyTable
from .loading.model_config import SETTINGS_FILES, ModelConfig, read_settings
from .loading.single_file import METADATA_KEY, read_single_file
from .loading.tokenizer import find_tokenizer, save_tokenizer
from .model_loader import NETWORKS, networks_of


def convert(source: str | Path, target: str | Path, *, half: bool = False) -> None:
    """Write a model directory as the single file `target`, or a single file as the directory `target`.

    source: a directory, a single file, or a name on the hub. half: store float16.
    Raises `ModelError` if `target` exists or `source` is damaged. `target` is created only when it is complete.
    """
    source, target = locate(source, prefer_half=half), Path(target)
    if target.exists():
        raise ModelError(f"{target} exists already: name another target, or remove it first")
    if source.is_dir() != (target.suffix in SUFFIXES):
        wanted = "a single file, NAME.safetensors" if source.is_dir() else "a directory"
        raise ModelError(f"{target} must name {wanted}: {source} is converted to one")
    if source.is_dir():
        _directory_to_file(source, target, half)
    else:
        _file_to_directory(source, target, half)


def _directory_to_file(source: Path, target: Path, half: bool) -> None:
    if target.suffix != ".safetensors":
        raise ModelError(f"{target} must end in .safetensors, the only format that is written")
    settings = read_settings(source)
    config, parts = ModelConfig.from_settings(settings), read_directory(source, prefer_half=half)
    tensors: State = {}
    for part, network in networks_of(config).items():
        state, origin = parts[part]
        check(outline(network, getattr(config, part)), state, origin)
        tensors |= KeyTable.of(part, config, network).to_file(_halved(state, origin) if half else state)
    with _appearing(target) as path:
        write_tensors(path, tensors, {METADATA_KEY: json.dumps(settings)})


def _file_to_directory(source: Path, target: Path, half: bool) -> None:
    settings, parts = read_single_file(source, NETWORKS)
    config = ModelConfig.from_settings(settings)
    tokenizer = find_tokenizer(source, config.text_encoder)
    with _appearing(target) as path:
        for part, name in SETTINGS_FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(json.dumps(settings[part], indent=2) + "\n", encoding="utf-8")
        for part, (state, origin) in parts.items():
            state = _halved(state, origin) if half else state
            write_tensors(path / part / f"{WEIGHT_STEMS[part][0]}.safetensors", state)
        save_tokenizer(tokenizer, path / "tokenizer")


def _halved(state: State, origin: Path) -> State:
    """Return the weights in float16; raises `ModelError` if one is too large for it."""
    halved = {name: tensor.half() for name, tensor in state.items()}
    broken = [name for name, tensor in halved.items() if not finite(tensor)]
    if broken:
        raise ModelError(f"{origin} has weights beyond float16 ({first_five(broken)}): convert without --half")
    return halved


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` on success and is removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        yield Path(folder) / target.name
        os.rename(Path(folder) / target.name, target)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 0 if the target was written, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m stable_diffusion.model_converter",
        description="Convert a model directory to a single file, or a single file to a model directory.",
    )
    parser.add_argument("source", help="a model directory, a single file, or a name on the hub, owner/name")
    parser.add_argument("target", type=Path, help="NAME.safetensors, or a new directory")
    parser.add_argument("--half", action="store_true", help="store float16: half the size")
    asked = parser.parse_args(arguments)
    try:
        convert(asked.source, asked.target, half=asked.half)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
