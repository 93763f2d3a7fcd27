"""The views of the stops on a tiny model, each as the library alone has it, and the questions that they refuse."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_diffusion.inspect import painting
from stable_diffusion.inspect.forks import fresh_noise, settled
from stable_diffusion.inspect.guesses import share_seen
from stable_diffusion.inspect.recording import record
from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Renderer
from stable_diffusion.request import Request, RequestError
from ui.inside import recordings
from ui.inside.stop import HERE, Stop, evenly, picture_uri
from ui.inside.stops.change import CHANGE
from ui.inside.stops.decided import DECIDED
from ui.inside.stops.first import FIRST, NOISES
from ui.inside.stops.numbers import FULL, NUMBERS
from ui.inside.stops.push import PUSH, SCALES
from ui.inside.stops.sees import SEES, TIMESTEPS
from ui.inside.stops.step import COUNTS, STEP
from ui.inside.tour import read_question
from ui.stage.frames import picture_of
from ui.web.bodies import check_call

STROKE = {"channel": 1, "value": 3.5, "radius": 1.5, "points": [[2.5, 5.5], [7.5, 7.5]]}
REQUEST = Request("a red fox", seed=3, num_inference_steps=3, guidance_scale=3.0, width=64, height=64, preview="none")


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording of another test's model."""
    monkeypatch.setattr(recordings, "_kept", type(recordings._kept)())


def answers(stop: Stop, pipe: Pipeline, request: Request = REQUEST, **question: object) -> list[dict[str, Any]]:
    """The values of a stop's view for a request and the values of its controls."""
    asked, values = stop.question.read(question), list[dict[str, Any]]()
    requests = [pipe.defaults.complete(one).seeded() for one in stop.requests(asked, request)]
    conduct(stop.view(asked, pipe, requests, values.append))
    return values


def strokes(**values: object) -> dict[str, object]:
    """A question of stop 9 with one stroke, which has these values instead of good ones."""
    return {"stop": "numbers", "question": {"strokes": [STROKE | values]}}


@pytest.mark.parametrize(
    "question",
    [
        {"stop": "sees", "question": {"t": 5}},
        {"stop": "first", "question": {"words": "a" * 201}},
        {"stop": "first", "question": {"words": 5}},
        {"stop": "push", "question": {"scale": 4.0}},
        {"stop": "change", "question": {"other": "x" * 301}},
        {"stop": "change", "question": {"other": ["a fox"]}},
        {"stop": "change", "question": {"other": "a <lora:ink:1> fox"}},
        {"stop": "decided", "question": {"steps": []}},
        {"stop": "decided", "question": {"steps": [1, 2, 3]}},
        {"stop": "decided", "question": {"steps": [0]}},
        {"stop": "decided", "question": {"steps": [1.5]}},
        {"stop": "decided", "question": {"roll": -1}},
        {"stop": "decided", "question": {"roll": 1000}},
        {"stop": "numbers", "question": {"strokes": [STROKE] * 33}},
        strokes(channel=-1),
        strokes(value=4.5),
        strokes(value="NaN"),
        strokes(radius=1e-170),
        strokes(radius=600),
        strokes(points=[]),
        strokes(points=[[0, 0]] * 65),
        strokes(points=[[0, 0, 0]]),
        strokes(colour="red"),
    ],
    ids=lambda question: str(question)[:60],
)
def test_a_question_out_of_bounds_is_refused(question: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"can't be|must not name a LoRA"):
        read_question(question, None, "emoji")


@pytest.mark.parametrize(
    ("count", "total", "steps"),
    [
        (8, 1, [1]),
        (8, 8, list(range(1, 9))),
        (8, 20, [1, 4, 6, 9, 12, 15, 17, 20]),
        (6, 4, [1, 2, 3, 4]),
        (6, 20, [1, 5, 9, 12, 16, 20]),
    ],
)
def test_steps_are_taken_evenly_from_the_first_to_the_last(count: int, total: int, steps: list[int]) -> None:
    assert evenly(count, total) == steps


