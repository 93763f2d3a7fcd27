"""Read hostile picture files: each becomes a picture or a sentence, at once and in memory that it could need."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.images import ImageError, read_image

LIMIT = "use at most 20,000 a side, 40,000,000 pixels"


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """Pillow warns of large pictures on the server's terminal: ours are refused before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def png(width: int, height: int, data: bytes = b"") -> bytes:
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(data),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


def tiff(width: int, height: int, *more: tuple[int, int], tile: int = 64) -> bytes:
    """Return a grey TIFF of one compressed tile (Adobe deflate), with `more` entries of its directory first."""
    data = zlib.compress(bytes(range(64)) * 64)
    tags = [*more, (256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8), (325, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags, key=lambda tag: tag[0]))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def gif(width: int, height: int) -> bytes:
    frame = struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"," + frame + b"\2\2\x44\1\0;"


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


@pytest.mark.parametrize(
    ("make", "size"), [(png, (65_000, 65_000)), (tiff, (20_001, 1)), (gif, (1, 20_001)), (bmp, (10_000, 4_001))]
)
def test_too_large_a_header_is_refused(
    tmp_path: Path, make: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    (tmp_path / "bomb").write_bytes(make(*size))
    with pytest.raises(ImageError, match=f"^image 'bomb' is {size[0]}x{size[1]}: {LIMIT}$"):
        read_image(tmp_path / "bomb")


def test_the_largest_picture_is_read(tmp_path: Path) -> None:
    Image.new("1", (20_000, 2_000), 1).save(tmp_path / "largest.png")
    assert read_image(tmp_path / "largest.png").getpixel((19_999, 1_999)) == (255, 255, 255)
    with pytest.raises(ImageError, match=f"^image is 20001x1: {LIMIT}$"):
        read_image(Image.new("1", (20_001, 1)))


def test_tiles_are_read_and_have_the_limits_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    path.write_bytes(tiff(60, 50))
    assert read_image(path).getpixel((59, 49)) == (59, 59, 59)
    path.write_bytes(tiff(60, 50, tile=40_000))  # 1.6 GB for 3,000 pixels
    with pytest.raises(ImageError, match=f"^a tile of image 'tiles.tif' is 40000x40000: {LIMIT}$"):
        read_image(path)
    path.write_bytes(tiff(60, 50, (322, 40_000), (323, 40_000)))  # one reader takes the first, another the last
    with pytest.raises(ImageError, match=r"'tiles.tif' is damaged \(a tag of its directory stands twice"):
        read_image(path)
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 1 << 60))
    with pytest.raises(ImageError, match=r"'tiles.tif' is"):
        read_image(path)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "big.tif", big_tiff=True)
    assert read_image(tmp_path / "big.tif").getpixel((4, 4)) == (255, 0, 0)


LIMITED = """
import resource, sys
from pathlib import Path
from PIL import Image
from stable_diffusion.images import ImageError, fit_image, read_image

megabytes, *paths = sys.argv[1:]
for path in paths:  # what a decoder needs once
    small = Path(path).with_name(f"small{Path(path).suffix}")
    Image.new("L", (64, 64)).save(small)
    read_image(small)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes) * 10**6,) * 2)
for path in paths:
    try:
        print([fit_image(read_image(path), 64, 64, fit).size for fit in ("crop", "pad", "stretch")])
    except ImageError as error:
        print(error)
"""


def read_within(megabytes: int, *paths: Path) -> list[str]:
    """Read and fit each picture in a process with this much address space to spare; return its lines."""
    command = [sys.executable, "-c", LIMITED, str(megabytes), *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert not run.stderr, run.stderr
    return run.stdout.splitlines()


linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to its address space")


@linux
def test_memory_is_in_proportion_to_the_pixels(tmp_path: Path) -> None:
    names = ("RGBA.png", "LA.png", "P.png", "I;16.png", "F.tiff", "CMYK.jpg", "RGBA.webp")
    paths = [tmp_path / name for name in names]
    for path in paths:
        Image.new(path.stem, (3_200, 3_125)).save(path)
    # 24 bytes for each of ten million pixels, as WebP takes: three canvases of its decoder, and ours.
    assert read_within(240, *paths) == [str([(64, 64)] * 3)] * len(paths)


def jpeg_of_48_megapixels(path: Path, **options: bool) -> Path:
    Image.new("RGB", (8_000, 6_000), "red").save(path, **options)
    return path


@linux
def test_a_large_jpeg_takes_the_memory_that_it_is_decoded_at(tmp_path: Path) -> None:
    assert read_within(150, jpeg_of_48_megapixels(tmp_path / "phone.jpg")) == [str([(64, 64)] * 3)]


def test_a_large_jpeg_that_is_held_in_memory_whole_is_refused(tmp_path: Path) -> None:
    sentence = f"^image 'phone.jpg' is 8000x6000: {LIMIT}$"
    path = jpeg_of_48_megapixels(tmp_path / "phone.jpg", progressive=True)
    with pytest.raises(ImageError, match=sentence):
        read_image(path)
    content = jpeg_of_48_megapixels(path).read_bytes()
    scan = content.index(b"\xff\xda")
    one_colour = content[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + content[scan + 14 :]
    # A comment behind a fill byte: taken for a length, its marker leads to the scan inside.
    comment = b"\xff\xff\xfe\xff\xff" + (bytes(65_276) + content[scan : scan + 14]).ljust(65_533, b"\0")
    for disguised in (one_colour, one_colour[:2] + comment + one_colour[2:]):
        path.write_bytes(disguised)
        with pytest.raises(ImageError, match=sentence):
            read_image(path)


@linux
def test_a_line_of_ninety_million_pixels_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "line.png").write_bytes(png(1, 90_000_000))
    assert read_within(32, tmp_path / "line.png") == [f"image 'line.png' is 1x90000000: {LIMIT}"]


@linux
def test_want_of_memory_is_said(tmp_path: Path) -> None:
    paths = [tmp_path / "picture.png", tmp_path / "picture.tiff"]
    for path in paths:
        Image.new("RGBA", (5_000, 5_000)).save(path)
    sentence = "image '{}' of 5000x5000 needs more memory than there is: use a smaller picture"
    assert read_within(50, *paths) == [sentence.format(path.name) for path in paths]


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    names = ["folder.png", "pipe.png", "link.png", "round.png", "missing.png", "x" * 5_000, "nul\0.png"]
    for path in [*(tmp_path / name for name in names), Path("/dev/zero"), Path("/")]:
        with pytest.raises(ImageError, match=r"^image '.{1,300}' is not a readable file: check its path$"):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "phone.heic",
            b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHBheic",
            "is HEIC: save it as JPEG .iPhone: Settings > Camera",
        ),
        ("phone.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic\0\0\1\0meta", "is HEIC: save it as JPEG"),
        ("logo.svg", b'<?xml version="1.0"?>\n<svg width="9" height="9"/>', r"is a drawing of lines \(SVG\).*PNG$"),
        (
            "page.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "is not a picture that can be read: use PNG",
        ),
        ("empty.png", b"", "is not a picture that can be read: use PNG"),
    ],
)
def test_other_kinds_are_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"^image '{name}' {sentence}"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\2"]
)
def test_broken_exif_leaves_the_pixels(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "photo.jpg")
    assert image.size == (40, 20)
    assert np.allclose(image.getpixel((5, 5)), (255, 0, 0), atol=12)
