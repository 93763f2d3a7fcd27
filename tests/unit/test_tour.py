"""The questions of the tour's scripts, and the recordings behind the answers."""

from __future__ import annotations

import json
import math
import re

import pytest

from stable_diffusion import Pipeline
from stable_diffusion.inspection import conduct
from stable_diffusion.request import Request, RequestError
from tests.conftest import ROOT
from ui.inside import recordings
from ui.inside.make_recording import MOST_BYTES
from ui.inside.recordings import recording_of
from ui.inside.stop import source_of
from ui.inside.stops import STOPS
from ui.inside.tour import RECORDED, number_of, read_question, request_about
from ui.keep.history import FinishedRun

LONG = "x" * 100_000


@pytest.mark.parametrize("stop", STOPS, ids=[stop.name for stop in STOPS])
def test_a_stop_says_one_short_sentence_and_shows_the_code_that_is_there(stop):
    assert len(stop.sentence.split()) <= 14
    source = source_of(stop.source)
    line = (ROOT / source.file).read_text(encoding="utf-8").splitlines()[source.line - 1]
    assert line.strip().startswith(f"def {stop.source.split(':')[1].split('.')[-1]}(")
    assert '"""' not in source.code


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1],
        {},
        {"stop": "none"},
        {"stop": LONG},
        {"stop": "snow", "question": 5},
        {"stop": "snow", "question": {"prompt": "a cat"}},
        {"stop": "snow", "question": {LONG: 1}},
        {"stop": "decided", "question": {"roll": 10**5000}},
    ],
    ids=["none", "list", "empty", "no stop", "long", "no question", "no control of it", "long control", "digits"],
)
def test_a_question_that_no_script_asks_is_refused_in_a_short_sentence(value: object):
    with pytest.raises(RequestError) as refusal:
        read_question(value, None, "emoji")
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("number", [None, True, LONG, [1], 1.5, math.nan, 2**53, -1])
def test_an_answer_repeats_nothing_but_the_number_of_its_question(number: object):
    assert number_of({"asked": number}) is None
    assert number_of([number]) is None
    assert number_of({"asked": 7}) == 7


def test_the_tour_is_about_the_closest_of_several_pictures():
    request = Request("a cat", seed=5, num_images=4, preview="vae")
    about = request_about(FinishedRun("t2i", request, ("a", "b", "c", "d"), best=2), "emoji")
    assert (about.prompt, about.seed, about.num_images) == ("a cat", 7, 1)


def test_a_recorded_run_is_not_run_again_and_old_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    pipeline = Pipeline.from_pretrained(device="cpu")
    monkeypatch.setattr(recordings, "_kept", type(recordings._kept)())
    monkeypatch.setattr(recordings, "MOST", 2)
    told = list[int]()
    requests = [
        pipeline.defaults.complete(Request("a cat", seed=seed, num_inference_steps=2, width=64, height=64))
        for seed in range(3)
    ]
    for request in (requests[0], requests[0], requests[1], requests[2], requests[0]):
        conduct(recording_of(pipeline, request, lambda step, seed=request.seed: told.append(seed)))
    assert told == [0, 0, 1, 1, 2, 2, 0, 0]  # the second time from memory, and forgotten when the third came


def test_the_recording_has_every_stop_and_is_small():
    text = RECORDED.read_text(encoding="utf-8")
    assert len(text) <= MOST_BYTES
    recorded = json.loads(text)
    assert [name for name in recorded if name not in ("prompt", "picture")] == [stop.name for stop in STOPS]
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|work)/", text)


def test_the_answer_to_a_stop_fits_into_messages():
    pipeline = Pipeline.from_pretrained(device="cpu")
    for stop in STOPS:
        question, values = stop.question(), list[object]()
        first = pipeline.defaults.complete(request_about(None, "emoji").with_values(num_inference_steps=2))
        requests = [pipeline.defaults.complete(one) for one in stop.requests(question, first)]
        conduct(stop.view(question, pipeline, requests, values.append))
        assert values, stop.name
        assert max(len(json.dumps(value)) for value in values) < 100_000, stop.name
