"""Requests as values: what is filled in, what a run will take, and what a model's JSON says of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import get_type_hints

import numpy as np
import pytest

from stable_diffusion.loading.model_defaults import defaults_for
from stable_diffusion.request import SPACED_SAMPLERS, Defaults, Request, RequestError, Settings, without_loras


def test_a_request_stays_as_it_was_checked() -> None:
    request = Request("a fox", num_inference_steps=20.0, seed=7.0)  # type: ignore[arg-type]  # as forms send numbers
    assert (request.num_inference_steps, request.seed) == (20, 7)
    assert isinstance(request.seed, int)
    with pytest.raises(FrozenInstanceError):
        request.seed = 8  # type: ignore[misc]


def test_a_seed_is_drawn_once_and_stays() -> None:
    seeded = Request("a fox").seeded()
    assert seeded.seed is not None
    assert seeded.seeded() is seeded
    assert Request("a fox", seed=0).seeded().seed == 0


def test_strength_counts_only_where_there_is_a_photo() -> None:
    assert Request(num_inference_steps=50).steps == 50
    assert Request(num_inference_steps=50, strength=0.58, image="photo.png").steps == 28


def test_defaults_complete_a_request_where_it_leaves_something_open() -> None:
    defaults = Defaults(side=128, size_unit=16, num_inference_steps=20, guidance_scale=4.0)
    request = defaults.complete(Request("a fox", seed=0, guidance_scale=0.0, height=64))
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (20, 0.0, 0)
    assert (request.width, request.height) == (128, 64)
    assert (request.sampler, request.strength, request.preview) == ("dpmpp_2m", 0.7, "auto")
    assert defaults.complete(request) is request
    with pytest.raises(RequestError, match="width must be a multiple of 16 with this model, got 72: try 64"):
        defaults.complete(Request(width=72))
    with pytest.raises(RequestError, match="schedule must be model or uniform for the sampler lcm, got 'karras'"):
        Defaults(sampler="lcm").complete(Request(schedule="karras"))


@pytest.mark.parametrize(
    ("photo", "size"),
    [
        ((100, 70), (96, 64)),
        ((192, 64), (192, 64)),
        ((193, 64), (128, 128)),
        ((192, 63), (128, 128)),
        ((9, 2000), (128, 128)),
    ],
)
def test_an_open_size_is_the_photos_unless_that_is_small_or_large(
    photo: tuple[int, int], size: tuple[int, int]
) -> None:
    request = Defaults(side=128, size_unit=16).complete(Request(image="photo.png"), photo)
    assert (request.width, request.height) == size


def test_settings_are_the_fields_of_a_request() -> None:
    """`Pipeline`'s signatures spell them, for editors to complete."""
    fields = get_type_hints(Request)
    del fields["prompt"], fields["_"]
    assert get_type_hints(Settings) == fields


def test_numpys_numbers_are_numbers() -> None:
    request = Request(num_inference_steps=np.int64(7), guidance_scale=np.float32(2), seed=np.uint8(3))
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (7, 2.0, 3)
    assert isinstance(request.seed, int)
    with pytest.raises(RequestError, match="seed must be between"):
        Request(seed=np.True_)


@pytest.mark.parametrize("sampler", ["ddpm", "euler_a", "lcm"])
def test_a_schedule_that_the_sampler_does_not_have_is_refused(sampler: str) -> None:
    with pytest.raises(ValueError, match=f"schedule must be model or uniform for the sampler {sampler}, got 'karras'"):
        Request(sampler=sampler, schedule="karras")
    assert Request(sampler=SPACED_SAMPLERS[0], schedule="karras").schedule == "karras"


@pytest.mark.parametrize(
    ("unet", "vae"),
    [
        (None, None),
        ({"sample_size": "x"}, {"block_out_channels": [1, 2]}),
        ({"sample_size": 64}, {"block_out_channels": 4}),
        ({"sample_size": 64}, {"block_out_channels": [1] * 100_000}),
        ({"sample_size": 64}, {}),
    ],
)
def test_settings_that_no_loader_would_take_give_the_usual_defaults(unet: dict | None, vae: dict | None) -> None:
    assert defaults_for(unet, vae, {}) == Defaults()


def test_defaults_of_a_model_with_a_tiny_autoencoder() -> None:
    """Files of `AutoencoderTiny` may leave `block_out_channels` out."""
    assert defaults_for({"sample_size": 96}, {"decoder_block_out_channels": [64] * 4}, {}) == Defaults(768, 8)


def test_a_prompt_names_loras() -> None:
    request = Request("a fox <lora:ink:0.8>, red<lora:my style><lora:c:-1e-1>", negative_prompt="<lora:d:x>")
    assert request.loras == (("ink", 0.8), ("my style", 1.0), ("c", -0.1))
    assert without_loras(request.prompt) == "a fox , red"


@pytest.mark.parametrize("weight", ["x", "nan", "1e999", "0.8:0.5"])
def test_the_weight_of_a_lora_is_a_number(weight: str) -> None:
    with pytest.raises(ValueError, match=r"the weight of a LoRA must be a number, .*: write <lora:ink:0.8>"):
        Request(f"a fox <lora:ink:{weight}>")


def test_a_prompt_names_few_loras() -> None:
    with pytest.raises(ValueError, match="prompt may name at most 8 LoRAs, got 9"):
        Request("<lora:a:1>" * 9)


def test_minus_one_is_a_random_seed() -> None:
    assert Request(seed=-1).seed is None
    with pytest.raises(ValueError, match="seed must be between 0 and"):
        Request(seed=-2)
