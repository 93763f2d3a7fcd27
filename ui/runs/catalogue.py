"""The list of models that a visitor may choose from, and their settings files, read without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_diffusion.loading.config import BUNDLED, ModelError
from stable_diffusion.loading.files import read_json
from stable_diffusion.loading.model_config import SETTINGS_FILES, TINY_VAE_FILES
from stable_diffusion.loading.model_defaults import defaults_for
from stable_diffusion.request import Defaults, RequestError, shown

from .adapter_files import folders

BUNDLED_NAME = "emoji (bundled)"
HUB = {
    "Stable Diffusion 1.5 (from the hub)": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4.3),
    "BK-SDM small (from the hub)": ("nota-ai/bk-sdm-small-2m", 2.8),
    "BK-SDM tiny (from the hub)": ("nota-ai/bk-sdm-tiny-2m", 2.1),
}
"""Models on the hub: id, and gigabytes of weights in float32; on CUDA half of that is downloaded. The two small ones
are Stable Diffusion without some of its blocks (arXiv:2305.15798), for slower machines."""


class Catalogue:
    """Names of models and their sources. `first` is the source of the page's first model, None for the bundled one."""

    def __init__(self, first: str | None = None):
        self.sources = find_models(first)
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
        return defaults_for(*self.configs(name), tiny_vae=(self.path(name) / TINY_VAE_FILES[0]).is_file())


def find_models(first: str | None) -> dict[str, str | None]:
    """Return names and sources: the first model, the bundled one, those in models/ and $SD_MODELS, some of the hub."""
    sources: dict[str, str | None] = {}
    if first is not None:
        sources[Path(first).name] = first
    if (BUNDLED / "model_index.json").exists() or first is None:
        sources[BUNDLED_NAME] = None
    for folder in folders():
        for path in sorted(folder.glob("*")):
            if path.suffix in (".safetensors", ".ckpt") or (path / "model_index.json").exists():
                sources.setdefault(path.name, str(path))
    return {**sources, **{name: source for name, (source, _) in HUB.items()}}
