"""The nearest training drawings, on planted ones: found on any background and mirrored, and only what training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stable_diffusion.inspect.neighbours import Drawings, distance
from stable_diffusion.loading.config import ModelError
from training.data.dataset import Dataset
from training.data.heldout import Heldout
from training.data.make_neighbours import write

SHAPES = {
    "wedge": [(20, 20), (110, 110), (20, 110)],
    "bar": [(10, 50), (118, 50), (118, 78), (10, 78)],
    "tower": [(50, 10), (78, 10), (78, 118), (50, 118)],
}


def drawing(shape: str, colour: str) -> np.ndarray:
    """An RGBA picture of a shape on nothing."""
    image = Image.new("RGBA", (128, 128))
    ImageDraw.Draw(image).polygon(SHAPES[shape], colour)
    return np.asarray(image)


def row(label: str, style: str, **facts: str) -> dict:
    """A row of the data set."""
    return {
        "concept": label,
        "label": label,
        "style": style,
        "group": "objects",
        "skin_tone": "default",
        **facts,
    }


def painted(shape: str, colour: str, background: str) -> Image.Image:
    """A picture of a shape on a background, 256 pixels wide."""
    canvas = Image.new("RGBA", (128, 128), background)
    return Image.alpha_composite(canvas, Image.fromarray(drawing(shape, colour))).convert("RGB").resize((256, 256))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of copies of two drawings of each shape."""
    colours = {"plain": "red", "soft style": "green"}
    made = [(row(shape, style), drawing(shape, colour)) for style, colour in colours.items() for shape in SHAPES]
    made += [
        (row("bar", "plain"), drawing("bar", "blue")),  # a second drawing of a thing
        (row("tower", "plain", skin_tone="dark"), drawing("tower", "brown")),
        (row("nurse", "plain", group="people-body"), drawing("tower", "pink")),
        (row("secret", "plain"), drawing("tower", "orange")),
    ]
    rows, pictures = zip(*made, strict=True)
    heldout = Heldout(cells=frozenset({("secret", "plain")}))
    assert write(tmp_path, Dataset(np.stack(pictures), list(rows)), heldout) == 6
    return tmp_path


@pytest.mark.parametrize("background", ["white", "navy", "#ffe0c0"])
def test_a_drawing_is_found_on_any_background(folder: Path, background: str) -> None:
    drawings = Drawings.load(folder)
    assert sorted(drawings.names) == sorted((shape, style) for shape in SHAPES for style in ("plain", "soft style"))
    for shape in SHAPES:
        near = drawings.nearest(painted(shape, "green", background))
        assert (near[0].name, near[0].style) == (shape, "soft style")
        assert near[0].distance < 0.05 < near[1].distance <= near[2].distance
        assert near[0].image.size == (64, 64)


def test_a_mirrored_drawing_is_as_near_and_shown_as_it_lies_in_the_picture(folder: Path) -> None:
    picture = painted("wedge", "red", "navy").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    [near] = Drawings.load(folder).nearest(picture, 1)
    assert (near.name, near.style) == ("wedge", "plain")
    assert near.distance < 0.05
    assert min(near.image.getpixel((50, 35))) < 100 < min(near.image.getpixel((14, 35)))


def test_distances_have_a_scale() -> None:
    red, green = (painted("bar", colour, "white") for colour in ("red", "green"))
    assert distance(red, red) == 0
    assert distance(red, red.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) < 0.05
    assert 0.1 < distance(red, green) < distance(red, painted("tower", "green", "white"))
    pictures = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (0, 255)])
    low, median = Drawings.of(pictures, [("black", ""), ("white", "")]).by_chance
    assert low == 0 <= median <= 1


def test_a_damaged_sheet_is_named(folder: Path) -> None:
    (folder / "soft-style.webp").write_bytes(b"no picture")
    with pytest.raises(ModelError, match=r"soft-style\.webp"):
        Drawings.load(folder)
