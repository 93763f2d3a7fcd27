"""A photo of any kind becomes an RGB picture, upright and at the size asked for."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stable_diffusion.images import ImageError, fit_image, read_image, to_images, to_tensor, upright_size
from stable_diffusion.request import FIT_LABELS

RED, BLUE = (255, 0, 0), (0, 0, 255)


def left_red_right_blue(size: tuple[int, int] = (40, 20)) -> Image.Image:
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


SEEN = {1: "rb/gg", 2: "br/gg", 3: "gg/br", 4: "gg/rb", 5: "rg/bg", 6: "gr/gb", 7: "gb/gr", 8: "bg/rg"}
"""By EXIF orientation (TIFF 6.0, tag 274), how a picture with red and blue above green is seen."""


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff", "avif"])
def test_exif_rotation_is_applied(tmp_path: Path, ending: str) -> None:
    image = left_red_right_blue()
    image.paste((0, 128, 0), (0, 10, 40, 20))
    for orientation, seen in SEEN.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"turned.{ending}", exif=exif, quality=95)
        upright = read_image(tmp_path / f"turned.{ending}")
        assert upright.size == ((40, 20) if orientation < 5 else (20, 40))
        assert upright_size(tmp_path / f"turned.{ending}") == upright.size
        corners = [(3, 3), (-4, 3), (3, -4), (-4, -4)]
        colours = [upright.getpixel((x % upright.width, y % upright.height)) for x, y in corners]
        assert ["rgb"[int(np.argmax(colour))] for colour in colours] == list(seen.replace("/", "")), orientation


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_the_background(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "clear.png")
    seen = read_image(tmp_path / "clear.png")
    assert seen.mode == "RGB"
    assert seen.getpixel((1, 4)) == (0, 0, 0)
    assert seen.getpixel((6, 4)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("levels", "seen"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.25, 0.25, 0.5], [64, 64, 128]),  # within [0, 1] nothing is stretched
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 300.0, 1200.0], [0, 64, 255]),
        ([7.0, 7.0, 7.0], [0, 0, 0]),
        ([np.nan, 0.5, 1.0], [0, 128, 255]),
    ],
)
def test_floats_run_from_black_to_white(tmp_path: Path, levels: list[float], seen: list[int]) -> None:
    Image.fromarray(np.array([levels], np.float32)).save(tmp_path / "float.tiff")
    assert np.asarray(read_image(tmp_path / "float.tiff"))[0, :, 1].tolist() == seen
    Image.fromarray(np.array([[0.0, np.inf]], np.float32)).save(tmp_path / "endless.tiff")
    with pytest.raises(ImageError, match=r"'endless.tiff' is damaged \(its values are not finite\): save it again"):
        read_image(tmp_path / "endless.tiff")


def test_integers_beyond_sixteen_bits_are_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-5, 0, 257, 65535, 1 << 20]], np.int32)).save(tmp_path / "wide.tiff")
    assert np.asarray(read_image(tmp_path / "wide.tiff"))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


FORMATS = {
    "png": ["RGB", "P", "L", "1"],
    "jpg": ["RGB", "CMYK", "YCbCr", "L"],
    "tiff": ["RGB", "CMYK", "P", "L", "1", "F"],
    "webp": ["RGB", "P", "L"],
    "avif": ["RGB", "P", "L"],
    "gif": ["RGB", "P", "L", "1"],
    "bmp": ["RGB", "P", "L", "1"],
    "ppm": ["RGB", "L", "1", "F"],
}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_mode_of_every_format_becomes_rgb(tmp_path: Path, ending: str) -> None:
    for mode in FORMATS[ending]:
        left_red_right_blue().convert(mode).save(tmp_path / f"picture.{ending}")
        image = read_image(tmp_path / f"picture.{ending}")
        assert (image.mode, image.size) == ("RGB", (40, 20)), mode
        if mode not in ("1", "F"):  # these are dithered, and stretched
            left, right = ((76, 76, 76), (29, 29, 29)) if mode == "L" else (RED, BLUE)
            assert np.allclose(image.getpixel((5, 10)), left, atol=12), mode
            assert np.allclose(image.getpixel((35, 10)), right, atol=12), mode


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif", "mpo"])
def test_of_several_pictures_the_first_is_read(tmp_path: Path, ending: str) -> None:
    others, kind = [Image.new("RGB", (40, 20), "lime")] * 3, "MPO" if ending == "mpo" else None
    left_red_right_blue().save(tmp_path / f"film.{ending}", kind, save_all=True, append_images=others, quality=95)
    image = read_image(tmp_path / f"film.{ending}")
    assert np.allclose(image.getpixel((5, 10)), RED, atol=12)
    assert np.allclose(image.getpixel((35, 10)), BLUE, atol=12)


def test_grey_with_one_clear_level_lies_on_the_background(tmp_path: Path) -> None:
    image = Image.new("L", (8, 8), 40)
    image.paste(90, (0, 0, 4, 8))
    image.save(tmp_path / "clear.png", transparency=40)
    seen = read_image(tmp_path / "clear.png", background="red")
    assert [seen.getpixel((x, 4)) for x in (1, 6)] == [(90, 90, 90), RED]


def png(depth: int, colour: int, row: bytes, clear: bytes) -> bytes:
    """Return a PNG of two pixels, of which tRNS names a clear level or colour (PNG specification, 11.3.2.1)."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": clear, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (png(1, 0, b"\x40", b"\0\1"), (0, 0, 0)),
        (png(2, 0, b"\x60", b"\0\2"), (85, 85, 85)),
        (png(4, 0, b"\x3a", b"\0\x0a"), (51, 51, 51)),
        (png(16, 0, struct.pack(">2H", 257, 258), struct.pack(">H", 258)), (1, 1, 1)),
        (png(16, 2, struct.pack(">6H", 99, 99, 999, 300, 500, 900), struct.pack(">3H", 300, 500, 900)), (0, 0, 3)),
    ],
    ids=["1 bit", "2 bits", "4 bits", "16 bits", "colour of 16 bits"],
)
def test_a_clear_level_of_any_depth_lies_on_the_background(
    tmp_path: Path, content: bytes, seen: tuple[int, int, int]
) -> None:
    (tmp_path / "clear.png").write_bytes(content)
    image = read_image(tmp_path / "clear.png", background="red")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [seen, RED]


