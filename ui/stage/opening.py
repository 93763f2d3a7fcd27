"""What the page shows before anything was drawn on it: a film, and examples as cards. None of it is computed here.

`python -m ui.stage.make_pictures` draws them with the included model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from ..form.controls import Controls, Updates, Values

ASSETS = Path(__file__).resolve().parents[2] / "assets"
EXAMPLES = (
    ("a rocket, on a blue background", 0),
    ("a fox", 4),
    ("an owl, fluent color style, on a purple background", 5),
    ("a green apple next to a red heart", 8),
    ("a sunflower, on a blue background", 13),
)
"""Prompts with the seeds of the pictures on their cards. The film is of the first."""
PHOTO_EXAMPLES = (
    ("cat.jpg", "a cat face, fluent 3d style, on a beige background"),
    ("coffee.jpg", "a cup of coffee, fluent color style, on a brown background"),
    ("rocket.jpg", "a candle, fluent 3d style, on a dark blue background"),
    ("flower.jpg", "a sunflower, noto style, on a teal background"),
)
"""Photos, and what to make of each. The photo's background is named: to the included model one left out means white,
and while the photo's gives way, things can lose their place."""
FILM, STILL = ASSETS / "opening.webp", ASSETS / "opening-still.webp"
"""A run from pure noise on, x_t on the left and x_0 on the right, which plays once; and its end, for those who asked
their system for less motion."""


def proven(controls: Controls, values: Values) -> Updates:
    """What belongs into an empty prompt box, and into the seed's where that is empty too; nothing if there is a prompt.

    Over an example photo it is the prompt of that one.
    """
    prompt, seed = controls["prompt"], controls["seed"]
    if (values[prompt] or "").strip():
        return {}
    if "image" in controls:
        photo = Path(values[controls["image"]] or "").name
        return {prompt: dict(PHOTO_EXAMPLES).get(photo, PHOTO_EXAMPLES[0][1])}
    text, its_seed = random.choice(EXAMPLES)
    return {prompt: text} | ({} if values[seed] else {seed: str(its_seed)})


def card(number: int) -> Path:
    """The picture of an example."""
    return ASSETS / "cards" / f"{number}.webp"


def cards(pictures: Sequence[tuple[Path, str]], label: str, elem_id: str) -> gr.Gallery:
    """Pictures with what they show, side by side; `select` tells which one was pressed."""
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
    )
