"""The words that prompts are read by, of the languages that a model's directory has them for.

`training/data/sentences/lexicon.py` writes both files: `vocabulary.json` in English, `names.json.xz` with names in
other languages (`emojibase-data`, MIT) and the emoji themselves. Texts are compared by their units, which are words,
and single characters in writing without spaces.
"""

from __future__ import annotations

import json
import lzma
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Mapping
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
PARTS = "fall unknown people hints settings things small skins sizes places styles numbers relations colours".split()  # noqa: SIM905
"""Kinds of words; a word of two kinds is of the later one. Those that fall away and small words change nothing."""
SILENT = ("fall", "small")
PLURALS = (("s", ("",)), ("es", ("",)), ("ies", ("y",)), ("ves", ("f", "fe")))
"""Endings of English plurals, with those of their singulars."""
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
    """A name of a thing: its article, perhaps none, the name, its plural, and the most usual name of the same thing."""

    article: str
    noun: str
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
                self._add(kind, value, some)
            if kind == "things" and names:
                for name, forms in names.items():
                    self._add(kind, name, forms.several, many=True)
                for name in names:
                    self._add(kind, name, name)
        self.longest: dict[str, int] = {}
        for key in self.entries:
            units = key.split(" ")
            self.longest[units[0]] = max(self.longest.get(units[0], 0), len(units))
        self.spoken = "relations" in words or language == EMOJI
        """Whether the lexicon has the small words of the language too."""
        self._stems = {} if self.spoken else dict(self._stemmed())

    def _add(self, kind: str, value: str, words: str, many: bool = False) -> None:
        entry = Entry(kind, value, many)
        for units in filter(None, map(UNIT.findall, listed(fold(words)))):
            key = " ".join(units)
            before = self.entries.get(key)
            if before and before.kind == "things" and kind == "colours":  # an orange
                self.entries[key] = Entry(kind, value, also=before.value)
            else:
                self.entries[key] = entry

    def _stemmed(self) -> Iterator[tuple[str, Entry]]:
        """Yield the stems of colours and things of one word, which stand for words with other endings."""
        for key, entry in self.entries.items():
            cut = 2 if entry.kind == "colours" else 1
            if entry.kind in ("colours", "things") and " " not in key and len(key) >= SHORTEST_STEM + cut:
                yield key[:-cut], entry

    def find(self, units: list[str], start: int, phrases: bool) -> tuple[Entry, int] | None:
        """Return the entry of the most units from `start` on, and their number; None where there is none.

        Without `phrases` several units that change nothing are no entry.
        """
        for count in range(min(self.longest.get(units[start], 1), len(units) - start), 0, -1):
            *first, last = units[start : start + count]
            for form in self.forms(last):
                entry = self.entries.get(" ".join((*first, form)))
                if entry and (phrases or count == 1 or entry.kind not in SILENT):
                    if entry.kind == "hints" and (stem := self._stem(last)):
                        return stem, count
                    many = entry.many or (form + "s" == last and self.language == ENGLISH)
                    return (entry if many == entry.many else Entry(entry.kind, entry.value, many, entry.also)), count
        word = units[start]
        if self.language == ENGLISH:
            bare = [self.entries[form] for form in bare_forms(word) if form in self.entries]
            return next(((entry, 1) for entry in bare if entry.kind == "fall"), None)
        stem = self._stem(word)
        return (stem, 1) if stem else None

    def _stem(self, word: str) -> Entry | None:
        for cut in (1, 2, 3):
            entry = self._stems.get(word[:-cut])
            if entry and (cut == 1 or entry.kind == "colours"):
                return entry
        return None

    def forms(self, word: str) -> Iterator[str]:
        """Yield a word, and the words that it may be a form of."""
        yield word
        if self.language == ENGLISH:
            for ending, others in PLURALS:
                if word.endswith(ending) and len(word) > len(ending) + 1:
                    yield from (word.removesuffix(ending) + other for other in others)
        elif len(word) >= SHORTEST_STEM and self.spoken:
            for ending in ("s", "e", "n", "x"):
                if word.endswith(ending):
                    yield word.removesuffix(ending)
            for ending in ("en", "er", "es"):
                if word.endswith(ending) and len(word) > SHORTEST_STEM + 1:
                    yield word.removesuffix(ending)
            if self.language == "it" and word[-1] in "aei":
                yield from (word[:-1] + vowel for vowel in "aoe")


def bare_forms(word: str) -> Iterator[str]:
    """Yield the words that an English word may be a form of the verb or the adverb of."""
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            stem = word.removesuffix(ending)
            yield from (stem, stem + "e")
            if stem[-1] == stem[-2]:
                yield stem[:-1]


@dataclass(frozen=True)
class Lexicons:
    """All words of a model: names of things, lexicons by language with English first, and things near to words.

    usual_styles: the styles of which a seed chooses one where a prompt names none. drawn_as: names that the model draws
    badly, by the nearest that it draws.
    """

    names: Mapping[str, Name]
    lexicons: Mapping[str, Lexicon]
    near: Mapping[str, list[str]]
    starts: list[str]
    usual_styles: list[str]
    drawn_as: Mapping[str, str]

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
        near = {word: listed(some) for some, words in content["near"].items() for word in listed(words)}
        styles, drawn_as = listed(content["usual_styles"]), dict(content["drawn_as"])
    except (ModelError, OSError, lzma.LZMAError, ValueError, KeyError, AttributeError, TypeError):
        return None
    starts = sorted({*lexicons[ENGLISH].longest, *near})
    return Lexicons(names, lexicons, near, starts, styles, drawn_as)
