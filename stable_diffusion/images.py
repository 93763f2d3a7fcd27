"""Pictures in and out: any photo becomes a tensor of the size asked for, and tensors become pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .request import FIT_LABELS

MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """A file is not a picture that can be read."""


def read_image(source: str | Path | Image.Image, *, background: str = "white") -> Image.Image:
    """Read any picture as upright RGB: EXIF rotation applied, transparency laid on `background`.

    Takes what Pillow reads, palette, CMYK and 16-bit grey among it. Raises `ImageError` with the remedy where the file
    is no picture, is cut short, or has more than 100 million pixels.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, background)
    name = Path(source).name
    try:
        with Image.open(source) as image:
            _check_size(image, name)
            # Large photos are decoded at a fraction of their size, which JPEG allows for free.
            image.draft("RGB", (2048, 2048))
            return _upright_rgb(image, background)
    except UnidentifiedImageError:
        raise ImageError(f"image {name!r} is not a picture that can be read: use PNG, JPEG or WebP") from None
    except Image.DecompressionBombError:
        raise ImageError(f"image {name!r} is too large: use at most {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"image {name!r} is damaged ({error}): save it again and retry") from None


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"image {name!r} is {image.width}x{image.height}: use at most {MAX_PIXELS:,} pixels")


def _upright_rgb(image: Image.Image, background: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow clips on conversion instead of scaling.
        pixels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((pixels / 257.0).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, background)
        image = Image.alpha_composite(canvas, rgba)
    return image.convert("RGB")


def fit_image(
    image: Image.Image, width: int, height: int, fit: str = "crop", *, background: str = "white"
) -> Image.Image:
    """Bring an RGB picture to width x height: `crop` fills and cuts, `pad` shows all of it, `stretch` distorts."""
    if fit not in FIT_LABELS:
        raise ValueError(f"fit must be one of {', '.join(FIT_LABELS)}, got {fit!r}")
    if image.size == (width, height):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (width, height), background)
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (N, 3, H, W) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(pixels / 255.0).permute(0, 3, 1, 2) * 2.0 - 1.0


def to_images(pictures: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) about in [-1, 1] -> pictures; rounded, not truncated, to 8 bits."""
    pixels = (pictures.float() / 2.0 + 0.5).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]
