"""Pixels of a composed picture: recolouring, placing and compositing of straight-alpha RGBA."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (16, 16, 18),
    "gray": (140, 142, 146),
    "red": (214, 48, 44),
    "orange": (246, 144, 40),
    "yellow": (252, 216, 64),
    "green": (72, 168, 84),
    "blue": (52, 116, 220),
    "purple": (132, 72, 188),
    "pink": (248, 160, 196),
    "brown": (128, 84, 52),
    "teal": (32, 156, 156),
    "light blue": (164, 212, 248),
    "light green": (176, 226, 160),
    "dark blue": (24, 44, 104),
    "beige": (238, 222, 192),
}
JITTER = 10  # 8-bit levels a channel; small beside the distance between any two of the colours

# Hue in degrees, saturation and value that the main colour of a recoloured object takes
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.82, 0.87),
    "orange": (28, 0.88, 0.97),
    "yellow": (50, 0.82, 0.98),
    "green": (122, 0.66, 0.68),
    "teal": (178, 0.75, 0.68),
    "blue": (216, 0.78, 0.87),
    "purple": (274, 0.62, 0.74),
    "pink": (334, 0.42, 0.98),
    "brown": (22, 0.62, 0.48),
    "gray": (0, 0.02, 0.62),
    "black": (0, 0.02, 0.22),
    "white": (0, 0.02, 0.96),
}
_NATURAL_HUES = {"red": 2, "orange": 27, "yellow": 48, "green": 115, "blue": 212, "purple": 272, "pink": 330}

# How much `varied` changes a drawing: standard deviations, but for what has two ends
TURN, MOST = 6.0, 15.0  # degrees, and the most of them
SQUEEZE = (0.84, 1.02)  # of each axis
LEAN = 0.07  # sideways by height
SHIFT = (-0.02, 0.02)  # of the side
GAMMA, LEAST_GAMMA = 0.06, 0.7  # about 1, and the least
TINT = 0.05  # of each channel, about 1
CORNER = 0.6  # of what a full square needs to stay inside when turned; a drawing's corners are empty


@dataclass(frozen=True)
class Box:
    """Where an object lies: centre and side of its square, as shares of the picture."""

    x: float = 0.5
    y: float = 0.5
    side: float = 1.0


def natural_colour(picture: np.ndarray, hue: float) -> str | None:
    """Return the colour word of an object of one hue, or None where people would disagree.

    `picture` is (S, S, 4) uint8; hues between two words, and dull, dark or pale colours, have no plain word.
    """
    name = min(_NATURAL_HUES, key=lambda word: abs((hue - _NATURAL_HUES[word] + 180) % 360 - 180))
    if abs((hue - _NATURAL_HUES[name] + 180) % 360 - 180) > {"green": 38, "blue": 22}.get(name, 9):
        return None
    saturation, value = _main_levels(_hsv(picture), picture[..., 3], hue)
    if saturation < (0.3 if name == "pink" else 0.55) or value < (
        0.75 if name in ("orange", "yellow", "pink") else 0.5
    ):
        return None
    return name


def recolour(picture: np.ndarray, hue: float, colour: str) -> np.ndarray:
    """(S, S, 4) uint8 -> the same drawing with its main hue (degrees) moved to a named colour.

    Only pixels near the main hue move, so that a recoloured apple keeps its green leaf; their saturation and value
    follow monotone curves that carry the main colour to the named one and leave outlines and highlights in place.
    """
    hsv = _hsv(picture)
    saturation, value = _main_levels(hsv, picture[..., 3], hue)
    to_hue, to_saturation, to_value = COLOURS[colour]
    grid = np.arange(256)
    turn = (grid * (360 / 256) - hue + 180) % 360 - 180
    weight = np.clip((75 - np.abs(turn)) / 25, 0, 1)
    # Half of the spread of hues around the main one is kept, so that shading keeps its life
    shift = (to_hue - hue + 180) % 360 - 180 - 0.5 * turn
    hues = (np.round((hue + turn + weight * shift) * (256 / 360)).astype(int) % 256).astype(np.uint8)
    # (hue, level) -> level: a pixel far from the main hue keeps its own
    mix, levels = weight[:, None], grid[None] / 255
    saturations = levels + mix * (_curve(levels, saturation, to_saturation) - levels)
    values = levels + mix * (_curve(levels, value, to_value) - levels)
    h, s, v = (hsv[..., i] for i in range(3))
    index = h.astype(np.uint16) << 8
    out = np.empty_like(hsv)
    out[..., 0] = hues[h]
    out[..., 1] = _table(saturations)[index | s]
    # Greys carry no hue worth trusting: their change of value fades in with saturation
    trust = np.minimum(s.astype(np.int32) * 5, 255)
    out[..., 2] = v + (_table(values)[index | v].astype(np.int32) - v) * trust // 255
    rgb = np.asarray(Image.fromarray(out, "HSV").convert("RGB"))
    return np.concatenate([rgb, picture[..., 3:]], axis=-1)


def varied(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the same drawing, (S, S, 4) uint8, a little turned, squeezed, leaning, moved and tinted."""
    out = np.array(_moved(Image.fromarray(np.ascontiguousarray(picture)), rng))
    gamma, tint = max(LEAST_GAMMA, rng.normal(1, GAMMA)), rng.normal(1, TINT, 3)
    out[..., :3] = (255 * (out[..., :3] / 255) ** (1 / gamma) * tint).clip(0, 255)
    return out


