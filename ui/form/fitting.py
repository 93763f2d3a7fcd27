"""Settings from elsewhere, made to fit what the form offers, and what is to be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from stable_diffusion.request import LORA_TAG, MAX_PROMPT, SIZE_UNIT, Defaults, check_schedule

from ..runs.adapter_files import find_files
from ..runs.limits import MAX_SEED
from .controls import SIZED, Controls

MAX_SHOWN = 60
"""How many characters of a value are told."""


@dataclass
class Fitted:
    """What the controls take of some settings, by their names in `Request`, and what became of each, in words."""

    values: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def told(self) -> str:
        """A sentence each for what was taken, what was changed and what was left."""
        parts = {"Taken": self.taken, "Changed": self.changed, "Not taken": self.left}
        return " ".join(f"{what}: {', '.join(things)}." for what, things in parts.items() if things)


def fit(settings: dict[str, Any], controls: Controls, defaults: Defaults) -> Fitted:
    """Fit settings to a form whose model has these defaults.

    A number out of range becomes the nearest in it, and a size keeps its proportions; what the form does not have is
    left.
    """
    fitted = Fitted()
    for name, component in controls.items():
        if name in settings and name not in (*SIZED, "mask"):  # a mask is the photo's, and goes with it
            _fit_one(fitted, name, component, settings[name], defaults)
    if any(name in settings for name in SIZED):
        _fit_size(fitted, settings.get("width", defaults.side), settings.get("height", defaults.side), defaults)
    if "prompt" in fitted.values:
        _fit_loras(fitted)
    if {"sampler", "schedule"} <= fitted.values.keys():
        try:
            check_schedule(fitted.values["sampler"], fitted.values["schedule"])
        except ValueError:
            fitted.values["schedule"] = "model"
            fitted.left.append("that schedule with this sampler")
    fitted.left += [_told(name, value) for name, value in settings.get("others", {}).items()]
    return fitted


def _fit_one(fitted: Fitted, name: str, component: Any, value: Any, defaults: Defaults) -> None:
    what = str(component.label)
    if isinstance(component, gr.Slider):
        low, high = (0, defaults.max_clip_skip) if name == "clip_skip" else (component.minimum, component.maximum)
        fitted.values[name] = inside = min(max(value, low), high)
        if inside == value:
            fitted.taken.append(_told(what, f"{value:g}"))
        else:
            fitted.changed.append(_told(what, f"{value:g} to {inside:g}"))
    elif isinstance(component, (gr.Dropdown, gr.Radio)):
        labels = {choice: label for label, choice in component.choices}
        if value in labels:
            fitted.values[name] = value
            fitted.taken.append(_told(what, labels[value]))
        else:
            fitted.left.append(_told(what, value))
    elif name == "seed":
        if value in (None, -1):
            fitted.values[name] = ""
        elif 0 <= value <= MAX_SEED:
            fitted.values[name] = str(value)
            fitted.taken.append(_told(what, value))
        else:
            fitted.left.append(_told(what, value))
    elif isinstance(component, gr.Image):
        fitted.values[name] = value if value and Path(value).exists() else None
    elif len(value) <= MAX_PROMPT:
        fitted.values[name] = value
        fitted.taken += [what] if value else []
    else:
        fitted.left.append(f"{what}, of more than {MAX_PROMPT:,} characters")


def _fit_size(fitted: Fitted, width: int, height: int, defaults: Defaults) -> None:
    """A size that the model draws: as it is, or with its longer side as long as may be."""
    low, high, step = defaults.min_side, defaults.max_side, defaults.side_step
    sides = [width, height]
    if any(not low <= side <= high or side % SIZE_UNIT for side in sides):
        scale = min(1, high / max(sides))
        sides = [min(max(round(side * scale / step) * step, low), high) for side in sides]
    fitted.values |= dict(zip(SIZED, sides, strict=True))
    asked, made = f"{width}x{height}", "x".join(map(str, sides))
    if asked == made:
        fitted.taken.append(_told("Size", asked))
    else:
        fitted.changed.append(_told("Size", f"{asked} to {made}"))


def _fit_loras(fitted: Fitted) -> None:
    """Take the tags of LoRA files that are not here out of the prompt."""
    here = find_files("loras")
    missing = [tag for tag in LORA_TAG.finditer(fitted.values["prompt"]) if tag["name"] not in here]
    for tag in missing:
        fitted.values["prompt"] = fitted.values["prompt"].replace(tag[0], "").rstrip()
    fitted.left += [_told("LoRA", f"{tag['name']} (not here)") for tag in missing]


def _told(what: str, value: object) -> str:
    text = f"{what} {value}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
