"""Of several pictures the one that matches the words best, by the CLIP of the model that drew them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from stable_diffusion.loading.config import BUNDLED
from stable_diffusion.request import Request
from ui.runs.match import closest
from ui.stage.opening import EXAMPLES, card

CARDS = [str(card(number)) for number in range(len(EXAMPLES))]


@pytest.mark.weights
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_picture_of_the_words_is_found(number: int):
    assert closest(BUNDLED, Request(f"{EXAMPLES[number][0]} <lora:ink:1>"), CARDS) == number


@pytest.mark.parametrize(("prompt", "files"), [("a fox", CARDS[:1]), (" ", CARDS), ("<lora:ink:1>", CARDS)])
def test_without_a_choice_or_words_none_is(prompt: str, files: list[str]):
    assert closest(BUNDLED, Request(prompt), files) is None


def test_a_model_without_clip_or_with_a_damaged_one_finds_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert closest(tmp_path, Request("a fox"), CARDS) is None
    assert closest(tmp_path / "one.safetensors", Request("a fox"), CARDS) is None
    assert not caplog.records
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({}))
    with caplog.at_level(logging.WARNING):
        assert closest(tmp_path, Request("a fox"), CARDS) is None
    assert "pictures are not compared with their words" in caplog.text