def _moved(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a square RGBA image after a random affine map about its centre; the outside is transparent."""
    angle = math.radians(np.clip(rng.normal(0, TURN), -MOST, MOST))
    cos, sin = math.cos(angle), math.sin(angle)
    room = 1 / (cos + CORNER * abs(sin))  # so that turned corners stay in the picture
    turn, lean = np.array([[cos, -sin], [sin, cos]]), np.array([[1, rng.normal(0, LEAN)], [0, 1]])
    inverse = np.linalg.inv(turn @ lean @ np.diag(room * rng.uniform(*SQUEEZE, 2)))
    centre = np.full(2, image.width / 2)
    offset = centre - inverse @ (centre + image.width * rng.uniform(*SHIFT, 2))
    # Pillow wants the map from the new picture to the old one. Premultiplied, as in `paste`
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    moved = image.convert("RGBa").transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return moved.convert("RGBA")


def paste(canvas: Image.Image, picture: np.ndarray, box: Box) -> None:
    """Lay a straight-alpha picture, (S, S, 4) uint8, over a square RGB canvas at `box`; what leaves it is cut."""
    side = max(round(canvas.width * box.side), 1)
    image = Image.fromarray(picture)
    if side != image.width:
        # Premultiplied, else the colour of transparent pixels bleeds into the edges
        image = image.convert("RGBa").resize((side, side), Image.Resampling.HAMMING).convert("RGBA")
    left, top = round(canvas.width * box.x - side / 2), round(canvas.height * box.y - side / 2)
    canvas.paste(image, (left, top), image)


def background_colour(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return the named colour with a little jitter; white stays exactly white."""
    base = np.array(BACKGROUNDS[name])
    if name != "white":
        base = np.clip(base + rng.integers(-JITTER, JITTER + 1, 3), 0, 255)
    red, green, blue = base.tolist()
    return red, green, blue


def _hsv(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture[..., :3])).convert("HSV"))


def _main_levels(hsv: np.ndarray, alpha: np.ndarray, hue: float) -> tuple[float, float]:
    """Return the saturation and value, 0..1, typical of the opaque pixels near the main hue."""
    hsv, alpha = hsv[::2, ::2], alpha[::2, ::2]
    turn = np.abs((hsv[..., 0] * np.float32(360 / 256) - np.float32(hue) + 180) % 360 - 180)
    near = (turn < 35) & (alpha > 128) & (hsv[..., 1] > 50) & (hsv[..., 2] > 50)
    if not near.any():
        return 0.5, 0.5
    return float(np.median(hsv[..., 1][near])) / 255, float(np.median(hsv[..., 2][near])) / 255


def _curve(levels: np.ndarray, start: float, end: float) -> np.ndarray:
    """Return a monotone curve through (0, 0) and (start, end) that leaves some room above for highlights."""
    top = min(1.0, end + 1.5 * (1 - start))
    return np.interp(levels, [0.0, min(max(start, 0.02), 0.98), 1.0], [0.0, end, max(top, end)])


def _table(levels: np.ndarray) -> np.ndarray:
    """(256, 256) levels in 0..1 -> flat uint8 table for one indexing step."""
    return np.round(255 * levels).astype(np.uint8).ravel()
