"""Settings inside a picture: the `parameters` text of a PNG, as AUTOMATIC1111's web UI writes and reads it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stable_diffusion.request import SAMPLER_LABELS, SCHEDULE_LABELS, Request, check_schedule

KEY = "parameters"
MAX_TEXT = 64 * 1024
"""How many characters of settings are read from a file."""


def write_infotext(
    request: Request, seed: int, model: str, stopped_at: tuple[int, int] | None = None, precision: str = "float32"
) -> str:
    """The text that goes with picture `seed` of a request; `stopped_at` (step, of how many) marks a partial one.

    precision is what the networks computed in: in another than float32 the same settings give a slightly other picture.
    """
    pairs: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": SAMPLER_LABELS[request.sampler],
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model.replace(",", " "),
    }
    if request.schedule != "model":
        pairs["Schedule type"] = SCHEDULE_LABELS[request.schedule]
    if request.clip_skip:
        pairs["Clip skip"] = request.clip_skip + 1  # counted from the last layer, which is 1 there and 0 here
    if request.image is not None:
        pairs["Denoising strength"] = f"{request.strength:g}"
    if precision != "float32":
        pairs["Precision"] = precision
    if stopped_at is not None:
        pairs["Stopped at step"] = "{} of {}".format(*stopped_at)
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items()))
    return "\n".join(lines)


def png_bytes(image: Image.Image) -> bytes:
    """A picture as a PNG file, with the text in its `info` inside."""
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text(KEY, image.info[KEY])
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def parse_infotext(text: str) -> dict[str, Any]:
    """Settings under the names of `Request`; what is missing, unknown or unreadable is left out."""
    *lines, last = text.strip().split("\n")
    pairs = dict(read_pairs(last)) if last.startswith("Steps: ") else {}
    if not pairs:
        lines.append(last)
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt: ")
    settings: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    numbers: dict[str, tuple[str, Callable[[str], int | float]]] = {
        "num_inference_steps": ("Steps", int),
        "guidance_scale": ("CFG scale", float),
        "seed": ("Seed", int),
        "strength": ("Denoising strength", float),
        "clip_skip": ("Clip skip", lambda text: max(0, int(text) - 1)),
    }
    for name, (key, kind) in numbers.items():
        try:
            settings[name] = kind(pairs[key])
        except (KeyError, ValueError):
            continue
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", "")):
        settings["width"], settings["height"] = int(size[1]), int(size[2])
    if sampler := _sampler(pairs.get("Sampler", "")):
        # Where the line is silent about these two, the usual was meant, and not what the form happens to hold.
        settings = {"clip_skip": 0, **settings, "sampler": sampler, "schedule": _schedule(pairs, sampler)}
    return settings


def read_pairs(line: str) -> Iterator[tuple[str, str]]:
    """Keys and values of `key: value, key: "a value, with commas", …`, in one pass."""
    start, before, quoted, escaped = 0, "", False, False
    for place, sign in enumerate(line + ","):
        if quoted:
            quoted, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"' and before == ":":
            quoted = True
        elif sign == ",":
            key, colon, value = line[start:place].partition(":")
            start = place + 1
            if colon:
                yield key.strip(), value.strip()
        if not sign.isspace():
            before = sign


def read_infotext(path: str | Path) -> dict[str, Any]:
    """The settings in a picture's file; ValueError says what is wrong with it."""
    name = Path(path).name
    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except Exception:  # a damaged or hostile file makes Pillow raise nearly anything
        raise ValueError(f"{name!r} is not a picture that can be read: choose a PNG that this page made") from None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name!r} carries no settings: choose a PNG made here or by AUTOMATIC1111's web UI")
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"{name!r} carries {len(text):,} characters of settings, at most {MAX_TEXT:,} are read: "
            "choose a PNG that this page made"
        )
    return parse_infotext(text)


def _sampler(label: str) -> str | None:
    """The sampler that a label means; other programs add a schedule's name to it, as in "DPM++ 2M Karras"."""
    label = label.strip().lower()
    fitting = [
        name for name, ours in SAMPLER_LABELS.items() if label == ours.lower() or label.startswith(ours.lower() + " ")
    ]
    return max(fitting, key=lambda name: len(SAMPLER_LABELS[name]), default=None)


def _schedule(pairs: dict[str, str], sampler: str) -> str:
    """The schedule that is named apart, or behind the sampler as older versions do; the model's own for all others."""
    label = pairs.get("Schedule type") or pairs["Sampler"].strip()[len(SAMPLER_LABELS[sampler]) :]
    named = next((name for name, ours in SCHEDULE_LABELS.items() if ours.lower() == label.strip().lower()), "model")
    try:
        check_schedule(sampler, named)
    except ValueError:
        return "model"
    return named
