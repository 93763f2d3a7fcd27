"""Pictures made to do harm, as photos and to restore: each is taken, or refused in a sentence, in time and memory."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.conftest import ROOT
from tests.unit.test_hostile_images import bmp, gif, linux, originals, png, tiff

SECONDS = 10
"""Of a processor, for one file; the largest picture takes three."""
MEGABYTES = {"read_infotext": 100, "read_image": 1000}
"""What reading may take: settings are text of a megabyte, and pixels take 24 bytes each."""

READ = """
import json, re, resource, sys
from pathlib import Path
from stable_diffusion.images import read_image
from ui.keep.metadata import read_infotext

def kilobytes(name):  # not `ru_maxrss`, which begins with what the process before had
    return int(re.search(rf"{name}:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

read = {"read_image": read_image, "read_infotext": read_infotext}[sys.argv[1]]
for path in sorted(Path(sys.argv[2]).iterdir()):
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + int(sys.argv[3]) + 1, resource.RLIM_INFINITY))
    print(json.dumps(path.name), flush=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    try:
        read(path)
        said = None
    except Exception as error:
        said = [isinstance(error, ValueError), str(error)]
    print(json.dumps([said, (kilobytes("VmHWM") - before) / 1024]), flush=True)
"""

PIECES = (
    *("Steps: 20", "Steps: 1e9", "Seed: -1", "Seed: " + "9" * 5000, "Size: 99999x99999", "Size: 0x0", "CFG scale: nan"),
    *("Denoising strength: inf", "Clip skip: -5", "Model: <b>x</b>", 'Model: "', "Sampler: \0", "Negative prompt: a"),
    *("\n", ", ", ": ", '"', "\\", "<lora:x:1>", "\u202e", "Hires upscale: 2", "Mask blur: 4", "Schedule type: Karras"),
)
VALUES = (None, True, -1, 10**300, 1.5, "x", "\0", [], ["4", 0], [[]], {}, {"inputs": 1}, {"name": []}, "9" * 5000)
NAMES = (
    *("positive_prompt", "prompt", "negative_prompt", "model", "loras", "clip_skip", "scheduler", "steps", "width"),
    *("base_model", "sampler", "resolution", "seed", "cfg_scale", "inputs", "class_type", "3", "4"),
)
KSAMPLER = {
    **{"seed": 1, "steps": 2, "cfg": 3, "sampler_name": "euler", "scheduler": "normal", "denoise": 1},
    **{"model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["5", 0]},
}
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": KSAMPLER},
    "4": {"class_type": "LoraLoader", "inputs": {"lora_name": "a.b", "strength_model": 1, "model": ["4", 0]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 8, "height": 8}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a", "clip": ["4", 1]}},
}


def infotext(chance: random.Random) -> str:
    return "".join(chance.choices(PIECES, k=chance.randrange(30)))


def settings(chance: random.Random) -> str:
    """JSON as other programs write it, with anything in the place of anything."""
    if chance.random() < 0.1:
        return "[" * 200_000
    values: dict[str, Any] = {name: chance.choice((*VALUES, "text")) for name in chance.sample(NAMES, 8)}
    if chance.random() < 0.5:
        values = json.loads(json.dumps(GRAPH))
        node = chance.choice(list(values.values()))
        inside = chance.choice([node, node["inputs"]])
        inside[chance.choice(list(inside))] = chance.choice(VALUES)
    return json.dumps(values)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(chance: random.Random) -> bytes:
    """A PNG with chunks that Pillow reads whole: their checksums are right, all else need not be."""
    kinds: dict[bytes, Callable[[], bytes]] = {
        b"tEXt": lambda: b"parameters\0" + infotext(chance).encode("latin-1", "replace"),
        b"iTXt": lambda: b"parameters\0\0\0\0\0" + infotext(chance).encode(),
        b"zTXt": lambda: b"parameters\0\0" + zlib.compress(b"a" * chance.choice((10, 10**6, 10**8))),
        b"tEXT": lambda: b"parameters\0" + b"x" * 2**20,
        b"iCCP": lambda: b"x\0\0" + zlib.compress(damaged(profile(), chance)),
        b"eXIf": lambda: damaged(exif(), chance),
        b"acTL": lambda: struct.pack(">II", chance.choice((0, 1, 1000, 2**31)), 0),
        b"fcTL": lambda: struct.pack(">IIIIIHHBB", *chance.choices((0, 1, 8, 2**31 - 1), k=5), 0, 0, 9, 9),
        b"tRNS": lambda: chance.randbytes(chance.randrange(9)),
        b"PLTE": lambda: chance.randbytes(chance.randrange(900)),
        b"IHDR": lambda: struct.pack(">IIBBBBB", *chance.choices((1, 8, 65_000), k=2), *chance.choices(range(17), k=5)),
    }
    texts = [
        chunk(b"tEXt", key + b"\0" + settings(chance).encode("latin-1", "replace"))
        for key in chance.sample((b"prompt", b"parameters", b"invokeai_metadata", b"workflow"), 2)
    ]
    more = [chunk(name, kinds[name]()) for name in chance.choices(list(kinds), k=chance.randrange(1, 5))]
    plain = png(8, 8, bytes(8 * 25))
    return plain[:33] + b"".join(chance.sample(texts + more, chance.randrange(1, len(texts + more)))) + plain[33:]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, most of them at the start, and perhaps the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice((0, 1, 2, 8))):
        changed[chance.randrange(min(len(changed), chance.choice((64, 400, 100_000))))] = chance.randrange(256)
    return bytes(changed[: chance.choice((None, None, chance.randrange(len(changed))))])


@cache
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@cache
def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a fox\nSteps: 4, Seed: 7".encode("utf-16-be")
    return tags.tobytes()


def with_profile(chance: random.Random) -> bytes:
    """A photo whose pixels are good, and whose EXIF and colour profile are not."""
    mode, kind = chance.choice((("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "WEBP"), ("RGBA", "PNG")))
    file = io.BytesIO()
    Image.new(mode, (40, 30)).save(file, kind, exif=damaged(exif(), chance), icc_profile=damaged(profile(), chance))
    return file.getvalue()


@cache
def frames() -> list[bytes]:
    """A thousand of them."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 8, 8), dtype=np.uint8)
    first, *others = map(Image.fromarray, noise)
    moving = []
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        file = io.BytesIO()
        first.save(file, kind, save_all=True, append_images=others)
        moving.append(file.getvalue())
    return moving


@cache
def plain() -> list[bytes]:
    deep = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(deep, "PNG")
    return [deep.getvalue(), *originals()]


def polyglot(chance: random.Random) -> bytes:
    """A picture that is also a page, a script, an archive or a document."""
    other = chance.choice((b"<html><script>alert(1)</script>", b"PK\x05\x06" + bytes(18), b"%PDF-1.7\n", b"<?php x ?>"))
    picture = chance.choice(plain())
    return chance.choice((picture + other, other + picture, b"GIF89a/*" + picture + b"*/=1;" + other))


def sized(chance: random.Random) -> bytes:
    """A header that promises more than there is."""
    sides = (1, 16, 6_000, 20_000, 20_001, 65_000)
    return chance.choice((png, tiff, gif, bmp))(chance.choice(sides), chance.choice(sides))


def drawing(chance: random.Random) -> bytes:
    return chance.choice(
        (b"", b"\xef\xbb\xbf", b"<?xml version='1.0'?>")
    ) + b"<svg onload='alert(1)'>" * chance.randrange(99)


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "bytes": lambda chance: damaged(chance.choice(plain()), chance),
    "chunks": with_chunks,
    "profile": with_profile,
    "frames": lambda chance: damaged(chance.choice(frames()), chance),
    "polyglot": polyglot,
    "sized": sized,
    "svg": drawing,
}


