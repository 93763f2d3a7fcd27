"""The page's inputs with choices and bounds: what they refuse, they refuse in a short sentence.

Gradio's own checks repeat a value of any length, and answer one of another kind with nothing but a traceback.
Classes, not changed instances: Gradio builds a visitor's own copy anew once an event has updated a component.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component

from stable_diffusion.request import shown

from ..runs.errors import page_error, told_on_the_page

Choice = TypeVar("Choice")


def place(clicked: Any) -> int:
    """Which one was clicked, as the browser says; -1 where it says nothing that can be read."""
    index = clicked.get("index") if isinstance(clicked, dict) else None
    return index if isinstance(index, int) else -1


def picked(event: gr.SelectData, choices: Sequence[Choice]) -> Choice:
    """The choice that was clicked; a gr.Error where there is none at that place."""
    if not 0 <= event.index < len(choices):
        raise page_error("What was clicked is not there any more: choose one that is.")
    return choices[event.index]


def checked(component: Component, check: Callable[[Any], Any], value: Any) -> Any:
    """The value, as Gradio's own `check` gives it; a gr.Error in one sentence where that refuses it."""
    with told_on_the_page():
        try:
            return check(value)
        except Exception:  # comparing values of any kind makes Python raise nearly anything
            raise ValueError(f"{component.label} can't be {shown(value)}: choose what the page offers") from None


class Slider(gr.Slider):
    """A slider."""

    is_template = True  # drawn as its base class is

    def preprocess(self, payload: float) -> float:
        """The value, within the bounds."""
        return checked(self, self._finite, payload)

    def _finite(self, payload: float) -> float:
        if math.isnan(payload):
            raise ValueError("neither inside the bounds nor outside")
        return super().preprocess(payload)


class Dropdown(gr.Dropdown):
    """A menu for one of its choices."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value of the choice."""
        return checked(self, self._one, payload)

    def _one(self, payload: Any) -> Any:
        if isinstance(payload, list):
            raise ValueError("one choice, not several")
        return super().preprocess(payload)


class Radio(gr.Radio):
    """Choices of which one is made."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value of the choice."""
        return checked(self, super().preprocess, payload)


class CheckboxGroup(gr.CheckboxGroup):
    """Choices of which any may be made."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The values of the choices, each once."""
        return list(dict.fromkeys(checked(self, super().preprocess, payload)))
