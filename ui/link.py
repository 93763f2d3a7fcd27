"""Settings as the query of a web address, so that a link makes the same picture again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from .request import Request

KINDS = {
    "prompt": str,
    "negative_prompt": str,
    "num_inference_steps": int,
    "guidance_scale": float,
    "width": int,
    "height": int,
    "sampler": str,
    "seed": int,
    "num_images": int,
    "strength": float,
    "fit": str,
    "model": str,
}
"""What a link carries, and how it is read. A photo stays with its visitor."""

FOR_PHOTOS = ("strength", "fit")


def to_query(request: Request) -> str:
    """The query of a link to a run; its request holds the seed that it got."""
    names = [name for name in KINDS if request.photo is not None or name not in FOR_PHOTOS]
    settings = {name: getattr(request, name) for name in names}
    return urlencode({name: value for name, value in settings.items() if value is not None})


def from_query(query: Mapping[str, str]) -> dict[str, Any]:
    """The settings in a link; what is unknown, or not of its kind, is left out."""
    settings = {}
    for name in KINDS.keys() & query.keys():
        try:
            settings[name] = KINDS[name](query[name])
        except ValueError:
            continue
    return settings
