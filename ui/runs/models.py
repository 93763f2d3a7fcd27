"""The models in memory: the first one stays, each other is loaded by its own thread on demand, and makes room later."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub.constants import HF_HUB_CACHE

from stable_diffusion.request import Defaults, Request, RequestError

from ..words.lexicon import read_lexicons
from .adapter_files import add_files
from .catalogue import Catalogue
from .cost import pace_of
from .errors import explain
from .limits import LOCAL_LIMITS, Limits

if TYPE_CHECKING:
    import torch

    from stable_diffusion.diffusion import UNet
    from stable_diffusion.pipeline import Pipeline

log = logging.getLogger(__name__)

MAX_LOADED = 2
"""Number of models that stay in memory, the first among them. One more may be in memory while models are loaded."""
LOOK_EVERY = 0.25
"""Seconds between two looks at a model that is being loaded."""

Progress = tuple[str, float]
"""The current part of loading, and the share that is done, from 0 to 1."""

OnProgress = Callable[[str, float], None]
Load = Callable[[str | None, str | None, str | None, str | None, OnProgress], "Pipeline"]
"""A function that loads a model: source, VAE if not its own, device, dtype, and a callback for progress."""


@dataclass
class Loading:
    """A model on its way into memory: its future, and how far it has come."""

    future: Future[Pipeline] = field(default_factory=Future)
    progress: Progress = ("Loading the model", 0.0)
    begun: bool = False
    """Whether it takes up memory already."""


class LoadedModels:
    """The models in memory, shared by all visitors.

    The lock guards the table only and is not held while a model is loaded, so that waiting for one model does not delay
    another. The first model is never displaced. Another one is displaced only when its successor is ready, so that a
    slow or failing download takes nothing from anybody; its runs keep it until they end.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        device: str | None = None,
        dtype: str | None = None,
        *,
        vae: str | None = None,
        limits: Limits = LOCAL_LIMITS,
        safety_checker: bool = False,
        load: Load | None = None,
    ):
        """vae: source of the first model's VAE, if not its own. safety_checker: check pictures, if a model can."""
        self.catalogue, self.limits = catalogue, limits
        self._vae, self._device, self._dtype = vae, device, dtype
        self._load = load or partial(load_pipeline, safety_checker=safety_checker)
        self._table: OrderedDict[str, Loading] = OrderedDict()  # the last asked for is at its end
        self._changed = threading.Condition()
        self._last: Literal["loading", "ready", "failed"] = "loading"  # the last attempt to load the first model

    def defaults(self, name: str | None = None) -> Defaults:
        """Return a model's defaults within the limits here, by its files if it is not loaded.

        Reads files: not for an event loop. Raises `RequestError` for an unknown name.
        """
        pipeline = self.loaded(name)
        defaults = self.catalogue.defaults(name) if pipeline is None else pipeline.defaults
        return self.limits.of_model(replace(defaults, own_size_only=self.catalogue.own_size_only(name)))

    def loaded(self, name: str | None = None) -> Pipeline | None:
        """Return a model, by default the first, if it is in memory."""
        loading = self._table.get(name or self.catalogue.first)
        if loading is None or not loading.future.done() or loading.future.exception():
            return None
        return loading.future.result()

    @property
    def status(self) -> str:
        """State of the first model: "loading", "ready", or "failed" if the last attempt to load it failed."""
        if self.catalogue.first in self._table and self.loaded() is None:
            return "loading"
        return self._last

    def start(self, name: str | None = None) -> Loading:
        """Start to load a model unless that has been done, and return at once; `RequestError` for an unknown name."""
        source, name = self.catalogue.source(name), name or self.catalogue.first
        with self._changed:
            loading = self._table.get(name)
            if loading is None:
                loading = self._table[name] = Loading()
                threading.Thread(target=self._run, args=(name, source, loading), name="model", daemon=True).start()
            self._table.move_to_end(name)
        return loading

    def pipeline(self, name: str | None = None) -> Pipeline:
        """Return a model, after loading it if need be; `RequestError` if that fails, and the next call tries again."""
        return self.start(name).future.result()

    async def wait_if_loading(self, name: str | None = None) -> Pipeline | None:
        """Return a model that is in memory or being loaded; None for one that is neither, or that failed."""
        loading = self._table.get(name or self.catalogue.first)
        while loading is not None and not loading.future.done():
            await asyncio.sleep(LOOK_EVERY)
        return self.loaded(name)

    async def wait(self, name: str | None = None) -> AsyncIterator[Progress]:
        """Yield the progress of loading a model until it is there; `RequestError` if that fails. Takes no thread."""
        loading = self.start(name)
        while not loading.future.done():
            yield loading.progress
            await asyncio.sleep(LOOK_EVERY)
        loading.future.result()

    def _run(self, name: str, source: str | None, loading: Loading) -> None:
        """Load a model as soon as there is room. A failure leaves the table, so that the next visitor tries again."""
        first = name == self.catalogue.first

        def report(text: str, share: float) -> None:
            loading.progress = text, share

        with self._changed:
            self._changed.wait_for(lambda: first or sum(one.begun for one in self._table.values()) <= MAX_LOADED)
            loading.begun = True
        try:
            pipeline = self._load(source, self._vae if first else None, self._device, self._dtype, report)
        except Exception as error:
            log.error("the model %r could not be loaded", name)
            with self._changed:
                self._last = "failed" if first else self._last
                del self._table[name]
                self._changed.notify_all()
            failure = RequestError(
                f"The model {name!r} could not be loaded: {self._without_folders(explain(error), name)}"
            )
            failure.__cause__ = error
            loading.future.set_exception(failure)
        else:
            if first:
                set_aside()
            with self._changed:
                self._last = "ready" if first else self._last
                loading.future.set_result(pipeline)
                self._displace_for(name)
                self._changed.notify_all()

    def _without_folders(self, sentence: str, name: str) -> str:
        """Return a sentence for visitors without the server's folders: files by their paths in the model or the hub."""
        for path in (self.catalogue.path(name), Path(self._vae or ""), Path(HF_HUB_CACHE, "models")):
            if path.is_absolute():
                sentence = sentence.replace(f"{path.parent}{os.sep}", "")
        return sentence

    def _displace_for(self, newcomer: str) -> None:
        """Drop the surplus of ready models, least recently needed first, but neither the first nor the newcomer."""
        ready = [name for name, loading in self._table.items() if loading.future.done()]
        others = [name for name in ready if name not in (self.catalogue.first, newcomer)]
        for name in others[: max(0, len(ready) - MAX_LOADED)]:
            del self._table[name]


