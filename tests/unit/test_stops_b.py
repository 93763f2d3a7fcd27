"""The views of stops 5, 6 and 9: other noise, other words, other numbers, each as the library alone has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from ui.inside.stop import Stop, Value, picture_uri
from ui.inside.stops.change import CHANGE, evenly
from ui.inside.tour import read_question

REQUEST = Request("a red fox", seed=3, num_inference_steps=3, preview="none")


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


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
    ],
    ids=str,
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
