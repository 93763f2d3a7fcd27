"""Pairs of captions for distillation: the plain caption that the network knows, and a sentence that means the same.

The facts are those of `Composer.sample`, so that sentences are made anew at each step. The first noun is the picture;
a second one is drawn only where the scene has two things. Mistakes are part of it: letters left out, words that the
model does not know, articles missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from training.data.artwork import fetch, sources
from training.data.captions import HOUSE_STYLE
from training.data.thesaurus import Thesaurus

from .english import English, without_articles
from .language import Language, simple_things, word_list
from .names import LocalNames, read_local_names
from .scene import Scene, plain_caption

HELDOUT = Path(__file__).with_name("heldout.json")
# Shares of the pairs
PLAIN, EMPTY, NEGATIVE = 0.12, 0.04, 0.02
ENGLISH_SHARE, OTHERS_SHARE = 0.5, 0.08  # the languages with a word list of their own share the rest
EMOJI_ALONE = 0.08
STYLED = {HOUSE_STYLE: 0.2}  # share of the sentences that name the style; 0.55 for every other style
STYLED_OTHERS = 0.55
TONED = 0.4  # share of the sentences that say a skin tone, where it is not the default
UNKNOWN_WORD, MISSPELT, HURRIED, LONG = 0.1, 0.07, 0.1, 0.02
CUTE_SIZES = ("tiny",)  # a person who says "a tiny turtle" means a cute one, and wants to see it


@dataclass(frozen=True)
class Pair:
    """A plain caption, a sentence that means the same, and the sentence's language."""

    plain: str
    sentence: str
    language: str


@cache
def heldout_sentences() -> frozenset[str]:
    """Return the sentences of `heldout.json`, in small letters, which training never sees."""
    listed = json.loads(HELDOUT.read_text(encoding="utf-8"))
    return frozenset(sentence.lower() for items in listed.values() for sentence, _ in items)


class Paraphraser:
    """Draws pairs in all languages.

    Args:
        rows: of the data set, `index.json`.
        thesaurus: WordNet.
        names: what each language but English calls each emoji, by code points.
    """

    def __init__(
        self, rows: Sequence[dict], thesaurus: Thesaurus, names: Mapping[str, Mapping[str, LocalNames]]
    ) -> None:
        emoji = {concept: local.emoji for found in names.values() for concept, local in found.items()}
        self.rows, self.english = rows, English(rows, thesaurus, emoji)
        others = simple_things(rows)
        self.languages = {code: Language(code, found, others) for code, found in sorted(names.items())}
        listed = sum(bool(language.words) for language in self.languages.values())
        rest = len(self.languages) - listed
        self._codes, self._weights = ["en"], [ENGLISH_SHARE]
        for code, language in self.languages.items():
            share = (1 - ENGLISH_SHARE - OTHERS_SHARE) / listed if language.words else OTHERS_SHARE / rest
            self._codes.append(code)
            self._weights.append(share)

    @classmethod
    def load(cls, root: Path = Path("data/emoji"), cache_dir: Path = Path("data/cache")) -> Paraphraser:
        """Return the paraphraser of a built data set; missing npm archives are fetched to `cache_dir`."""
        package = sources()["thesaurus"]
        thesaurus = Thesaurus.read(fetch(package["package"], package["version"], cache_dir))
        rows = json.loads((root / "index.json").read_text(encoding="utf-8"))
        return cls(rows, thesaurus, read_local_names(cache_dir))

    def pair(self, facts: Mapping[str, Any], rng: Random, language: str | None = None) -> Pair:
        """Return a pair about composed facts, in `language` or in one drawn by its share."""
        return self.pairs(facts, rng, 1, language)[0]

    def pairs(self, facts: Mapping[str, Any], rng: Random, count: int, language: str | None = None) -> list[Pair]:
        """`count` pairs about composed facts, all with the same plain caption."""
        if language is None and rng.random() < EMPTY + NEGATIVE:
            return [self._nothing(rng) for _ in range(count)]
        scene = self._said(Scene.of(facts, self.rows), rng)
        plain = plain_caption(scene)
        said = []
        for _ in range(count):
            if language is None and rng.random() < PLAIN:
                said.append(Pair(plain, plain, "en"))
            else:
                said.append(self._drawn(scene, rng, language) or Pair(plain, plain, "en"))
        return said

    def _nothing(self, rng: Random) -> Pair:
        """Return the empty caption, for guidance, or a negative prompt, to be read as the empty caption."""
        if rng.random() < EMPTY / (EMPTY + NEGATIVE):
            return Pair("", "", "en")
        return Pair("", ", ".join(rng.sample(word_list("en")["negatives"], rng.randint(1, 6))), "en")

    def _drawn(self, scene: Scene, rng: Random, language: str | None) -> Pair | None:
        """Return the scene in `language`, or in a drawn one that has words for it."""
        for _ in range(4):
            code = language or rng.choices(self._codes, self._weights)[0]
            if pair := self._spoken(scene, code, rng):
                return pair
        return self._spoken(scene, "en", rng)

    def _said(self, scene: Scene, rng: Random) -> Scene:
        """Return the scene without the facts that the pair leaves out: mostly the style, often the skin tone."""
        styled = rng.random() < STYLED.get(scene.style or "", STYLED_OTHERS)
        size = None if scene.size in CUTE_SIZES and scene.place is None else scene.size
        toned = scene.count == 1 and rng.random() < TONED
        things = scene.things if toned else tuple(replace(thing, skin="default") for thing in scene.things)
        return replace(scene, things=things, style=scene.style if styled else None, size=size)

    def _spoken(self, scene: Scene, code: str, rng: Random) -> Pair | None:
        """Return the scene in one language, or None where that has no words for it or the sentence is held out."""
        language: Language = self.english if code == "en" else self.languages[code]
        if not language.can_say(scene):
            return None
        if scene.single and scene.background is None and scene.style is None and rng.random() < EMOJI_ALONE:
            sentence = self.english.emoji(scene.things[0], rng) * rng.choice((1, 1, 1, 2))
        else:
            sentence = self._disturbed(language.say(scene, rng), language, rng)
        if sentence.lower() in heldout_sentences():
            return None
        return Pair(plain_caption(scene), sentence, code)

    def _disturbed(self, sentence: str, language: Language, rng: Random) -> str:
        """Return the sentence with mistakes and with words that mean nothing here, as people type."""
        if language.space:
            if rng.random() < UNKNOWN_WORD:
                words = sentence.split(" ")
                words.insert(rng.randrange(1, len(words) + 1), rng.choice(self.english.unknown))
                sentence = " ".join(words)
            if rng.random() < MISSPELT:
                sentence = misspelt(sentence, rng)
            if language is self.english and rng.random() < HURRIED:
                sentence = without_articles(sentence)
        if rng.random() < LONG:
            sentence = ", ".join((sentence, *rng.sample(word_list("en")["qualities"], 20)))
        return sentence


def misspelt(sentence: str, rng: Random) -> str:
    """Return the sentence with two letters of a word swapped, one left out or one doubled."""
    inside = [at for at in range(len(sentence) - 1) if sentence[at : at + 2].isalpha()]
    if len(inside) < 3:
        return sentence
    at = rng.choice(inside)
    here, after = sentence[at], sentence[at + 1]
    return sentence[:at] + rng.choice((after + here, after, here + here + after)) + sentence[at + 2 :]
