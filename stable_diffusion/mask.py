"""Inpainting with any network: outside a mask the photo is kept, in the latents at every step and in the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .images import JPEG_SIZE, fit_image, read_image, upright_size
from .request import Defaults, Request, RequestError
from .schedule import Level

FAINTEST = 8
"""The lowest level of a mask that counts; JPEG and resampling leave some below it in what was black."""

SAME = 0.02
"""The difference up to which two proportions are the same: sizes are rounded to whole pixels."""


@dataclass(frozen=True)
class Mask:
    """A mask with its photo: blended latent diffusion (Algorithm 1, arXiv:2206.02779).

    white: 255 where pictures are drawn, 0 where the photo stays, and grey where they mix; of the pictures' size, as
    `photo` is. x_0: the photo's latents (N, C, h, w). noise: of the same shape, and the same at all steps, as in
    diffusers.

    Samplers do not know of masks: they treat each latent by itself, and those outside the mask are replaced before the
    network sees them.
    """

    white: Image.Image
    photo: Image.Image
    x_0: Tensor
    noise: Tensor

    @cached_property
    def inside(self) -> Tensor:
        """Whether each latent (h, w) is inside the mask: if any of its pixels is, so that nothing white is left out.

        In diffusers the latent's first pixel decides.
        """
        factor = self.white.height // self.x_0.shape[-2]
        inside = F.max_pool2d(_to_tensor(self.white), factor)[0] > 0
        assert inside.shape == self.x_0.shape[-2:]
        return inside.to(self.x_0.device)

    def blend(self, x: Tensor, level: Level) -> Tensor:
        """Return latents x (N, C, h, w) inside the mask, and the photo's with the noise of `level` outside."""
        return torch.where(self.inside, x, level.alpha * self.x_0 + level.sigma * self.noise)

    def paste(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Return pictures with the photo's own pixels outside the mask."""
        return [Image.composite(picture, self.photo, self.white) for picture in pictures]


def soften(mask: Image.Image, width: int) -> Image.Image:
    """Return a mask (L) whose white fades to black over `width` pixels around it; no pixel gets darker.

    Each pixel takes the brightest level within half the width, then the mean: white stays white, so that the mask
    covers all that it covered, which a blur alone would not do for a thin line.
    """
    size = width + 1
    levels = F.pad(_to_tensor(mask), [width] * 4)
    for pool in (F.max_pool2d, F.avg_pool2d):
        levels = pool(pool(levels, (size, 1), stride=1), (1, size), stride=1)
    return Image.fromarray(levels[0].round().to(torch.uint8).numpy())


def _to_tensor(mask: Image.Image) -> Tensor:
    """Return the levels of a mask (L) as a tensor (1, H, W), float32."""
    return torch.from_numpy(np.asarray(mask, dtype=np.float32))[None]


def read_mask(source: str | Path | Image.Image, photo: Image.Image, width: int, height: int, fit: str) -> Image.Image:
    """Return a mask (L) for a photo that `fit_image` brings to width x height: 255 is drawn anew, 0 stays.

    The mask is stretched over the photo, upright, and fitted with it. Its level is that of its brightest colour, so
    that any bright paint counts as white; transparent and padded parts are black, and so are levels below 8. Of a mask
    of numbers, 0 and 1, 1 is white. Raises `RequestError` for a mask that lies across its photo or has no white inside
    the picture, and `ImageError` as `read_image` does.
    """
    mask = read_image(source, background="black", name="mask")
    if _across(mask.size, photo.size):
        raise RequestError(
            "mask is {}x{} and its photo, upright, {}x{}: lay it out as the photo is seen, with EXIF rotation".format(
                *mask.size, *photo.size
            )
        )
    brightest = int(np.asarray(mask).max())
    if brightest == 1:
        mask = mask.point(lambda level: 255 * level)
    fitted = fit_image(mask.resize(photo.size), width, height, fit, background="black")
    levels = fitted.convert("HSV").getchannel("V").point(lambda level: level if level >= FAINTEST else 0)
    if levels.getbbox() is None:
        where = "" if brightest < FAINTEST else f" inside the picture, with fit={fit!r}"
        raise RequestError(
            f"mask has no white{where}, and black or transparent parts stay as they are: make white what should change"
        )
    return levels


def _across(mask: tuple[int, int], photo: tuple[int, int]) -> bool:
    """Return whether a mask has the proportions of the photo turned by 90 degrees, and not those of the photo.

    A program that reads the pixels without the EXIF rotation makes such masks.
    """
    turned, upright = (abs(mask[0] * height / (mask[1] * width) - 1) for width, height in (photo[::-1], photo))
    return turned <= SAME < upright


def with_pictures(request: Request, defaults: Defaults) -> Request:
    """Return the request, complete, with photo and mask as pictures of its width and height.

    Decodes files; of a request whose pictures have their size already, nothing changes. Raises `ImageError` for a file
    that is not a picture, and `RequestError` as `Defaults.complete` and `read_mask` do.
    """
    if request.image is None:
        return defaults.complete(request)
    source, mask = request.image, request.mask
    sized = request.width is not None and request.height is not None
    request = defaults.complete(request, None if sized else upright_size(source))
    width, height = request.width, request.height
    assert width is not None
    assert height is not None
    photo = read_image(source, jpeg_size=(max(width, JPEG_SIZE[0]), max(height, JPEG_SIZE[1])))
    return request.with_values(
        image=fit_image(photo, width, height, request.fit),
        mask=None if mask is None else read_mask(mask, photo, width, height, request.fit),
    )
