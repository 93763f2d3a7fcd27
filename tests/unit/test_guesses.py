"""Guesses from noise where the answer is known, and guidance by the formula at any scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stable_diffusion.inspect.guesses import guesses, with_guidance
from stable_diffusion.inspect.recording import finish, record
from stable_diffusion.inspection import conduct
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from tests.two_points import TwoPoints

REQUEST = Request(
    "a red fox", negative_prompt="the moon", seed=3, num_inference_steps=3, guidance_scale=4.0, preview="none"
)


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


@pytest.fixture
def toy(original: Path) -> TwoPoints:
    return TwoPoints(load(original, device="cpu"))


def test_from_much_noise_the_guess_is_the_mean_and_from_little_the_nearest_picture(toy: TwoPoints) -> None:
    """With words that mean one of the two pictures, the guess is that picture from any noise."""
    toy.meant = 1
    ours, other = toy.points[:1], toy.points[1:]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise -= (noise * ours).mean() / toy.scale**2 * ours  # noise that speaks for neither picture
    [late] = conduct(guesses(toy, REQUEST, torch.zeros(1, 4, 8, 8), [999], noise))
    assert late.answer.unconditional is not None
    assert late.answer.unconditional.abs().max() < 1e-4
    near, nearest = conduct(guesses(toy, REQUEST, other, [300, 0], noise))
    for guess in (near, nearest):
        torch.testing.assert_close(guess.answer.unconditional, other)
    for guess in (late, near, nearest):
        torch.testing.assert_close(guess.answer.conditional, ours)
    assert [guess.level.timestep for guess in (late, near, nearest)] == [999, 300, 0]


def test_a_guess_is_that_of_the_latents_at_its_timestep(pipe: Pipeline) -> None:
    x_0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    request = replace(REQUEST, num_images=2)
    [guess] = conduct(guesses(pipe, request, x_0, [400], noise))
    torch.testing.assert_close(guess.x_t, pipe.schedule.add_noise(x_0, noise, torch.tensor([400])))
    for half, prompt in ((guess.answer.conditional, "a red fox"), (guess.answer.unconditional, "the moon")):
        [alone] = conduct(guesses(pipe, replace(request, prompt=prompt, guidance_scale=1.0), x_0, [400], noise))
        assert alone.answer.unconditional is None
        torch.testing.assert_close(half, alone.answer.x_0, rtol=1e-3, atol=1e-3)
    with pytest.raises(RequestError, match=r"t must be in \[0, 999\], got 1000"):
        conduct(guesses(pipe, request, x_0, [1000], noise))


def final(pipe: Pipeline, request: Request, scale: float) -> Tensor:
    return conduct(finish(pipe.begin(request, conditioning=with_guidance(pipe, request, scale))))


def test_guidance_of_one_is_the_prompt_alone_and_of_zero_the_negative_prompt(pipe: Pipeline) -> None:
    for scale, prompt in ((1.0, REQUEST.prompt), (0.0, REQUEST.negative_prompt)):
        alone = pipe(replace(REQUEST, prompt=prompt, guidance_scale=1.0)).latents
        torch.testing.assert_close(final(pipe, REQUEST, scale), alone, rtol=1e-3, atol=1e-3)
    assert torch.equal(final(pipe, REQUEST, 4.0), conduct(record(pipe, REQUEST)).final)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 25.0])
def test_guidance_is_the_formula_at_any_scale(toy: TwoPoints, scale: float) -> None:
    toy.meant = 1
    run = toy.begin(replace(REQUEST, sampler="ddim"), conditioning=with_guidance(toy, REQUEST, scale))
    assert run.query is not None
    [answer] = run.denoise([run.query])
    assert answer.unconditional is not None
    assert (answer.conditional - answer.unconditional).abs().max() > 0.1
    formula = answer.unconditional + scale * (answer.conditional - answer.unconditional)
    torch.testing.assert_close(answer.x_0, formula)
