"""The wall of everything that a model knows: sheets of small pictures by kind, and their index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ui.form import make_wall

VOCABULARY = {
    "names": {
        "food-drink": {"apple": "an|apple|apples|apple", "grapes": "|grapes||grapes"},
        "travel-places": {"car": "a|car|cars|car", "automobile": "an|automobile|automobiles|car"},
        "variants": {"man mage": "a|man mage|man mages|man mage"},
    },
    "words": {"styles": {"noto": "noto style, android style"}},
}


def test_every_thing_has_one_picture_at_its_place(tmp_path: Path) -> None:
    colours = {"an apple": "red", "grapes": "purple", "a car": "blue", "a fox, noto style": "orange"}
    kinds = make_wall.prompts(VOCABULARY)
    make_wall.write(tmp_path, kinds, lambda prompt: Image.new("RGB", (256, 256), colours[prompt]))
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["kinds"] == {
        "styles": {"noto": "a fox, noto style"},
        "food-drink": {"apple": "an apple", "grapes": "grapes"},
        "travel-places": {"car": "a car"},
    }
    food = Image.open(tmp_path / "food-drink.webp")
    assert food.size == (2 * index["side"], index["side"])
    red, green, blue = food.getpixel((3 * index["side"] // 2, index["side"] // 2))
    assert green < 30 < 100 < min(red, blue)  # purple


def test_sheets_keep_to_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = Image.effect_noise((96, 96), 90).convert("RGB")
    best = len(make_wall.compress({"all": noisy})["all"])
    monkeypatch.setattr(make_wall, "MOST_BYTES", best - 1)
    assert len(make_wall.compress({"all": noisy})["all"]) < best
    monkeypatch.setattr(make_wall, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        make_wall.compress({"all": noisy})