def test_a_picture_is_guessed_in_more_and_more_noise(pipe: Pipeline) -> None:
    values = answers(SEES, pipe)
    steps, seen = values[:3], values[3:]
    assert steps == [{"recorded": step, "total": 3} for step in (1, 2, 3)]
    assert len(seen) == len(TIMESTEPS)
    assert [one["noise"] for one in seen] == sorted(one["noise"] for one in seen)
    for one in seen:
        assert picture_of(one["noisy"]).size == (8, 8)
        assert picture_of(one["with"]["picture"]).size == (64, 64)
        assert one["with"] != one["without"]
    assert seen[0]["with"]["seen"] > 0.9
    assert seen[-1]["with"]["seen"] == 0 != seen[-1]["without"]["seen"]
    assert answers(SEES, pipe) == seen, "its recording is kept"


def test_a_guess_sees_what_the_blind_one_misses() -> None:
    x_0 = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]], [[[2.0, 0.0]], [[0.0, 0.0]]]])
    blind = x_0 + 2
    assert share_seen(x_0, x_0, blind).tolist() == [1, 1]
    assert share_seen(blind, x_0, blind).tolist() == [0, 0]
    assert share_seen(x_0 - torch.tensor([1.0, 4.0])[:, None, None, None], x_0, blind).tolist() == [0.75, -3]


def test_every_noise_has_its_first_guess_by_the_words_alone(pipe: Pipeline) -> None:
    values = answers(FIRST, pipe)
    assert [one["words"] for one in values] == ["a red fox"] * NOISES
    assert len({one["noise"] for one in values}) == len({one["guess"] for one in values}) == NOISES
    step = next(pipe.stream(REQUEST.with_values(guidance_scale=1.0, preview="vae", seed=4)))
    assert step.images is not None
    [own, other] = [picture_of(values[i]["guess"]) for i in (1, 2)]
    assert distance(own, step.images[0]) < distance(other, step.images[0]) / 2
    others = answers(FIRST, pipe, words="the moon")
    assert [one["noise"] for one in others] == [one["noise"] for one in values]
    assert not {one["guess"] for one in others} & {one["guess"] for one in values}
    assert answers(FIRST, pipe, words="")[0]["words"] == ""


def distance(one: Any, other: Any) -> float:
    """The mean difference of two pictures' pixels."""
    pixels = [torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8) for image in (one, other)]
    return (pixels[0].float() - pixels[1].float()).abs().mean().item()


def test_every_guidance_has_its_picture_and_the_run_s_own_is_the_first(pipe: Pipeline) -> None:
    values = answers(PUSH, pipe)
    assert sorted(one["scale"] for one in values) == sorted([*SCALES, 3.0])
    assert values[0]["scale"] == 3.0
    assert len({one["picture"] for one in values}) == len(values) == values[0]["scales"]
    own = pipe(REQUEST).images[0]
    assert distance(picture_of(values[0]["picture"]), own) == min(
        distance(picture_of(one["picture"]), own) for one in values
    )


def test_a_run_without_guidance_is_shown_at_every_guidance_too(pipe: Pipeline) -> None:
    values = answers(PUSH, pipe, REQUEST.with_values(guidance_scale=0.0))
    assert [one["scale"] for one in values] == list(SCALES)
    guided = {one["scale"]: one["picture"] for one in answers(PUSH, pipe)}
    assert {one["scale"]: one["picture"] for one in values}.items() <= guided.items()


def test_a_changed_mind_is_the_then_of_a_request(pipe: Pipeline) -> None:
    begun, *changed = [value for value in answers(CHANGE, pipe, other="the blue moon") if "recorded" not in value]
    assert begun == {"other": "the blue moon", "steps": [1, 2, 3], "total": 3}
    by_hand = [pipe(replace(REQUEST, then="the blue moon", then_at=step)).images[0] for step in (3, 2, 1)]
    assert changed == [
        {"step": step, "picture": picture_uri(picture)} for step, picture in zip((3, 2, 1), by_hand, strict=True)
    ]
    assert len({value["picture"] for value in changed}) == 3


def test_the_numbers_are_the_latents_that_the_run_ends_with(pipe: Pipeline) -> None:
    begun, *patches = [value for value in answers(NUMBERS, pipe) if "recorded" not in value]
    result = pipe(REQUEST)
    numbers = np.frombuffer(base64.b64decode(str(begun["numbers"])), "<i2").reshape(begun["shape"]) * begun["unit"]
    assert np.abs(numbers - result.latents[0].numpy()).max() <= 1 / 512
    assert begun["picture"] == picture_uri(result.images[0], 224)
    assert [value["patch"]["channel"] for value in patches] == [0, 1, 2, 3]
    assert {abs(value["patch"]["value"]) for value in patches} == {FULL}
    assert len({value["picture"] for value in patches}) == 4


