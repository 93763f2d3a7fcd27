"""Requests, settings in pictures and links, films: the page's own parts, without a model."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import pytest
import torch
from gradio.route_utils import delete_files_created_by_app
from PIL import Image

from stable_diffusion.request import Request
from tests import tiny
from tests.conftest import ROOT
from ui.api import Answer, answers
from ui.backend import Local
from ui.errors import NO_MEMORY, UNEXPECTED, explain, told_on_the_page
from ui.files import keep, stem, sweep
from ui.film import FILMS, animation, keep_film, pictures, read_film, strip
from ui.history import MAX_RUNS, Kept, at, trim
from ui.limits import check
from ui.link import from_query, to_query
from ui.live import data_uri
from ui.metadata import KEY, MAX_TEXT, parse_infotext, png_bytes, read_infotext, write_infotext
from ui.models import ModelHolder, read_configs
from ui.settings import SETTINGS

REQUEST = Request(
    prompt="a red fox, noto style", negative_prompt="blue", num_inference_steps=12, guidance_scale=5.5, height=96,
    width=128, sampler="euler_a",
)  # fmt: skip


def test_the_settings_are_fields_of_a_request():
    assert {setting.name for setting in SETTINGS} <= set(vars(REQUEST))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", -1, "seed must be between 0 and 4294967295, got -1: .*or leave it empty"),
        ("seed", 2**32, "seed must be between 0 and 4294967295, got 4294967296"),
        ("guidance_scale", 31, "guidance_scale must be between 0 and 30, got 31"),
        ("num_images", 5, "num_images must be between 1 and 4, got 5"),
        ("num_inference_steps", float("nan"), "num_inference_steps must be between 1 and 1,000, got nan"),
    ],
)
def test_the_page_allows_less_than_the_library(name: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        check({name: value})


def test_what_is_left_out_is_allowed():
    check({setting.name: None for setting in SETTINGS})


@pytest.fixture
def lcm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelHolder:
    """A page's models, among them a tiny one that was distilled to few steps."""
    model = tiny.save_model(tmp_path / "models" / "lcm")
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "LCMScheduler"}))
    monkeypatch.setenv("SD_MODELS", str(model.parent))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    return ModelHolder(device="cpu")


def last_answer(holder: ModelHolder, given: dict[str, Any]) -> Answer:
    """The last of the answers that a program gets."""

    async def read() -> Answer:
        return [answer async for answer in answers(Local(holder), given, "somebody")][-1]

    return asyncio.run(read())


def test_a_programs_defaults_follow_the_model_that_it_names(lcm: ModelHolder):
    given = {setting.name: None for setting in SETTINGS} | {"prompt": "a fox", "model": "lcm"}
    files, step = last_answer(lcm, given)
    assert (step["total"], step["finished"]) == (4, True)
    settings = read_infotext(files[0])
    assert (settings["sampler"], settings["num_inference_steps"], settings["guidance_scale"]) == ("lcm", 4, 8.0)
    _, step = last_answer(lcm, given | {"num_inference_steps": 2})
    assert step["total"] == 2


def test_a_model_is_known_by_its_files_before_it_is_loaded(lcm: ModelHolder):
    before = lcm.defaults_of("lcm")
    lcm.pipeline("lcm")
    assert before == lcm.defaults_of("lcm")
    assert read_configs("somewhere/model.safetensors") == [None, None, None]


