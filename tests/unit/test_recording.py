"""Recordings of runs and branches from them: bit-equal to the recorded run, or to two runs joined by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from stable_diffusion.guidance import Answer, Query
from stable_diffusion.inspect.recording import branch, finish, record
from stable_diffusion.inspection import conduct
from stable_diffusion.levels import SAMPLERS
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from stable_diffusion.run import Step

REQUEST = Request("a red fox", seed=3, num_inference_steps=4, guidance_scale=4.0, preview="none")


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


def never(queries: Sequence[Query]) -> list[Answer]:
    raise AssertionError("the network was evaluated")


def photo_of(request: Request, *, mask: bool) -> Request:
    white = Image.new("L", (64, 64))
    white.paste(255, (0, 0, 32, 64))
    photo = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    return replace(request, image=photo, mask=white if mask else None, strength=0.75, num_inference_steps=6)


KINDS = {
    **{name: replace(REQUEST, sampler=name) for name in SAMPLERS},
    "several": replace(REQUEST, sampler="euler_a", num_images=2),
    "then": replace(REQUEST, sampler="ddpm", then="a blue moon", then_at=3),
    "photo": photo_of(replace(REQUEST, sampler="dpmpp_2m_sde"), mask=False),
    "mask": photo_of(replace(REQUEST, sampler="heun"), mask=True),
    "unguided": replace(REQUEST, sampler="unipc", guidance_scale=1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_branch_goes_on_as_the_recorded_run(pipe: Pipeline, kind: str) -> None:
    request, told = KINDS[kind], list[Step]()
    recording = conduct(record(pipe, request, told.append))
    result = pipe(request)
    total = pipe.plan(recording.request).evaluations
    assert torch.equal(recording.final, result.latents)
    assert [step.index for step in told] == list(range(1, total + 1))
    assert len(recording.levels) == len(recording.latents) == len(recording.answers) == total
    for step in (1, 2, total - 1, total):
        run = branch(pipe, recording, step)
        assert run.query is not None
        assert run.query.level == recording.levels[step - 1]
        assert torch.equal(run.query.x, recording.latents[step - 1])
        assert torch.equal(conduct(finish(run)), recording.final)


def test_a_branch_asks_the_network_nothing(pipe: Pipeline) -> None:
    recording = conduct(record(pipe, REQUEST))
    silent = replace(pipe.condition(recording.request), denoise=never)
    assert branch(pipe, recording, 4, conditioning=silent).query is not None
    with pytest.raises(AssertionError, match="the network was evaluated"):
        conduct(finish(branch(pipe, recording, 4, conditioning=silent)))


@pytest.mark.parametrize("name", ["euler_a", "unipc", "heun"])
def test_a_changed_mind_is_the_beginning_of_one_run_and_the_end_of_another(pipe: Pipeline, name: str) -> None:
    """By hand: the sampler alone, asked with the one prompt before step 3 and with the other from there on."""
    request = replace(REQUEST, sampler=name)
    other = replace(request, prompt="the blue moon", negative_prompt="sun", guidance_scale=7.0)
    recording = conduct(record(pipe, request))
    changed = conduct(finish(branch(pipe, recording, 3, conditioning=pipe.condition(other))))

    plan, draw = pipe.plan(request), torch.Generator().manual_seed(3)

    def noise() -> torch.Tensor:
        return torch.randn(1, 4, 8, 8, generator=draw)

    sampling = plan.run(plan.start(noise()), noise)
    x, level = next(sampling)
    for step in range(1, plan.evaluations + 1):
        words = pipe.condition(request if step < 3 else other)
        [answer] = words.denoise([Query(x, level, words.context, words.negative, words.guidance_scale)])
        try:
            x, level = sampling.send(answer.x_0)
        except StopIteration as end:
            x = end.value
    assert torch.equal(changed, x)
    assert not torch.equal(changed, recording.final)


@pytest.mark.parametrize("step", [0, 5])
def test_a_branch_starts_at_a_step_of_its_run(pipe: Pipeline, step: int) -> None:
    recording = conduct(record(pipe, replace(REQUEST, sampler="ddim")))
    with pytest.raises(RequestError, match=rf"step must be in \[1, 4\], the steps of this run, got {step}"):
        branch(pipe, recording, step)
