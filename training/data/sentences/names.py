"""Names and keywords of all emoji in the languages of `emojibase-data`."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.data.artwork import code_points, fetch, read_member, sources

ENGLISH = ("en", "en-gb")
JOINED_BY = {"es-mx": "es"}  # a variant whose names are taken for another language's
OWN_WORD = 4.0  # worth of a keyword that is part of the name, against 1: 'Hund' of 'Hundegesicht'


@dataclass(frozen=True)
class LocalNames:
    """One emoji in one language: its name, its keywords with a weight each, the character as keyboards send it."""

    name: str
    keywords: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    emoji: str = ""


def languages(archive: Path) -> list[str]:
    """Return the languages that the package has, without English."""
    with tarfile.open(archive) as tar:
        found = {name.split("/")[1] for name in tar.getnames() if name.endswith("/compact.json")}
    return sorted(found - {*ENGLISH})


def local_names(entries: Iterable[dict]) -> dict[str, LocalNames]:
    """Return names by code points; a keyword that many emoji share weighs less, one that is part of the name more."""
    kept = [entry for entry in entries if entry.get("label")]
    shared = Counter(tag for entry in kept for tag in dict.fromkeys(entry.get("tags", ())))
    found = {}
    for entry in kept:
        name = entry["label"]
        tags = tuple(tag for tag in dict.fromkeys(entry.get("tags", ())) if tag.lower() != name.lower())
        weights = tuple((OWN_WORD if tag.lower() in name.lower() else 1.0) / shared[tag] for tag in tags)
        found[code_points(entry["hexcode"])] = LocalNames(name, tags, weights, entry.get("unicode", ""))
    return found


def read_local_names(cache_dir: Path) -> dict[str, dict[str, LocalNames]]:
    """Return names by language and code points, from the package that `data_sources.json` names."""
    package = sources()["names"]["emojibase"]
    archive = fetch(package["package"], package["version"], cache_dir)
    found: dict[str, dict[str, LocalNames]] = {}
    for language in languages(archive):
        if language not in JOINED_BY:
            found[language] = local_names(read_member(archive, f"{language}/compact.json"))
    return found
