"""The training drawings nearest to a picture: whether a network remembers, or composes.

A directory of drawings has a WebP sheet of small pictures on white for each style, row by row, and `index.json`, the
names on each sheet by style. `training.data.make_neighbours` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..loading.config import ModelError
from ..loading.files import read_json

SIDE, FEATURE_SIDE = 64, 16
"""Width and height of a drawing on a sheet, in pixels, and of the means of its pixels that pictures are compared by:
coarse shapes and colours, which tell drawings apart better than the features of a small CLIP (training/LOG.md)."""
BACKGROUND = 40
"""Sum of the differences of red, green and blue up to which a pixel belongs to the background of its corner."""
PAIRS = 4000


@dataclass(frozen=True)
class Neighbour:
    """A training drawing beside a picture, mirrored where that is nearer; `distance` as `distance` measures it."""

    name: str
    style: str
    image: Image.Image
    distance: float


@dataclass(frozen=True)
class Drawings:
    """Training drawings on white, uint8 (N, 64, 64, 3), with the name and the style of each.

    features: (N, D), as `features` returns them. by_chance: distances of two drawings drawn at random: the one that 5 %
    of the pairs stay below, and the median.
    """

    pictures: np.ndarray
    names: list[tuple[str, str]]
    features: np.ndarray
    by_chance: tuple[float, float]

    @classmethod
    def load(cls, folder: Path) -> Drawings:
        """Read a directory of drawings; raises `ModelError` naming the file that is missing or damaged."""
        index = read_json(folder / "index.json")
        pictures, names = list[np.ndarray](), list[tuple[str, str]]()
        for style, found in index.items():
            path = folder / sheet_name(style)
            try:
                sheet = np.asarray(Image.open(path, formats=["WEBP"]).convert("RGB"))
            except OSError as error:
                raise ModelError(f"{path} must be a sheet of drawings: {error}") from error
            pictures.append(tiles(sheet)[: len(found)])
            names += [(name, style) for name in found]
        return cls.of(np.concatenate(pictures), names)

    @classmethod
    def of(cls, pictures: np.ndarray, names: list[tuple[str, str]]) -> Drawings:
        """Make the index of drawings on white."""
        known = features(pictures)
        chance = np.random.default_rng(0)
        pairs = known[chance.integers(len(known), size=(2, PAIRS))]
        low, median = np.quantile(distances(*pairs), (0.05, 0.5))
        return cls(pictures, names, known, (float(low), float(median)))

    def nearest(self, picture: Image.Image, count: int = 3) -> list[Neighbour]:
        """Return the drawings nearest to a picture, the nearest first: each as it is or mirrored."""
        found, mirrored = (distances(self.features, one) for one in both_ways(picture))
        least = np.minimum(found, mirrored)
        return [
            self._neighbour(i, float(least[i]), mirrored=mirrored[i] < found[i])
            for i in np.argsort(least)[:count].tolist()
        ]

    def _neighbour(self, i: int, distance: float, *, mirrored: bool) -> Neighbour:
        name, style = self.names[i]
        image = Image.fromarray(self.pictures[i])
        return Neighbour(name, style, flip(image) if mirrored else image, distance)


def features(pictures: np.ndarray) -> np.ndarray:
    """Return the means (N, D), in 0 to 1, of the blocks of pictures on white, uint8 (N, 64, 64, 3)."""
    block = SIDE // FEATURE_SIDE
    blocks = pictures.reshape(-1, FEATURE_SIDE, block, FEATURE_SIDE, block, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(pictures), -1) / 255


def both_ways(picture: Image.Image) -> np.ndarray:
    """Return the features (2, D) of a picture with its background made white, and of its mirror image."""
    small = on_white(picture)
    return features(np.stack([np.asarray(small), np.asarray(flip(small))]))


def on_white(picture: Image.Image) -> Image.Image:
    """Return a small RGB copy in which the even background around the thing is white."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    last = SIDE - 1
    for corner in ((0, 0), (last, 0), (0, last), (last, last)):
        ImageDraw.floodfill(small, corner, (255, 255, 255), thresh=BACKGROUND)
    return small


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the root mean square distance of features (..., D): 0 for equal pictures, 1 from black to white."""
    return np.sqrt(np.square(one - other).mean(axis=-1))


def distance(one: Image.Image, other: Image.Image) -> float:
    """Return the distance of two pictures, or of one and the other mirrored where that is less."""
    return float(distances(both_ways(one)[0], both_ways(other)).min())


def flip(picture: Image.Image) -> Image.Image:
    """Return a picture mirrored, left to right."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def sheet_name(style: str) -> str:
    """Return the name of a style's sheet: "fluent-3d.webp"."""
    return f"{style.replace(' ', '-')}.webp"


def tiles(sheet: np.ndarray) -> np.ndarray:
    """Return the pictures (N, 64, 64, 3) of a sheet (rows * 64, columns * 64, 3), row by row."""
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    return sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
