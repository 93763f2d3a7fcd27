"""A photo's colours are those that its ICC profile means, in sRGB; a profile that is no use does no harm."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.images import read_image

D50 = (0.9642, 1.0, 0.8249)


def fixed(*numbers: float) -> bytes:
    """Return real numbers as s15Fixed16Number of ICC.1:2022."""
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


# The sRGB curve, which Display P3 shares (IEC 61966-2-1): parametric curve of type 3 with g, a, b, c, d.
CURVE = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
LINEAR = b"curv\0\0\0\0\0\0\0\0"


def profile(space: bytes, kind: bytes, pcs: bytes, **tags: bytes) -> bytes:
    """Return an ICC profile: header, table of tags, tags."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(tag))
        body += tag + b"\0" * (-len(tag) % 4)
    size, version = 128 + len(table) + len(body), 0x02400000
    header = struct.pack(">I4xI4s4s4s12x4s28x", size, version, kind, space, pcs, b"acsp") + fixed(*D50)
    return header.ljust(128, b"\0") + table + body


def of_primaries(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...], **more: bytes) -> bytes:
    """Return a profile of three primaries (XYZ under D50) and the sRGB curve."""
    primaries = {"rXYZ": xyz(*red), "gXYZ": xyz(*green), "bXYZ": xyz(*blue)}
    curves = dict.fromkeys(("rTRC", "gTRC", "bTRC"), CURVE)
    return profile(b"RGB ", b"mntr", b"XYZ ", wtpt=xyz(*D50), **primaries, **curves, **more)


P3_PRIMARIES = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
SEEN = (216, 69, 50)
"""What (200, 80, 60) of Display P3 is in sRGB, by the formula below."""
DISPLAY_P3 = of_primaries(*P3_PRIMARIES)
GREY = profile(b"GRAY", b"mntr", b"XYZ ", wtpt=xyz(*D50), kTRC=LINEAR)


def inks() -> bytes:
    """Return the profile of a press: full cyan is the grey L* 50, full black L* 20, every other full ink L* 0."""
    lightness = {(0, 0, 0, 0): 100, (1, 0, 0, 0): 50, (0, 0, 0, 1): 20}
    corners = [[(n >> bit) & 1 for bit in (3, 2, 1, 0)] for n in range(16)]  # cyan varies slowest
    table = b"".join(bytes([round(lightness.get(tuple(corner), 0) * 2.55), 128, 128]) for corner in corners)
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + 4 * ramp + table + 3 * ramp
    return profile(b"CMYK", b"prtr", b"Lab ", wtpt=xyz(*D50), A2B0=lut)


def test_display_p3_becomes_srgb(tmp_path: Path) -> None:
    for ending in ("png", "tiff", "jpg", "webp"):
        path = tmp_path / f"phone.{ending}"
        Image.new("RGB", (16, 16), (200, 80, 60)).save(path, icc_profile=DISPLAY_P3, quality=100, lossless=True)
        image = read_image(path)
        assert np.allclose(image.getpixel((8, 8)), SEEN, atol=3 if ending == "jpg" else 1), ending
        assert image.info == {}, "a profile left behind would be applied again"


def test_the_conversion_is_the_formula_of_the_two_spaces() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.info["icc_profile"] = DISPLAY_P3
    levels = pixels / 255.0
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    # Display P3 to sRGB, both under D65: from the chromaticities in SMPTE EG 432-1 and IEC 61966-2-1.
    matrix = np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09827]])
    linear = (linear @ matrix.T).clip(0.0, 1.0)
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255.0
    # Rounding is half a level; 16-bit primaries and tables of the library that converts are the rest, most in the dark.
    assert np.abs(np.asarray(read_image(picture)) - expected).max() < 2.0


