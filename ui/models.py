"""The models behind the page: a list to choose from, loaded in the background or when somebody first asks for one."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Defaults, defaults_for

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "assets" / "models" / "emoji"
BUNDLED_NAME = "emoji (bundled)"
HUB = {"Stable Diffusion 1.5 (from the hub)": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
USUAL_SIDE = 512
KEPT = 2
"""How many models stay in memory."""

OnProgress = Callable[[str, float], None]


class ModelHolder:
    """All visitors' models. `model` is the one that the page starts with; None is the bundled one."""

    def __init__(self, model: str | None = None, device: str | None = None, dtype: str | None = None):
        self.sources = find_models(model)
        self.first = next(iter(self.sources))
        self._device, self._dtype = device, dtype
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """What a visitor may choose from."""
        return list(self.sources)

    @property
    def defaults(self) -> Defaults:
        """What the controls show at first."""
        return self.defaults_of(self.first)

    def defaults_of(self, name: str) -> Defaults:
        """What the controls show for a model, from its JSON where it is not loaded yet."""
        if (pipeline := self._loaded.get(name)) is None:
            return read_defaults(self.sources[name])
        scheduler = pipeline.models.scheduler
        named = {**asdict(scheduler), "_class_name": scheduler.class_name}
        return defaults_for(pipeline.default_size, distillation(asdict(pipeline.models.unet.config), named))

    def ready(self, name: str | None = None) -> bool:
        """Whether `pipeline` would answer at once."""
        return (name or self.first) in self._loaded

    def start(self) -> None:
        """Begin to load the first model, in a thread of its own."""

        def load_first() -> None:
            try:
                self.pipeline()
            except ValueError as error:
                print(error, flush=True)

        threading.Thread(target=load_first, name="model", daemon=True).start()

    def pipeline(self, name: str | None = None, on_progress: OnProgress | None = None) -> Pipeline:
        """A model of the list, loaded if need be; ValueError says why it can't be, and leaves the others alone."""
        name = name or self.first
        if name not in self.sources:
            raise ValueError(f"model must be one of {', '.join(map(repr, self.sources))}, got {name[:100]!r}")
        with self._lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = load_pipeline(self.sources[name], self._device, self._dtype, on_progress)
                except Exception as error:
                    raise ValueError(f"The model {name!r} could not be loaded: {error}") from error
            self._loaded.move_to_end(name)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[name]


def find_models(first: str | None) -> dict[str, str | None]:
    """Names and sources: the first one, the bundled one, what lies in models/ and $SD_MODELS, and one from the hub."""
    sources: dict[str, str | None] = {}
    if first is not None:
        sources[Path(first).name] = first
    if (BUNDLED / "model_index.json").exists() or first is None:
        sources[BUNDLED_NAME] = None
    folders = [str(ROOT / "models"), *os.environ.get("SD_MODELS", "").split(os.pathsep)]
    for folder in filter(None, folders):
        for path in sorted(Path(folder).expanduser().glob("*")):
            if path.suffix in (".safetensors", ".ckpt") or (path / "model_index.json").exists():
                sources.setdefault(path.name, str(path))
    return {**sources, **HUB}


def load_pipeline(
    source: str | None, device: str | None = None, dtype: str | None = None, on_progress: OnProgress | None = None
) -> Pipeline:
    """Load a model and take two steps with it where that is quick, so that the first visitor does not wait for it."""
    import torch

    from stable_diffusion.model_loader import load
    from stable_diffusion.pipeline import Pipeline

    kind = getattr(torch, dtype) if dtype else None
    pipeline = Pipeline(load(source, device=device, dtype=kind, on_progress=on_progress))
    if pipeline.default_size <= 256:
        for _ in pipeline.stream("", num_inference_steps=2, preview="vae"):
            pass
    return pipeline


def read_defaults(source: str | None) -> Defaults:
    """What the controls show for a model directory, from its JSON; the usual where the source is something else."""
    folder = Path(source).expanduser() if source else BUNDLED
    parts = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    try:
        unet, vae, scheduler = (json.loads((folder / part).read_text(encoding="utf-8")) for part in parts)
        side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError):
        return defaults_for(USUAL_SIDE)
    return defaults_for(side, distillation(unet, scheduler))


def distillation(unet: dict[str, Any], scheduler: dict[str, Any]) -> str | None:
    """How a model was distilled to few steps, as far as its JSON tells; None for all others."""
    if unet.get("time_cond_proj_dim") or scheduler.get("_class_name") == "LCMScheduler":
        return "lcm"
    # SD-Turbo has no mark of its own, but no other Stable Diffusion comes with Euler on a trailing grid.
    euler = str(scheduler.get("_class_name")).startswith("Euler")
    zero_snr = scheduler.get("rescale_betas_zero_snr")
    return "turbo" if euler and scheduler.get("timestep_spacing") == "trailing" and not zero_snr else None
