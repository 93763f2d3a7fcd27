"""Whole requests end with the latents and the picture of diffusers' pipelines; settings are chosen in pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from stable_diffusion.levels import SAMPLERS
from stable_diffusion.request import SPACED_SAMPLERS
from tests.cases import in_pairs
from tests.parity.pairs import BOUND, Pipelines, difference
from tests.tiny import KINDS, SMALL, save_model

Both = Callable[[str], Pipelines]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Return a function that loads a tiny model of a kind into both libraries, once."""
    return cache(lambda kind: Pipelines(save_model(tmp_path_factory.mktemp("model") / kind, kind)))


@in_pairs(kind=KINDS, name=SAMPLERS, run=[(1, None), (7, None), (7, 0.3), (7, 1.0)])
def test_final_latents(both: Both, kind: str, name: str, run: tuple[int, float | None]) -> None:
    """With a strength the run starts from a photo."""
    assert difference(both(kind).latents(name, *run)) <= BOUND


@in_pairs(kind=KINDS, name=SAMPLERS, strength=[0.6, 1.0])
def test_inpainting(both: Both, kind: str, name: str, strength: float) -> None:
    ours, theirs = both(kind).inpainted(name, 7, strength)
    assert difference((ours, theirs)) <= BOUND
    plain, _ = both(kind).latents(name, 7, strength)
    assert difference((ours, plain)) > 10 * BOUND


@in_pairs(kind=KINDS, name=SPACED_SAMPLERS, schedule=["karras", "exponential", "beta"])
def test_schedules(both: Both, kind: str, name: str, schedule: str) -> None:
    assert difference(both(kind).latents(name, 7, schedule=schedule)) <= BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_clip_skip(both: Both, kind: str) -> None:
    pipelines = both(kind)
    layers = pipelines.ours.models.text_encoder.config.num_hidden_layers
    plain, _ = pipelines.latents("ddim", 3)
    for clip_skip in range(1, layers):
        ours, theirs = pipelines.latents("ddim", 3, clip_skip=clip_skip)
        assert difference((ours, theirs)) <= BOUND
        assert difference((ours, plain)) > 10 * BOUND
    with pytest.raises(ValueError, match=rf"clip_skip must be below the {layers} layers .*, got {layers}"):
        pipelines.ours("a fox", clip_skip=layers)


@in_pairs(kind=SMALL, name=["ddim", "dpmpp_2m", "lcm"], strength=[None, 0.6])
def test_small_models(both: Both, kind: str, name: str, strength: float | None) -> None:
    """`lcm` draws noise at every step, so a draw for a photo too many or too few shows in all that follows."""
    assert difference(both(kind).latents(name, 5, strength)) <= BOUND


@in_pairs(kind=SMALL, name=["ddim", "lcm"])
def test_small_models_inpaint(both: Both, kind: str, name: str) -> None:
    assert difference(both(kind).inpainted(name, 5, 0.6)) <= BOUND


@pytest.mark.parametrize("kind", [*KINDS, *SMALL])
def test_final_picture_and_unguided_run(both: Both, kind: str) -> None:
    """Pixels, not only latents; and at guidance 1 neither side evaluates the negative prompt."""
    pipelines = both(kind)
    pipelines.use_scheduler("euler")
    options = {"num_inference_steps": 4, "guidance_scale": 1.0}
    theirs = pipelines.text2image(pipelines.PROMPT, generator=pipelines.generators()[0], **options).images[0]
    ours = pipelines.ours(pipelines.PROMPT, seed=pipelines.SEED, sampler="euler", **options).images[0]
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1
