"""The prompt as the model reads it: chips below the prompt, styles, and a wall of pictures of everything it knows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import gradio as gr

from stable_diffusion.loading.config import BUNDLED, ModelError
from stable_diffusion.loading.files import read_json

from ..runs.models import LoadedModels
from ..words.lexicon import VOCABULARY
from ..words.reading import Reading, read_prompt

HERE = Path(__file__).parent
WALL = BUNDLED / "wall"
"""Sheets of small pictures by kind, and their index; `python -m ui.form.make_wall` draws them."""
STYLES = "styles"
"""The kind of pictures on the wall that show one thing in each style."""
SHOW_WALL = """(name) => {
  document.querySelector("#%s-wall")?.classList.toggle("away", !%s.includes(name));
}"""
"""Hide the wall for a model that is not one of these."""


class Thumbnail(TypedDict):
    """A picture on a sheet of the wall: the sheet's address and width, and the picture's place on it, in pixels."""

    sheet: str
    width: int
    x: int
    y: int


class ChipValue(TypedDict):
    """A chip, as ui/form/chips.js draws it."""

    label: str
    prompt: str
    picture: Thumbnail | None


def chips(elem_id: str) -> gr.HTML:
    """Build an empty row of chips."""
    return gr.HTML(
        value=[],
        html_template='<div class="chips"></div>',
        css_template=(HERE / "chips.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "chips.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        padding=False,
        elem_id=elem_id,
        visible=False,
    )


def style_row(elem_id: str, *, visible: bool) -> gr.HTML:
    """Build a button with a picture for each style on the wall. The value is the style in the prompt, if any."""
    styles = read_json(BUNDLED / VOCABULARY)["words"][STYLES]
    buttons = "".join(
        f'<button type="button" data-style="{style}" data-names="{names}" title="{style}" aria-label="{style} style" '
        f'style="background: {background(thumbnails()[style])}"></button>'
        for style, names in styles.items()
        if style in thumbnails()
    )
    return gr.HTML(
        value="",
        html_template=f'<div class="styles" role="group" aria-label="Style">{buttons}</div>',
        css_template=(HERE / "styles.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "styles.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        padding=False,
        elem_id=elem_id,
        visible=visible,
    )


def background(picture: Thumbnail, scale: float = 0.75) -> str:
    """Return a thumbnail as a value of CSS's `background`, in pixels of the sheet times `scale`."""
    x, y, width = (round(scale * picture[side]) for side in ("x", "y", "width"))
    return f"url({picture['sheet']}) -{x}px -{y}px / {width}px padding-box"


def wall(elem_id: str, *, away: bool) -> None:
    """Build the wall, folded; the browser loads it when it is opened. away: whether it is hidden for now."""
    gr.set_static_paths([WALL])
    with gr.Accordion("Everything it can draw", open=False, elem_id=elem_id, elem_classes="away" if away else None):
        gr.HTML(
            value=address(WALL),
            html_template=(HERE / "wall.html").read_text(encoding="utf-8"),
            css_template=(HERE / "wall.css").read_text(encoding="utf-8"),
            js_on_load=(HERE / "wall.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            padding=False,
        )


def address(path: Path) -> str:
    """Return the address of a file that Gradio serves, relative to the page; it needs no quotes in CSS."""
    return f"gradio_api/file={quote(path.as_posix(), safe='/:')}"


def chip_values(reading: Reading | None) -> list[ChipValue]:
    """Return the chips to show for a prompt as it was read: none where it is drawn as it is."""
    if reading is None or not (reading.told or len(reading.chips) > 1):
        return []
    return [
        {"label": chip.label, "prompt": chip.prompt, "picture": thumbnails().get(chip.thing)} for chip in reading.chips
    ]


@cache
def thumbnails() -> dict[str, Thumbnail]:
    """Return the pictures of the wall by the name of the thing; none if there is no wall."""
    try:
        index = read_json(WALL / "index.json")
    except ModelError:
        return {}
    side, columns = index["side"], index["columns"]
    return {
        name: {
            "sheet": address(WALL / f"{kind}.webp"),
            "width": side * min(columns, len(things)),
            "x": side * (number % columns),
            "y": side * (number // columns),
        }
        for kind, things in index["kinds"].items()
        for number, name in enumerate(things)
    }


def knows_words(models: LoadedModels, model: str | None) -> bool:
    """Whether a model has a vocabulary, and so draws the things on the wall and no others."""
    return (models.catalogue.path(model) / VOCABULARY).is_file()


def read_text(models: LoadedModels, model: str | None, text: str) -> Reading | None:
    """Return a prompt that is being typed as a model reads it; None if the model has no vocabulary."""
    pipeline = models.loaded(model)
    beside = () if pipeline is None else pipeline.embeddings
    return read_prompt(text, models.catalogue.path(model), beside, typing=True)
