"""The film of a run as a file to share: noise first, every step with its noise, the final picture, and its settings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageChops

from stable_diffusion.request import Request, RequestError
from tests.marks import READ, boxes
from ui.keep.files import NoRoom
from ui.keep.history import FinishedRun
from ui.keep.metadata import encoded, read_infotext
from ui.keep.video import RATE
from ui.runs.events import Event
from ui.stage import film as film_module
from ui.stage.film import MAX_STRIP, finish, keep_film, save_film, save_strip
from ui.stage.frames import (
    BOX,
    BRIEF,
    FIRST,
    HELD,
    INSET,
    MARGIN,
    MAX_STEPS,
    NOISE,
    REST,
    SIDE,
    TOP,
    font,
    frames,
    printable,
    resized,
    shortened,
    spaced,
)
from ui.stage.live import Message, data_uri

TEXT = "a red fox\nSteps: 3, Sampler: DDPM, CFG scale: 4, Seed: 7, Size: 128x128"
WHOLE = 128  # the pictures of a small model
FINAL = Image.new("RGB", (WHOLE, WHOLE), "lime")
PICTURE, BAR = (MARGIN, TOP, MARGIN + BOX, TOP + BOX), (0, TOP + BOX + 12, SIDE, SIDE)


def noise(seed: int) -> Image.Image:
    """Return a picture of noise, as small as the latents of a small model."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def film(count: int, size: tuple[int, int] = (16, 16)) -> list[Message]:
    """Return the messages of a run: other noise at every step, and a prediction that gets redder."""
    uris = [data_uri(noise(max(0, i - 1))) for i in range(count + 1)]
    return [
        {
            "index": i,
            "total": count,
            "x0": data_uri(Image.new("RGB", size, (250 * i // count, 0, 0))) if i else uris[0],
            "xt": uris[i],
        }
        for i in range(count + 1)
    ]


def drawn(count: int, final: Image.Image = FINAL, prompt: str = "a red fox") -> list[tuple[Image.Image, int]]:
    """Return the frames of a film of so many steps."""
    return list(frames(film(count), final, prompt))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures, of 255."""
    return float(np.asarray(ImageChops.difference(one, other)).mean())


def saved(folder: Path, monkeypatch: pytest.MonkeyPatch, messages: list[Message], *finals: Image.Image) -> FinishedRun:
    """Return a finished run whose film and pictures are files in a folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(film_module, "FILMS", set())  # Gradio's own record, which expects the files to exist
    files = [folder / f"fox-{i}.png" for i in range(len(finals or [FINAL]))]
    for file, final in zip(files, finals or [FINAL], strict=True):
        file.write_bytes(encoded(final, TEXT))
    return FinishedRun("t2i", Request("a red fox", seed=7), tuple(map(str, files)), keep_film(messages))


def test_it_begins_with_noise_holds_the_first_steps_and_rests_on_the_final_picture():
    pictures, times = zip(*drawn(8), strict=True)
    assert times == (NOISE, *[HELD] * FIRST, *[BRIEF] * 2, REST)
    squares = resized(noise(0), BOX, (1, 1), Image.Resampling.NEAREST)
    assert difference(pictures[0].crop(PICTURE), squares) == 0
    assert difference(pictures[-1].crop(PICTURE), FINAL.resize((BOX, BOX))) == 0
    for step, picture in enumerate(pictures[1:-1], start=1):
        middle, left, bottom = picture.getpixel((SIDE // 2, SIDE // 2)), PICTURE[0], PICTURE[3]
        assert np.abs(np.subtract(middle, (250 * step // 8, 0, 0))).max() < 4, "what the network sees"
        corner = picture.crop((left, bottom - INSET, left + INSET, bottom))
        gets = resized(noise(step - 1), INSET, (1, 1), Image.Resampling.NEAREST)
        assert difference(corner, gets) == 0, "the noise it gets"


def test_prompt_and_step_are_in_every_frame():
    bars = [[one.crop(BAR) for one, _ in drawn(3, prompt=prompt)] for prompt in ("a red fox", "a green frog")]
    middle, height = SIDE // 2, BAR[3] - BAR[1]
    left, right = (0, 0, middle, height), (middle, 0, SIDE, height)
    for mine, other in zip(*bars, strict=True):
        assert difference(mine.crop(left), other.crop(left)) > 1
        assert difference(mine.crop(right), other.crop(right)) == 0
    assert all(difference(one.crop(right), other.crop(right)) > 0.3 for one, other in pairwise(bars[0]))


@pytest.mark.parametrize("size", [(256, 128), (96, 160), (1024, 512), (4096, 64)])
def test_a_picture_of_any_shape_stands_whole_in_the_square(size: tuple[int, int]):
    for picture, _ in drawn(2, Image.new("RGB", size, "lime")):
        assert picture.size == (SIDE, SIDE)
    lime = np.asarray(picture.crop(PICTURE))[:, :, 1] == 255
    width, height = (round(BOX * side / max(size)) for side in size)
    assert (lime.any(axis=0).sum(), lime.any(axis=1).sum()) == (width, height)


def test_a_long_run_is_shown_where_it_changes():
    messages = film(150)
    for message in messages[50:]:
        message["x0"] = messages[50]["x0"]
    chosen = [message["index"] for message in spaced(messages, MAX_STEPS)]
    assert len(chosen) <= MAX_STEPS
    assert (chosen[0], chosen[-1]) == (0, 150)
    early = sum(index <= 50 for index in chosen)
    assert early > len(chosen) / 2, "a third of the steps, in which all of it changes"
    assert max(later - one for one, later in pairwise(chosen)) < 15, "and nothing is left out"
    assert sum(time for _, time in frames(messages, FINAL, "")) <= 8 * RATE
    same = [{**message, "x0": messages[0]["x0"]} for message in messages]
    assert len(spaced(same, 10)) == 10


def test_every_prompt_can_be_drawn():
    for prompt in ("", "猫 и кот 🐱", "a\nb\x00", "long " * 4000, "\ud800", "مرحبا"):
        assert len(drawn(1, prompt=prompt)) == 2, prompt[:20]


def test_text_is_in_one_line_and_what_has_no_letters_is_a_question_mark():
    assert printable("un  cafe\u0301\nand 猫猫 or кот, γάτα, con mèo") == "un café and ? or кот, γάτα, con mèo"
    assert printable("is it? no") == "is it? no"
    assert shortened("short", 200) == "short"
    shorter = shortened("a very long prompt " * 20, 200)
    assert shorter.startswith("a very long")
    assert shorter.endswith("…")
    assert font().getlength(shorter) <= 200


def test_a_saved_film_is_a_video_that_any_chat_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = saved(tmp_path, monkeypatch, film(3), FINAL, Image.new("RGB", (WHOLE, WHOLE), "blue"))
    path = Path(save_film(run))
    assert path.name == "a-red-fox-7.mp4"
    kinds = [kind for kind, _ in boxes(path.read_bytes())]
    assert kinds.index(b"moov") < kinds.index(b"mdat"), "it plays while it is on its way"
    with av.open(path) as video:
        assert video.metadata["comment"] == TEXT
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        pictures = [frame.to_image(**READ) for frame in video.decode(stream)]
    expected = [
        picture for picture, time in frames(film(3), Image.new("RGB", (256, 128)), "a red fox") for _ in range(time)
    ]
    assert len(pictures) == len(expected)
    assert pictures[0].size == (SIDE, SIDE)
    assert difference(pictures[0], expected[0]) < 8
    colours = [pictures[-1].getpixel((x, SIDE // 2)) for x in (SIDE // 4, 3 * SIDE // 4)]
    assert np.abs(np.subtract(colours, [(0, 255, 0), (0, 0, 255)])).max() < 8, "both pictures, in their own colours"


def test_without_an_encoder_a_film_is_an_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = saved(tmp_path, monkeypatch, film(3))
    monkeypatch.setattr(film_module, "has_h264", lambda: False)
    path = save_film(run)
    assert Path(path).name == "a-red-fox-7.webp"
    assert read_infotext(path)["seed"] == 7
    with Image.open(path) as image:
        assert (image.n_frames, image.info["loop"]) == (4, 0)


def test_a_strip_is_up_to_ten_pictures_from_noise_to_the_final_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_strip(saved(tmp_path, monkeypatch, film(12)))
    assert Path(path).name == "a-red-fox-7-strip.png"
    assert read_infotext(path)["seed"] == 7
    with Image.open(path) as sheet:
        assert (sheet.width % WHOLE, sheet.height) == (0, WHOLE)
        assert 7 * WHOLE <= sheet.width <= 10 * WHOLE
        squares = resized(noise(0), WHOLE, (1, 1), Image.Resampling.NEAREST)
        assert difference(sheet.crop((0, 0, WHOLE, WHOLE)), squares) == 0
        assert difference(sheet.crop((sheet.width - WHOLE, 0, sheet.width, WHOLE)), FINAL) == 0
    large = saved(tmp_path, monkeypatch, film(1), Image.new("RGB", (2048, 1024)))
    with Image.open(save_strip(large)) as sheet:
        assert sheet.size == (2 * MAX_STRIP, MAX_STRIP // 2)


def test_a_run_without_previews_has_no_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    last = {**film(1)[1], "xt": None}
    with pytest.raises(RequestError, match="had no previews: choose a live preview"):
        save_film(saved(tmp_path, monkeypatch, [last]))


@pytest.mark.parametrize("damage", ["film gone", "film cut", "picture gone", "picture cut"])
def test_of_a_damaged_run_the_film_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    run = saved(tmp_path, monkeypatch, film(3))
    path = Path(run.film if "film" in damage else run.files[0])
    if "gone" in damage:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    for save in (save_film, save_strip):
        with pytest.raises(RequestError, match="This run's film is gone"):
            save(run)


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
