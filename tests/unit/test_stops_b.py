"""The views of stops 5, 6 and 9: other noise, other words, other numbers, each as the library alone has it."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Renderer
from stable_diffusion.request import Request, RequestError
from ui.inside.stop import Stop, Value, picture_uri
from ui.inside.stops.change import CHANGE, evenly
from ui.inside.stops.numbers import FULL, NUMBERS
from ui.inside.tour import read_question

STROKE = {"channel": 1, "value": 3.5, "size": 2, "points": [[2, 5], [7, 7]]}
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
        {"stop": "change", "question": {"other": ""}},
        {"stop": "change", "question": {"other": "x" * 301}},
        {"stop": "change", "question": {"other": ["a fox"]}},
        {"stop": "change", "question": {"other": "a <lora:ink:1> fox"}},
        {"stop": "numbers", "question": {"strokes": [STROKE] * 33}},
        strokes(channel=-1),
        strokes(value=4.5),
        strokes(value="NaN"),
        strokes(size=0),
        strokes(points=[]),
        strokes(points=[[0, 0]] * 65),
        strokes(points=[[0.5, 0]]),
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
    [*_, shown] = answers(NUMBERS, pipe, REQUEST, strokes=[STROKE])
    latents = pipe(REQUEST).latents
    latents[0, 1, 5:7, 2:4] = 3.5
    latents[0, 1, 7, 7] = 3.5  # at the border half of the brush is beyond it
    assert shown == {"picture": picture_uri(Renderer(pipe.models)(latents).images[0], 224)}
    assert shown != {"picture": picture_uri(pipe(REQUEST).images[0], 224)}


@pytest.mark.parametrize("values", [{"channel": 4}, {"points": [[8, 0]]}, {"points": [[0, -1]]}], ids=str)
def test_a_stroke_beside_the_latents_is_refused(pipe: Pipeline, values: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        answers(NUMBERS, pipe, REQUEST, strokes=[STROKE | values])
