"""Parts of the laboratory whose answers are known: the sheet of all heads, equal cost, what distances mean."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stable_diffusion.inspect.heat_maps import Layer
from stable_diffusion.inspect.neighbours import Neighbour
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import SAMPLER_LABELS, Request
from ui.inside.laboratory.heat import head_sheet, mean_heat
from ui.inside.laboratory.memory import meaning
from ui.inside.laboratory.samplers import steps_for


def test_the_sheet_has_a_row_for_each_head_below_their_mean_and_a_column_for_each_word() -> None:
    layers = [Layer("first", 2, 16, 16), Layer("second", 3, 8, 8)]
    heat = torch.zeros(5, 2, 16, 16)
    heat[1, 0, :, :8] = 0.5  # the second head of the first layer looks left for the first word
    heat[4, 1, :, 8:] = 0.25  # the last of the second layer looks right for the second word
    sheet = head_sheet(layers, heat)
    [first, second] = sheet["layers"]
    assert [first["size"], second["size"], first["first"], second["first"]] == ["16 × 16", "8 × 8", 0, 3]
    assert first["high"] == [["25", "0"], ["0", "0"], ["50", "0"]]
    assert second["high"] == [["0", "8.33"], ["0", "0"], ["0", "0"], ["0", "25"]]
    picture = Image.open(io.BytesIO(base64.b64decode(sheet["sheet"].partition(",")[2])))
    side = sheet["side"]
    bright = np.asarray(picture.convert("RGB")).mean(axis=2) > 200
    assert bright.shape == (7 * side, 2 * side)
    lit = {
        (row, word): bright[row * side : (row + 1) * side, word * side : (word + 1) * side].mean(axis=0).round()
        for row in range(7)
        for word in range(2)
    }
    assert {place for place, columns in lit.items() if columns.any()} == {(0, 0), (2, 0), (3, 1), (6, 1)}
    assert lit[2, 0].tolist() == [1] * 8 + [0] * 8
    assert lit[6, 1].tolist() == [0] * 8 + [1] * 8
    assert mean_heat(layers, heat)[:, 0, 0].tolist() == pytest.approx([0.125, 0])


@pytest.mark.parametrize("evaluations", [1, 2, 7, 8])
def test_every_sampler_takes_as_many_evaluations_as_it_can_meet(bundled_model: Path, evaluations: int) -> None:
    pipeline = Pipeline.from_pretrained(bundled_model)
    for sampler in SAMPLER_LABELS:
        request = Request("a cat", sampler=sampler, num_inference_steps=steps_for(sampler, evaluations))
        taken = pipeline.plan(request).evaluations
        assert taken == evaluations - (sampler == "heun" and evaluations % 2 == 0)


@pytest.mark.parametrize(
    ("first", "second", "apart", "expected"),
    [
        (("rocket", "noto", 0.1), ("rocket", "noto", 0.1), 0.1, "alike because it remembers: both redraw one training"),
        (("rocket", "noto", 0.1), ("rocket", "noto", 0.1), 0.3, "It remembers: both redraw one training drawing"),
        (("rocket", "noto", 0.1), ("rocket", "twemoji", 0.1), 0.1, "more than one rocket"),
        (("rocket", "noto", 0.1), ("banana", "noto", 0.1), 0.3, "one picture redraws the rocket, the other the banana"),
        (("rocket", "noto", 0.1), ("banana", "noto", 0.3), 0.3, "the other to none"),
        (("rocket", "noto", 0.3), ("rocket", "noto", 0.3), 0.1, "Neither picture is near"),
    ],
)
def test_the_sentence_says_what_the_distances_mean(first: tuple, second: tuple, apart: float, expected: str) -> None:
    one, other = (Neighbour(name, style, Image.new("RGB", (1, 1)), far) for name, style, far in (first, second))
    assert expected in meaning(one, other, apart, near=0.2)
