"""Whole requests give the picture that diffusers gives, sampler by sampler."""

from __future__ import annotations

import numpy as np
import pytest

from stable_diffusion.levels import SAMPLERS
from stable_diffusion.request import SPACED_SAMPLERS
from tests.parity.pairs import BOUND, Pipelines, difference
from tests.tiny import KINDS, SMALL, save_model


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    return Pipelines(save_model(tmp_path_factory.mktemp("model") / request.param, request.param))


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_text_to_image(both: Pipelines, name: str, steps: int) -> None:
    assert difference(both.latents(name, steps)) <= BOUND


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image(both: Pipelines, name: str, strength: float) -> None:
    assert difference(both.latents(name, 7, strength)) <= BOUND


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_inpainting(both: Pipelines, name: str, strength: float) -> None:
    ours, theirs = both.inpainted(name, 7, strength)
    assert difference((ours, theirs)) <= BOUND
    plain, _ = both.latents(name, 7, strength)
    assert difference((ours, plain)) > 10 * BOUND


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", SPACED_SAMPLERS)
def test_schedules(both: Pipelines, name: str, schedule: str) -> None:
    assert difference(both.latents(name, 7, schedule=schedule)) <= BOUND


def test_clip_skip(both: Pipelines) -> None:
    layers = both.ours.models.text_encoder.config.num_hidden_layers
    plain, _ = both.latents("ddim", 3)
    for clip_skip in range(1, layers):
        ours, theirs = both.latents("ddim", 3, clip_skip=clip_skip)
        assert difference((ours, theirs)) <= BOUND
        assert difference((ours, plain)) > 10 * BOUND
    with pytest.raises(ValueError, match=rf"clip_skip must be below the {layers} layers .*, got {layers}"):
        both.ours("a fox", clip_skip=layers)


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    return Pipelines(save_model(tmp_path_factory.mktemp("model") / request.param, request.param))


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "lcm"])
def test_small_models(small: Pipelines, name: str, strength: float | None) -> None:
    """`lcm` draws at every step: what is drawn for a photo, or is not, shows in all that follows."""
    assert difference(small.latents(name, 5, strength)) <= BOUND


@pytest.mark.parametrize("name", ["ddim", "lcm"])
def test_small_models_inpaint(small: Pipelines, name: str) -> None:
    assert difference(small.inpainted(name, 5, 0.6)) <= BOUND


def test_final_picture_of_small_models(small: Pipelines) -> None:
    test_final_picture_and_unguided_run(small)


def test_final_picture_and_unguided_run(both: Pipelines) -> None:
    """Pixels, not only latents; and at guidance 1 neither side evaluates the negative prompt."""
    both.use_scheduler("euler")
    options = {"num_inference_steps": 4, "guidance_scale": 1.0}
    theirs = both.text2image(both.PROMPT, generator=both.generators()[0], **options).images[0]
    ours = both.ours(both.PROMPT, seed=both.SEED, sampler="euler", **options).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1
