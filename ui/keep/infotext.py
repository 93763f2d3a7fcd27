"""Settings as text in the form of AUTOMATIC1111's web UI: prompt, negative prompt, and a line of settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from stable_diffusion.request import (
    FIT_LABELS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    SYNTAX_LABELS,
    Request,
    RequestError,
    check_schedule,
)

Pairs = dict[str, str]
"""The line of settings: AUTOMATIC1111's names -> values as text."""
Infotext = dict[str, Any]
"""Settings by the names of `Request`, and under "others" the pairs that belong to none of them or can't be read."""

NUMBERS: dict[str, tuple[str, Callable[[str], int | float]]] = {
    "num_inference_steps": ("Steps", int),
    "guidance_scale": ("CFG scale", float),
    "seed": ("Seed", int),
    "strength": ("Denoising strength", float),
    "mask_blur": ("Mask blur", int),
    "then_at": ("Then at step", int),
    # Counted from the last layer, which is 1 there and 0 here.
    "clip_skip": ("Clip skip", lambda text: max(0, int(text) - 1)),
}
"""By the name in `Request`, the name in the line and the way to read it."""
SYNTAX = "Prompt syntax"
"""Our own name: other programs read every prompt as a weighted one."""
MASK, PAINTED = "Mask", "painted"
"""Our own name and value for a run with a mask; the mask itself is not in the file. AUTOMATIC1111 writes
only "Mask blur"."""
THEN = "Then"
"""Our own name for the text that takes the prompt's place during the run, from a step on."""
FAST = "Fast"
"""Our own name for a run with the model's weights for few steps."""
FIT = "Fit"
"""Our own name for the way in which a photo was brought to the picture's size."""
EXACT = "Exact prompts"
"""Our own name for both prompts as JSON, where the text before the line would not give them back: spaces at an end, or
a line in the prompt that begins like the negative prompt."""

LINE = re.compile(r"^Steps: *\d", re.MULTILINE)
SETTINGS_LINE = re.compile(r"^Steps: *\d[^\n]*\bSampler: ", re.MULTILINE)
NAME = re.compile(r"\w[\w /-]*")
IGNORED = re.compile(r".*[Hh]ash(es)?|Version|Precision")
"""Names of pairs that repeat other pairs, or matter to a picture no more than rounding does."""


def write_infotext(
    request: Request, seed: int, model: str, stopped_at: tuple[int, int] | None = None, precision: str = "float32"
) -> str:
    """Return the text for picture `seed` of a complete request.

    stopped_at: step and number of steps of a stopped run. precision: the type that the networks computed in; with
    another one than float32 the picture is slightly different.
    """
    pairs: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": SAMPLER_LABELS[request.sampler or ""],
        "CFG scale": shortest(request.guidance_scale),
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
        pairs["Denoising strength"] = shortest(request.strength)
        pairs[FIT] = request.fit
    if request.mask is not None:
        pairs |= {MASK: PAINTED, "Mask blur": request.mask_blur}
    if request.then:
        pairs |= {THEN: quoted(request.then), "Then at step": request.then_at}
    if request.fast:
        pairs[FAST] = True
    if precision != "float32":
        pairs["Precision"] = precision
    if stopped_at is not None:
        pairs["Stopped at step"] = "{} of {}".format(*stopped_at)
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items()))
    text = "\n".join(lines).replace("\0", "\ufffd")  # no format of text chunks has room for NUL
    read = parse_infotext(text)
    prompts = [request.prompt, request.negative_prompt]
    if [read["prompt"], read["negative_prompt"]] != prompts:
        text += f", {EXACT}: {quoted(json.dumps(prompts, ensure_ascii=False))}"
    return text


def holds_settings(text: str) -> bool:
    """Whether a text has a line of settings, with steps and sampler, so that it is more than a prompt."""
    return SETTINGS_LINE.search(text) is not None


def parse_infotext(text: str) -> Infotext:
    """Return the settings in a text; a text without a line of settings is a prompt alone."""
    lines = list(LINE.finditer(text))
    start = lines[-1].start() if lines else len(text)
    prompt, _, negative = f"\n{text[:start]}".partition("\nNegative prompt: ")
    # Lines after the line of settings, such as templates, are not read.
    pairs = dict(read_pairs(text[start:]))
    exact = read_exact(pairs.pop(EXACT, ""))
    return settings_from(*(exact or (prompt.strip(), negative.strip())), pairs)


