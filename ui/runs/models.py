"""The models behind the page: a list to choose from, each loaded in a thread of its own when somebody first asks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_diffusion.loading.config import BUNDLED, ModelError
from stable_diffusion.loading.files import read_json
from stable_diffusion.loading.model_config import SETTINGS_FILES, TINY_VAE_FILES
from stable_diffusion.loading.model_defaults import defaults_for
from stable_diffusion.request import Defaults, Request, shown

from ..form.vocabulary import Vocabulary, read_vocabulary
from .adapter_files import bring, folders
from .limits import USUAL, Limits
from .pace import seconds_per_step

if TYPE_CHECKING:
    import torch

    from stable_diffusion.diffusion import UNet
    from stable_diffusion.pipeline import Pipeline

log = logging.getLogger(__name__)

BUNDLED_NAME = "emoji (bundled)"
HUB = {
    "Stable Diffusion 1.5 (from the hub)": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 4.3),
    "BK-SDM small (from the hub)": ("nota-ai/bk-sdm-small-2m", 2.8),
    "BK-SDM tiny (from the hub)": ("nota-ai/bk-sdm-tiny-2m", 2.1),
}
"""Models to fetch: where from, and how many gigabytes their weights are in float32; half of that is fetched for CUDA.
Stable Diffusion without some of its blocks, by the same paper (arXiv:2305.15798), is for slower machines."""
FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
"""Kinds of models, by the width of the text features that their U-Net reads."""
KEPT = 2
"""How many models are in memory at once, those being loaded among them."""
LOOK_EVERY = 0.25
"""Seconds from one look at a model being loaded to the next."""

Progress = tuple[str, float]
"""What loading is busy with, and its share from 0 to 1."""

OnProgress = Callable[[str, float], None]
Load = Callable[[str | None, str | None, str | None, str | None, OnProgress], "Pipeline"]
"""How a model is loaded: source, VAE if not its own, device, dtype, and whom to tell how far it is."""


@dataclass
class Loading:
    """A model on its way: the future that holds it in the end, and how far it has come."""

    future: Future[Pipeline] = field(default_factory=Future)
    progress: Progress = ("Loading the model", 0.0)
    begun: bool = False
    """Whether it takes up memory already."""


class ModelHolder:
    """All visitors' models. `model` is the one that the page starts with, with `vae` if given; None is the bundled one.
    `limits` are for those who ask them; with `safety_checker`, models have their
    pictures looked at by their own, those that have one.

    The lock guards the table alone, and nobody holds it while a model is loaded: who waits for one model keeps nobody
    from another. A model that has to go is forgotten before the next is loaded; runs that use it still keep it.
    """

    def __init__(
        self,
        model: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        *,
        vae: str | None = None,
        limits: Limits = USUAL,
        safety_checker: bool = False,
        load: Load | None = None,
    ):
        self.sources = find_models(model)
        self.first = next(iter(self.sources))
        self.limits = limits
        self._vae, self._device, self._dtype = vae, device, dtype
        self._load = load or partial(load_pipeline, safety_checker=safety_checker)
        self._table: OrderedDict[str, Loading] = OrderedDict()  # the one asked for last is at its end
        self._changed = threading.Condition()
        self._came = "loading"  # how it went with the first model, the last time

    @property
    def names(self) -> list[str]:
        """What a visitor may choose from."""
        return list(self.sources)

    @property
    def choices(self) -> list[tuple[str, str]]:
        """The same with what a visitor should know of each: how large those are that are fetched."""
        return [(f"{name}, {HUB[name][1]} GB" if name in HUB else name, name) for name in self.sources]

    @property
    def defaults(self) -> Defaults:
        """What the controls show at first."""
        return self.defaults_of(self.first)

    def defaults_of(self, name: str | None = None) -> Defaults:
        """What suits a model here, by its JSON files where it is not loaded; ValueError where there is none such."""
        source, pipeline = self.source(name), self.loaded(name)
        if pipeline is not None:
            return self.limits.of_model(pipeline.defaults)
        tiny_vae = (folder_of(source) / TINY_VAE_FILES[0]).is_file()
        return self.limits.of_model(defaults_for(*read_configs(source), tiny_vae=tiny_vae))

    def source(self, name: str | None = None) -> str | None:
        """Where a model of the list comes from; ValueError where the list has no such model."""
        name = name or self.first
        if not isinstance(name, str) or name not in self.sources:
            raise ValueError(f"model must be one of {', '.join(map(repr, self.sources))}, got {shown(name)}")
        return self.sources[name]

    def vocabulary(self, name: str | None = None) -> Vocabulary | None:
        """What a model knows by name, where a file beside it tells; ValueError where there is no such model."""
        return read_vocabulary(folder_of(self.source(name)))

    def draws(self, name: str | None = None) -> str:
        """A sentence about what a model can draw; ValueError where there is no such model."""
        vocabulary, source = self.vocabulary(name), self.source(name)
        if vocabulary is not None:
            return f"It draws {vocabulary.draws}."
        pipeline, unet = self.loaded(name), read_configs(source)[0] or {}
        width = unet.get("cross_attention_dim") if pipeline is None else pipeline.models.unet.config.cross_attention_dim
        side = self.defaults_of(name).side
        kind = f"A model like {FAMILIES[width]}: it" if width in FAMILIES else "It"
        return f"{kind} draws what you describe, best at {side} x {side} pixels."

    def called(self, written: str) -> str | None:
        """The model of the list that writes this name into its pictures, unless it would have to be fetched."""
        for name, source in self.sources.items():
            path = folder_of(source)
            if path.exists() and written == (path.stem if path.is_file() else path.name):
                return name
            if written == source and self.loaded(name) is not None:
                return name
        return None

    def loaded(self, name: str | None = None) -> Pipeline | None:
        """A model that is in memory, or None."""
        loading = self._table.get(name or self.first)
        if loading is None or not loading.future.done() or loading.future.exception():
            return None
        return loading.future.result()

    @property
    def status(self) -> str:
        """How the first model is: "loading", "ready", or "failed" where it could not be loaded the last time."""
        if self.first in self._table and self.loaded() is None:
            return "loading"
        return self._came

    def ask(self, name: str | None = None) -> Loading:
        """Begin to load a model, unless somebody has; returns at once. ValueError where there is no such model."""
        name, source = name or self.first, self.source(name)
        with self._changed:
            loading = self._table.get(name)
            if loading is None:
                loading = self._table[name] = Loading()
                threading.Thread(target=self._fulfil, args=(name, source, loading), name="model", daemon=True).start()
            self._table.move_to_end(name)
        return loading

    def pipeline(self, name: str | None = None) -> Pipeline:
        """A model, waited for if need be; ValueError says why it can't be loaded, and the next ask tries again."""
        return self.ask(name).future.result()

    async def here(self, name: str | None = None) -> Pipeline | None:
        """A model that is in memory or on its way there, waited for; None where nobody asked for it, or it failed."""
        loading = self._table.get(name or self.first)
        while loading is not None and not loading.future.done():
            await asyncio.sleep(LOOK_EVERY)
        return self.loaded(name)

    async def wait(self, name: str | None = None) -> AsyncIterator[Progress]:
        """Yield now and then how far a model has come, until it is there; ValueError where it can't be loaded.

        Takes no thread, however many wait.
        """
        loading = self.ask(name)
        while not loading.future.done():
            yield loading.progress
            await asyncio.sleep(LOOK_EVERY)
        loading.future.result()

    def _fulfil(self, name: str, source: str | None, loading: Loading) -> None:
        """Load a model as soon as there is room; what fails is forgotten."""

        def tell(text: str, share: float) -> None:
            loading.progress = text, share

        with self._changed:
            self._changed.wait_for(self._make_room)
            loading.begun = True
        try:
            vae = self._vae if name == self.first else None
            pipeline = self._load(source, vae, self._device, self._dtype, tell)
        except Exception as error:
            log.exception("the model %r could not be loaded", name)
            with self._changed:
                self._came = "failed" if name == self.first else self._came
                del self._table[name]
                self._changed.notify_all()
            failure = ValueError(f"The model {name!r} could not be loaded: {error}")
            failure.__cause__ = error
            loading.future.set_exception(failure)
        else:
            with self._changed:
                self._came = "ready" if name == self.first else self._came
                loading.future.set_result(pipeline)
                self._changed.notify_all()

    def _make_room(self) -> bool:
        """Forget the models that were asked for longest ago; False while all in memory are still being loaded."""
        here = [name for name, loading in self._table.items() if loading.begun]
        there = [name for name in here if self._table[name].future.done()]
        surplus = len(here) - KEPT + 1
        for name in there[: max(0, surplus)]:
            del self._table[name]
        return len(there) >= surplus


