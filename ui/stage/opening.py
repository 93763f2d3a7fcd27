"""The opening films and the example cards, files that the page shows before its first run.

`python -m ui.stage.make_pictures` draws them with the bundled model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..keep.link import PHOTOS

ASSETS = PHOTOS.parent
EXAMPLES = (
    ("a rocket, on a blue background", 0),
    ("a fox", 4),
    ("an owl, fluent color style, on a purple background", 5),
    ("a green apple next to a red heart", 8),
    ("a sunflower, on a blue background", 13),
)
"""Prompts with the seeds of the pictures on their cards. The tab's film is of the first."""
PHOTO_EXAMPLES = (
    ("flower.jpg", "a sunflower, noto style, on a teal background"),
    ("coffee.jpg", "a cup of coffee, fluent color style, on a brown background"),
    ("rocket.jpg", "a candle, fluent 3d style, on a dark blue background"),
    ("cat.jpg", "a cat face, fluent 3d style, on a beige background"),
)
"""Photos with a prompt each; the tab's film is of the first. A prompt names the photo's background: without it the
bundled model draws a white one, and while the photo's own gives way, things can lose their place."""
STRENGTH, SEED = 0.45, 0
"""Strength and seed of the photos' examples; the seed is that of a first sketch, too."""
STRENGTHS = tuple(tenths / 10 for tenths in range(2, 11))
"""The strengths of the strip that stands under the first photo's picture."""
FILMS = {"t2i": ASSETS / "opening.json", "i2i": ASSETS / "opening_photo.json"}
"""By tab, the messages of a recorded run of its first example, which the stage plays before a visitor's first run."""


def example(photo: str | None = None) -> tuple[str, int | None]:
    """Return an example prompt and its seed, for an empty prompt; for a photo the prompt of that example, and None."""
    if photo is None:
        return random.choice(EXAMPLES)
    return dict(PHOTO_EXAMPLES).get(Path(photo).name, PHOTO_EXAMPLES[0][1]), None


def card(number: int) -> Path:
    """Return the path of an example's picture."""
    return ASSETS / "cards" / f"{number}.webp"


def strength_card(strength: float) -> Path:
    """Return the path of the first photo's picture at that strength."""
    return ASSETS / "strengths" / f"{10 * strength:.0f}.webp"


def cards(pictures: Sequence[tuple[Path, str]], label: str, elem_id: str, **options: Any) -> gr.Gallery:
    """Build a row of pictures with captions; its `select` event has the index of the picture that was pressed."""
    return gr.Gallery(
        [(str(path), text) for path, text in pictures],
        label=label,
        columns=len(pictures),
        height="auto",
        object_fit="cover",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id=elem_id,
        elem_classes="cards",
        **options,
    )
