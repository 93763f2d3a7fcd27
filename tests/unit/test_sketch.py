"""The requests of sketches: small where the model draws that well, and with photos that are read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stable_diffusion.request import Defaults, Request
from ui.runs.cost import SKETCH_STEPS
from ui.sketch import quick_request, read_once
from ui.tab import SketchState


@pytest.mark.parametrize(
    ("defaults", "size", "small"),
    [
        (Defaults(512), (512, 512), (256, 256)),
        (Defaults(512), (512, 768), (256, 384)),
        (Defaults(512), (256, 256), (256, 256)),
        (Defaults(512), (1024, 512), (512, 256)),
        (Defaults(256, 16, own_size_only=True), (256, 256), (256, 256)),
        (Defaults(256, 16, own_size_only=True), (512, 256), (256, 256)),
    ],
)
def test_a_sketch_is_as_small_as_the_model_draws_well(
    defaults: Defaults, size: tuple[int, int], small: tuple[int, int]
):
    request = quick_request(Request("a fox", width=size[0], height=size[1], num_images=4), None, defaults)
    assert (request.width, request.height) == small
    assert (request.steps, request.num_images, request.seed) == (SKETCH_STEPS, 1, 0)
    assert defaults.complete(request).preview != "none"  # its steps are seen


@pytest.mark.parametrize("strength", [0.05, 0.45, 1])
def test_a_sketch_of_a_photo_takes_as_many_steps_at_any_strength(strength: float):
    form = Request("a fox", image="photo.png", strength=strength, width=256, height=256)
    assert quick_request(form, None, Defaults(512)).steps == SKETCH_STEPS


@pytest.mark.parametrize("strength", [0.05, 0.45, 1])
def test_a_sketch_is_fast_where_the_model_has_the_weights(strength: float):
    able = Defaults(64, fast=True)
    form = Request("a fox", width=64, height=64, guidance_scale=4.0, sampler="euler", schedule="karras")
    over = replace(form, image=Image.new("RGB", (64, 64)), strength=strength)
    for request in (form, over):
        sketch = able.complete(quick_request(request, None, able))
        assert (sketch.fast, sketch.steps, sketch.guidance_scale, sketch.sampler) == (True, 4, 1.0, "ddim")
        assert replace(sketch) == sketch, "it would be refused otherwise"
    for other, defaults in ((replace(form, negative_prompt="blue"), able), (form, Defaults(64))):
        sketch = quick_request(other, None, defaults)
        assert (sketch.fast, sketch.steps, sketch.guidance_scale) == (False, SKETCH_STEPS, 4.0)


def test_sketches_of_one_photo_read_it_once(tmp_path: Path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    sketch, request = SketchState(), Request("a fox", image=tmp_path / "photo.png", width=32, height=32, strength=0.4)
    first = read_once(sketch, request, Defaults(64))
    (tmp_path / "photo.png").unlink()
    again = read_once(sketch, request.with_values(strength=0.8), Defaults(64))
    assert again.image is first.image
    assert (again.strength, again.sampler) == (0.8, first.sampler)
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "other.png")
    other = read_once(sketch, request.with_values(image=tmp_path / "other.png"), Defaults(64))
    assert other.image.getpixel((0, 0)) == (0, 0, 255)
