"""Settings as text in the form of AUTOMATIC1111's web UI: prompt, negative prompt, and a line of settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS, SYNTAX_LABELS, Request, check_schedule

Pairs = dict[str, str]
"""The line of settings: names as AUTOMATIC1111 has them -> values as they are written."""

NUMBERS: dict[str, tuple[str, Callable[[str], int | float]]] = {
    "num_inference_steps": ("Steps", int),
    "guidance_scale": ("CFG scale", float),
    "seed": ("Seed", int),
    "strength": ("Denoising strength", float),
    # Counted from the last layer, which is 1 there and 0 here.
    "clip_skip": ("Clip skip", lambda text: max(0, int(text) - 1)),
}
SYNTAX = "Prompt syntax"
"""Ours: other programs have one way to read a prompt, the weighted one."""

MASK, PAINTED = "Mask", "painted"
"""That there was a mask, also ours: the mask itself is in no file. AUTOMATIC1111 tells how it blurred one."""

LINE = re.compile(r"^Steps: *\d", re.MULTILINE)
NAME = re.compile(r"\w[\w /-]*")
SILENT = re.compile(r".*[Hh]ash(es)?|Version|Precision")
"""The names of what says no more than other pairs say, or matters to a picture no more than rounding does."""


def write_infotext(
    request: Request, seed: int, model: str, stopped_at: tuple[int, int] | None = None, precision: str = "float32"
) -> str:
    """The text that goes with picture `seed` of a request; `stopped_at` (step, of how many) marks a partial one.

    precision is what the networks computed in: in another than float32 the same settings give a slightly other picture.
    """
    pairs: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": SAMPLER_LABELS[request.sampler or ""],
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": quoted(model),
        SYNTAX: request.prompt_syntax,
    }
    if request.schedule != "model":
        pairs["Schedule type"] = SCHEDULE_LABELS[request.schedule]
    if request.clip_skip:
        pairs["Clip skip"] = request.clip_skip + 1
    if request.image is not None:
        pairs["Denoising strength"] = f"{request.strength:g}"
    if request.mask is not None:
        pairs[MASK] = PAINTED
    if precision != "float32":
        pairs["Precision"] = precision
    if stopped_at is not None:
        pairs["Stopped at step"] = "{} of {}".format(*stopped_at)
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items()))
    return "\n".join(lines)


def parse_infotext(text: str) -> dict[str, Any]:
    """The settings in a text, as `settings_from` gives them; a text without its line of settings is a prompt alone."""
    lines = list(LINE.finditer(text))
    start = lines[-1].start() if lines else len(text)
    prompt, _, negative = f"\n{text[:start]}".partition("\nNegative prompt: ")
    # Templates and the like may follow the line: they are not read.
    return settings_from(prompt.strip(), negative.strip(), dict(read_pairs(text[start:])))


def settings_from(prompt: str, negative_prompt: str, pairs: Pairs, syntax: str = "weighted") -> dict[str, Any]:
    """Settings under the names of `Request`; what is left of the pairs, missing here or unreadable, under `others`.

    A mask is there in name only, as `PAINTED`.
    syntax is how the prompt is meant where the pairs do not say it.
    """
    settings: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
    if not pairs:
        return settings
    left = {key: value for key, value in pairs.items() if NAME.fullmatch(key) and not SILENT.fullmatch(key)}
    enlarged = any(key.startswith("Hires") for key in left)
    for name, (key, kind) in NUMBERS.items():
        if name == "strength" and enlarged:
            continue  # it is of the second pass, which enlarges what was drawn from words
        try:
            value = kind(left[key])
            if math.isfinite(value):
                settings[name] = value
                del left[key]
        except (KeyError, ValueError, OverflowError):
            continue
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", left.get("Size", "")):
        settings["width"], settings["height"] = int(size[1]), int(size[2])
        del left["Size"]
    if sampler := _sampler(left.get("Sampler", "")):
        # Older versions write the schedule behind the sampler, as in "DPM++ 2M Karras".
        behind = left.pop("Sampler").strip()[len(SAMPLER_LABELS[sampler]) :].strip()
        label = left.setdefault("Schedule type", behind or SCHEDULE_LABELS["model"])
        schedule = _schedule(label, sampler)
        if schedule is not None:
            del left["Schedule type"]
        # Where the line is silent about these, the usual was meant, and not what the form happens to hold.
        settings = {"clip_skip": 0, **settings, "sampler": sampler, "schedule": schedule or "model"}
    if left.pop(MASK, None) or "Mask blur" in left:
        settings["mask"] = PAINTED
    written = left.pop(SYNTAX, syntax)
    settings["prompt_syntax"] = written if written in SYNTAX_LABELS else syntax
    return {**settings, "others": left} if left else settings


def read_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of `key: value, key: "a value, with commas", …` up to the end of its line, in one pass.

    A value in quotes may hold line breaks.
    """
    start, before, quoted, escaped = 0, "", False, False
    for place, sign in enumerate(text + "\n"):
        if quoted:
            quoted, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"' and before == ":":
            quoted = True
        elif sign in ",\n":
            key, colon, value = text[start:place].partition(":")
            start = place + 1
            if colon:
                yield key.strip(), unquoted(value.strip())
            if sign == "\n":
                return
        if not sign.isspace():
            before = sign


def quoted(value: str) -> str:
    """A value as AUTOMATIC1111 writes it: in quotes where it could be taken for several, or for one in quotes."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def unquoted(value: str) -> str:
    """The inverse of `quoted`; a value that is in no quotes, or in damaged ones, as it is."""
    if not value.startswith('"'):
        return value
    try:
        return json.loads(value, strict=False)
    except ValueError:
        return value


def _sampler(label: str) -> str | None:
    """The sampler whose label this is, or begins with."""
    label = label.strip().lower()
    fitting = [name for name, ours in SAMPLER_LABELS.items() if f"{label} ".startswith(f"{ours.lower()} ")]
    return max(fitting, key=lambda name: len(SAMPLER_LABELS[name]), default=None)


def _schedule(label: str, sampler: str) -> str | None:
    """The schedule of that label; None where there is none, or the sampler does not have it."""
    named = next((name for name, ours in SCHEDULE_LABELS.items() if ours.lower() == label.strip().lower()), None)
    try:
        check_schedule(sampler, named or "model")
    except ValueError:
        return None
    return named
