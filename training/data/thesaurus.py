"""Nouns and what they are a kind of, as WordNet has them (Miller, Communications of the ACM 38(11), 1995)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

KINDS = {"03": "any", "05": "animal", "06": "artifact", "08": "body", "13": "food", "17": "object", "18": "person"} | {
    "20": "plant"
}
"""WordNet's files of nouns that can be drawn, by number (lexnames(5WN)); the first holds the most general ones."""
PLACES = ("15", "28")
"""WordNet's files of places and of times."""
KIND_OF = ("@", "@i")
"""The pointers to a more general noun, and to what something is an instance of."""


@dataclass(frozen=True)
class Sense:
    """One meaning: its file, the words for it, the meanings that it is a kind of, and whether it is a place or time."""

    kind: str
    words: tuple[str, ...]
    kind_of: tuple[str, ...]
    place: bool = False


class Thesaurus:
    """The nouns of WordNet; meanings go by their offsets in its file.

    Args:
        senses: the meanings.
        found: for each noun, in lower case and with underscores, its meanings, the most usual first.
    """

    def __init__(self, senses: dict[str, Sense], found: dict[str, tuple[str, ...]]) -> None:
        self.senses, self.found = senses, found
        self._above: dict[str, dict[str, int]] = {}
        self._depths: dict[str, int] = {}

    @classmethod
    def read(cls, archive: Path) -> Thesaurus:
        """Read `dict/data.noun` and `dict/index.noun` of a package (formats: wndb(5WN))."""
        with tarfile.open(archive) as tar:
            senses = dict(map(_sense, _lines(tar, "data.noun")))
            found = dict(map(_entry, _lines(tar, "index.noun")))
        return cls(senses, found)

    @cached_property
    def drawable(self) -> dict[str, str]:
        """The nouns of one word in small letters whose most usual meaning can be drawn, and that meaning."""
        drawable = {}
        for noun in sorted(self.found):
            if len(noun) > 2 and noun.isalpha() and noun.isascii():
                # Nouns are found in small letters; a proper name is spelt otherwise.
                usual = next((one for one in self.found[noun] if noun in self.senses[one].words), None)
                if usual is not None and self.senses[usual].kind:
                    drawable[noun] = usual
        return drawable

    def above(self, sense: str) -> dict[str, int]:
        """Return the steps from a meaning to each more general one; 0 to itself."""
        if sense not in self._above:
            steps = {sense: 0}
            for parent in self.senses[sense].kind_of:
                for one, far in self.above(parent).items():
                    steps[one] = min(steps.get(one, far + 1), far + 1)
            self._above[sense] = steps
        return self._above[sense]

    def depth(self, sense: str) -> int:
        """Return how special a meaning is: the steps to the most general one, which has 1."""
        if sense not in self._depths:
            self._depths[sense] = 1 + min((self.depth(parent) for parent in self.senses[sense].kind_of), default=0)
        return self._depths[sense]


def _lines(tar: tarfile.TarFile, name: str) -> Iterator[list[str]]:
    """Yield the fields of every line but those of the licence, which begin with a space."""
    handle = tar.extractfile(f"package/dict/{name}")
    assert handle is not None, "a regular file"
    for line in io.TextIOWrapper(handle, "latin-1"):
        if not line.startswith(" "):
            yield line.partition(" | ")[0].split()


def _sense(fields: list[str]) -> tuple[str, Sense]:
    offset, kind, _, count, *rest = fields
    words, pointers = rest[: 2 * int(count, 16) : 2], rest[2 * int(count, 16) + 1 :]
    kind_of = tuple(to for sign, to in zip(pointers[::4], pointers[1::4], strict=False) if sign in KIND_OF)
    return offset, Sense(KINDS.get(kind, ""), tuple(words), kind_of, kind in PLACES)


def _entry(fields: list[str]) -> tuple[str, tuple[str, ...]]:
    noun, _, count = fields[:3]
    return noun, tuple(fields[-int(count) :])
