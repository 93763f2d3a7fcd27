"""Inpainting with any network: outside a mask the photo is kept, in the latents at every step and in the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import fit_image, read_image
from .request import Defaults, Request
from .schedule import Level


@dataclass(frozen=True)
class Mask:
    """A mask with its photo: blended latent diffusion (Algorithm 1, arXiv:2206.02779).

    white: 255 where pictures are drawn and 0 where the photo stays, of the pictures' size, as `photo` is. x_0: the
    photo's latents (N, C, h, w). noise: of the same shape, and the same at all steps, as in diffusers.

    Samplers do not know of masks: they treat each latent by itself, and those outside the mask are replaced before the
    network sees them.
    """

    white: Image.Image
    photo: Image.Image
    x_0: Tensor
    noise: Tensor

    def blend(self, x: Tensor, level: Level) -> Tensor:
        """Return latents x (N, C, h, w) inside the mask, and the photo's with the noise of `level` outside.

        A latent is inside the mask if its first pixel is.
        """
        height, width = x.shape[-2:]
        factor = self.white.height // height
        inside = torch.from_numpy(np.asarray(self.white)[::factor, ::factor] > 0).to(x.device)
        assert inside.shape == (height, width)
        return torch.where(inside, x, level.alpha * self.x_0 + level.sigma * self.noise)

    def paste(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Return pictures with the photo's own pixels outside the mask."""
        return [Image.composite(picture, self.photo, self.white) for picture in pictures]


def read_mask(source: str | Path | Image.Image, photo: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """Return a mask, 255 or 0, for a photo that `fit_image` brings to width x height.

    The mask is stretched over the photo and fitted with it. Grey counts as white from 128 on, transparent and padded
    parts as black. Raises `ImageError` as `read_image` does.
    """
    mask = read_image(source, background="black", name="mask").resize(photo.size)
    grey = fit_image(mask, width, height, fit, background="black").convert("L")
    return grey.point(lambda level: 255 if level >= 128 else 0)


def with_pictures(request: Request, defaults: Defaults) -> Request:
    """Return the request, complete, with photo and mask as pictures of its width and height.

    Decodes files; of a request whose pictures have their size already, nothing changes. Raises `ImageError` for a file
    that is not a picture, and `RequestError` as `Defaults.complete` does.
    """
    if request.image is None:
        return defaults.complete(request)
    photo = read_image(request.image)
    request = defaults.complete(request, photo.size)
    width, height, mask = request.width, request.height, request.mask
    assert width is not None
    assert height is not None
    return request.with_values(
        image=fit_image(photo, width, height, request.fit),
        mask=None if mask is None else read_mask(mask, photo, width, height, request.fit),
    )
