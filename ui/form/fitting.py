"""Fit settings from elsewhere to the form, and report each change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

import gradio as gr

from stable_diffusion.request import LORA_TAG, MAX_PROMPT, Defaults, RequestError, check_schedule

from ..keep.settings import PAGE_MAX_SEED
from ..runs.adapter_files import find_files
from ..runs.models import LoadedModels
from .controls import SIZED, SWITCHED, Controls, ModelSlider, Updates, model_sliders, switched

MAX_SHOWN, MAX_LISTED = 60, 20
"""Number of characters of a value in a report, and of values in a list of it."""


@dataclass
class Fitted:
    """Values for the controls, by their names in `Request`, and a report of the settings: taken, changed or left."""

    values: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Return a sentence each for the settings that were taken, changed and left."""
        parts = {"Taken": self.taken, "Changed": self.changed, "Not taken": self.left}
        return " ".join(f"{part}: {_listed(settings)}." for part, settings in parts.items() if settings)


def fill(
    controls: Controls, settings: dict[str, Any], models: LoadedModels, chosen: str | None = None
) -> tuple[Updates, Fitted]:
    """Return the updates that put settings into a form, and the report. `chosen`: the model in the form.

    Reads files: not for an event loop.
    """
    model = settings.get("model")
    defaults = models.defaults(model if model in models.catalogue.sources else chosen)
    fitted = fit(settings, controls, defaults)
    updates: Updates = {controls[name]: value for name, value in fitted.values.items()}
    for name, slider in model_sliders(defaults).items():
        if name in fitted.values or "model" in fitted.values:
            updates[controls[name]] = ModelSlider(**{**slider, "value": fitted.values.get(name, slider["value"])})
    if "model" in fitted.values:
        updates[controls["fast"]] = gr.Checkbox(fitted.values.get("fast", False), visible=defaults.fast)
    return updates, fitted


def fit(settings: dict[str, Any], controls: Controls, defaults: Defaults) -> Fitted:
    """Fit settings to a form whose model has these defaults.

    A number out of range becomes the nearest in it, and a size keeps its proportions; settings without a control are
    left. Fast drawing brings the settings that it needs, and takes its own with it where the model has none.
    """
    fitted = Fitted()
    if settings.get("fast") and not defaults.fast:  # its steps draw nothing without it
        settings = {name: value for name, value in settings.items() if name not in SWITCHED}
    for name, component in controls.items():
        if name in settings and name not in (*SIZED, "mask"):  # a mask belongs to its photo, which is not restored
            _fit_one(fitted, name, component, settings[name], defaults)
    if any(name in settings for name in SIZED):
        _fit_size(fitted, settings.get("width", defaults.side), settings.get("height", defaults.side), defaults)
    if fitted.values.get("fast"):
        strength = controls["strength"].value if "strength" in controls else None
        photo = {"photo": "a photo", "strength": fitted.values.get("strength", strength)} if strength else {}
        fitted.values = dict(zip(SWITCHED, switched(defaults, True, **photo), strict=True)) | fitted.values
    if "prompt" in fitted.values:
        _fit_loras(fitted)
    if {"sampler", "schedule"} <= fitted.values.keys():
        try:
            check_schedule(fitted.values["sampler"], fitted.values["schedule"])
        except RequestError:
            fitted.values["schedule"] = "model"
            fitted.left.append("that schedule with this sampler")
    labels = {name: str(component.label) for name, component in controls.items()}
    fitted.left += [_named(labels.get(name, name), value) for name, value in settings.get("others", {}).items()]
    return fitted


def _fit_one(fitted: Fitted, name: str, component: Any, value: Any, defaults: Defaults) -> None:
    label = str(component.label)
    if isinstance(component, gr.Slider):
        low, high = (0, defaults.max_clip_skip) if name == "clip_skip" else (component.minimum, component.maximum)
        fitted.values[name] = inside = min(max(value, low), high)
        if inside == value:
            fitted.taken.append(_named(label, f"{value:g}"))
        else:
            fitted.changed.append(_named(label, f"{value:g} to {inside:g}"))
    elif isinstance(component, (gr.Dropdown, gr.Radio)):
        labels = {choice: text for text, choice in component.choices}
        if value in labels:
            fitted.values[name] = value
            fitted.taken.append(_named(label, labels[value]))
        else:
            fitted.left.append(_named(label, value))
    elif name == "seed":
        if value in (None, -1):
            fitted.values[name] = ""
        elif 0 <= value <= PAGE_MAX_SEED:
            fitted.values[name] = str(value)
            fitted.taken.append(_named(label, value))
        else:
            fitted.left.append(_named(label, value))
    elif isinstance(component, gr.Checkbox):
        fitted.values[name] = value and defaults.fast
        if value:
            (fitted.taken if defaults.fast else fitted.left).append(label)
    elif isinstance(component, gr.Image):
        fitted.values[name] = value if value and Path(value).exists() else None
    elif len(value) <= MAX_PROMPT:
        fitted.values[name] = value
        fitted.taken += [label] if value else []
    else:
        fitted.left.append(f"{label}, of more than {MAX_PROMPT:,} characters")


def _fit_size(fitted: Fitted, width: int, height: int, defaults: Defaults) -> None:
    """Take a size that the model draws, or else the nearest with the same proportions.

    A model that draws well at its own size alone keeps that, unless the settings are of its own picture.
    """
    low, high, step = defaults.min_side, defaults.max_side, defaults.side_step
    sides = [max(1, width), max(1, height)]
    if defaults.own_size_only and "model" not in fitted.values:
        sides = [defaults.side, defaults.side]
    elif any(not low <= side <= high or side % defaults.size_unit for side in sides):
        scale = min(1, high / max(sides))
        sides = [min(max(round(side * scale / step) * step, low), high) for side in sides]
    fitted.values |= dict(zip(SIZED, sides, strict=True))
    asked, made = f"{width}x{height}", "x".join(map(str, sides))
    if asked == made:
        fitted.taken.append(_named("Size", asked))
    else:
        fitted.changed.append(_named("Size", f"{asked} to {made}"))


def _fit_loras(fitted: Fitted) -> None:
    """Remove the tags of LoRA files that are not here from the prompt."""
    here = find_files("loras")
    missing = [tag for tag in LORA_TAG.finditer(fitted.values["prompt"]) if normalize("NFC", tag["name"]) not in here]
    for tag in missing:
        fitted.values["prompt"] = fitted.values["prompt"].replace(tag[0], "").rstrip()
    fitted.left += [_named("LoRA", f"{tag['name']} (not here)") for tag in missing]


def _named(name: str, value: object) -> str:
    """Return name and value in one short line; control characters, also those that turn text around, are left out."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in f"{name} {value}").split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _listed(settings: list[str]) -> str:
    more = f" and {len(settings) - MAX_LISTED:,} more" if len(settings) > MAX_LISTED else ""
    return ", ".join(settings[:MAX_LISTED]) + more
