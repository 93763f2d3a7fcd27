"""From a request to one that can run: its model loaded, settings complete, pictures read, limits checked, LoRAs merged.

Loads, downloads and decodes: for threads, not for an event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from stable_diffusion.request import Defaults, Request

from ..keep.marks import keep_mark
from ..words.reading import read_prompt
from .adapter_files import add_files
from .cost import check_seconds
from .limits import Limits
from .models import LoadedModels

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline


def prepare(models: LoadedModels, request: Request) -> tuple[Pipeline, Request]:
    """Return a request's model, and the request complete with its pictures; `RequestError` if it can't be served."""
    models.limits.check(request)  # before the model is loaded
    pipeline, defaults = models.pipeline(request.model), models.defaults(request.model)
    models.limits.check(request, defaults)  # before a size is refused for its unit: the size to try is smaller
    request = read_pictures(request, defaults)
    models.limits.check(request, defaults)
    check_seconds(pipeline, request, defaults, models.limits)
    add_files(pipeline)
    if request.prompt_syntax == "read":
        request = as_read(request, models.catalogue.path(request.model), pipeline.embeddings)
    pipeline.models_for(request)
    assert request.preview is not None
    pipeline.models.decoder_for(request.preview)
    return pipeline, request


def as_read(request: Request, folder: Path, embeddings: Collection[str]) -> Request:
    """Return a request with the captions that the model in a directory makes of its prompts, to be drawn as they are.

    A prompt in which the model finds nothing to draw stays as it is, and so do all of a model without a vocabulary.
    A photo keeps its own style. Without one, the seed chooses a style if the prompt names none, the same for all
    pictures of the request. `then` keeps the style that the prompt names.
    embeddings: the words that files add to the model.
    """
    request = request.seeded()
    seed = request.seed if request.image is None else None
    prompt = read_prompt(request.prompt, folder, embeddings, seed=seed)
    then = read_prompt(request.then, folder, embeddings, seed=seed, style=prompt.style if prompt else "")
    captions = {name: one.caption for name, one in (("prompt", prompt), ("then", then)) if one and one.caption}
    return request.with_values(prompt_syntax="plain", **captions)


def read_pictures(request: Request, defaults: Defaults) -> Request:
    """Return the request complete, with photo and mask as pictures of its size; the photo keeps its mark.

    Raises `RequestError` where that fails.
    """
    from stable_diffusion.mask import with_pictures

    photo, request = request.image, with_pictures(request, defaults)
    if photo is not None:
        assert isinstance(request.image, Image.Image)
        keep_mark(photo, request.image)
    return request


def prepare_all(models: LoadedModels, requests: Sequence[Request], limits: Limits) -> tuple[Pipeline, list[Request]]:
    """Return the model of requests that belong together, and the requests prepared and seeded.

    Raises `RequestError` where one of them can't be served, or all together take longer than `limits` allow to one.
    """
    # A request that is asked for several times is prepared once: to read a large photo takes half a second.
    once = {id(request): prepare(models, request) for request in {id(one): one for one in requests}.values()}
    pipeline, first = once[id(requests[0])]
    prepared = [once[id(request)][1] for request in requests]
    check_seconds(pipeline, first, models.defaults(first.model), limits, *prepared[1:])
    return pipeline, [request.seeded() for request in prepared]


def check(models: LoadedModels, request: Request) -> None:
    """Raise `RequestError` if a request exceeds the limits here; in seconds once its model is loaded."""
    defaults, pipeline = models.defaults(request.model), models.loaded(request.model)
    models.limits.check(request, defaults)
    if pipeline is not None:
        check_seconds(pipeline, defaults.complete(request), defaults, models.limits)
