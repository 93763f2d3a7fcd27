"""Settings of pictures and links fitted to a form: what is taken, what is changed, what is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from safetensors.torch import save_file

from stable_diffusion.request import Defaults, Request
from tests import tiny
from ui.form.controls import SIZED, Controls, model_sliders, more_controls, sampling_controls
from ui.form.fitting import fit
from ui.form.prompt import prompt_controls
from ui.keep.infotext import parse_infotext
from ui.keep.link import LINKED, from_query
from ui.restore import model_by_name
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels

SMALL = Defaults(128, max_clip_skip=2)  # sides from 64 to 256 in steps of 16


@pytest.fixture(scope="module")
def controls() -> Controls:
    """The controls of Text2Image."""
    holder = LoadedModels(Catalogue(), device="cpu")
    with gr.Blocks():
        menu = gr.Dropdown(["one", "two"], label="Model")
        found = prompt_controls("", menu, holder, "t2i")
        found |= sampling_controls(SMALL, "t2i")
        found |= more_controls(SMALL, "t2i", found, menu, holder)
    found = {name: control for name, control in found.items() if not name.startswith("_")}
    return {**found, "model": menu}


def test_what_fits_is_taken(controls: Controls):
    text = "a (fox:1.3)\nNegative prompt: blue\nSteps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.5, "
    fitted = fit(parse_infotext(text + "Seed: 9, Size: 128x192, Clip skip: 2"), controls, SMALL)
    assert fitted.values == {
        "prompt": "a (fox:1.3)", "negative_prompt": "blue", "prompt_syntax": "weighted", "num_inference_steps": 12,
        "guidance_scale": 5.5, "seed": "9", "sampler": "dpmpp_2m", "schedule": "karras", "clip_skip": 1, "then": "",
        "fast": False, "width": 128,
        "height": 192,
    }  # fmt: skip
    assert (fitted.changed, fitted.left) == ([], [])
    assert fitted.report().startswith("Taken: Prompt, Negative prompt, Prompt syntax Weighted")
    assert fitted.report().endswith("Sampler DPM++ 2M, Schedule Karras, CLIP skip 1, Size 128x192.")


def test_what_is_out_of_range_is_changed_and_said(controls: Controls):
    line = "Steps: 200, Sampler: Euler a, CFG scale: 40, Seed: 1, Size: 512x768, Clip skip: 12"
    fitted = fit(parse_infotext(f"a fox\n{line}"), controls, SMALL)
    changed = ["Steps 200 to 150", "Guidance 40 to 30", "CLIP skip 11 to 2", "Size 512x768 to 176x256"]
    assert fitted.changed == changed
    values = [fitted.values[name] for name in ("num_inference_steps", "guidance_scale", "clip_skip", "width", "height")]
    assert values == [150, 30, 2, 176, 256]
    assert f"Changed: {', '.join(changed)}." in fitted.report()


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((128, 200), (128, 200)),
        ((1024, 1024), (256, 256)),
        ((4096, 8), (256, 64)),
        ((8, 8), (64, 64)),
        ((100, 131), (96, 128)),
    ],
)
def test_a_size_becomes_one_that_the_model_draws(controls: Controls, size: tuple[int, int], fitted: tuple[int, int]):
    values = fit({"width": size[0], "height": size[1]}, controls, SMALL).values
    assert (values["width"], values["height"]) == fitted


def test_a_model_of_one_size_takes_other_sizes_from_its_own_pictures_alone(controls: Controls):
    assert LoadedModels(Catalogue(), device="cpu").defaults().own_size_only  # the bundled model
    one_size = replace(SMALL, own_size_only=True)
    size = {"width": 256, "height": 192}
    fitted = fit(size, controls, one_size)
    assert (fitted.values["width"], fitted.values["height"]) == (128, 128)
    assert fitted.changed == ["Size 256x192 to 128x128"]
    for own in (fit({**size, "model": "one"}, controls, one_size), fit(size, controls, SMALL)):
        assert (own.values["width"], own.values["height"]) == (256, 192)


@pytest.mark.parametrize("unit", [4, 8, 16, 32])
def test_a_form_takes_the_sizes_that_its_model_takes(controls: Controls, unit: int):
    defaults = replace(SMALL, size_unit=unit)
    for side in (100, 104, 112, 120, 128, 144, 160):
        fitted = fit({"width": side, "height": 128}, controls, defaults)
        defaults.complete(Request(width=fitted.values["width"], height=fitted.values["height"]))
        assert (fitted.values["width"] == side) is (side % unit == 0)


def test_what_there_is_not_is_left_and_said(controls: Controls):
    line = (
        "Steps: 9, Sampler: DPM++ 3M SDE, CFG scale: 7, Seed: 99999999999, Size: 128x128, Denoising strength: 0.7, "
        "Hires upscale: 2, Model: dreams"
    )
    fitted = fit(parse_infotext(f"a fox <lora:pen:0.5>\n{line}"), controls, SMALL)
    assert fitted.values["prompt"] == "a fox"
    assert not {"seed", "sampler", "strength"} & fitted.values.keys()
    assert fitted.left == [
        "Seed 99999999999", "LoRA pen (not here)", "Sampler DPM++ 3M SDE", "Denoising strength 0.7", "Hires upscale 2",
        "Model dreams",
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["-1", "-512", "0", "nan", "inf", "-inf", "1e400", "9" * 300, "9" * 4000, "x" * 999])
def test_odd_numbers_of_a_link_are_fitted_or_named(controls: Controls, number: str):
    names = [one.name for one in LINKED if one.kind is not str and one.name in controls]
    for query in [*({name: number} for name in names), dict.fromkeys(names, number)]:
        fitted = fit(from_query(query), controls, SMALL)
        told = fitted.report()
        assert len(told) < 1000
        for name in query.keys() - {"seed"}:
            assert controls[name].label in told or (name in SIZED and "Size" in told)
        for name in fitted.values.keys() - {"seed"}:
            low, high = (64, 256) if name in SIZED else (controls[name].minimum, controls[name].maximum)
            assert low <= fitted.values[name] <= high


def test_a_report_is_short_and_has_no_control_characters(controls: Controls):
    pairs = {f"name {i}": "a\nb\u202e\0\x1b[31m" for i in range(1000)}
    told = fit({"others": pairs, "model": "two\nlines"}, controls, SMALL).report()
    assert told.isprintable()
    assert told.startswith("Not taken: Model two lines, name 0 a b [31m, name 1")
    assert told.endswith(" and 981 more.")


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"seed": -1}, {"seed": ""}),
        ({"model": "three", "preview": "?"}, {}),
        ({"sampler": "euler_a", "schedule": "karras"}, {"sampler": "euler_a", "schedule": "model"}),
        ({"prompt": "x" * 20_001}, {}),
        ({"width": 256}, {"width": 256, "height": 128}),
        ({"num_images": 0}, {"num_images": 1}),
    ],
)
def test_odd_settings(controls: Controls, settings: dict[str, Any], values: dict[str, Any]):
    assert fit(settings, controls, SMALL).values == values


def test_the_slider_of_clip_skip_ends_where_the_text_tower_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SD_MODELS", str(tiny.save_model(tmp_path / "models" / "small").parent))
    holder = LoadedModels(Catalogue(), device="cpu")
    assert model_sliders(holder.defaults("small"))["clip_skip"]["maximum"] == 1  # of two layers
    holder.pipeline("small")
    assert model_sliders(holder.defaults("small"))["clip_skip"]["maximum"] == 1


def test_a_picture_names_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny.save_model(tmp_path / "models" / "small").parent
    save_file({}, folder / "dreams_8.safetensors")
    monkeypatch.setenv("SD_MODELS", str(folder))
    holder = LoadedModels(Catalogue(), device="cpu")
    assert model_by_name(holder, "small") == "small"
    assert model_by_name(holder, "dreams_8") == "dreams_8.safetensors"
    assert model_by_name(holder, holder.pipeline("small").models.name) == "small"
    assert model_by_name(holder, "emoji") == "emoji (bundled)"
    for unknown in ("", "stable-diffusion-v1-5/stable-diffusion-v1-5"):  # that one would be fetched
        assert model_by_name(holder, unknown) is None
