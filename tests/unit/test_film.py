"""The film of a run as a file to share: noise first, a curtain that goes, prompt and step in it, and its settings."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from stable_diffusion.request import Request, RequestError
from ui.keep.files import NoRoom
from ui.keep.history import FinishedRun
from ui.keep.metadata import encoded, read_infotext
from ui.runs.events import Event
from ui.stage import film as film_module
from ui.stage.film import (
    BAR,
    FRAME_SIDE,
    MAX_FRAMES,
    animation,
    film_files,
    finish,
    font,
    keep_film,
    picture_of,
    printable,
    shortened,
    strip,
)
from ui.stage.live import Message, data_uri

TEXT = "a red fox\nSteps: 3, Sampler: DDPM, CFG scale: 4, Seed: 7, Size: 128x128"
WHOLE = 128  # the pictures of a small model


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return a picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def film(count: int, size: tuple[int, int] = (16, 16), total: int | None = None) -> list[Message]:
    """Return the messages of a run: other noise at every step, and a prediction that gets redder."""
    return [
        {
            "index": i,
            "total": total or count,
            "x0": data_uri(Image.new("RGB", size, (250 * i // count, 0, 0))),
            "xt": data_uri(noise(i, size)),
        }
        for i in range(1, count + 1)
    ]


def frames(moving: bytes) -> tuple[list[Image.Image], list[int]]:
    """Return the pictures of an animation and their durations in milliseconds."""
    with Image.open(io.BytesIO(moving)) as image:
        pictures, times = [], []
        for i in range(image.n_frames):
            image.seek(i)
            pictures.append(image.convert("RGB"))
            times.append(image.info["duration"])
        assert image.info["loop"] == 0
        return pictures, times


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures, of 255."""
    return float(np.asarray(ImageChops.difference(one, other)).mean())


def test_it_begins_with_noise_and_ends_with_the_picture():
    messages = film(4, (WHOLE, WHOLE))
    (first, *between, last), times = frames(animation(messages, "a red fox"))
    assert first.size == (FRAME_SIDE, FRAME_SIDE + BAR)
    stage = (0, 0, FRAME_SIDE, FRAME_SIDE)
    noise, picture = (
        picture_of(messages[i][name]).resize((FRAME_SIDE, FRAME_SIDE), Image.Resampling.NEAREST)
        for i, name in ((0, "xt"), (-1, "x0"))
    )
    assert difference(first.crop(stage), noise) < 20  # lossy WebP; other noise differs by 85
    assert difference(last.crop(stage), picture) < 2
    for i, frame in enumerate(between, start=1):  # of 4, the first shows the first step
        edge = FRAME_SIDE - FRAME_SIDE * i // 4
        left, right = frame.crop((0, 0, edge - 4, FRAME_SIDE)), frame.crop((edge + 4, 0, FRAME_SIDE, FRAME_SIDE))
        assert np.asarray(left)[:, :, 1].std() > 40
        assert np.asarray(right)[:, :, 1].std() < 4
    assert sum(times[:-1]) == 3000
    assert times[-1] == 1500


def test_prompt_and_step_are_in_every_frame():
    pictures, _ = frames(animation(film(3, (WHOLE, WHOLE)), "a red fox"))
    others, _ = frames(animation(film(3, (WHOLE, WHOLE)), "a green frog"))
    bars = [
        [one.crop((0, FRAME_SIDE, FRAME_SIDE, FRAME_SIDE + BAR)) for one in several] for several in (pictures, others)
    ]
    left, right = (0, 0, FRAME_SIDE // 2, BAR), (FRAME_SIDE // 2, 0, FRAME_SIDE, BAR)
    for mine, other in zip(*bars, strict=True):
        assert difference(mine.crop(left), other.crop(left)) > 1
        assert difference(mine.crop(right), other.crop(right)) < 1
    steps = [bar.crop(right) for bar in bars[0]]
    assert all(difference(one, other) > 0.5 for one, other in pairwise(steps))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 128), (512, 512)), ((256, 128), (512, 256)), ((96, 160), (288, 480)), ((1024, 512), (512, 256))],
)
def test_pictures_are_enlarged_by_whole_numbers(size: tuple[int, int], expected: tuple[int, int]):
    pictures, _ = frames(animation(film(1, size), "a red fox"))
    assert {one.size for one in pictures} == {(expected[0], expected[1] + BAR)}