def test_white_may_be_zero(tmp_path: Path) -> None:
    for depth in (np.uint8, np.uint16):
        path = tmp_path / "negative.tiff"
        Image.fromarray(np.array([[0, np.iinfo(depth).max]], depth)).save(path)
        photometric = struct.pack("<HHI", 262, 3, 1)
        path.write_bytes(path.read_bytes().replace(photometric + b"\1", photometric + b"\0"))
        assert np.asarray(read_image(path))[0, :, 0].tolist() == [255, 0]


def test_a_picture_in_memory_is_read_and_left_as_it_is() -> None:
    given = left_red_right_blue()
    given.getexif()[0x0112] = 6
    given.info["comment"] = "mine"
    assert read_image(given).size == (20, 40)
    assert (given.size, given.info) == ((40, 20), {"comment": "mine"})


def test_large_photo_is_read_and_one_pixel_is_enough(tmp_path: Path) -> None:
    Image.new("RGB", (8_000, 5_000), RED).save(tmp_path / "large.jpg")
    large = read_image(tmp_path / "large.jpg")
    assert large.size == (4_000, 2_500)
    assert np.allclose(large.getpixel((5, 5)), RED, atol=3)
    thin = fit_image(Image.new("RGB", (1, 500), BLUE), 64, 64)
    assert thin.size == (64, 64)
    assert thin.getpixel((32, 32)) == BLUE


@pytest.mark.parametrize("fit", FIT_LABELS)
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
def test_extreme_shapes_fit(fit: str, size: tuple[int, int]) -> None:
    for target in ((64, 64), (512, 64), (64, 512)):
        fitted = fit_image(Image.new("RGB", size, BLUE), *target, fit)
        assert fitted.size == target
        assert fitted.getpixel(((target[0] - 1) // 2, (target[1] - 1) // 2)) == BLUE


def test_fits() -> None:
    image = left_red_right_blue((80, 40))
    pixels = {fit: np.asarray(fit_image(image, 40, 40, fit)) for fit in FIT_LABELS}
    assert all(array.shape == (40, 40, 3) for array in pixels.values())
    assert (pixels["pad"][0] == 255).all()
    assert tuple(pixels["pad"][20, 2]) == RED
    assert tuple(pixels["crop"][0, 0]) == RED
    assert tuple(pixels["stretch"][0, 39]) == BLUE
    with pytest.raises(ValueError, match="fit must be one of crop, pad, stretch, got 'zoom'"):
        fit_image(image, 40, 40, "zoom")  # type: ignore[arg-type]


def test_pixels_survive_the_way_to_a_tensor_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor([Image.fromarray(pixels)])
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1.0, 1.0)
    assert (np.asarray(to_images(tensor)[0]) == pixels).all()


def test_rounding_and_clamping() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 127.6 / 127.5 - 1, 1.0, 3.0]).expand(1, 3, 1, -1)
    assert np.asarray(to_images(values)[0])[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
