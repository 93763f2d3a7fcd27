"""A run taken apart: each step's x_0 without guidance, and where the network looks for its words.

An ordinary run does not use this module, and looking inside changes no pixel of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..guidance import Answer, Denoiser, Query
from ..images import to_images, to_tensor
from ..inspection import Inquiry, Question, conduct, next_step, rendered
from ..pipeline import Pipeline
from ..preview import Preview, Renderer
from ..request import Request, RequestError, Settings, without_loras
from ..run import Run, Step
from ..safety import blur
from ..schedule import Level
from .guesses import guesses
from .heat_maps import Word, prompt_words, token_heat, with_text, word_heat
from .recording import Recording

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_CHANNELS = 16
"""Number of latent channels on a sheet."""
SHEET_SIDE = 256
"""Pixels that a sheet is enlarged to, as far as whole multiples go."""


@dataclass(frozen=True)
class InsideStep:
    """A step of a run with its guesses and its attention; tensors have a row for each picture.

    unconditional, conditional: x_0 (N, C, h, w) of the negative prompt alone (None in a run without guidance) and of
    the prompt alone; `step.denoised` is the guided x_0. heat: attention to the prompt's tokens (N, S, h, w), averaged
    over heads and layers, or another reading of the maps by the observer.
    """

    step: Step
    unconditional: Tensor | None
    conditional: Tensor
    heat: Tensor


def look_inside(pipeline: Pipeline, prompt: str | Request = "", **settings: Unpack[Settings]) -> Iterator[InsideStep]:
    """Yield every step of `pipeline.stream` with its inside; arguments and pictures are those of `stream`."""
    run = pipeline.begin(prompt, **settings)
    observer = Observer(run.denoise)
    for step in run.steps(observer):
        yield inside_step(step, observer)


def next_inside(run: Run, preview: Preview, observer: Observer) -> Inquiry[InsideStep]:
    """Take a run's next step, observed, and return it as `look_inside` does."""
    step = yield from next_step(run, preview, observer)
    return inside_step(step, observer)


def inside_step(step: Step, observer: Observer) -> InsideStep:
    """Return a step of a run with its inside, which `observer` saw."""
    return InsideStep(step, step.answer.unconditional, step.answer.conditional, observer.take())


@dataclass(frozen=True)
class NoisedPhoto:
    """A photo at timestep t of the forward process (Eq. 4, arXiv:2006.11239), in pixels and in latents.

    pixels: (1, 3, H, W), noise added to the photo itself. x_t: (1, C, h, w), noise added to its latents x_0.
    predicted: the network's x_0, from x_t alone.
    """

    level: Level
    pixels: Tensor
    x_0: Tensor
    x_t: Tensor
    predicted: Tensor

    def pictures(self, render: Renderer) -> Inquiry[list[Image.Image]]:
        """Return pictures: x_t in pixels, the channels of x_t in latents, x_t decoded, and the predicted x_0.

        The channels are blurred where the safety checker finds x_t decoded.
        """
        noisy = yield from rendered(render, self.x_t)
        guess = yield from rendered(render, self.predicted)
        channels = [channel_sheet(self.x_t)]
        return [
            *render.screen(to_images(self.pixels)).images,
            *(blur(channels, noisy.found) if noisy.found else channels),
            *noisy.images,
            *guess.images,
        ]


def add_noise(pipeline: Pipeline, photo: Image.Image, t: int, *, prompt: str = "", seed: int = 0) -> NoisedPhoto:
    """Add the noise of timestep t to a photo, and predict its x_0 once, with `prompt` and without guidance.

    photo: RGB, its sides multiples of the VAE's factor. Raises ValueError where t is not a trained timestep.
    """
    return conduct(noised_photo(pipeline, photo, t, prompt=prompt, seed=seed))


