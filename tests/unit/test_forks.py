"""Futures of a run whose model is known exactly, and parts of a picture that settle at planted steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stable_diffusion.guidance import Answer, Query
from stable_diffusion.inspect import forks
from stable_diffusion.inspect.forks import fresh_noise, settled, shares
from stable_diffusion.inspect.recording import Recording, record
from stable_diffusion.inspection import conduct
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from tests.two_points import TwoPoints
from tests.unit.test_recording import KINDS

REQUEST = Request("a red fox", seed=3, num_inference_steps=6, guidance_scale=1.0, preview="none")


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


@pytest.fixture(scope="module")
def toy(original: Path) -> TwoPoints:
    return TwoPoints(load(original, device="cpu"))


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m", "heun"])
def test_from_pure_noise_both_pictures_come_and_from_a_settled_guess_one(toy: TwoPoints, sampler: str) -> None:
    recording = conduct(record(toy, replace(REQUEST, sampler=sampler)))

    def signs(step: int) -> list[float]:
        futures = conduct(fresh_noise(toy, recording, step, 8, seed=100))
        nearness = (futures * toy.points[0]).mean(dim=(1, 2, 3)) / toy.scale**2
        assert (nearness.abs() > 0.95).all()  # each future is one of the pictures
        return nearness.sign().tolist()

    assert set(signs(1)) == {-1, 1}
    ours = (recording.final * toy.points[0]).mean().sign().item()
    for step in (len(recording.answers) // 2 + 1, len(recording.answers)):
        assert signs(step) == [ours] * 8


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "unipc"])
def test_futures_are_the_end_of_the_plan_from_the_guess_with_noise(pipe: Pipeline, sampler: str) -> None:
    """By hand, from step 3: heun's first evaluation at its second level, as all of its steps are two."""
    request = replace(REQUEST, sampler=sampler, guidance_scale=4.0)
    recording = conduct(record(pipe, request))
    generators = [torch.Generator().manual_seed(9 + i) for i in range(2)]

    def noise() -> Tensor:
        return torch.cat([torch.randn(1, 4, 8, 8, generator=one) for one in generators])

    plan, words = pipe.plan(request), pipe.condition(replace(request, num_images=2))
    steps = plan.steps[1 if sampler == "heun" else 2 :]
    level = recording.levels[2]
    assert steps[0][0] == level
    start = level.alpha * recording.answers[2].x_0 + level.sigma * noise()
    sampling = plan.sampler.function(start, steps, noise, **plan.options)
    x, level = next(sampling)
    while level is not None:
        [answer] = words.denoise([Query(x, level, words.context, words.negative, 4.0)])
        try:
            x, level = sampling.send(answer.x_0)
        except StopIteration as end:
            x, level = end.value, None
    assert torch.equal(conduct(fresh_noise(pipe, recording, 3, 2, seed=9)), x)


def test_the_second_words_come_at_their_step_of_the_whole_run(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(REQUEST, sampler="ddim", then="a blue moon", then_at=4)
    recording, words = conduct(record(pipe, request)), pipe.condition(request)
    asked, condition = list[bool](), pipe.condition

    def watched(queries: Sequence[Query]) -> list[Answer]:
        asked.append(torch.equal(queries[0].context[:1], words.then))
        return words.denoise(queries)

    monkeypatch.setattr(pipe, "condition", lambda request: replace(condition(request), denoise=watched))
    conduct(fresh_noise(pipe, recording, 3, 2, seed=9))
    assert asked == [False, True, True, True]


def test_the_photo_stays_outside_the_mask(pipe: Pipeline) -> None:
    recording = conduct(record(pipe, KINDS["mask"]))
    first = next(fresh_noise(pipe, recording, 2, 3, seed=9)).query.x
    futures = conduct(fresh_noise(pipe, recording, 2, 3, seed=9))
    outside = (slice(None), slice(None), slice(None), slice(5, None))
    assert torch.equal(first[outside], recording.latents[1].expand(3, -1, -1, -1)[outside])
    assert torch.equal(futures[outside], recording.final.expand(3, -1, -1, -1)[outside])
    assert not torch.equal(futures[:1], futures[1:2])


def test_futures_start_at_a_step_of_their_run(pipe: Pipeline) -> None:
    recording = conduct(record(pipe, REQUEST))
    with pytest.raises(RequestError, match=r"step must be in \[1, 6\], the steps of this run, got 7"):
        conduct(fresh_noise(pipe, recording, 7, 8, seed=0))


HALVES = torch.tensor([1.0, -1.0]).repeat_interleave(8)
RED_TO_BLUE = torch.tensor([1.0, 0.0, -1.0])[:, None, None]
PARTS = {
    "pose": HALVES.expand(3, 16, 16),
    "colour": RED_TO_BLUE * HALVES[:, None].expand(16, 16),
    "detail": torch.tensor([1.0, -1.0]).repeat(8).expand(3, 16, 16),
}
"""Colours (3, 16, 16) that differ in one part alone: bright on the left, red at the top, and fine stripes."""


@pytest.fixture
def as_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "latent_colours", lambda vae, latents: latents)


@pytest.mark.usefixtures("as_colours")
def test_each_part_is_settled_at_the_step_that_brings_it(pipe: Pipeline) -> None:
    """The guided guesses, which overshoot, count for nothing, and neither does a share that is lost again."""
    pose, colour, detail = (PARTS[name][None] for name in ("pose", "colour", "detail"))
    guesses = [pose, 0 * pose, pose, pose + 0.5 * colour, pose + colour, pose + colour, pose + colour + detail]
    answers = tuple(Answer(9 * guess, guess, None) for guess in guesses)
    recording = Recording(REQUEST, (), (), answers, pose + colour + detail)
    found = settled(pipe, recording)
    assert (found.pose, found.colour, found.detail) == (3, 5, 7)
    assert [round(share.colour, 2) for share in found.shares] == pytest.approx([0, 0, 0, 0.75, 1, 1, 1], abs=0.02)
    assert [round(share.detail, 2) for share in found.shares] == pytest.approx([0, 0, 0, 0, 0, 0, 1], abs=0.02)


@pytest.mark.usefixtures("as_colours")
def test_a_picture_without_colour_has_it_from_the_start(pipe: Pipeline) -> None:
    pose, flat = PARTS["pose"][None], torch.full((1, 3, 16, 16), 0.7)
    assert shares(pipe, torch.cat([pose, 0 * pose]), pose)[:2] == pytest.approx((0.5, 1), abs=1e-3)
    assert shares(pipe, flat + 0.001, flat) == pytest.approx((1, 1, 1), abs=0.01)
    assert shares(pipe, -flat, flat).pose == 0


@pytest.mark.weights
def test_the_bundled_model_settles_pose_before_detail_and_forks_early(bundled_model: Path) -> None:
    pipeline = Pipeline.from_pretrained(bundled_model, device="cpu")
    recording = conduct(record(pipeline, Request("a pizza", seed=1, num_inference_steps=20, preview="none")))
    found = settled(pipeline, recording)
    assert found.pose <= 4
    assert found.pose < found.colour < found.detail
    early, late = (
        shares(pipeline, conduct(fresh_noise(pipeline, recording, step, 4, seed=100)), recording.final)
        for step in (1, 4)
    )
    assert early.pose < 0.75
    assert late.pose > 0.95
