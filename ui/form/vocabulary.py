"""The vocabulary of a model, from a file beside it: what it can draw, and which words of a prompt it does not know.

`training/data/sentences/lexicon.py` writes the file of the bundled model. Other models have none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unicodedata import normalize

from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.files import read_json
from stable_diffusion.request import BREAK, LORA_TAG, MAX_PROMPT

FILE = "vocabulary.json"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
MAX_WORDS, MAX_LETTERS = 3, 30
"""How many unknown words a sentence names, and how many letters of each."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's vocabulary.

    draws: its subjects, to follow "It draws". known: the words it knows. near: for other words, known things like them.
    """

    draws: str
    known: frozenset[str]
    near: Mapping[str, str]

    def unknown(self, prompt: str, beside: Collection[str] = (), syntax: str = "plain") -> list[str]:
        """Return the words of a prompt that are not in the vocabulary.

        beside: further words, the names of embeddings, in lower case. In the syntax "weighted" BREAK is not a word. The
        last word is left out while it could still become a known one.
        """
        text = LORA_TAG.sub(" ", prompt[:MAX_PROMPT])
        if syntax == "weighted":
            text = BREAK.sub(" ", text)
        text = normalize("NFC", text).lower()
        if beside:
            names = "|".join(map(re.escape, sorted(beside, key=len, reverse=True)))
            text = re.sub(rf"(?<!\w)(?:{names})(?!\w)", " ", text)
        found = words(text)
        if found and text.endswith(found[-1]) and found[-1] not in self.near and self._begins(found[-1]):
            found.pop()
        return [word for word in found if not self._knows(word)]

    def nearest(self, word: str) -> str:
        """Return known things like an unknown word, else an empty string. Words of similar spelling are not like it."""
        return next((self.near[form] for form in forms(word) if form in self.near), "")

    def sentence(self, prompt: str, beside: Collection[str] = (), syntax: str = "plain") -> str:
        """Return a sentence in Markdown about the unknown words of a prompt; empty if there are none."""
        unknown = self.unknown(prompt, beside, syntax)
        named = []
        for word in unknown[:MAX_WORDS]:
            near = self.nearest(word)
            named.append(f"**{word[:MAX_LETTERS]}**" + (f" (near it: {near})" if near else ""))
        if len(unknown) > MAX_WORDS:
            named.append(f"{len(unknown) - MAX_WORDS} more")
        *first, last = named or [""]
        listed = f"{', '.join(first)} and {last}" if first else last
        return f"The model doesn't know {listed}." if listed else ""

    def _knows(self, word: str) -> bool:
        if len(word) < 2 or any(form in self.known for form in forms(word)):
            return True
        parts = word.split("-")
        return len(parts) > 1 and all(self._knows(part) for part in parts)

    def _begins(self, start: str) -> bool:
        return any(word.startswith(start) for part in (self.known, self.near) for word in part)


def words(text: str) -> list[str]:
    """Return the words of a text, each once; a word may contain hyphens."""
    return list(dict.fromkeys(match[0].replace("’", "'") for match in WORD.finditer(text)))


def forms(word: str) -> Iterator[str]:
    """Yield a word, and the words that it may be the plural or the genitive of."""
    yield word
    for ending, instead in (("'s", ""), ("s", ""), ("es", ""), ("ies", "y")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + instead


@cache
def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Return the vocabulary in a model directory; None if there is none that can be read."""
    try:
        content = read_json(folder / FILE)
        near = {word: names for names, others in content["near"].items() for word in others.split(", ")}
        return Vocabulary(str(content["draws"]), frozenset(content["known"].split()), near)
    except (ModelError, KeyError, AttributeError):
        return None