@pytest.mark.parametrize("alpha", [255, 100, 0])
def test_colours_are_converted_below_transparency(alpha: int) -> None:
    picture = Image.new("RGBA", (4, 4), (200, 80, 60, alpha))
    picture.info["icc_profile"] = DISPLAY_P3
    expected = np.array(SEEN) * alpha / 255 + 255 - alpha
    assert np.allclose(read_image(picture).getpixel((0, 0)), expected, atol=1)


def test_palettes_are_converted() -> None:
    picture = Image.new("RGB", (4, 4), (200, 80, 60)).quantize(4)
    picture.info["icc_profile"] = DISPLAY_P3
    assert np.allclose(read_image(picture).getpixel((0, 0)), SEEN, atol=1)


@pytest.mark.parametrize(("mode", "colour"), [("L", 55), ("LA", (55, 255)), ("I;16", 55 * 257)])
def test_grey_profiles_are_applied(mode: str, colour: int | tuple[int, int]) -> None:
    picture = Image.new(mode, (4, 4), colour)
    picture.info["icc_profile"] = GREY
    assert read_image(picture).getpixel((0, 0)) == (128, 128, 128)  # 55 / 255 linear: 0.5029 on the sRGB curve


def test_inks_are_those_of_their_profile(tmp_path: Path) -> None:
    for ending in ("tiff", "jpg"):
        for ink, level in (((255, 0, 0, 0), 119), ((0, 0, 0, 255), 48), ((0, 0, 0, 0), 255)):
            Image.new("CMYK", (16, 16), ink).save(tmp_path / f"print.{ending}", icc_profile=inks(), quality=100)
            # L* 50 and 20 are 119 and 48 in sRGB; a level of the table is 0.4 of L*.
            assert np.allclose(read_image(tmp_path / f"print.{ending}").getpixel((8, 8)), level, atol=2)


@pytest.mark.parametrize(
    "useless",
    [b"", b"no profile", DISPLAY_P3[:200], inks(), GREY, b"\0" * 4096, (1, 2), "text"],
    ids=["empty", "words", "cut", "CMYK", "grey", "zeros", "numbers", "text"],
)
def test_a_profile_that_is_no_use_leaves_the_colours(useless: object) -> None:
    picture = Image.new("RGB", (4, 4), (200, 80, 60))
    picture.info["icc_profile"] = useless
    assert read_image(picture).getpixel((0, 0)) == (200, 80, 60)


def test_a_profile_of_another_kind_leaves_grey_and_inks() -> None:
    for mode, colour, seen in (("L", 55, (55, 55, 55)), ("CMYK", (255, 0, 0, 0), (0, 255, 255))):
        picture = Image.new(mode, (4, 4), colour)
        picture.info["icc_profile"] = DISPLAY_P3
        assert read_image(picture).getpixel((0, 0)) == seen


def test_a_profile_of_endless_steps_is_not_run() -> None:
    steps = 1_000_000  # that share one matrix: each would be 4 ms, over an hour for 8 MB
    matrix = b"matf\0\0\0\0" + struct.pack(">HH12f", 3, 3, *np.eye(3).flat, 0, 0, 0)
    start = 16 + 8 * steps
    elements = b"mpet\0\0\0\0" + struct.pack(">HHI", 3, 3, steps) + struct.pack(">II", start, len(matrix)) * steps
    picture = Image.new("RGB", (4, 4), (200, 80, 60))
    picture.info["icc_profile"] = of_primaries(*P3_PRIMARIES, D2B0=elements + matrix)
    assert read_image(picture).getpixel((0, 0)) == (200, 80, 60)


def test_damaged_profiles_never_raise() -> None:
    chance = random.Random(0)
    for original, mode, times in ((DISPLAY_P3, "RGB", 200), (GREY, "L", 200), (inks(), "CMYK", 20)):
        for _ in range(times):
            damaged = bytearray(original)
            for _ in range(chance.choice((1, 2, 8))):
                damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
            picture = Image.new(mode, (4, 4))
            picture.info["icc_profile"] = bytes(damaged)
            assert read_image(picture).mode == "RGB"
