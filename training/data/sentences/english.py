"""Sentences in English: articles, plurals, other words for things, and words that the model does not know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from training.data.grammar import article, countable, nouns, plural, with_article, without_colours
from training.data.thesaurus import Thesaurus

from .kinds import Kinds, keyword_weights
from .language import EMOJI, Language, simple_things, tidy
from .names import LocalNames
from .scene import Scene, Thing

KIND = 0.33  # share of the names that are those of a kind
OWNER, NAMED = 0.2, 0.04
UNKNOWN_ADJECTIVE = 0.25  # share of the adjectives that are a noun which the model does not know


class English(Language):
    """Says scenes in English.

    Args:
        rows: of the data set, whose keywords name things by what they are for.
        thesaurus: WordNet, for kinds of things and for words that name nothing here.
        emoji: the characters as keyboards send them, by code points.
    """

    def __init__(self, rows: Sequence[dict], thesaurus: Thesaurus, emoji: Mapping[str, str]):
        names = {
            row["concept"]: LocalNames(row["label"], emoji=emoji.get(row["concept"], Thing("", row["concept"]).emoji))
            for row in rows
        }
        super().__init__("en", names, simple_things(rows))
        self.kinds, self._keyword_weights = Kinds(rows, thesaurus), keyword_weights(rows)
        self.unknown = [
            word
            for word in sorted(thesaurus.found)
            if word.isalpha() and word.isascii() and 3 <= len(word) <= 11 and word not in self.kinds.known
        ]

    def name(self, thing: Thing, rng: Random) -> str:
        """Return a name of a thing, or of a kind of it; now and then the emoji itself."""
        if rng.random() < EMOJI:
            return self.emoji(thing, rng)
        kind = self.kinds.draw(thing.label, rng) if rng.random() < KIND else None
        name = kind or rng.choice(nouns(thing.label))
        return without_colours(name) if thing.colour else name

    def plural(self, name: str, rng: Random) -> str:
        """Return the plural of a name that can be counted, else the name."""
        return plural(name) if countable(name) and not name.endswith("s") else name

    def keywords(self, thing: Thing, rng: Random) -> list[str]:
        """Return one or two keywords of a thing, the rarer ones more often, or none."""
        words, weights = self._keyword_weights.get(thing.label, ([], []))
        return list(dict.fromkeys(rng.choices(words, weights, k=rng.choice((1, 1, 1, 2))))) if words else []

    def adjective(self, rng: Random) -> str:
        """Return one or two adjectives or unknown words."""
        said = [
            rng.choice(self.unknown if rng.random() < UNKNOWN_ADJECTIVE else self.words["adjectives"])
            for _ in range(rng.choice((1, 1, 1, 2)))
        ]
        return " ".join(said)

    def phrase(self, thing: Thing, rng: Random, *, adjective: bool = False, size: str = "") -> str:
        """Return a noun with article, adjectives and colour, perhaps named, with its skin tone."""
        colour = rng.choice(self.words["colours"][thing.colour]) if thing.colour else ""
        said = tidy(f"{size} {self.adjective(rng) if adjective else ''} {colour} {self.name(thing, rng)}")
        said = f"{rng.choice(self.words['owners'])} {said}" if rng.random() < OWNER else with_article(said)
        if rng.random() < NAMED:
            said += " " + rng.choice(self.words["naming"]).format(rng.choice(self.words["names"]))
        if thing.skin != "default":
            said += " " + rng.choice(self.words["skins"][thing.skin])
        return said

    def _second(self, rng: Random) -> str:
        if rng.random() < 0.15:
            word = rng.choice(self.unknown)
            return with_article(word)
        thing = rng.choice(self.others)
        name = nouns(thing.label)[0]
        if rng.random() < 0.2:
            name = f"{rng.choice(list(self.words['colours']))} {without_colours(name)}"
        chosen = rng.random()
        if chosen < 0.2:
            return f"{rng.choice(self.words['owners_of_second'])} {name}"
        return plural(name) if chosen < 0.3 and countable(name) else with_article(name)

    def background(self, scene: Scene, rng: Random) -> str:
        """Return the background in words with their article, or nothing for white."""
        if scene.background is None:
            return ""
        colour = rng.choice(self.words["colours"][scene.background])
        return rng.choice(self.words["backgrounds"]).replace("{article}", article(colour)).format(colour)


def without_articles(sentence: str) -> str:
    """Return the sentence as people in a hurry type it: without articles and commas."""
    return re.sub(r"\b(an?|the) ", "", sentence).replace(",", "")
