"""The inside of a run, to be looked at: what each step would be without guidance, and where it looks for its words.

Nothing here takes part in an ordinary run; looking changes no pixel of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..guidance import Denoiser, Query
from ..images import to_tensor
from ..pipeline import Pipeline
from ..request import Request, Settings
from ..run import Step
from ..schedule import Level
from .heat_maps import token_heat

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class InsideStep:
    """A step of a run with what went on in it; tensors have a row for each picture.

    unconditional and conditional are the x_0, (N, C, h, w), of the negative prompt alone (None where the run is not
    guided) and of the prompt alone; `step.denoised` is the guided one. heat is the attention that the prompt's tokens
    got, (N, S, h, w), averaged over heads and layers.
    """

    step: Step
    unconditional: Tensor | None
    conditional: Tensor
    heat: Tensor


def look_inside(pipeline: Pipeline, prompt: str | Request = "", **settings: Unpack[Settings]) -> Iterator[InsideStep]:
    """`pipeline.stream`, with its arguments and its pictures, and with each step's inside."""
    run = pipeline.begin(prompt, **settings)
    observer = _Observer(run.denoise)
    for step in run.steps(observer):
        yield InsideStep(step, *observer.seen)


@dataclass(frozen=True)
class NoisedPhoto:
    """A photo at timestep t of the forward process (Eq. 4, arXiv:2006.11239), in pixels and in latents.

    pixels (1, 3, H, W) is noise added to the photo itself. x_t (1, C, h, w) is noise added to its latents x_0, and
    predicted the x_0 that the network believes in, from x_t alone.
    """

    level: Level
    pixels: Tensor
    x_0: Tensor
    x_t: Tensor
    predicted: Tensor


@torch.no_grad()
def add_noise(pipeline: Pipeline, photo: Image.Image, t: int, *, prompt: str = "", seed: int = 0) -> NoisedPhoto:
    """Take a photo to timestep t, and ask the network once for the x_0 in it, told `prompt` and not guided.

    photo: RGB, its sides multiples of the VAE's factor. Raises ValueError where t is not a trained timestep.
    """
    schedule, models = pipeline.schedule, pipeline.models
    if not 0 <= t < schedule.num_train_timesteps:
        raise ValueError(f"t must be in [0, {schedule.num_train_timesteps - 1}], got {t}")
    generator = torch.Generator().manual_seed(seed)
    pixels = to_tensor([photo]).to(next(models.vae.parameters()))
    x_0 = models.vae.encode(pixels).float()
    level, steps = schedule.level(t), torch.tensor([t])
    x_t = schedule.add_noise(x_0, torch.randn(x_0.shape, generator=generator).to(x_0), steps)
    words = pipeline.condition(Request(prompt, guidance_scale=1.0))
    [predicted] = words.denoise([Query(x_t, level, words.context, None, words.guidance_scale)])
    noisy_pixels = schedule.add_noise(pixels, torch.randn(pixels.shape, generator=generator).to(pixels), steps)
    return NoisedPhoto(level, noisy_pixels, x_0, x_t, predicted)


@dataclass
class _Observer:
    """Answers the questions of one run as its denoiser does, and keeps what it saw on the way."""

    denoise: Denoiser
    seen: tuple[Tensor | None, Tensor, Tensor] = field(init=False)
    """Of the last answer: the unconditional x_0, the conditional one, heat."""

    @torch.no_grad()
    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        [query] = queries
        maps: list[Tensor] = []
        [(unconditional, conditional)] = self.denoise.predict(queries, maps)
        # Where guided, the prompt's rows come last.
        heat = token_heat([weights[-len(query.x) :] for weights in maps], *query.x.shape[2:])
        alone = None if unconditional is None else self.denoise.x_0(query, unconditional)
        self.seen = alone, self.denoise.x_0(query, conditional), heat
        return [self.denoise.x_0(query, query.guide(unconditional, conditional))]
