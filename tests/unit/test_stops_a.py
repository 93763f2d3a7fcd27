"""What the stops about noise, first guesses and guidance show of a tiny model, and the questions that they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stable_diffusion.inspect.guesses import share_seen
from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from ui.inside import recordings
from ui.inside.stop import Stop
from ui.inside.stops import first, push, sees
from ui.stage.frames import picture_of

REQUEST = Request("a red fox", seed=3, num_inference_steps=3, guidance_scale=3.0, width=64, height=64, preview="none")


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording of another test's model."""
    monkeypatch.setattr(recordings, "_kept", type(recordings._kept)())


def shown(stop: Stop, pipe: Pipeline, request: Request = REQUEST, **question: Any) -> list[dict[str, Any]]:
    """The values that a stop shows for a question about a request."""
    asked, values = stop.question.read(question), list[dict[str, Any]]()
    requests = [pipe.defaults.complete(one, None).seeded() for one in stop.requests(asked, request)]
    conduct(stop.view(asked, pipe, requests, values.append))
    return values


def test_a_picture_is_guessed_in_more_and_more_noise(pipe: Pipeline) -> None:
    values = shown(sees.SEES, pipe)
    steps, seen = values[:3], values[3:]
    assert steps == [{"step": step, "total": 3} for step in (1, 2, 3)]
    assert len(seen) == len(sees.TIMESTEPS)
    assert [one["noise"] for one in seen] == sorted(one["noise"] for one in seen)
    for one in seen:
        assert picture_of(one["noisy"]).size == (8, 8)
        assert picture_of(one["with"]["picture"]).size == (64, 64)
        assert one["with"] != one["without"]
    assert seen[0]["with"]["seen"] > 0.9
    assert seen[-1]["with"]["seen"] == 0 != seen[-1]["without"]["seen"]
    assert shown(sees.SEES, pipe) == seen, "its recording is kept"


def test_a_guess_sees_what_the_blind_one_misses() -> None:
    x_0 = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]], [[[2.0, 0.0]], [[0.0, 0.0]]]])
    blind = x_0 + 2
    assert share_seen(x_0, x_0, blind).tolist() == [1, 1]
    assert share_seen(blind, x_0, blind).tolist() == [0, 0]
    assert share_seen(x_0 - torch.tensor([1.0, 4.0])[:, None, None, None], x_0, blind).tolist() == [0.75, -3]


def test_every_noise_has_its_first_guess_by_the_words_alone(pipe: Pipeline) -> None:
    values = shown(first.FIRST, pipe)
    assert [one["words"] for one in values] == ["a red fox"] * first.NOISES
    assert len({one["noise"] for one in values}) == len({one["guess"] for one in values}) == first.NOISES
    step = next(pipe.stream(REQUEST.with_values(guidance_scale=1.0, preview="vae", seed=4)))
    assert step.images is not None
    [own, other] = [picture_of(values[i]["guess"]) for i in (1, 2)]
    assert distance(own, step.images[0]) < distance(other, step.images[0]) / 2
    others = shown(first.FIRST, pipe, words="the moon")
    assert [one["noise"] for one in others] == [one["noise"] for one in values]
    assert not {one["guess"] for one in others} & {one["guess"] for one in values}
    assert shown(first.FIRST, pipe, words="")[0]["words"] == ""


def distance(one: Any, other: Any) -> float:
    """The mean difference of two pictures' pixels."""
    pixels = [torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8) for image in (one, other)]
    return (pixels[0].float() - pixels[1].float()).abs().mean().item()


def test_every_guidance_has_its_picture_and_the_run_s_own_is_the_first(pipe: Pipeline) -> None:
    values = shown(push.PUSH, pipe)
    assert sorted(one["scale"] for one in values) == sorted([*push.SCALES, 3.0])
    assert values[0]["scale"] == 3.0
    assert len({one["picture"] for one in values}) == len(values) == values[0]["scales"]
    own = pipe(REQUEST).images[0]
    assert distance(picture_of(values[0]["picture"]), own) == min(
        distance(picture_of(one["picture"]), own) for one in values
    )


def test_a_run_without_guidance_is_shown_at_every_guidance_too(pipe: Pipeline) -> None:
    values = shown(push.PUSH, pipe, REQUEST.with_values(guidance_scale=0.0))
    assert [one["scale"] for one in values] == list(push.SCALES)
    guided = {one["scale"]: one["picture"] for one in shown(push.PUSH, pipe)}
    assert {one["scale"]: one["picture"] for one in values}.items() <= guided.items()


@pytest.mark.parametrize(
    ("stop", "question"),
    [
        (first.FIRST, {"words": "a" * 201}),
        (first.FIRST, {"words": 5}),
        (first.FIRST, {"seed": 5}),
        (sees.SEES, {"t": 5}),
        (push.PUSH, {"scale": 4.0}),
    ],
)
def test_a_question_is_of_the_stops_controls_alone(stop: Stop, question: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(question))):
        stop.question.read(question)
