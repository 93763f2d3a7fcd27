"""The stop "Where it looks": the heat of a prompt's words and of another, and the picture without a word."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from tests.unit.test_stops import answers
from ui.inside.stop import Value, picture_uri
from ui.inside.stops.looks import LOOKS, Looks, shades
from ui.stage.frames import picture_of

PROMPT = "a red fox, the cat"


@pytest.fixture(scope="module")
def pipe(original: Path) -> Pipeline:
    return Pipeline.from_pretrained(original, device="cpu")


def asked(pipe: Pipeline, question: Looks, prompt: str = PROMPT, syntax: str = "plain") -> list[Value]:
    """The values of a question about a run of three steps."""
    request = Request(prompt, prompt_syntax=syntax, seed=1, num_inference_steps=3, preview="none")
    return answers(LOOKS, pipe, request, **question.model_dump())


def heats(value: Value) -> list[np.ndarray]:
    """The heat maps of a value."""
    assert isinstance(value["heat"], list)
    shape = value["height"], value["width"]
    return [np.frombuffer(base64.b64decode(one), np.uint8).reshape(shape) for one in value["heat"]]


def test_a_run_shows_its_picture_and_the_heat_of_every_word(pipe: Pipeline) -> None:
    values = asked(pipe, Looks())
    [words] = [value["words"] for value in values if "words" in value]
    assert words == [
        {"text": text, "empty": text in ("a", "the")} for text in ("a", "red", "fox", "the", "cat")
    ]  # no comma
    [picture] = [picture_of(str(value["picture"])) for value in values if "picture" in value]
    assert picture.size == (64, 64)
    shown = [value for value in values if "heat" in value]
    assert len(shown) == 3  # the mean of one step, of two, of three
    for heat in heats(shown[-1]):
        assert heat.shape == (8, 8)
        assert (heat.min(), heat.max()) == (0, 255)


def test_the_signs_of_a_weighted_prompt_are_no_words_and_move_none(pipe: Pipeline) -> None:
    """The heat is that of the words alone, as a plain prompt."""
    prompt = r"a (red fox:1.4) BREAK [the \(cat\)]"
    weighted, plain = asked(pipe, Looks(), prompt, "weighted"), asked(pipe, Looks(), "a red fox the cat")
    [words], [others] = ([value["words"] for value in values if "words" in value] for values in (weighted, plain))
    assert words == others
    *_, value = asked(pipe, Looks(without=2), prompt, "weighted")
    shorter = r"a (red:1.4) BREAK [the \(cat\)]"
    without = pipe(shorter, prompt_syntax="weighted", seed=1, num_inference_steps=3).images[0]
    assert value["picture"] == picture_uri(without)


def test_a_word_that_is_not_there_has_its_own_heat_and_changes_nothing(pipe: Pipeline) -> None:
    before = heats(asked(pipe, Looks())[-1])
    *_, value = asked(pipe, Looks(word="moon"))
    assert value["asked"] == "moon"
    [heat] = heats(value)
    assert not any(np.array_equal(heat, other) for other in before)
    assert [one.tolist() for one in heats(asked(pipe, Looks())[-1])] == [one.tolist() for one in before]


def test_the_picture_without_a_word_is_that_of_the_shorter_prompt(pipe: Pipeline) -> None:
    *_, value = asked(pipe, Looks(without=1))
    assert value["without"] == 1
    shorter = pipe("a fox, the cat", seed=1, num_inference_steps=3).images[0]
    assert value["picture"] == picture_uri(shorter)
    assert value["picture"] != next(value["picture"] for value in asked(pipe, Looks()) if "picture" in value)


def test_a_run_that_was_recorded_is_not_run_again(pipe: Pipeline) -> None:
    asked(pipe, Looks(), "the sun")
    assert not [value for value in asked(pipe, Looks(), "the sun") if "small" in value]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"word": "x" * 41}, "word can't be"),
        ({"without": -1}, "without can't be"),
        ({"other": 1}, "other can't be"),
    ],
)
def test_a_bad_question_is_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        Looks.read(values)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Looks(without=5), "without must be below 5, the number of words of this prompt, got 5"),
        (Looks(word=" ,! "), "word must have a letter"),
    ],
)
def test_a_question_that_the_prompt_does_not_fit_is_refused(pipe: Pipeline, question: Looks, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        asked(pipe, question)


def test_a_prompt_without_words_has_a_picture(pipe: Pipeline) -> None:
    values = asked(pipe, Looks(), "")
    assert values[-1] == {"words": []}
    assert "picture" in values[-2]


def test_planted_heat_comes_through_at_its_place_and_large_maps_get_smaller() -> None:
    maps = torch.zeros(1, 128, 64)
    maps[0, :64] = 0.5
    value = shades(maps)
    [heat] = heats(value)
    assert (value["height"], value["width"]) == (32, 32)
    assert (heat[:16] == 255).all()
    assert not heat[16:].any()