def noised_photo(
    pipeline: Pipeline, photo: Image.Image, t: int, *, prompt: str = "", seed: int = 0
) -> Inquiry[NoisedPhoto]:
    """Return what `add_noise` returns, as an inquiry."""
    vae, generator = pipeline.models.vae, torch.Generator().manual_seed(seed)
    pixels = to_tensor([photo]).to(next(vae.parameters()))
    x_0 = vae.encode(pixels).float()
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    [guess] = yield from guesses(pipeline, Request(prompt, guidance_scale=1.0), x_0, [t], noise)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels)
    noisy_pixels = pipeline.schedule.add_noise(pixels, noise, torch.tensor([t]))
    return NoisedPhoto(guess.level, noisy_pixels, x_0, guess.x_t, guess.answer.x_0)


def channel_sheet(latents: Tensor) -> Image.Image:
    """Return the channels of latents (1, C, h, w) as grey pictures side by side: -3 is black, 3 is white."""
    channels = latents[0, :MAX_CHANNELS].cpu()
    columns = math.ceil(math.sqrt(len(channels)))
    rows = math.ceil(len(channels) / columns)
    # A white line to the right of each channel and below it.
    padded = F.pad(channels, (0, 1, 0, 1, 0, rows * columns - len(channels)), value=3.0)
    sheet = padded.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]
    grey = ((sheet / 6 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)  # (rows (h + 1) - 1, columns (w + 1) - 1)
    scale = max(1, SHEET_SIDE // (grey.shape[1] + 1))
    image = Image.fromarray(grey.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


@dataclass
class Observer:
    """A denoiser that answers the queries of one run as the run's own does, and keeps the heat.

    read: heat (rows, ..., h, w) from the maps of all layers, with height and width of the latents; `head_heat` gives it
    for each layer and head.
    """

    denoise: Denoiser
    read: Callable[[Sequence[Tensor], int, int], Tensor] = token_heat
    _heat: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer one query: a run's, or that of some of its images."""
        [query] = queries
        maps: list[Tensor] = []
        [(unconditional, conditional)] = self.denoise.predict(queries, maps)
        # With guidance, the prompt's rows come last.
        height, width = query.x.shape[2:]
        self._heat.append(self.read([weights[-len(query.x) :] for weights in maps], height, width))
        return [self.denoise.answer(query, unconditional, conditional)]

    def take(self) -> Tensor:
        """Return the heat of the images that were asked about since the last call."""
        heat = torch.cat(self._heat)
        self._heat.clear()
        return heat


def recorded_heat(
    pipeline: Pipeline, recording: Recording, step: int, request: Request, words: Sequence[Word]
) -> Inquiry[Tensor]:
    """Return where the network looks at a step of a recorded run for words of a request's prompt: heat (N, W, h, w).

    The network is asked once about the x_t of that step, without guidance, and the answer is thrown away. Raises
    `RequestError` for a step that the run did not take.
    """
    recording.check(step)
    given = pipeline.condition(request)
    observer = Observer(given.denoise)
    query = Query(recording.latents[step - 1], recording.levels[step - 1], given.context, None, given.guidance_scale)
    yield Question(query, observer)
    return word_heat(observer.take(), words)


def absent_heat(pipeline: Pipeline, recording: Recording, step: int, word: str) -> Inquiry[Tensor]:
    """Return where a recorded run would look at a step for a word that its prompt lacks: heat (N, h, w).

    The word stands behind the prompt as it then holds, read as a plain one. Raises `RequestError` as `recorded_heat`,
    and for a word of which the prompt has no room for a token.
    """
    request, tokenizer = recording.request, pipeline.models.tokenizer
    assert request.then_at is not None, "a recorded request is complete"
    prompt = request.then if request.then and step >= request.then_at else without_loras(request.prompt)
    longer = f"{prompt} {without_loras(word)}"
    words = prompt_words(tokenizer, longer)[len(prompt_words(tokenizer, prompt)) :]
    if not words:
        raise RequestError(f"word must have a token that fits behind the prompt, got {word!r}: shorten the prompt")
    plain = with_text(request, longer).with_values(prompt_syntax="plain")
    return (yield from recorded_heat(pipeline, recording, step, plain, words)).mean(dim=1)
