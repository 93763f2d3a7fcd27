"""Pictures in and out: from any photo to a tensor of the requested size, and from tensors to pictures."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import Base
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TILELENGTH, TILEWIDTH, TiffImageFile

from .request import FIT_LABELS, RequestError

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE_SIDE, MAX_FILE_PIXELS = 20_000, 40_000_000
"""The largest picture that is read from a file. A JPEG may have more pixels where it is decoded at a fraction of its
size."""

JPEG_SIZE = 2048, 2048
"""Width and height that a larger JPEG is decoded at, or up to twice as much."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM")
"""Pillow's names of the formats that are read. Its other formats hold no photos, and one starts a program (EPS)."""

HEIC = re.compile(rb".{4}ftyp(.{4}){0,15}?he[iv][cmsx]", re.DOTALL)
"""The start of a HEIC file: one of the brands in its ftyp box (ISO/IEC 23008-12)."""


def read_few_formats() -> None:
    """Have Pillow open files of `FORMATS` alone, from now on and in the whole process.

    For a server: Gradio opens pictures before any code of ours, and Pillow would try every format that it knows, EPS
    among them, which Ghostscript interprets.
    """
    Image.init()
    for name in Image.OPEN.keys() - FORMATS:
        del Image.OPEN[name]
    Image.ID[:] = [name for name in Image.ID if name in Image.OPEN]


class ImageError(RequestError):
    """A file is not a readable picture, or too large."""


# Reading: any file becomes upright RGB in sRGB, or one sentence.


def read_image(
    source: str | Path | Image.Image,
    *,
    background: str = "white",
    name: str = "image",
    jpeg_size: tuple[int, int] = JPEG_SIZE,
) -> Image.Image:
    """Read any picture as upright RGB in sRGB: EXIF rotation and colour profile applied, transparency on `background`.

    Accepts grey, palette, CMYK, 16-bit and float pictures, and of an animation the first frame. A JPEG is decoded at a
    fraction of its size, in a fraction of time and memory, as long as that covers `jpeg_size` (width and height). name:
    the argument that the error names. Raises `ImageError` with the remedy for a file that is not a picture, is cut
    short, or has more than 20,000 pixels a side or 40 million to decode.
    """
    with _opened(source, name) as (label, image):
        if image is not source:
            image.draft("RGB", jpeg_size if image.width * image.height <= MAX_FILE_PIXELS else JPEG_SIZE)
        _check_size(label, *image.size)
        return _upright_rgb(ImageOps.exif_transpose(image) if image is source else image, background)


def upright_size(source: str | Path | Image.Image, *, name: str = "image") -> tuple[int, int]:
    """Return width and height of a picture with its EXIF rotation applied, by its header. Raises as `read_image`."""
    with _opened(source, name) as (_, image):
        try:
            # Not a PNG's own `getexif`, which decodes the whole picture to look behind it.
            turned = Image.Image.getexif(image).get(Base.Orientation, 1)
        except Exception:  # broken EXIF says nothing about the pixels
            turned = 1
        # Orientations 5 to 8 lie on their side; Pillow has already turned the size of a TIFF.
        return image.size[::-1] if turned in (5, 6, 7, 8) and image.format != "TIFF" else image.size


@contextmanager
def _opened(source: str | Path | Image.Image, name: str) -> Iterator[tuple[str, Image.Image]]:
    """Give a picture with only its header read, and its name in messages; any error of Pillow's is an `ImageError`."""
    label, size = name, "unknown size"
    try:
        if isinstance(source, Image.Image):
            size = "{}x{}".format(*source.size)
            yield label, source
            return
        label = f"{name} {(Path(source).name or str(source))[:255]!r}"
        # Check for a regular file before opening it: opening a pipe blocks until somebody writes to it, and
        # opening a device can have side effects.
        if not (os.path.isfile(source) and os.access(source, os.R_OK)):
            raise ImageError(f"{label} is not a readable file: check its path")
        with open(source, "rb") as file:
            image = open_image(label, file)
            size = "{}x{}".format(*image.size)
            yield label, image
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise ImageError(f"{label} of {size} needs more memory than there is: use a smaller picture") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise ImageError(f"{label} is damaged ({error}): save it again and retry") from None


def open_image(label: str, file: BinaryIO) -> Image.Image:
    """Return a picture with only its header read.

    Raises `ImageError` where the file is not a picture or is too large, and any exception of Pillow's where it is
    damaged. `Image.open` would warn of large pictures before they can be refused.
    """
    Image.init()
    head = file.read(1024)
    if HEIC.match(head):
        raise ImageError(f"{label} is HEIC: save it as JPEG (iPhone: Settings > Camera > Formats > Most Compatible)")
    for factory, accepts in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        if accepts is not None and accepts(head[:16]) is True:  # a string where Pillow was built without the format
            file.seek(0)
            image = factory(file, "")
            if isinstance(image, JpegImageFile) and _in_one_scan(image, file):
                _check_size(label, *image.size, max_pixels=MAX_FILE_SIDE**2)
            else:
                _check_size(label, *image.size)
            if isinstance(image, TiffImageFile):
                _check_tiles(label, image, file)
            elif isinstance(image, PngImageFile):
                _scale_clear_level(image)
            return image
    if b"<svg" in head:
        raise ImageError(f"{label} is a drawing of lines (SVG), not of pixels: export it as PNG")
    raise ImageError(f"{label} is not a picture that can be read: use PNG, JPEG or WebP")


