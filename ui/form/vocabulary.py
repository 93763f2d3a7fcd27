"""What a model can draw, and which words of a prompt it doesn't know: a file beside the model tells, if it has one.

`training/data/vocabulary.py` writes the file of the included model. Other models have none: of those nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.files import read_json
from stable_diffusion.request import LORA_TAG, MAX_PROMPT

FILE = "vocabulary.json"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
MAX_TOLD, MAX_LETTERS = 3, 30
"""How many words are told, and how many letters of each."""
LIKE = 0.8
"""How alike two spellings must be, as difflib measures it; they also begin alike, for a fridge is no bridge."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model draws, in words that follow "It draws", the words it knows, and for others the things near them."""

    draws: str
    known: frozenset[str]
    near: Mapping[str, str]

    def unknown(self, prompt: str, beside: Container[str] = ()) -> list[str]:
        """The words of a prompt that the model doesn't know; those `beside` are known as well.

        A word at the end that could become one of the vocabulary is still being typed.
        """
        text = LORA_TAG.sub(" ", prompt[:MAX_PROMPT]).lower()
        there = words(text)
        if there and text.endswith(there[-1]) and there[-1] not in self.near and self._begins(there[-1]):
            there.pop()
        return [word for word in there if not self._knows(word, beside)]

    def nearest(self, word: str) -> str:
        """The things near an unknown word, or the known word that is spelled much like it; or nothing."""
        there = next((self.near[form] for form in forms(word) if form in self.near), None)
        if there is not None:
            return there
        alike = [known for known in self.known if known[0] == word[0] and len(known) > 3]
        return ", ".join(get_close_matches(word[:MAX_LETTERS], alike, n=1, cutoff=LIKE))

    def told(self, prompt: str, beside: Container[str] = ()) -> str:
        """A sentence in Markdown about the words that are unknown; empty where there are none."""
        unknown = self.unknown(prompt, beside)
        named = []
        for word in unknown[:MAX_TOLD]:
            near = self.nearest(word)
            named.append(f"**{word[:MAX_LETTERS]}**" + (f" (near it: {near})" if near else ""))
        if len(unknown) > MAX_TOLD:
            named.append(f"{len(unknown) - MAX_TOLD} more")
        *first, last = named or [""]
        listed = f"{', '.join(first)} and {last}" if first else last
        return f"The model doesn't know {listed}." if listed else ""

    def _knows(self, word: str, beside: Container[str]) -> bool:
        if len(word) < 2 or any(form in self.known or form in beside for form in forms(word)):
            return True
        parts = word.split("-")
        return len(parts) > 1 and all(self._knows(part, beside) for part in parts)

    def _begins(self, start: str) -> bool:
        return any(word.startswith(start) for part in (self.known, self.near) for word in part)


def words(text: str) -> list[str]:
    """The words of a text, each once; one with hyphens is one."""
    return list(dict.fromkeys(match[0].replace("’", "'") for match in WORD.finditer(text)))


def forms(word: str) -> Iterator[str]:
    """A word, and what it may be the plural or the genitive of."""
    yield word
    for ending, instead in (("'s", ""), ("s", ""), ("es", ""), ("ies", "y")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + instead


@cache
def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model directory; None where it has none that can be read."""
    try:
        content = read_json(folder / FILE)
        near = {word: names for names, others in content["near"].items() for word in others.split()}
        return Vocabulary(str(content["draws"]), frozenset(content["known"].split()), near)
    except (ModelError, KeyError, AttributeError):
        return None
