"""The wall of everything that a model knows: sheets of small pictures by kind, and their index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from stable_diffusion.loading.config import BUNDLED
from ui.form import chips, make_wall
from ui.form.prompt import prompt_controls
from ui.runs.catalogue import BUNDLED_NAME, Catalogue
from ui.runs.models import LoadedModels

VOCABULARY = {
    "names": {
        "food-drink": {"apple": "an|apple|apples|apple", "grapes": "|grapes||grapes"},
        "travel-places": {"car": "a|car|cars|car", "automobile": "an|automobile|automobiles|car"},
        "people-body": {"child": "a|child|children|child", "girl": "a|girl|girls|girl"},
        "variants": {"man mage": "a|man mage|man mages|man mage"},
    },
    "drawn_as": {"girl": "child"},
    "words": {"styles": {"noto": "noto style, android style"}},
}


def test_every_thing_has_one_picture_at_its_place(tmp_path: Path) -> None:
    colours = {
        "an apple": "red",
        "grapes": "purple",
        "a car": "blue",
        "a fox, noto style": "orange",
        "a child": "yellow",
    }
    kinds = make_wall.prompts(VOCABULARY)
    make_wall.write(tmp_path, kinds, lambda prompt: Image.new("RGB", (256, 256), colours[prompt]))
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["kinds"] == {
        "styles": {"noto": "a fox, noto style"},
        "food-drink": {"apple": "an apple", "grapes": "grapes"},
        "travel-places": {"car": "a car"},
        "people-body": {"child": "a child"},
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


def test_styles_need_no_wall_and_any_folder_may_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chips.thumbnails.cache_clear()
    monkeypatch.setattr(chips, "WALL", tmp_path / "my (old) models" / "wall")
    assert "<button" not in chips.style_row("row", visible=True).html_template
    chips.thumbnails.cache_clear()
    shutil.copytree(BUNDLED / "wall", chips.WALL)
    assert "my%20%28old%29%20models/wall/styles.webp) -" in chips.style_row("row", visible=True).html_template
    chips.thumbnails.cache_clear()


def test_the_styles_are_there_with_a_model_that_has_words(original: Path) -> None:
    models = LoadedModels(Catalogue(None, [str(original.parent)]), device="cpu")
    with gr.Blocks() as page:
        menu = gr.Dropdown(list(models.catalogue.sources), label="Model")
        prompts = prompt_controls("", menu, models, "t2i")
        prompts["prompt_syntax"].render()
    [check] = [one.fn for one in page.fns.values() if (prompts["prompt_syntax"]._id, "change") in one.targets]
    row = check("a fox, Noto style", "weighted", BUNDLED_NAME)[2]
    assert (row.value, row.visible) == ("noto", True)
    row = check("a fox, noto style", "read", original.name)[2]
    assert (row.value, row.visible) == ("", False)
