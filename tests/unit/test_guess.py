"""The stop "Guess": riddles, their answers in all languages, CLIP's guesses, and the run that is shown again."""

from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from ui.inside.stop import Value
from ui.inside.stops import guess
from ui.inside.stops.guess import GUESS, NAMES, RIDDLES, STEPS, Guess, answers, judge_of
from ui.stage.frames import picture_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(original: Path) -> Pipeline:
    """A model without CLIP."""
    return Pipeline.from_pretrained(original, device="cpu")


@pytest.fixture(scope="module")
def bundled(bundled_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(bundled_model, device="cpu")


def asked(pipe: Pipeline, question: Guess, request: Request, **values: object) -> list[Value]:
    """The values of a question."""
    [one] = GUESS.requests(question, request)
    found = list[Value]()
    conduct(GUESS.view(question, pipe, [pipe.defaults.complete(one).seeded().with_values(**values)], found.append))
    return found


def hidden(value: Value) -> dict[str, Any]:
    """The answer that a riddle's first value hides from a glance."""
    return json.loads(base64.b64decode(str(value["hidden"])))


def test_a_riddle_shows_every_step_and_its_picture_but_no_prompt(tiny: Pipeline) -> None:
    first, *frames = asked(tiny, Guess(side=48), Request("a red fox"), width=64, height=64)
    assert (first["riddle"], first["total"]) == (1, STEPS + 1)
    assert hidden(first)["name"] == RIDDLES[0][0]
    assert len(frames) == STEPS + 1
    pictures = [picture_of(str(frame["picture"])) for frame in frames]
    assert {picture.size for picture in pictures} == {(48, 48)}
    assert len({picture.tobytes() for picture in pictures}) == STEPS + 1
    assert [frame["guesses"] for frame in frames] == [None] * (STEPS + 1)
    assert "owl" not in json.dumps([first, *frames])


def test_clip_is_unsure_at_first_and_knows_in_the_end(bundled: Pipeline) -> None:
    _, *frames = asked(bundled, Guess(), Request("a red fox"), num_inference_steps=3)
    for frame in frames:
        assert isinstance(frame["guesses"], list)
        assert len(frame["guesses"]) == 5
        shares = [share for _, share in frame["guesses"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1
    assert isinstance(frames[0]["guesses"], list)
    assert frames[0]["guesses"][0][0] != "an owl"
    assert frames[-1]["guesses"][0][0] == "an owl"


def test_the_texts_of_all_names_are_encoded_once(bundled: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(bundled.models.source)
    judge = judge_of(folder, "cpu")
    monkeypatch.setattr(guess, "clip_for", pytest.fail)
    assert judge is not None
    assert judge_of(folder, "cpu") is judge
    assert judge(Image.new("RGB", (64, 64), "white"))[0][0] in NAMES


def test_the_run_is_shown_again_step_by_step(tiny: Pipeline) -> None:
    request = tiny.defaults.complete(Request("a fox", seed=5, num_inference_steps=3, preview="none")).seeded()
    values = asked(tiny, Guess(film=True), request)
    assert len(values) == 3
    assert [picture_of(str(value["film"])).size for value in values] == [(64, 64)] * 3


def test_today_s_riddle_goes_by_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    class Day:
        days = (date(2026, 12, day) for day in range(1, 31))

        @classmethod
        def today(cls) -> date:
            return next(cls.days)

    monkeypatch.setattr(guess, "date", Day)
    numbers = [Guess(riddle=0).number for _ in range(30)]
    assert len(set(numbers)) == 30
    assert set(numbers) <= set(range(1, len(RIDDLES) + 1))


@pytest.mark.parametrize("values", [{"riddle": -1}, {"riddle": len(RIDDLES) + 1}, {"side": 1000}, {"film": "often"}])
def test_a_bad_question_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(values))} can't be"):
        Guess.read(values)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("an owl", ["owl", "owls", "eule", "hibou", "🦉"], ["eagle", "a"]),
        ("a slice of pizza", ["pizza", "slice of pizza"], ["slice", "cheese"]),
        ("a crescent moon", ["moon", "luna", "mond"], ["night", "sun"]),
        ("a ladybug", ["ladybird", "bug", "marienkafer"], ["red"]),
        ("a car", ["car", "auto"], ["carrot", "bus"]),
    ],
)
def test_right_is_every_word_for_the_thing(prompt: str, right: list[str], wrong: list[str]) -> None:
    found = answers(1 + [one for one, _, _ in RIDDLES].index(prompt))
    assert not set(right) - set(found)
    assert not set(wrong) & set(found)


def test_every_riddle_can_be_guessed_by_clip_too_and_there_is_one_for_each_day_of_a_month() -> None:
    prompts = [prompt for prompt, _, _ in RIDDLES]
    assert not set(prompts) - set(NAMES)
    assert len(set(prompts)) == len(prompts) > 31
    assert 60 <= len(set(NAMES)) == len(NAMES) <= 100


def test_the_notebooks_that_the_end_names_are_there() -> None:
    html = (ROOT / "ui/inside/stops/guess.html").read_text(encoding="utf-8")
    [line] = [line for line in html.splitlines() if "notebooks/" in line]
    names = [word.strip(",.") for word in line.replace("notebooks/", "").split() if ".ipynb" in word]
    names = [name.split("<")[0] for name in names]
    assert len(names) >= 2
    assert not [name for name in names if not (ROOT / "notebooks" / name).is_file()]