def test_twenty_steps_of_pure_noise_are_below_three_megabytes():
    """Frames of noise alone are larger than those of any run."""
    messages = [{**one, "x0": one["xt"]} for one in film(20, (WHOLE, WHOLE))]
    assert len(animation(messages, "a red fox")) < 3_000_000


def test_a_long_run_plays_no_longer():
    pictures, times = frames(animation(film(150), "a red fox"))
    assert len(pictures) == 1 + MAX_FRAMES
    assert sum(times[:-1]) == 3000


def test_every_prompt_can_be_drawn():
    for prompt in ("", "猫 и кот 🐱", "a\nb\x00", "long " * 4000, "\ud800", "مرحبا"):
        assert len(frames(animation(film(1), prompt))[0]) == 2, prompt[:20]


def test_text_is_in_one_line_and_what_has_no_letters_is_a_question_mark():
    assert printable("an  é\nand 猫猫 or кот") == "an e and ? or ?"
    assert printable("is it? no") == "is it? no"
    assert shortened("short", 200) == "short"
    shorter = shortened("a very long prompt " * 20, 200)
    assert shorter.startswith("a very long")
    assert shorter.endswith("…")
    assert font().getlength(shorter) <= 200


def test_a_saved_film_carries_the_settings_of_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "fox.png").write_bytes(encoded(Image.new("RGB", (16, 16)), TEXT))
    path = keep_film([*film(3), {"x0": None, "xt": None, "index": 4, "total": 4}])
    run = FinishedRun("t2i", Request("a red fox", seed=7), (str(tmp_path / "fox.png"),), path)
    files = film_files(run)
    assert [Path(file).name for file in files] == ["a-red-fox-7.webp", "a-red-fox-7-strip.png"]
    assert [read_infotext(file)["seed"] for file in files] == [7, 7]
    blind = keep_film([{"x0": None, "xt": None, "index": 1, "total": 1}])
    with pytest.raises(ValueError, match="had no previews: choose a live preview"):
        film_files(replace(run, film=blind))


@pytest.mark.parametrize("damage", ["film gone", "film cut", "picture gone", "picture cut"])
def test_of_a_damaged_run_the_film_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    monkeypatch.setattr(film_module, "FILMS", set())  # Gradio's own record, which expects the files to exist
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "fox.png").write_bytes(encoded(Image.new("RGB", (16, 16)), TEXT))
    run = FinishedRun("t2i", Request("a red fox", seed=7), (str(tmp_path / "fox.png"),), keep_film(film(3)))
    path = Path(run.film if "film" in damage else run.files[0])
    if "gone" in damage:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RequestError, match="This run's film is gone"):
        film_files(run)


def test_a_run_is_kept_without_its_film_where_only_the_pictures_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(name: str, content: bytes) -> str:
        raise NoRoom("The server can't keep a file (No space left on device): try again later.")

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(film_module, "keep", full)
    last = Event(3, 3, 1.0, 0.1, 7, 0.5, None, None, images=[encoded(Image.new("RGB", (16, 16)), TEXT)])
    photo = Request("a red fox", image=Image.new("RGB", (16, 16)), seed=7)
    run = finish("i2i", Request("a red fox", image="photo.png"), photo, last, film(3))
    assert (run.film, run.photo, run.request.image) == (None, None, "photo.png")
    assert [read_infotext(file)["seed"] for file in run.files] == [7]


def test_a_strip_is_up_to_ten_pictures_and_ends_with_the_last():
    assert Image.open(io.BytesIO(strip(film(1)))).size == (16, 16)
    sheet = Image.open(io.BytesIO(strip(film(12))))
    assert sheet.size == (160, 16)
    assert sheet.getpixel((150, 8)) == (250, 0, 0)
