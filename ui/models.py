"""The model behind the page: loaded in the background, so that the page is there first."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Defaults, defaults_for

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "models" / "emoji"
USUAL_SIDE = 512


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it runs; None leaves the choice to the library."""

    name: str | None = None
    device: str | None = None
    dtype: str | None = None

    @property
    def label(self) -> str:
        """The name as a visitor reads it."""
        return Path(self.name).name if self.name else BUNDLED.name


class ModelHolder:
    """One pipeline for all visitors."""

    def __init__(self, source: Source):
        self.source = source
        self._pipeline: Pipeline | None = None
        self._error: str | None = None
        self._done = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether `pipeline` would answer at once."""
        return self._done.is_set()

    @property
    def defaults(self) -> Defaults:
        """What the controls show at first, read from the model's JSON without loading it."""
        return defaults_for(trained_side(self.source.name))

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        threading.Thread(target=self._load, name="model", daemon=True).start()

    def pipeline(self) -> Pipeline:
        """The loaded pipeline, waited for; ValueError says why there is none."""
        self._done.wait()
        if self._pipeline is None:
            raise ValueError(f"The model could not be loaded: {self._error}")
        return self._pipeline

    def _load(self) -> None:
        try:
            self._pipeline = load_pipeline(self.source)
        except Exception as error:
            self._error = str(error)
            print(f"The model could not be loaded: {error}", flush=True)
        finally:
            self._done.set()


def load_pipeline(source: Source) -> Pipeline:
    """Load a model and take one step with it where that is quick, so that the first visitor does not wait for it."""
    import torch

    from stable_diffusion.pipeline import Pipeline

    dtype = getattr(torch, source.dtype) if source.dtype else None
    pipeline = Pipeline.from_pretrained(source.name, device=source.device, dtype=dtype)
    if pipeline.default_size <= 256:
        for _ in pipeline.stream("", num_inference_steps=2, preview="vae"):
            pass
    return pipeline


def trained_side(name: str | None) -> int:
    """The side of a model directory's pictures, from its JSON; the usual 512 where it is not a directory."""
    folder = Path(name).expanduser() if name else BUNDLED
    try:
        latents = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))["sample_size"]
        levels = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
    except (OSError, ValueError, KeyError):
        return USUAL_SIDE
    return latents * 2 ** (len(levels) - 1)