def test_painting_changes_the_numbers_below_the_brush_and_is_decoded(pipe: Pipeline) -> None:
    other = STROKE | {"channel": 3, "value": -4}
    [*_, shown] = answers(NUMBERS, pipe, strokes=[STROKE, other])
    latents = pipe(REQUEST).latents
    for channel, value in ((1, 3.5), (3, -4.0)):
        places = [painting.Stroke(2.5, 5.5, 1.5, value), painting.Stroke(7.5, 7.5, 1.5, value)]
        latents = painting.painted(latents, channel, places)
    assert latents[0, 1, 5, 2] == 3.5
    assert shown == {"picture": picture_uri(Renderer(pipe.models)(latents).images[0], 224)}
    assert shown != {"picture": picture_uri(pipe(REQUEST).images[0], 224)}


def test_a_stroke_in_a_channel_that_the_model_lacks_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match=r"channel must be in \[0, 3\]"):
        answers(NUMBERS, pipe, strokes=[STROKE | {"channel": 4}])


def test_the_futures_are_those_of_the_library(pipe: Pipeline) -> None:
    begun, *values = [value for value in answers(DECIDED, pipe, steps=[2], roll=1) if "recorded" not in value]
    request = pipe.defaults.complete(REQUEST)
    recording = conduct(record(pipe, request))
    found = settled(pipe, recording)
    assert (begun["steps"], begun["total"]) == ([2], 3)
    assert begun["settled"] == [found.pose, found.colour, found.detail]
    assert begun["shares"] == [pytest.approx(shares, abs=1e-3) for shares in found.shares]
    *pictures, agreed = values
    assert [value["first"] for value in pictures] == [0, 2, 4, 6]
    futures = conduct(fresh_noise(pipe, recording, 2, 2, seed=3 + 1 + 8))
    by_hand = [picture_uri(picture, 128) for picture in Renderer(pipe.models)(futures).images]
    assert pictures[0] == {"step": 2, "first": 0, "pictures": by_hand}
    assert len({picture for value in pictures for picture in value["pictures"]}) == 8
    assert all(0 <= share <= 1 for share in agreed["agree"])


def test_a_roll_from_beyond_the_last_step_is_one_from_the_last(pipe: Pipeline) -> None:
    begun, *values = [value for value in answers(DECIDED, pipe, steps=[4, 9]) if "recorded" not in value]
    assert begun["steps"] == [3]
    assert {value["step"] for value in values} == {3}
    before = {picture for value in values for picture in value.get("pictures", [])}
    *_, again, _ = answers(DECIDED, pipe, steps=[3], roll=1)
    assert not before & set(again["pictures"])


def test_runs_with_fewer_steps_change_their_words_as_far_on_their_way(pipe: Pipeline) -> None:
    request = replace(REQUEST, num_inference_steps=4, then="the moon", then_at=3)
    pictures = {value["steps"]: value["picture"] for value in answers(STEP, pipe, request) if "steps" in value}
    assert list(pictures) == list(COUNTS)
    for steps, then_at in ((1, 1), (2, 2), (4, 3), (20, 15)):
        shorter = replace(request, num_inference_steps=steps, then_at=then_at)
        assert pictures[steps] == picture_uri(pipe(shorter).images[0], 96)


def test_the_largest_question_about_numbers_is_a_call_that_the_server_reads() -> None:
    script = (HERE / "stops" / "numbers.js").read_text(encoding="utf-8")
    most = {name: int(number) for name, number in re.findall(r"const (MOST_\w+) = (\d+);", script)}
    stroke, points = STROKE | {"points": [[15.5, 15.5]]}, [[15.5, 15.5]] * most["MOST_POINTS"]
    strokes = [stroke] * most["MOST_STROKES"]
    for place in range((most["MOST_TOGETHER"] - len(strokes)) // len(points)):
        strokes[place] = stroke | {"points": points}
    value = {"asked": 1, "stop": "numbers", "question": {"strokes": strokes}}
    read_question(value, None, "emoji")
    call = {"fn_index": 1, "data": [value, None, "emoji"], "event_data": None, "trigger_id": 1, "session_hash": "a"}
    check_call(json.dumps(call).encode())
