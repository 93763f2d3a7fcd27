"""Pictures in and out: any photo becomes a tensor of the size asked for, and tensors become pictures."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from torch import Tensor

from .request import FIT_LABELS, RequestError

MAX_SIDE = 20_000
MAX_PIXELS = 40_000_000

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM")
"""Pillow's names of what is read. Its other formats hold no photos, and one of them starts a program (EPS)."""

HEIC = re.compile(rb".{4}ftyp(.{4}){0,15}?he[iv][cmsx]", re.DOTALL)
"""The start of a HEIC file: one of the brands in its ftyp box (ISO/IEC 23008-12)."""


class ImageError(RequestError):
    """A file is not a picture that can be read."""


# Reading: whatever somebody brings becomes upright RGB in sRGB, or one sentence.


def read_image(source: str | Path | Image.Image, *, background: str = "white", name: str = "image") -> Image.Image:
    """Read any picture as upright RGB in sRGB: EXIF rotation and colour profile applied, transparency on `background`.

    Takes grey, palette, CMYK, 16-bit and float pictures, of an animation the first frame. Raises `ImageError` with the
    remedy for a file that is no picture, is cut short, or has more than 20,000 pixels a side or 40 million in all;
    `name` is what its sentences call it.
    """
    label, size = name, "unknown size"
    try:
        if isinstance(source, Image.Image):
            size = _checked_size(label, *source.size)
            return _upright_rgb(ImageOps.exif_transpose(source), background)  # a copy in any case
        label = f"{name} {(Path(source).name or str(source))[:255]!r}"
        # Asked before opening: opening a pipe waits for its writer, and opening a device may set something off.
        if not (os.path.isfile(source) and os.access(source, os.R_OK)):
            raise ImageError(f"{label} is no file that can be read: check its path")
        with open(source, "rb") as file:
            image = open_image(label, file)
            size = "{}x{}".format(*image.size)
            if image.format == "TIFF":
                _check_tiles(label, image, file)
            # Large photos are decoded at a fraction of their size, which JPEG allows for free.
            image.draft("RGB", (2048, 2048))
            return _upright_rgb(image, background)
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise ImageError(f"{label} of {size} needs more memory than there is: use a smaller picture") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever comes
        raise ImageError(f"{label} is damaged ({error}): save it again and retry") from None


def open_image(label: str, file: BinaryIO) -> Image.Image:
    """The picture with only its header read; `ImageError` where it is none or too large, and whatever Pillow raises.

    Not by `Image.open`: it warns of large ones before they can be refused.
    """
    Image.init()
    head = file.read(1024)
    if HEIC.match(head):
        raise ImageError(f"{label} is HEIC: save it as JPEG (iPhone: Settings > Camera > Formats > Most Compatible)")
    for factory, accepts in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        if accepts is not None and accepts(head[:16]) is True:  # a text where Pillow was built without the format
            file.seek(0)
            image = factory(file, "")
            _checked_size(label, *image.size)
            return image
    if b"<svg" in head:
        raise ImageError(f"{label} is a drawing of lines (SVG), not of pixels: export it as PNG")
    raise ImageError(f"{label} is not a picture that can be read: use PNG, JPEG or WebP")


def _checked_size(label: str, width: int, height: int) -> str:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(f"{label} is {width}x{height}: use at most {MAX_SIDE:,} a side, {MAX_PIXELS:,} pixels")
    return f"{width}x{height}"


def _check_tiles(label: str, image: Image.Image, file: BinaryIO) -> None:
    """Refuse a TIFF with tiles larger than a picture may be: libtiff decodes a whole tile, however little of it shows.

    Of a tag that stands twice Pillow reads the last and libtiff the first; so none may.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in head[2:4]  # BigTIFF: 8 bytes where TIFF has 4
    (start,) = struct.unpack(f"{order}8xQ" if big else f"{order}4xI8x", head)
    file.seek(start)
    (count,) = struct.unpack(f"{order}Q" if big else f"{order}H", file.read(8 if big else 2))
    size = 20 if big else 12
    entries = file.read(min(count, 65_535) * size)
    if len({entries[start : start + 2] for start in range(0, len(entries), size)}) != count:
        raise ValueError("a tag of its directory stands twice, or is cut off")
    assert isinstance(image, TiffImageFile)
    _checked_size(f"a tile of {label}", *(image.tag_v2.get(tag, 1) for tag in (TILEWIDTH, TILELENGTH)))


def _upright_rgb(image: Image.Image, background: str) -> Image.Image:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # broken EXIF says nothing about the pixels
        pass
    image = _in_srgb(_eight_bits(image))
    image.info.clear()  # the profile is applied, and nobody asked for where the photo was taken
    if image.mode == "RGB":
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any mode -> L, LA, RGB, RGBA or CMYK."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow clips on conversion instead of scaling.
        image.info.pop("transparency", None)  # a level of 16 bits
        return image.convert("I").point([round(level / 257) for level in range(65_536)], "L")
    if image.mode == "F":
        return _grey_from_floats(image)
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _grey_from_floats(image: Image.Image) -> Image.Image:
    """F -> L: 0 is black and 1 is white; where other values are among them, the smallest and the largest."""
    values = np.asarray(image)
    low, high = (float(bound(values, axis=None)) for bound in (np.fmin.reduce, np.fmax.reduce))  # NaN left out
    if not math.isfinite(high - low):
        raise ValueError("its values are not finite")
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scale = 255.0 / ((high - low) or 1.0)
    return image.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _in_srgb(image: Image.Image) -> Image.Image:
    """L, RGB, CMYK -> RGB; LA, RGBA -> RGBA: by the picture's ICC profile, or plainly where none is usable."""
    mode = "RGBA" if image.mode.endswith("A") else "RGB"
    profile = image.info.get("icc_profile")
    # A profile of multiProcessElements may ask for any number of steps: 80 kB of them hold a processor for 40 s.
    if not isinstance(profile, bytes) or b"mpet" in profile:
        return image.convert(mode)
    try:
        converted = ImageCms.profileToProfile(image, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode)
    except ImageCms.PyCMSError:  # broken, or of another kind of picture
        return image.convert(mode)
    assert converted is not None  # it is where the conversion is not in place
    if mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


# Fitting, and the way to the network and back.


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
