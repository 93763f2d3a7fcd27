"""The views of stops 5, 6 and 9: other noise, other words, other numbers, each as the library alone has it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stable_diffusion.inspect import painting
from stable_diffusion.inspect.forks import fresh_noise, settled
from stable_diffusion.inspect.recording import record
from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Renderer
from stable_diffusion.request import Request, RequestError
from ui.inside.stop import HERE, Stop, Value, picture_uri
from ui.inside.stops.change import CHANGE, evenly
from ui.inside.stops.decided import DECIDED
from ui.inside.stops.numbers import FULL, NUMBERS
from ui.inside.stops.step import COUNTS, STEP
from ui.inside.tour import read_question
from ui.web.bodies import check_call

STROKE = {"channel": 1, "value": 3.5, "radius": 1.5, "points": [[2.5, 5.5], [7.5, 7.5]]}
REQUEST = Request("a red fox", seed=3, num_inference_steps=3, preview="none")


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


def strokes(**values: object) -> dict[str, object]:
    """A question of stop 9 with one stroke, which has these values instead of good ones."""
    return {"stop": "numbers", "question": {"strokes": [STROKE | values]}}


def answers(stop: Stop, pipe: Pipeline, request: Request, **question: object) -> list[Value]:
    """The values of a stop's view for a request and the values of its controls."""
    asked, values = stop.question.read(question), list[Value]()
    requests = [pipe.defaults.complete(one).seeded() for one in stop.requests(asked, request)]
    conduct(stop.view(asked, pipe, requests, values.append))
    return values


@pytest.mark.parametrize(
    "question",
    [
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
    with pytest.raises(RequestError):
        read_question(question, None, "emoji")


def test_a_changed_mind_is_the_then_of_a_request(pipe: Pipeline) -> None:
    begun, *changed = [
        value for value in answers(CHANGE, pipe, REQUEST, other="the blue moon") if "recorded" not in value
    ]
    assert begun == {"other": "the blue moon", "steps": [1, 2, 3], "total": 3}
    by_hand = [pipe(replace(REQUEST, then="the blue moon", then_at=step)).images[0] for step in (3, 2, 1)]
    assert changed == [
        {"step": step, "picture": picture_uri(picture)} for step, picture in zip((3, 2, 1), by_hand, strict=True)
    ]
    assert len({value["picture"] for value in changed}) == 3


@pytest.mark.parametrize(("total", "steps"), [(1, [1]), (8, list(range(1, 9))), (20, [1, 4, 6, 9, 12, 15, 17, 20])])
def test_branches_begin_evenly_from_the_first_step_to_the_last(total: int, steps: list[int]) -> None:
    assert evenly(total) == steps


def test_the_numbers_are_the_latents_that_the_run_ends_with(pipe: Pipeline) -> None:
    begun, *patches = [value for value in answers(NUMBERS, pipe, REQUEST) if "recorded" not in value]
    result = pipe(REQUEST)
    numbers = np.frombuffer(base64.b64decode(str(begun["numbers"])), "<i2").reshape(begun["shape"]) * begun["unit"]
    assert np.abs(numbers - result.latents[0].numpy()).max() <= 1 / 512
    assert begun["picture"] == picture_uri(result.images[0], 224)
    assert [value["patch"]["channel"] for value in patches] == [0, 1, 2, 3]
    assert {abs(value["patch"]["value"]) for value in patches} == {FULL}
    assert len({value["picture"] for value in patches}) == 4


def test_painting_changes_the_numbers_below_the_brush_and_is_decoded(pipe: Pipeline) -> None:
    other = STROKE | {"channel": 3, "value": -4}
    [*_, shown] = answers(NUMBERS, pipe, REQUEST, strokes=[STROKE, other])
    latents = pipe(REQUEST).latents
    for channel, value in ((1, 3.5), (3, -4.0)):
        places = [painting.Stroke(2.5, 5.5, 1.5, value), painting.Stroke(7.5, 7.5, 1.5, value)]
        latents = painting.painted(latents, channel, places)
    assert latents[0, 1, 5, 2] == 3.5
    assert shown == {"picture": picture_uri(Renderer(pipe.models)(latents).images[0], 224)}
    assert shown != {"picture": picture_uri(pipe(REQUEST).images[0], 224)}


def test_a_stroke_in_a_channel_that_the_model_lacks_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match=r"channel must be in \[0, 3\]"):
        answers(NUMBERS, pipe, REQUEST, strokes=[STROKE | {"channel": 4}])


def test_the_futures_are_those_of_the_library(pipe: Pipeline) -> None:
    begun, *values = [value for value in answers(DECIDED, pipe, REQUEST, steps=[2], roll=1) if "recorded" not in value]
    request = pipe.defaults.complete(REQUEST)
    recording = conduct(record(pipe, request))
    found = settled(pipe, recording)
    assert (begun["steps"], begun["total"], begun["count"]) == ([2], 3, 8)
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
    begun, *values = [value for value in answers(DECIDED, pipe, REQUEST, steps=[4, 9]) if "recorded" not in value]
    assert begun["steps"] == [3]
    assert {value["step"] for value in values} == {3}
    before = {picture for value in values for picture in value.get("pictures", [])}
    *_, again, _ = answers(DECIDED, pipe, REQUEST, steps=[3], roll=1)
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
