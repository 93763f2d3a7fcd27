"""From latents to the pictures that a person sees: exact by the VAE, cheaper by a tiny one, almost free by a matrix."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .compute.memory import is_out_of_memory
from .images import to_images
from .mask import Mask
from .model_loader import Models
from .request import PREVIEW_LABELS, RequestError
from .safety import blur
from .vae import Autoencoder

log = logging.getLogger(__name__)

SHARE = 0.05
"""The part of a run's time that previews may add in the mode "auto"."""

Decode = Callable[[Tensor], Tensor]
"""Scaled latents (N, C, h, w) to pixels (N, 3, f*h, f*w), about in [-1, 1]."""


@dataclass(frozen=True)
class Pictures:
    """Pictures ready to show. `found`: for each, whether the model's safety checker flagged it; flagged ones are
    blurred.

    `found` is empty for a model without a safety checker.
    """

    images: list[Image.Image]
    found: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Renderer:
    """The only way from latents to pictures that a person sees: decode, paste the mask's photo, check, blur."""

    models: Models
    mask: Mask | None = None

    def __call__(self, latents: Tensor, decode: Decode | None = None) -> Pictures:
        """Return pictures of scaled latents (N, C, h, w).

        decode: by default the model's VAE, again in float32 where half precision overflows. If memory runs out, the
        images are decoded one by one. Raises `NotFinite` where the pixels are not finite even in float32.
        """
        decode = decode or self.models.vae.decode_finite
        try:
            images = to_images(decode(latents))
        except Exception as error:
            if not is_out_of_memory(error) or len(latents) == 1:
                raise
            log.info("not enough memory to decode %d images at once: one by one", len(latents))
            images = [image for one in latents.split(1) for image in to_images(decode(one))]
        return self.screen(images if self.mask is None else self.mask.paste(images))

    def screen(self, images: list[Image.Image]) -> Pictures:
        """Blur the images that the model's safety checker flags, if it has one, and return all of them."""
        if self.models.safety_checker is None:
            return Pictures(images)
        found = self.models.safety_checker.find(images)
        return Pictures(blur(images, found), tuple(found))

    def coarse(self, latents: Tensor, found: Sequence[bool]) -> list[Image.Image]:
        """Return pictures of latents (N, C, h, w) in the variance-preserving scale: a pixel for each latent.

        found: the safety checker's findings in the x_0 of the same step; of those pictures only the mean colour stays.
        """
        images = to_images(latent_colours(self.models.vae, latents))
        flat = [image.resize((1, 1), Image.Resampling.BOX).resize(image.size) for image in images]
        return [flat[i] if found and found[i] else image for i, image in enumerate(images)]


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has finished this thread's work, before a clock measures it or another thread reads it.

    Threads may have CUDA streams of their own: others' work is not waited for.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


class Preview:
    """Previews of one run's steps by the decoder of that name: auto, vae, tiny, linear or none.

    "tiny", and "auto" if the model has one, decode with the tiny autoencoder in place of the VAE. "auto" adds at most
    5 % to the time of the steps: each step earns that share, the autoencoder decodes whenever enough has been earned,
    and in between the matrix does. The autoencoder's cost is first estimated from a corner of the picture. Before the
    clock (seconds) is read, `wait` waits for the device, which may still be busy with a step.
    """

    def __init__(
        self,
        render: Renderer,
        name: str = "auto",
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[torch.device], None] = wait_for,
    ):
        if name not in PREVIEW_LABELS:
            raise RequestError(f"preview must be one of {', '.join(PREVIEW_LABELS)}, got {name!r}")
        self.autoencoder: Autoencoder = render.models.decoder_for(name)
        self.render, self.name, self.clock, self.wait = render, name, clock, wait
        self._earned = 0.0
        self._cost: float | None = None
        self._resumed = self._now()

    def __call__(self, latents: Tensor) -> Pictures | None:
        """Return pictures of sampler-space latents (N, C, h, w); None for the name "none", or if memory runs out."""
        if self.name == "none":
            return None
        try:
            return self._pictures(latents)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("not enough memory for a preview: it is left out")
            return None

    def _pictures(self, latents: Tensor) -> Pictures:
        started = self._now()
        self._earned += SHARE * (started - self._resumed)
        if self.name in ("vae", "tiny") or (self.name == "auto" and self._affordable(latents)):
            pictures = self.render(latents, self._decode)
        else:
            pictures = self.render(latents, partial(linear_preview, self.autoencoder))
        self._resumed = self._now()
        self._earned -= self._resumed - started
        return pictures

    def _affordable(self, latents: Tensor) -> bool:
        """Return whether the steps so far have earned a picture by the autoencoder."""
        if self._cost is None:
            corner = latents[:1, :, : math.ceil(latents.shape[2] / 4), : math.ceil(latents.shape[3] / 4)]
            for _ in range(2):  # the first decoding of a size also pays for its preparation
                self._decode(corner)
            assert self._cost is not None, "decoding sets the cost"
            self._cost *= latents.numel() / corner.numel()
        return self._cost <= self._earned

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode by the autoencoder and note how long it took."""
        started = self._now()
        pixels = self.autoencoder.decode_finite(latents)
        self._cost = self._now() - started
        return pixels

    def _now(self) -> float:
        """Return the time at which the device has finished all queued work."""
        self.wait(next(self.autoencoder.parameters()).device)
        return self.clock()


def linear_preview(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Return pixels (N, 3, f*h, f*w), about in [-1, 1], of scaled latents (N, C, h, w): their colours, enlarged."""
    return F.interpolate(latent_colours(vae, latents), scale_factor=vae.config.downscale, mode="bilinear")


def latent_colours(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Return the colour (N, 3, h, w), about in [-1, 1], of each scaled latent (N, C, h, w), by a matrix."""
    matrix = latent_to_rgb(vae).to(latents)
    return torch.einsum("nchw,cd->ndhw", F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0), matrix)


_fitted: WeakKeyDictionary[Autoencoder, Tensor] = WeakKeyDictionary()


def latent_to_rgb(vae: Autoencoder) -> Tensor:
    """Return the affine map (C + 1, 3) from a latent with a 1 appended to its pixel's colour, fitted once per VAE.

    The fit is least squares on the VAE's own pictures of smooth random latents, so that it holds for every model.
    """
    matrix = _fitted.get(vae)
    # Two threads may both fit at first: they get the same matrix, and neither waits for the other.
    return _fitted.setdefault(vae, _fit_latent_to_rgb(vae)) if matrix is None else matrix


@torch.no_grad()
def _fit_latent_to_rgb(vae: Autoencoder, size: int = 16) -> Tensor:
    weight = next(vae.parameters())
    coarse = torch.randn(
        4, vae.config.latent_channels, size // 4, size // 4, generator=torch.Generator().manual_seed(0)
    )
    latents = F.interpolate(coarse, size=(size, size), mode="bilinear").to(weight)
    pictures = F.avg_pool2d(vae.decode_finite(latents).float(), vae.config.downscale)
    inputs = F.pad(latents.float(), (0, 0, 0, 0, 0, 1), value=1.0).permute(0, 2, 3, 1).flatten(0, 2)
    colours = pictures.clamp(-1, 1).permute(0, 2, 3, 1).flatten(0, 2)
    return torch.linalg.lstsq(inputs.cpu(), colours.cpu()).solution
