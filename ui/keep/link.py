"""Settings as the query of a web address, so that a link draws the same picture again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from stable_diffusion.request import Request

from .infotext import PAINTED
from .settings import SETTINGS, Setting

LINKED = [setting for setting in SETTINGS if setting.linked]
"""The settings that a link carries. It carries no photo and no mask, and says of a mask only that there was one."""


def to_query(request: Request) -> str:
    """Return the query of a link to a run with this request, complete and seeded."""
    names = [one.name for one in LINKED if request.image is not None or not one.for_photos]
    settings = {name: getattr(request, name) for name in names}
    settings["mask"] = None if request.mask is None else PAINTED
    return urlencode({name: value for name, value in settings.items() if value is not None})


def from_query(query: Mapping[str, str], read: Iterable[Setting] = LINKED) -> dict[str, Any]:
    """Return the settings in a link's query, by their names in `Request`; unreadable and unknown ones are left out."""
    settings: dict[str, Any] = {}
    for one in read:
        try:
            settings[one.name] = one.kind(query[one.name])
        except (KeyError, ValueError):
            continue
    if query.get("mask"):
        settings["mask"] = PAINTED
    return settings