def read_exact(text: str) -> tuple[str, str] | None:
    """Return prompt and negative prompt from the value of `EXACT`; None for any other text."""
    try:
        prompt, negative = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return (prompt, negative) if isinstance(prompt, str) and isinstance(negative, str) else None


def settings_from(prompt: str, negative_prompt: str, pairs: Pairs, syntax: str = "weighted") -> Infotext:
    """Return the settings of a prompt and its pairs; a mask becomes the text `PAINTED`.

    syntax: the prompt's syntax where the pairs do not name one.
    """
    settings: Infotext = {"prompt": prompt, "negative_prompt": negative_prompt}
    if not pairs:
        return settings
    others = {key: value for key, value in pairs.items() if NAME.fullmatch(key) and not IGNORED.fullmatch(key)}
    if others.pop(MASK, None) or "Mask blur" in others:
        settings["mask"] = PAINTED
    enlarged = any(key.startswith("Hires") for key in others)
    for name, (key, read) in NUMBERS.items():
        if name == "strength" and enlarged:
            continue  # it belongs to the second pass, which enlarges a picture drawn from words
        try:
            value = read(others[key])
            if math.isfinite(value):
                settings[name] = value
                del others[key]
        except (KeyError, ValueError, OverflowError):
            continue
    if settings.get("strength") == 0:
        del settings["strength"]  # other programs write it for pictures drawn from words
    if others.get(FIT) in FIT_LABELS:
        settings["fit"] = others.pop(FIT)
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", others.get("Size", "")):
        settings["width"], settings["height"] = int(size[1]), int(size[2])
        del others["Size"]
    if sampler := sampler_of(others.get("Sampler", "")):
        # Older versions write the schedule after the sampler, as in "DPM++ 2M Karras".
        rest = others.pop("Sampler").strip()[len(SAMPLER_LABELS[sampler]) :].strip()
        schedule = schedule_of(others.setdefault("Schedule type", rest or SCHEDULE_LABELS["model"]), sampler)
        if schedule is not None:
            del others["Schedule type"]
        # A line without these means the usual values, not those that the form holds now.
        settings = {
            "clip_skip": 0,
            "then": others.pop(THEN, ""),
            "fast": others.pop(FAST, "") == "True",
            **settings,
            "sampler": sampler,
            "schedule": schedule or "model",
        }
    named = others.pop(SYNTAX, syntax)
    settings["prompt_syntax"] = named if named in SYNTAX_LABELS else syntax
    return {**settings, "others": others} if others else settings


def read_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield keys and values of `key: value, key: "a value, with commas", …` up to the end of the line.

    A value in quotes may hold line breaks. The time is linear in the length.
    """
    start, before, inside, escaped = 0, "", False, False
    for place, sign in enumerate(text + "\n"):
        if inside:
            inside, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"' and before == ":":
            inside = True
        elif sign in ",\n":
            key, colon, value = text[start:place].partition(":")
            start = place + 1
            if colon:
                yield key.strip(), unquoted(value.strip())
            if sign == "\n":
                return
        if not sign.isspace():
            before = sign


def shortest(value: float | None) -> str:
    """Return the shortest text that is read as exactly this number: 5 for 5.0."""
    return str(value).removesuffix(".0")


def quoted(value: str) -> str:
    """Return a value as AUTOMATIC1111 writes it: in quotes if it holds a comma, colon, quote or control code.

    Values with spaces at an end, which reading removes, are quoted too.
    """
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\x00-\x1f]|^\s|\s$', value) else value


def unquoted(value: str) -> str:
    """Return the inverse of `quoted`; a value without quotes, or with damaged ones, stays as it is."""
    if not value.startswith('"'):
        return value
    try:
        return json.loads(value, strict=False)
    except ValueError:
        return value


def sampler_of(label: str) -> str | None:
    """Return the sampler whose label is the longest beginning of `label`."""
    label = label.strip().lower()
    fitting = [name for name, ours in SAMPLER_LABELS.items() if f"{label} ".startswith(f"{ours.lower()} ")]
    return max(fitting, key=lambda name: len(SAMPLER_LABELS[name]), default=None)


def schedule_of(label: str, sampler: str) -> str | None:
    """Return the schedule with that label, or None where the label is unknown or the sampler lacks the schedule."""
    name = next((name for name, ours in SCHEDULE_LABELS.items() if ours.lower() == label.strip().lower()), None)
    try:
        check_schedule(sampler, name or "model")
    except RequestError:
        return None
    return name
