"""The words that prompts are read by, of the languages that a model's directory has them for.

`training/data/sentences/lexicon.py` writes both files: `vocabulary.json` in English, `names.json.xz` with names in other
languages (`emojibase-data`, MIT) and the emoji themselves. Texts are compared by their units, which are words, and
single characters in writing without spaces.
"""

from __future__ import annotations

import json
import lzma
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.files import read_json

VOCABULARY, NAMES = "vocabulary.json", "names.json.xz"
ENGLISH, EMOJI = "en", "emoji"
CJK = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
CHARACTER = rf"[{CJK}\u0e01-\u0e4e\u203c-\u2bff\U0001f000-\U0001fbff]"
"""Units of one character: Chinese, Japanese and Thai, and emoji."""
LETTER = r"(?:[^\W\d_]|[\u0900-\u0963\u0980-\u09e3])"  # in Hindi and Bengali vowels are marks
UNIT = re.compile(rf"{CHARACTER}|(?:(?!{CHARACTER}){LETTER})+|\d+|[,.;:!?。、&+\n]")
ENDS = re.compile(r"[,.;:!?。、\n]")
UNSEEN = re.compile("[\u0300-\u036f\ufe0e\ufe0f\u200d\U0001f3fb-\U0001f3ff]")
"""Accents, and what makes variants of an emoji."""
PARTS = "fall unknown hints settings things small skins places styles numbers relations colours".split()  # noqa: SIM905
"""Kinds of words; where a word is of two kinds, it is of the later one. Small words change nothing, as those that fall away."""
SHORTEST_STEM = 4


def fold(text: str) -> str:
    """Return text in small letters, without accents: 'Äpfel' and 'apfel' are one word, as people type both."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFC", UNSEEN.sub("", unicodedata.normalize("NFD", text)))


def split(text: str) -> list[str]:
    """Return the units of a text."""
    return UNIT.findall(fold(text))


def listed(text: str) -> list[str]:
    """'a, b c' -> ['a', 'b c']."""
    return text.split(", ")


@dataclass(frozen=True)
class Name:
    """A name of a thing: with its article, in the plural, and the most usual name of the same thing."""

    one: str
    several: str
    thing: str


@dataclass(frozen=True)
class Entry:
    """Some words: the kind of fact that they state and its value; for a plural `many`, for a colour a thing `also`."""

    kind: str
    value: str = ""
    many: bool = False
    also: str = ""


class Lexicon:
    """The words of one language, with their entries by units.

    Args:
        language: its code; "emoji" for the emoji.
        words: by kind the words for each value, as one string with commas.
        names: for English, all names of things; these stand for themselves.
    """

    def __init__(self, language: str, words: Mapping[str, Any], names: Mapping[str, Name] | None = None):
        self.language, self.entries = language, dict[str, Entry]()
        for kind in (*PARTS, "on", "backgrounds"):
            part = words.get(kind, {})
            for value, some in part.items() if isinstance(part, dict) else [("", part)]:
                self._add("fall" if kind == "small" else kind, value, listed(some))
            if kind == "things" and names:
                for name, forms in names.items():
                    self._add(kind, name, [forms.several], many=True)
                for name in names:
                    self._add(kind, name, [name])
        self.longest: dict[str, int] = {}
        for key in self.entries:
            units = key.split(" ")
            self.longest[units[0]] = max(self.longest.get(units[0], 0), len(units))
        self.spoken = "numbers" in words or language == EMOJI
        """Whether the lexicon has the small words of the language too."""
        stems = {} if self.spoken else words.get("colours", {})
        self._stems = {
            fold(word)[:-2]: colour
            for colour, some in stems.items()
            for word in listed(some)
            if len(word) >= SHORTEST_STEM + 2
        }

    def _add(self, kind: str, value: str, words: Iterable[str], many: bool = False) -> None:
        for units in filter(None, map(split, words)):
            key = " ".join(units)
            before = self.entries.get(key)
            also = before.value if before and before.kind == "things" and kind == "colours" else ""
            if before and before.kind == "colours" and kind == "things":  # an orange
                self.entries[key] = Entry("colours", before.value, also=value)
            else:
                self.entries[key] = Entry(kind, value, many, also)

    def find(self, units: list[str], start: int, phrases: bool) -> tuple[Entry, int] | None:
        """Return the entry of the most units from `start` on, and their number; None where there is none.

        Without `phrases` several units that change nothing are no entry.
        """
        for count in range(min(self.longest.get(units[start], 1), len(units) - start), 0, -1):
            *first, last = units[start : start + count]
            for form in self._forms(last):
                entry = self.entries.get(" ".join((*first, form)))
                if entry and (phrases or count == 1 or entry.kind != "fall"):
                    many = entry.many or (form + "s" == last and self.language == ENGLISH)
                    return (entry if many == entry.many else Entry(entry.kind, entry.value, many, entry.also)), count
        stem = next((stem for cut in (1, 2, 3) if (stem := units[start][:-cut]) in self._stems), None)
        return (Entry("colours", self._stems[stem]), 1) if stem else None

    def _forms(self, word: str) -> Iterator[str]:
        """Yield a word, and the words that it may be a form of."""
        yield word
        if self.language == ENGLISH:
            yield from english_forms(word)
        elif len(word) >= SHORTEST_STEM and self.spoken:
            for ending in ("s", "e", "n", "x"):
                if word.endswith(ending):
                    yield word.removesuffix(ending)
            for ending in ("en", "er", "es"):
                if word.endswith(ending) and len(word) > SHORTEST_STEM + 1:
                    yield word.removesuffix(ending)
            if self.language == "it" and word[-1] in "aei":
                yield from (word[:-1] + vowel for vowel in "aoe")


def english_forms(word: str) -> Iterator[str]:
    """Yield the words that an English word may be the plural, a form of the verb, or the comparative of."""
    for ending, others in (("s", ("",)), ("es", ("",)), ("ies", ("y",)), ("ves", ("f", "fe"))):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            yield from (word.removesuffix(ending) + other for other in others)
    for ending in ("ing", "ed", "er", "est", "ly", "y"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word.removesuffix(ending)
            yield from (stem, stem + "e")
            if stem[-1] == stem[-2]:
                yield stem[:-1]


@dataclass(frozen=True)
class Lexicons:
    """All words of a model: names of things, lexicons by language with English first, and things near to words."""

    names: Mapping[str, Name]
    lexicons: Mapping[str, Lexicon]
    near: Mapping[str, list[str]]
    starts: list[str]

    def begins(self, start: str) -> bool:
        """Return whether an English word begins with letters that somebody is typing."""
        place = bisect_left(self.starts, start)
        return place < len(self.starts) and self.starts[place].startswith(start)


@cache
def read_lexicons(folder: Path) -> Lexicons | None:
    """Return the words of the model in a directory; None if it has none that can be read."""
    try:
        content = read_json(folder / VOCABULARY)
        others = json.loads(lzma.decompress((folder / NAMES).read_bytes()))
        names = {name: Name(*forms.split("|")) for group in content["names"].values() for name, forms in group.items()}
        lexicons = {ENGLISH: Lexicon(ENGLISH, content["words"], names)}
        lexicons |= {language: Lexicon(language, words) for language, words in others.items()}
        near = {
            " ".join(split(word)): listed(some) for some, words in content["near"].items() for word in listed(words)
        }
    except (ModelError, OSError, lzma.LZMAError, ValueError, KeyError, AttributeError, TypeError):
        return None
    starts = sorted({*lexicons[ENGLISH].longest, *near})
    return Lexicons(names, lexicons, near, starts)
