"""Whole requests give the picture that diffusers gives, sampler by sampler."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.samplers import SAMPLERS
from tests.tiny import KINDS, save_model

PROMPT, NEGATIVE = "a red fox on the moon", "blue"
SEED, COUNT, GUIDANCE = 5, 2, 4.0


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def ours(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model)


@pytest.fixture(scope="module")
def text2image(model: Path) -> diffusers.StableDiffusionPipeline:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def set_scheduler(pipe: diffusers.DiffusionPipeline, model: Path, name: str) -> None:
    """The scheduler class of that name, made from the model's own file, not from what the test before left."""
    index = json.loads((model / "model_index.json").read_text())
    own = getattr(diffusers, index["scheduler"][1]).from_pretrained(model, subfolder="scheduler")
    options = {"algorithm_type": "sde-dpmsolver++"} if name == "dpmpp_2m_sde" else {}
    scheduler = getattr(diffusers, SAMPLERS[name].scheduler)
    pipe.scheduler = scheduler.from_config(own.config, **options)


def generators() -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(SEED + i) for i in range(COUNT)]


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-4 of the largest latent, over a whole run in float32."""
    assert torch.isfinite(theirs).all()
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_text_to_image(
    model: Path, ours: Pipeline, text2image: diffusers.StableDiffusionPipeline, name: str, steps: int
) -> None:
    set_scheduler(text2image, model, name)
    theirs = text2image(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        num_images_per_prompt=COUNT,
        generator=generators(),
        output_type="latent",
    ).images
    result = ours(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        num_images=COUNT,
        seed=SEED,
        sampler=name,
    )
    assert_same(result.latents, theirs)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image(
    model: Path, ours: Pipeline, text2image: diffusers.StableDiffusionPipeline, name: str, strength: float
) -> None:
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(text2image)
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, model, name)
    theirs = pipe(
        PROMPT,
        image=photo(),
        strength=strength,
        num_inference_steps=7,
        guidance_scale=GUIDANCE,
        num_images_per_prompt=COUNT,
        generator=generators(),
        output_type="latent",
    ).images
    result = ours(
        PROMPT,
        image=photo(),
        strength=strength,
        num_inference_steps=7,
        guidance_scale=GUIDANCE,
        num_images=COUNT,
        seed=SEED,
        sampler=name,
    )
    assert_same(result.latents, theirs)


def test_final_picture_and_unguided_run(
    model: Path, ours: Pipeline, text2image: diffusers.StableDiffusionPipeline
) -> None:
    """Pixels, not only latents; and at guidance 1 neither side evaluates the negative prompt."""
    set_scheduler(text2image, model, "euler")
    theirs = text2image(PROMPT, num_inference_steps=4, guidance_scale=1.0, generator=generators()[0]).images[0]
    result = ours(PROMPT, num_inference_steps=4, guidance_scale=1.0, seed=SEED, sampler="euler")
    difference = np.abs(np.asarray(result.images[0], dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= 1
