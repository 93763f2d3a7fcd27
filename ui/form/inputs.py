"""The page's inputs with choices and bounds, which refuse a value in a short sentence.

Gradio's own checks repeat a value of any length, and answer a value of the wrong type with a traceback in the log.
These are classes because Gradio builds a visitor's own copy of a component once an event has updated it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component

from stable_diffusion.request import RequestError, shown

from ..runs.errors import errors_on_page, page_error

Choice = TypeVar("Choice")


def place(clicked: Any) -> int:
    """Return the index of the clicked element; -1 if the browser sent none."""
    index = clicked.get("index") if isinstance(clicked, dict) else None
    return index if isinstance(index, int) else -1


def picked(event: gr.SelectData, choices: Sequence[Choice]) -> Choice:
    """Return the clicked choice; gr.Error if there is none at that index."""
    if not 0 <= event.index < len(choices):
        raise page_error("The entry that you clicked is gone: choose another.")
    return choices[event.index]


def checked(component: Component, check: Callable[[Any], Any], value: Any) -> Any:
    """Return the result of Gradio's own `check`; gr.Error with one sentence if it refuses the value."""
    with errors_on_page():
        try:
            return check(value)
        except Exception:  # comparing values of unknown types raises nearly any error
            raise RequestError(f"{component.label} can't be {shown(value)}: choose what the page offers") from None


class Slider(gr.Slider):
    """A slider."""

    is_template = True  # the browser renders it as its base class

    def preprocess(self, payload: float) -> float:
        """Return the value, within the bounds."""
        return checked(self, self._finite, payload)

    def _finite(self, payload: float) -> float:
        if math.isnan(payload):
            raise ValueError("neither inside the bounds nor outside")
        return super().preprocess(payload)


class Dropdown(gr.Dropdown):
    """A menu of choices, of which one is chosen."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """Return the value of the choice."""
        return checked(self, self._one, payload)

    def _one(self, payload: Any) -> Any:
        if isinstance(payload, list):
            raise ValueError("one choice, not several")
        return super().preprocess(payload)


class Radio(gr.Radio):
    """A list of choices, of which one is chosen."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """Return the value of the choice."""
        return checked(self, super().preprocess, payload)


class CheckboxGroup(gr.CheckboxGroup):
    """A list of choices, of which any number is chosen."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """Return the values of the choices, each once."""
        return list(dict.fromkeys(checked(self, super().preprocess, payload)))