def test_a_program_that_asks_for_the_impossible_waits_for_no_model(lcm: ModelHolder):
    with pytest.raises(ValueError, match="num_images must be between 1 and 4, got 9"):
        last_answer(lcm, {"prompt": "a fox", "model": "lcm", "num_images": 9})
    assert lcm.loaded("lcm") is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("width must be a multiple of 8"), "width must be a multiple of 8"),
        (MemoryError(), NO_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), NO_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), NO_MEMORY),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), UNEXPECTED),
    ],
)
def test_every_error_is_a_sentence_and_where_nobody_foresaw_it_a_traceback_in_the_log(
    error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(type(error)) as raised:
        raise error
    with caplog.at_level("INFO", "ui"):
        assert explain(raised.value) == sentence
    assert ("Traceback" in caplog.text) is not isinstance(error, ValueError)
    assert str(error) in caplog.text
    assert __file__ in caplog.text  # where it was raised


def test_a_processor_without_memory_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert explain(raised.value) == NO_MEMORY


def test_a_message_on_the_page_is_never_read_as_html():
    with pytest.raises(gr.Error, match="&lt;b&gt;"), told_on_the_page():
        raise ValueError("<b>")


def test_settings_survive_the_infotext():
    text = write_infotext(REQUEST, 42, "emoji")
    assert text.splitlines()[0] == "a red fox, noto style"
    assert parse_infotext(text) == {
        "prompt": "a red fox, noto style", "negative_prompt": "blue", "num_inference_steps": 12, "guidance_scale": 5.5,
        "width": 128, "height": 96, "sampler": "euler_a", "schedule": "model", "clip_skip": 0, "seed": 42,
    }  # fmt: skip


def test_the_precision_is_told_where_it_is_not_the_exact_one():
    """It is no setting of a request: reading it back changes nothing."""
    exact, rounded = (write_infotext(REQUEST, 42, "emoji", precision=name) for name in ("float32", "bfloat16"))
    assert "Precision" not in exact
    assert "Precision: bfloat16" in rounded
    assert parse_infotext(exact) == parse_infotext(rounded)


def test_the_infotext_of_another_program_is_read():
    text = (
        "masterpiece, (cat:1.2)\nin two lines\nNegative prompt: blurry, bad\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: abc, "
        'Denoising strength: 0.55, Lora hashes: "a: 1, b: 2", Version: v1.10'
    )
    assert parse_infotext(text) == {
        "prompt": "masterpiece, (cat:1.2)\nin two lines", "negative_prompt": "blurry, bad", "num_inference_steps": 20,
        "sampler": "dpmpp_2m", "schedule": "karras", "clip_skip": 0,
        "guidance_scale": 7.0, "seed": 123, "width": 512, "height": 768, "strength": 0.55,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "schedule", "clip_skip"),
    [
        ("Steps: 20, Sampler: Euler, Schedule type: Karras, Clip skip: 2", "karras", 1),
        ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic", "model", 0),
        ("Steps: 20, Sampler: DPM++ 2M SDE Exponential, Clip skip: 1", "exponential", 0),
        ("Steps: 20, Sampler: Euler a Karras", "model", 0),  # which has its own levels only
        ("Steps: 20, Sampler: Euler, Schedule type: SGM Uniform", "model", 0),
    ],
)
def test_schedule_and_clip_skip_are_read_as_other_programs_write_them(line: str, schedule: str, clip_skip: int):
    settings = parse_infotext(f"a fox\n{line}")
    assert (settings["schedule"], settings["clip_skip"]) == (schedule, clip_skip)


@pytest.mark.parametrize("text", ["", "just a prompt", "Steps: many, Sampler: ?, CFG scale: high", "a: 1, b: 2, c: 3"])
def test_odd_infotext_gives_no_settings(text: str):
    assert parse_infotext(text).keys() == {"prompt", "negative_prompt"}


def test_a_png_carries_its_settings(tmp_path: Path):
    image = Image.new("RGB", (8, 8), "red")
    image.info[KEY] = write_infotext(replace(REQUEST, prompt="ein Füchslein 🦊"), 1, "emoji")
    (tmp_path / "fox.png").write_bytes(png_bytes(image))
    assert read_infotext(tmp_path / "fox.png")["prompt"] == "ein Füchslein 🦊"


def test_a_picture_without_settings_is_named(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"'plain.png' carries no settings"):
        read_infotext(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"'text.png' is not a picture"):
        read_infotext(tmp_path / "text.png")


def test_a_comma_in_quotes_ends_nothing():
    text = 'Steps: 4, Lora hashes: "a, Seed: 9, \\", Seed: 8", Note: 3" wide, Seed: 7, Size: 99999999x9, CFG scale: 2'
    assert parse_infotext(text) == {
        "prompt": "", "negative_prompt": "", "num_inference_steps": 4, "seed": 7, "guidance_scale": 2.0,
    }  # fmt: skip


