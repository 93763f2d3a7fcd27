"""Inpainting with any network: outside a mask the photo stays, in the latents at every step and in the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import fit_image, read_image
from .schedule import Level


@dataclass(frozen=True)
class Mask:
    """What a run leaves as it is of its photo: blended latent diffusion (Algorithm 1, arXiv:2206.02779).

    As in diffusers, one noise serves all steps. white and photo are of the pictures' size, white is 255 where they are
    drawn anew and 0 elsewhere; x_0, the photo's latents, and noise are (N, C, h, w).

    Samplers need not know: what they do with a latent depends on no other, and outside the mask each is replaced
    before the network sees it.
    """

    white: Image.Image
    photo: Image.Image
    x_0: Tensor
    noise: Tensor

    def blend(self, x: Tensor, level: Level) -> Tensor:
        """Latents x (N, C, h, w) in the mask, the photo with the noise of `level` outside.

        A latent is in the mask if the first of its pixels is.
        """
        height, width = x.shape[-2:]
        factor = self.white.height // height
        inside = torch.from_numpy(np.asarray(self.white)[::factor, ::factor] > 0).to(x.device)
        assert inside.shape == (height, width)
        return torch.where(inside, x, level.alpha * self.x_0 + level.sigma * self.noise)

    def paste(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Pictures with the photo's own pixels outside the mask."""
        return [Image.composite(picture, self.photo, self.white) for picture in pictures]


def read_mask(source: str | Path | Image.Image, photo: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """A mask for a photo that `fit_image` brings to width x height: 255 where it is white, 0 where it is black.

    It is stretched over the photo and goes with it. Grey counts as white from 128 on, transparent and padded parts as
    black. Raises `ImageError` as `read_image` does.
    """
    mask = read_image(source, background="black", name="mask").resize(photo.size)
    grey = fit_image(mask, width, height, fit, background="black").convert("L")
    return grey.point(lambda level: 255 if level >= 128 else 0)