def _check_size(label: str, width: int, height: int, max_pixels: int = MAX_FILE_PIXELS) -> None:
    if max(width, height) > MAX_FILE_SIDE or width * height > max_pixels:
        raise ImageError(
            f"{label} is {width}x{height}: use at most {MAX_FILE_SIDE:,} a side, {MAX_FILE_PIXELS:,} pixels"
        )


def _in_one_scan(image: JpegImageFile, file: BinaryIO) -> bool:
    """Return whether a JPEG is decoded line by line.

    One in several scans, progressive or one for each colour, is held in memory at its full size, whatever it is decoded
    at. Raises `struct.error` where the file ends.
    """
    file.seek(2)
    for _ in range(1000):
        marker, length = struct.unpack(">HH", file.read(4))
        if marker == 0xFFDA:  # start of scan
            return "progressive" not in image.info and file.read(1) == bytes([image.layers])
        if not 0xFFC0 <= marker < 0xFFFF or 0xFFD0 <= marker <= 0xFFD9 or length < 2:  # libjpeg may skip otherwise
            break
        file.seek(length - 2, os.SEEK_CUR)
    return False


def _check_tiles(label: str, image: TiffImageFile, file: BinaryIO) -> None:
    """Refuse a TIFF whose tiles are larger than a picture may be: libtiff decodes whole tiles.

    Refuse repeated tags too, of which Pillow reads the last and libtiff the first.
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
    _check_size(f"a tile of {label}", *(image.tag_v2.get(tag, 1) for tag in (TILEWIDTH, TILELENGTH)))


def _scale_clear_level(image: PngImageFile) -> None:
    """Bring a PNG's transparent grey or colour to the 8 bits of its pixels: Pillow leaves it in the file's depth."""
    clear, depth = image.info.get("transparency"), image.tile[0].args
    if depth == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    elif depth in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if depth == "L;2" else 17)


def _upright_rgb(image: Image.Image, background: str) -> Image.Image:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # broken EXIF says nothing about the pixels
        pass
    image = _in_srgb(_eight_bits(image))
    image.info.clear()  # the profile is applied, and the place where the photo was taken is private
    if image.mode == "RGB":
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert any mode to L, LA, RGB, RGBA or CMYK."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow clips on conversion instead of scaling.
        clear, wide = image.info.pop("transparency", None), image.convert("I")
        levels = [round(level / 257) for level in range(65_536)]
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
            levels.reverse()  # white is zero, which Pillow turns around in 8 bits alone
        grey = wide.point(levels, "L")
        if isinstance(clear, int):
            grey.putalpha(wide.point([255 * (level != clear) for level in range(65_536)], "L"))
        return grey
    if image.mode == "F":
        return _grey_from_floats(image)
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _grey_from_floats(image: Image.Image) -> Image.Image:
    """Convert F to L: [0, 1] is black to white or, if other values occur, the smallest value to the largest."""
    values = np.asarray(image)
    low, high = (float(bound(values, axis=None)) for bound in (np.fmin.reduce, np.fmax.reduce))  # NaN left out
    if not math.isfinite(high - low):
        raise ValueError("its values are not finite")
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scale = 255.0 / ((high - low) or 1.0)
    return image.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert L, RGB or CMYK to RGB, and LA or RGBA to RGBA, by the picture's ICC profile if that is usable."""
    mode = "RGBA" if image.mode.endswith("A") else "RGB"
    profile = image.info.get("icc_profile")
    # A profile of multiProcessElements may contain any number of steps: 80 kB of them take 40 s.
    if not isinstance(profile, bytes) or b"mpet" in profile:
        return image.convert(mode)
    try:
        converted = ImageCms.profileToProfile(image, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode)
    except ImageCms.PyCMSError:  # a broken profile, or one of another colour space
        return image.convert(mode)
    assert converted is not None  # only a conversion in place returns None
    if mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


# Fitting, and the way to the network and back.


def fit_image(
    image: Image.Image, width: int, height: int, fit: str = "crop", *, background: str = "white"
) -> Image.Image:
    """Return an RGB picture at width x height: `crop` fills and cuts, `pad` shows all of it, `stretch` distorts."""
    if fit not in FIT_LABELS:
        raise RequestError(f"fit must be one of {', '.join(FIT_LABELS)}, got {fit!r}")
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
    """Convert RGB pictures of one size to a tensor (N, 3, H, W), float32 in [-1, 1]."""
    import torch  # here, so that a page can read pictures before torch is loaded

    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(pixels / 255.0).permute(0, 3, 1, 2) * 2.0 - 1.0


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Convert a tensor (N, 3, H, W), about in [-1, 1], to pictures, rounded to 8 bits."""
    import torch

    pixels = (pictures.float() / 2.0 + 0.5).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]