def read(reader: str, folder: Path) -> list[tuple[str, str | None]]:
    """What another process says of each file of a folder, None where it is taken; fails where one takes too much."""
    command = [sys.executable, "-W", "ignore::UserWarning", "-c", READ, reader, str(folder), str(SECONDS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    names, ends = lines[::2], lines[1::2]
    assert len(ends) == len(list(folder.iterdir())), f"{names[-1:]} ended the process by {run.returncode}: {run.stderr}"
    assert "Traceback" not in run.stderr
    assert "Warning" not in run.stderr
    for name, (said, megabytes) in zip(names, ends, strict=True):
        assert megabytes < MEGABYTES[reader], f"{name} took {megabytes} MB"
        assert said is None or said[0], f"{name}: {said}"
    return [(name, said and said[1]) for name, (said, _) in zip(names, ends, strict=True)]


@linux
@pytest.mark.parametrize("reader", MEGABYTES)
@pytest.mark.parametrize("count", [100, pytest.param(2_000, marks=pytest.mark.soak)])
def test_mutated_pictures(tmp_path: Path, reader: str, count: int) -> None:
    chance = random.Random(count)
    for number in range(count):
        maker = list(MAKERS)[number % len(MAKERS)]
        name = f"{number:04}-{maker}.{chance.choice(('png', 'jpg', 'webp', 'gif', 'svg'))}"
        (tmp_path / name).write_bytes(MAKERS[maker](chance))
    for name, sentence in read(reader, tmp_path):
        if sentence is not None:
            assert name in sentence, sentence
            assert len(sentence) < 600, sentence
            assert sentence.isprintable(), sentence


@linux
def test_to_restore_settings_no_pixel_is_decoded(tmp_path: Path) -> None:
    Image.new("RGBA", (6_300, 6_300)).save(tmp_path / "large.png")  # 160 MB
    [(_, sentence)] = read("read_infotext", tmp_path)
    assert sentence is not None
    assert "'large.png' carries no settings" in sentence