def set_aside() -> None:
    """Take what is in memory now, and stays, out of garbage collection.

    Python would look at all of these millions of objects again and again, and everything stands still for 0.3 s then.
    """
    gc.collect()
    gc.freeze()


def load_pipeline(
    source: str | None,
    vae: str | None,
    device: str | None,
    dtype: str | None,
    on_progress: OnProgress,
    *,
    safety_checker: bool = False,
) -> Pipeline:
    """Load a model, prepare its weights and measure its pace, so that the first visitor does not wait for these."""
    import torch

    from stable_diffusion.compute.packed import for_inference
    from stable_diffusion.model_loader import load
    from stable_diffusion.pipeline import Pipeline

    kind: torch.dtype | Literal["auto"] | None
    kind = None if not dtype else "auto" if dtype == "auto" else getattr(torch, dtype)
    models = load(source, vae=vae, device=device, dtype=kind, safety_checker=safety_checker, on_progress=on_progress)
    weight = next(models.vae.parameters())
    pipeline = Pipeline(models)
    # Weights that are not finite are found here, and not by the first visitor.
    pipeline.condition(Request())
    for network in (models.unet, models.vae):
        for_inference(network, weight.dtype)
    add_files(pipeline)
    small = pipeline.default_size <= 256
    openvino = small and dtype == "auto" and prefers_openvino(models.unet, weight.dtype)
    log.info(
        "%s computes in %s on %s, threads: %d%s%s",
        models.name,
        str(weight.dtype).removeprefix("torch."),
        weight.device,
        torch.get_num_threads(),
        " by OpenVINO" if openvino else "",
        ", and its safety checker looks at its pictures" if models.safety_checker else "",
    )
    if small:
        for fast in {False, pipeline.defaults.fast}:
            steps = pipeline.stream(preview=pipeline.defaults.preview, fast=fast)
            next(steps)
            next(steps).noisy()
            steps.close()
        read_lexicons(Path(models.source))
    pace_of(pipeline)
    return pipeline


def prefers_openvino(unet: UNet, precision: torch.dtype) -> bool:
    """Have OpenVINO evaluate the U-Net if it is installed and faster; failures are logged and change nothing."""
    from stable_diffusion.compute.openvino import use_where_faster

    try:
        return use_where_faster(unet, precision)
    except Exception:
        log.exception("OpenVINO can't be used here")
        return False