HOSTILE = """
from ui.metadata import parse_infotext
for piece in ("a", "a ", '"', ': "', '\\\\"', "a:", ","):
    parse_infotext("Steps: 1, " + piece * (60_000 // len(piece)))
"""


def test_hostile_infotext_is_read_in_linear_time():
    # Where the time grows with the square of the length, 60,000 characters take a minute and more.
    subprocess.run([sys.executable, "-c", HOSTILE], cwd=ROOT, check=True, timeout=20)


def text_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def with_chunk(path: Path, chunk: bytes) -> Path:
    """A small PNG with one more chunk after its header, which is 33 bytes long."""
    Image.new("RGB", (8, 8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk + content[33:])
    return path


def test_too_much_text_in_a_picture_is_refused(tmp_path: Path):
    body = b"parameters\0Steps: 1" + b"x" * MAX_TEXT
    with pytest.raises(ValueError, match=r"'long.png' carries 65,544 characters of settings, at most 65,536 are read"):
        read_infotext(with_chunk(tmp_path / "long.png", text_chunk(b"tEXt", body)))


def test_a_text_that_unpacks_to_megabytes_is_refused(tmp_path: Path):
    bomb = b"parameters\0\0" + zlib.compress(b"a" * 50_000_000)
    with pytest.raises(ValueError, match=r"'bomb.png' is not a picture that can be read"):
        read_infotext(with_chunk(tmp_path / "bomb.png", text_chunk(b"zTXt", bomb)))


def test_a_link_carries_every_setting():
    settings = from_query(dict(parse_qsl(to_query(replace(REQUEST, prompt="a & b = ü?", seed=42)))))
    assert settings["prompt"] == "a & b = ü?"
    again = Request(**settings)
    assert again == replace(REQUEST, prompt="a & b = ü?", seed=42)


def test_a_broken_link_is_read_as_far_as_it_goes():
    assert from_query({"prompt": "x", "seed": "many", "evil": "1"}) == {"prompt": "x"}


def film(count: int) -> list[dict]:
    shades = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(count)]
    return [{"x0": data_uri(shade), "xt": None} for shade in shades]


def test_a_film_becomes_an_animation_and_a_strip():
    frames = pictures([*film(12), {"x0": None, "xt": None}])
    assert len(frames) == 12
    assert Image.open(io.BytesIO(animation(frames))).n_frames == 12
    assert Image.open(io.BytesIO(strip(frames))).size == (160, 16)
    assert Image.open(io.BytesIO(strip(frames[:1]))).size == (16, 16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Gradio keeps files during the test."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def test_a_film_is_one_file_until_the_cache_is_emptied(cache: Path):
    path = keep_film(film(3))
    assert read_film(path) == film(3)
    page = gr.Blocks()
    page.temp_file_sets.append(FILMS)
    delete_files_created_by_app(page, age=None)
    assert not FILMS
    with pytest.raises(ValueError, match="This run's film is gone: films are kept for a day"):
        read_film(path)
    sweep(age=3600)
    assert Path(path).parent.exists()  # somebody may be about to write
    kept = keep("fox.png", b"")
    sweep(age=0)
    assert not Path(path).parent.exists()
    assert Path(kept).exists()


def test_history_finds_the_run_of_a_picture_and_forgets_those_whose_files_are_gone(cache: Path):
    files = [keep(f"{name}.png", b"") for name in "abc"]
    first, second = Kept("t2i", REQUEST, (files[0],), None), Kept("t2i", REQUEST, tuple(files[1:]), None)
    assert at([first, second], 2) is second
    assert trim([first, second] * MAX_RUNS) == [first, second] * (MAX_RUNS // 2)
    Path(files[2]).unlink()
    assert trim([first, second]) == [first]


def test_file_names_are_plain():
    assert stem("../../A red, <b>fox</b>!", 7) == "a-red-b-fox-b-7"
    assert stem("狐", 7) == "picture-7"
