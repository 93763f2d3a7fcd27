"""The list of models that a visitor may choose from, and their settings files, read without loading a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_diffusion.loading.config import BUNDLED, ModelError
from stable_diffusion.loading.files import read_json
from stable_diffusion.loading.model_config import SETTINGS_FILES, TINY_VAE_FILES, TURBO_FILE
from stable_diffusion.loading.model_defaults import defaults_for
from stable_diffusion.request import Defaults, RequestError, shown

from .adapter_files import MODELS, folders

log = logging.getLogger(__name__)

BUNDLED_NAME = "emoji (bundled)"
OWN_SIZE_ONLY = "_own_size_only"
"""The key in a model's index; diffusers leaves out keys that begin like this."""
SUFFIXES = (".safetensors", ".ckpt")
"""Endings of single files that are models; others may be adapters."""
HUB = {
    "Stable Diffusion 1.5 (from the hub)": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4.3),
    "BK-SDM small (from the hub)": ("nota-ai/bk-sdm-small-2m", 2.8),
    "BK-SDM tiny (from the hub)": ("nota-ai/bk-sdm-tiny-2m", 2.1),
}
"""Models on the hub: id, and gigabytes of weights in float32; on CUDA half of that is downloaded. The two small ones
are Stable Diffusion without some of its blocks (arXiv:2305.15798), for slower machines."""


class Catalogue:
    """Names of models and their sources. `first` is the source of the page's first model, None for the bundled one."""

    def __init__(self, first: str | None = None, named: Sequence[str] = (), *, public: bool = False):
        """named, public: see `find_models`."""
        self.sources = find_models(first, named, public=public)
        self.first = next(iter(self.sources))

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Label and name of each model; the label of a download tells its size."""
        return [(f"{name}, {HUB[name][1]} GB" if name in HUB else name, name) for name in self.sources]

    def source(self, name: str | None = None) -> str | None:
        """Return the source of a model, by default of the first; `RequestError` for an unknown name."""
        name = name or self.first
        if not isinstance(name, str) or name not in self.sources:
            raise RequestError(f"model must be one of {', '.join(map(repr, self.sources))}, got {shown(name)}")
        return self.sources[name]

    def path(self, name: str | None = None) -> Path:
        """Return directory or file of a model; it does not exist for a model on the hub."""
        source = self.source(name)
        return BUNDLED if source is None else Path(source).expanduser()

    def configs(self, name: str | None = None) -> list[dict[str, Any] | None]:
        """Return a model's settings files as `defaults_for` takes them; None for a file that can't be read."""
        folder = self.path(name)
        configs: list[dict[str, Any] | None] = []
        for part in ("unet", "vae", "scheduler", "text_encoder"):
            try:
                configs.append(read_json(folder / SETTINGS_FILES[part]))
            except ModelError:
                configs.append(None)
        return configs

    def defaults(self, name: str | None = None) -> Defaults:
        """Return a model's defaults by its settings files; the usual ones for a model that has none on this disk."""
        tiny_vae, fast = ((self.path(name) / file).is_file() for file in (TINY_VAE_FILES[0], TURBO_FILE))
        return defaults_for(*self.configs(name), tiny_vae=tiny_vae, fast=fast)

    def own_size_only(self, name: str | None = None) -> bool:
        """Return whether a model's index says that it draws well at its own size alone."""
        try:
            return read_json(self.path(name) / SETTINGS_FILES["model_index"]).get(OWN_SIZE_ONLY) is True
        except ModelError:  # a single file, or a model on the hub
            return False


def find_models(first: str | None, named: Sequence[str], *, public: bool) -> dict[str, str | None]:
    """Return names and sources of the first model and of the others that visitors may choose.

    named: sources and folders of models, beside those in $SD_MODELS. public: whether others reach the page. Then it
    offers what its deployer named; a local page also offers the bundled model, those in models/ and some of the hub.
    """
    sources: dict[str, str | None] = {}
    if first is not None:
        sources[Path(first).name] = first
    if first is None or (not public and is_model(BUNDLED)):
        sources[BUNDLED_NAME] = None
    places = [str(folder) for folder in folders() if folder != MODELS or (not public and MODELS.is_dir())]
    hub = {source: name for name, (source, _) in HUB.items()}
    for place in [*places, *named]:
        for source in models_at(place):
            sources.setdefault(hub.get(source, Path(source).name), source)
    return sources if public else {**sources, **{name: source for source, name in hub.items()}}


def models_at(place: str) -> list[str]:
    """Return the sources of the models in a folder, or the place itself if it is a model or may be an id on the hub."""
    path = Path(place).expanduser()
    if path.is_dir() and not is_model(path):
        return [str(one) for one in sorted(path.glob("*")) if is_model(one)]
    if is_model(path) or not path.is_absolute():
        return [place]
    log.warning("there is no model at %s, and no folder of models", place)
    return []


def is_model(path: Path) -> bool:
    """Whether a path looks like a model: a single file by its name, a directory by its index."""
    return path.suffix in SUFFIXES or (path / "model_index.json").exists()
