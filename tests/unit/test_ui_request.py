"""Requests, settings in pictures and links, films: the page's own parts, without a model."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stable_diffusion.images import FITS as LIBRARY_FITS
from stable_diffusion.preview import PREVIEWS as LIBRARY_PREVIEWS
from stable_diffusion.samplers import SAMPLERS as LIBRARY_SAMPLERS
from ui.files import stem
from ui.film import animation, pictures, strip
from ui.history import MAX_FILM_BYTES, MAX_RUNS, Run, at, trim
from ui.link import from_query, to_query
from ui.live import data_uri
from ui.metadata import KEY, parse_infotext, png_bytes, read_settings, write_infotext
from ui.models import read_defaults
from ui.options import FITS, PREVIEWS, SAMPLERS, defaults_for
from ui.request import Request

REQUEST = Request(
    prompt="a red fox, noto style", negative_prompt="blue", num_inference_steps=12, guidance_scale=5.5, height=96,
    width=128, sampler="euler_a",
)  # fmt: skip


def test_the_choices_are_the_librarys():
    assert {name: sampler.label for name, sampler in LIBRARY_SAMPLERS.items()} == SAMPLERS
    assert tuple(PREVIEWS) == LIBRARY_PREVIEWS
    assert tuple(FITS) == LIBRARY_FITS


def test_numbers_from_a_form_become_whole():
    request = Request(num_inference_steps=20.0, seed=7.0, width=128.0)
    assert (request.num_inference_steps, request.seed, request.width) == (20, 7, 128)
    assert isinstance(request.seed, int)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "12", None])
def test_what_is_no_number_is_refused(value: object):
    with pytest.raises(ValueError, match="num_inference_steps must be between 1 and 1,000"):
        Request(num_inference_steps=value)


def test_sizes_default_to_the_models_side():
    request = Request(width=64).for_side(128)
    assert (request.width, request.height) == (64, 128)


def test_a_size_beyond_twice_the_models_side_is_refused():
    with pytest.raises(ValueError, match="width must be at most 256 with this model, got 264"):
        Request(width=264).for_side(128)


@pytest.mark.parametrize("side", [64, 96, 128, 256, 512, 768])
def test_every_size_on_offer_is_allowed(side: int):
    defaults = defaults_for(side)
    for size in range(defaults.min_side, defaults.max_side + 1, defaults.side_step):
        assert Request(width=size).for_side(side).width == size


@pytest.mark.parametrize(
    ("unet", "scheduler", "expected"),
    [
        ({}, {"_class_name": "PNDMScheduler"}, (25, 7.5, "dpmpp_2m")),
        ({"time_cond_proj_dim": 256}, {"_class_name": "LCMScheduler"}, (4, 8.0, "lcm")),
        ({}, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, (2, 0.0, "euler")),
        ({}, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, (25, 7.5, "dpmpp_2m")),
    ],
)
def test_each_kind_of_model_has_its_defaults(tmp_path: Path, unet: dict, scheduler: dict, expected: tuple):
    vae = {"block_out_channels": [128, 256, 512, 512]}
    for name, values in (("unet", {"sample_size": 64, **unet}), ("vae", vae), ("scheduler", scheduler)):
        (tmp_path / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (tmp_path / name / file).write_text(json.dumps(values))
    defaults = read_defaults(str(tmp_path))
    assert defaults.side == 512
    assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.sampler) == expected


def test_settings_survive_the_infotext():
    text = write_infotext(REQUEST, 42, "emoji")
    assert text.splitlines()[0] == "a red fox, noto style"
    assert parse_infotext(text) == {
        "prompt": "a red fox, noto style", "negative_prompt": "blue", "num_inference_steps": 12, "guidance_scale": 5.5,
        "width": 128, "height": 96, "sampler": "euler_a", "seed": 42,
    }  # fmt: skip


def test_the_infotext_of_another_program_is_read():
    text = (
        "masterpiece, (cat:1.2)\nin two lines\nNegative prompt: blurry, bad\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: abc, "
        'Denoising strength: 0.55, Lora hashes: "a: 1, b: 2", Version: v1.10'
    )
    assert parse_infotext(text) == {
        "prompt": "masterpiece, (cat:1.2)\nin two lines", "negative_prompt": "blurry, bad", "num_inference_steps": 20,
        "sampler": "dpmpp_2m", "guidance_scale": 7.0, "seed": 123, "width": 512, "height": 768, "strength": 0.55,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "just a prompt", "Steps: many, Sampler: ?, CFG scale: high", "a: 1, b: 2, c: 3"])
def test_odd_infotext_gives_no_settings(text: str):
    assert parse_infotext(text).keys() == {"prompt", "negative_prompt"}


def test_a_png_carries_its_settings(tmp_path: Path):
    image = Image.new("RGB", (8, 8), "red")
    image.info[KEY] = write_infotext(replace(REQUEST, prompt="ein Füchslein 🦊"), 1, "emoji")
    (tmp_path / "fox.png").write_bytes(png_bytes(image))
    assert read_settings(tmp_path / "fox.png")["prompt"] == "ein Füchslein 🦊"


def test_a_picture_without_settings_is_named(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"'plain.png' carries no settings"):
        read_settings(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"'text.png' is not a picture"):
        read_settings(tmp_path / "text.png")


def test_a_link_carries_every_setting():
    from urllib.parse import parse_qsl

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


def test_history_finds_the_run_of_a_picture_and_forgets_old_films():
    first, second = (Run("t2i", REQUEST, files, ()) for files in (("a.png",), ("b.png", "c.png")))
    assert at([first, second], 2) is second
    heavy = Run("t2i", REQUEST, ("d.png",), ({"x0": "x" * MAX_FILM_BYTES, "xt": None}, {"x0": "y", "xt": None}))
    kept = trim([first, heavy, second] * MAX_RUNS)
    assert len(kept) == MAX_RUNS
    assert len(kept[1].film) == 1


def test_file_names_are_plain():
    assert stem("../../A red, <b>fox</b>!", 7) == "a-red-b-fox-b-7"
    assert stem("狐", 7) == "picture-7"
