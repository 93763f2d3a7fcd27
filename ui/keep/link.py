"""Settings as the query of a web address, so that a link makes the same picture again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from stable_diffusion.request import Request

from ..form.settings import SETTINGS, Setting
from .infotext import PAINTED

LINKED = [setting for setting in SETTINGS if setting.linked]
"""What a link carries. A photo stays with its visitor, and so does a mask, of which it says that there was one."""


def to_query(request: Request) -> str:
    """The query of a link to a run; its request holds the seed that it got."""
    names = [one.name for one in LINKED if request.image is not None or not one.for_photos]
    settings = {name: getattr(request, name) for name in names}
    settings["mask"] = None if request.mask is None else PAINTED
    return urlencode({name: value for name, value in settings.items() if value is not None})


def from_query(query: Mapping[str, str], read: Iterable[Setting] = LINKED) -> dict[str, Any]:
    """The settings in a link; what is not among those to `read`, or not of its kind, is left out."""
    settings = {}
    for one in read:
        try:
            settings[one.name] = one.kind(query[one.name])
        except (KeyError, ValueError):
            continue
    if query.get("mask"):
        settings["mask"] = PAINTED
    return settings
