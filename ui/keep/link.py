"""Settings as the query of a web address, so that a link draws the same picture again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from stable_diffusion.request import Picture, Request

from .infotext import PAINTED
from .settings import SETTINGS, Setting

LINKED = [setting for setting in SETTINGS if setting.linked]
"""The settings that a link carries. Of photos it names only examples, and it says of a mask only that there was one."""
FLAGS = {"True": True, "False": False}
PHOTOS = Path(__file__).resolve().parents[2] / "assets" / "examples"
"""The folder of the example photos, which a link names by their files, without the ending."""


def to_query(request: Request) -> str:
    """Return the query of a link to a run with this request, complete and seeded."""
    names = [one.name for one in LINKED if request.image is not None or not one.for_photos]
    settings = {name: getattr(request, name) for name in names}
    settings["photo"] = example_name(request.image)
    settings["mask"] = None if request.mask is None else PAINTED
    return urlencode({name: value for name, value in settings.items() if value is not None})


def example_name(photo: Picture | None) -> str | None:
    """Return the name of an example photo by its path; None for any other photo."""
    return Path(photo).stem if isinstance(photo, (str, Path)) and Path(photo).parent == PHOTOS else None


def from_query(query: Mapping[str, str], read: Iterable[Setting] = LINKED) -> dict[str, Any]:
    """Return the settings in a link's query, by their names in `Request`, and under "others" the unreadable ones.

    Names that are not settings are left out. An example photo is "image", by its path.
    """
    settings: dict[str, Any] = {}
    others: dict[str, str] = {}
    for one in read:
        if one.name not in query:
            continue
        try:
            value = FLAGS[query[one.name]] if one.kind is bool else one.kind(query[one.name])
            if not isinstance(value, str) and not math.isfinite(value):
                raise ValueError("no setting is infinite, or not a number")
            settings[one.name] = value
        except (KeyError, ValueError, OverflowError):  # the latter for integers of hundreds of digits
            others[one.name] = query[one.name]
    if query.get("mask"):
        settings["mask"] = PAINTED
    photos = {photo.stem: str(photo) for photo in PHOTOS.glob("*.jpg")} if "photo" in query else {}
    if query.get("photo") in photos:
        settings["image"] = photos[query["photo"]]
    return {**settings, "others": others} if others else settings
