"""Pictures of latents while a run goes on: exact by the VAE, cheaper by a tiny one, almost free by a matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .images import to_images
from .request import PREVIEW_LABELS
from .vae import Autoencoder

SHARE = 0.05
"""How much longer "auto" lets previews make a run."""


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given; an accelerator works on behind the program's back."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Preview:
    """Latents -> pictures for one run, by the decoder of that name: auto, vae, tiny, linear or none.

    vae is what decodes sharp ones, `Models.decoder_for` that name: the model's own, or a tiny one in its place.

    "auto" spends at most 5 % of the time that the steps take: each step earns that share, and the VAE decodes whenever
    enough has been earned; in between the matrix does. What the VAE costs is first judged by a corner of the picture.
    Before the clock is read, in seconds, the VAE's device is waited for: it may still be at a step.
    """

    def __init__(
        self,
        vae: Autoencoder,
        name: str = "auto",
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[torch.device], None] = wait_for,
    ):
        if name not in PREVIEW_LABELS:
            raise ValueError(f"preview must be one of {', '.join(PREVIEW_LABELS)}, got {name!r}")
        self.vae, self.name, self.clock, self.wait = vae, name, clock, wait
        self._earned = 0.0
        self._cost: float | None = None
        self._resumed = self._now()

    def __call__(self, latents: Tensor) -> list[Image.Image] | None:
        """Pictures of sampler-space latents (N, C, h, w), or None where no preview is wanted."""
        if self.name == "none":
            return None
        started = self._now()
        self._earned += SHARE * (started - self._resumed)
        if self.name in ("vae", "tiny") or (self.name == "auto" and self._affordable(latents)):
            pictures = self._decode(latents)
        else:
            pictures = to_images(linear_preview(self.vae, latents))
        self._resumed = self._now()
        self._earned -= self._resumed - started
        return pictures

    def _affordable(self, latents: Tensor) -> bool:
        """Whether the steps so far have earned a picture by the VAE."""
        if self._cost is None:
            corner = latents[:1, :, : math.ceil(latents.shape[2] / 4), : math.ceil(latents.shape[3] / 4)]
            for _ in range(2):  # the first decoding of a size also pays for its preparation
                self._decode(corner)
            assert self._cost is not None  # decoding sets it
            self._cost *= latents.numel() / corner.numel()
        return self._cost <= self._earned

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures by the VAE, timed."""
        started = self._now()
        pictures = to_images(self.vae.decode_finite(latents))
        self._cost = self._now() - started
        return pictures

    def _now(self) -> float:
        """The time at which all that was asked for so far is done."""
        self.wait(next(self.vae.parameters()).device)
        return self.clock()


def linear_preview(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Scaled latents (N, C, h, w) -> (N, 3, f*h, f*w) about in [-1, 1] by one matrix, enlarged bilinearly."""
    matrix = latent_to_rgb(vae).to(latents)
    small = torch.einsum("nchw,cd->ndhw", F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0), matrix)
    return F.interpolate(small, scale_factor=vae.config.downscale, mode="bilinear")


_fitted: WeakKeyDictionary[Autoencoder, Tensor] = WeakKeyDictionary()


def latent_to_rgb(vae: Autoencoder) -> Tensor:
    """The affine map from a latent (C + 1 entries, the last one 1) to its pixel's colour, (C + 1, 3), fitted once.

    Least squares on what the VAE itself makes of smooth random latents, so that it holds for every model.
    """
    matrix = _fitted.get(vae)
    # Two threads may both fit the first time: they find the same, and neither waits for the other.
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
