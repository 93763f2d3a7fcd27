"""The inside of a run, to be looked at: what each step would be without guidance, and where it looks for its words.

Nothing here takes part in an ordinary run; looking changes no pixel of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from PIL import Image
from torch import Tensor

from .guidance import Denoiser
from .heatmap import token_heat
from .images import to_tensor
from .pipeline import Pipeline, Step
from .schedule import Level, predict_x_0


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


def look_inside(pipeline: Pipeline, prompt: str, **options: object) -> Iterator[InsideStep]:
    """`pipeline.stream`, with its options and its pictures, and with each step's inside."""
    open_pipeline = _OpenPipeline(pipeline)
    for step in open_pipeline.stream(prompt, **options):  # type: ignore[arg-type]
        yield InsideStep(step, *open_pipeline.seen.pop())


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
    pixels = to_tensor([photo]).to(models.vae.quant_conv.weight)
    x_0 = models.vae.encode(pixels).float()
    level, steps = schedule.level(t), torch.tensor([t])
    x_t = schedule.add_noise(x_0, torch.randn(x_0.shape, generator=generator).to(x_0), steps)
    denoise = pipeline._denoiser(prompt, "", 1.0, 1)
    noisy_pixels = schedule.add_noise(pixels, torch.randn(pixels.shape, generator=generator).to(pixels), steps)
    return NoisedPhoto(level, noisy_pixels, x_0, x_t, denoise(x_t, level))


_Seen = tuple["Tensor | None", Tensor, Tensor]
"""Unconditional x_0, conditional x_0, heat."""


@dataclass(frozen=True)
class _OpenDenoiser(Denoiser):
    """The denoiser, keeping what it sees on the way."""

    seen: list[_Seen] = field(default_factory=list)

    def predict_both(self, x: Tensor, level: Level, maps: list[Tensor] | None = None) -> tuple[Tensor | None, Tensor]:
        maps = []
        predictions = super().predict_both(x, level, maps)
        unconditional, conditional = (
            None if one is None else predict_x_0(one, x, level.alpha, level.sigma, self.prediction_type)
            for one in predictions
        )
        assert conditional is not None
        # Where guided, the network saw both prompts in one batch, the prompt's half last.
        heat = token_heat([weights[-len(x) :] for weights in maps], *x.shape[2:])
        self.seen.append((unconditional, conditional, heat))
        return predictions


class _OpenPipeline(Pipeline):
    """The same pipeline, for one run, with a denoiser that can be looked into."""

    seen: list[_Seen]

    def __init__(self, pipeline: Pipeline):
        vars(self).update(vars(pipeline))

    def _denoiser(self, *arguments: object, **named: object) -> Denoiser:
        closed = super()._denoiser(*arguments, **named)  # type: ignore[arg-type]
        denoiser = _OpenDenoiser(**{one.name: getattr(closed, one.name) for one in fields(closed)})
        self.seen = denoiser.seen
        return denoiser
