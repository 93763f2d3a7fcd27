"""Measures of evaluation in pixels and features, on pictures of known things."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from stable_diffusion.pipeline import Pipeline
from training.data.dataset import Dataset
from training.data.paint import BACKGROUNDS
from training.judging.evaluate import background, boxes, frechet, halves, main_colour, nearest, place
from training.judging.everyday import PICTURES, Question, artwork, listed_prompts, shuffled, write
from training.networks.train_things import Vocabulary


def picture(colour: str, box: tuple[int, int, int, int], ground: str = "white") -> np.ndarray:
    """Return a disc with a black outline on a plain ground, (128, 128, 3)."""
    image = Image.new("RGB", (128, 128), BACKGROUNDS[ground])
    ImageDraw.Draw(image).ellipse(box, fill=BACKGROUNDS[colour], outline="black", width=3)
    return np.asarray(image)


def test_the_background_is_read_at_the_border_and_the_colour_through_the_outline():
    for ground in BACKGROUNDS:
        assert nearest(background(picture("red", (10, 10, 118, 118), ground)), BACKGROUNDS) == ground
    for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink"):
        for ground in ("white", "light blue"):
            assert main_colour(picture(colour, (30, 30, 98, 98), ground)) == colour, (colour, ground)


def test_the_place_is_the_third_in_which_the_object_lies():
    for x, y in product((0, 0.5, 1), repeat=2):
        left, top = 2 + x * 84, 2 + y * 84
        assert place(picture("blue", (left, top, left + 40, top + 40))) == (x, y)
    empty = np.full((128, 128, 3), 200, np.uint8)
    assert main_colour(empty) is None
    assert place(empty) is None


@pytest.mark.parametrize("relation", ["next to", "above", "below", "to the left of", "to the right of"])
def test_each_half_shows_the_object_that_the_prompt_puts_there(relation: str):
    image = Image.new("RGB", (128, 128), "white")
    for colour, box in zip(("red", "blue"), boxes(relation), strict=True):
        left, top = round((box.x - 0.2) * 128), round((box.y - 0.2) * 128)
        image.paste(BACKGROUNDS[colour], (left, top, left + 51, top + 51))
    first, second = halves(np.asarray(image), relation)
    assert (main_colour(first), main_colour(second)) == ("red", "blue")


def test_the_frechet_distance_of_gaussians_is_the_one_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40_000, 3, generator=generator)
    b = 2 * torch.randn(40_000, 3, generator=generator) + torch.tensor([1.0, 0.0, 2.0])
    assert frechet(a, b) == pytest.approx(5 + 3 * (1 - 2) ** 2, rel=0.02)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


class TestEveryday:
    def test_a_hundred_plain_prompts(self) -> None:
        prompts = listed_prompts("everyday")
        assert len(set(prompts)) == len(prompts) == 100
        assert not [prompt for prompt in prompts if "style" in prompt or prompt != prompt.strip()]

    def test_no_sheet_shows_a_prompt_twice_and_all_seeds_come(self) -> None:
        questions = shuffled(listed_prompts("everyday"), 3, shuffle=1)
        assert len(set(questions)) == len(questions) == 300
        for start in range(0, 300, PICTURES):
            assert len({question.prompt for question in questions[start : start + PICTURES]}) == PICTURES
        assert questions != shuffled(listed_prompts("everyday"), 3, shuffle=2)
        assert questions[:100] != sorted(questions[:100], key=lambda q: listed_prompts("everyday").index(q.prompt))

    def test_the_ceiling_is_in_a_style_that_need_not_be_named(self) -> None:
        facts = {"concept": "x", "label": "cat", "group": "animals-nature", "subgroup": "a", "skin_tone": "default"}
        shades = {"noto blob": 0, "fluent 3d": 100, "noto": 200}
        pictures = np.stack([np.full((128, 128, 4), (shade, shade, shade, 255), np.uint8) for shade in shades.values()])
        dataset = Dataset(pictures, [facts | {"style": style} for style in shades])
        vocabulary = Vocabulary(dataset.rows)
        drawn = [artwork(dataset, vocabulary, Question("a cat", seed)).getpixel((0, 0))[0] for seed in range(100)]
        assert (drawn.count(0), drawn.count(100) > drawn.count(200) > 0) == (0, True)

    def test_the_key_tells_what_each_number_shows(self, tmp_path: Path, bundled_model: Path) -> None:
        pipeline = Pipeline.from_pretrained(bundled_model)
        options = {"num_inference_steps": 2, "guidance_scale": 1.0, "sampler": "ddim"}
        questions = shuffled(["a cat", "a red apple"], 1, shuffle=0)
        write(lambda asked: pipeline(asked.prompt, seed=asked.seed, **options).images[0], questions, tmp_path)
        key = json.loads((tmp_path / "key.json").read_text())
        assert {key[number]["prompt"] for number in ("1", "2")} == {"a cat", "a red apple"}
        sheet = Image.open(tmp_path / "sheet-01.png")
        for column, number in enumerate(("1", "2")):
            drawn = pipeline(key[number]["prompt"], seed=key[number]["seed"], **options).images[0]
            drawn = drawn.resize((160, 160), Image.Resampling.LANCZOS)
            left = 8 + column * 168
            assert np.array_equal(np.asarray(sheet.crop((left, 8, left + 160, 168))), np.asarray(drawn))