def find_models(first: str | None) -> dict[str, str | None]:
    """Names and sources: the first one, the bundled one, what lies in models/ and $SD_MODELS, and some of the hub."""
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


def load_pipeline(
    source: str | None,
    vae: str | None,
    device: str | None,
    dtype: str | None,
    on_progress: OnProgress,
    *,
    safety_checker: bool = False,
) -> Pipeline:
    """Load a model and take two steps with it where that is quick, so that the first visitor does not wait for it."""
    import torch

    from stable_diffusion.compute.packed import for_inference
    from stable_diffusion.model_loader import load
    from stable_diffusion.pipeline import Pipeline

    kind: Any = getattr(torch, dtype) if dtype and dtype != "auto" else dtype
    models = load(source, vae=vae, device=device, dtype=kind, safety_checker=safety_checker, on_progress=on_progress)
    weight = next(models.vae.parameters())
    precision = weight.dtype
    pipeline = Pipeline(models)
    pipeline.condition(Request())  # weights that are not finite are found here, ...
    for network in (models.unet, models.vae):
        for_inference(network, precision)  # ... and here, and not by the first visitor
    bring(pipeline)
    small = pipeline.default_size <= 256
    by = " by OpenVINO" if small and dtype == "auto" and prefers_openvino(models.unet, precision) else ""
    looked = ", and its safety checker looks at its pictures" if models.safety_checker else ""
    kind, threads = str(precision).removeprefix("torch."), torch.get_num_threads()
    log.info("%s computes in %s on %s, threads: %d%s%s", models.name, kind, weight.device, threads, by, looked)
    if small:
        steps = pipeline.stream("", preview=pipeline.defaults.preview)
        next(steps)
        next(steps)
        steps.close()
    try:
        seconds_per_step(pipeline)  # measured now, while nobody draws with it
    except Exception:
        log.exception("the model's usual settings can't be drawn with it")  # whoever does so is told
    return pipeline


def prefers_openvino(unet: UNet, precision: torch.dtype) -> bool:
    """Have OpenVINO answer for the U-Net if it is installed and faster; it is never needed."""
    from stable_diffusion.compute.openvino import use_where_faster

    try:
        return use_where_faster(unet, precision)
    except Exception:
        log.exception("OpenVINO can't be used here")
        return False


def folder_of(source: str | None) -> Path:
    """Where a model's files are, if it has not to be fetched."""
    return BUNDLED if source is None else Path(source).expanduser()


def read_configs(source: str | None) -> list[dict[str, Any] | None]:
    """The settings of a model directory's parts, as `defaults_for` takes them; None for a file that can't be read."""
    folder = folder_of(source)
    configs: list[dict[str, Any] | None] = []
    for part in ("unet", "vae", "scheduler", "text_encoder"):
        try:
            configs.append(read_json(folder / SETTINGS_FILES[part]))
        except ModelError:
            configs.append(None)
    return configs
