"""Other words for the things that the model draws: more special ones, and more general ones.

WordNet tells more special words from more general ones. `usual_words.txt` decides how often each is said: it lists
nouns of WordNet in the order of CLIP's vocabulary (MIT), in which words that are usual in captions of pictures come
first. For people and a few other things `kinds.json` has the words by hand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from random import Random

from training.data.grammar import nouns
from training.data.thesaurus import Thesaurus
from training.data.vocabulary import KINDS, known_words, things

MOST = 300  # kinds of a thing
FARTHEST = 4  # steps between a kind and the thing
RARER = 10  # a name of two words against one of one
BY_HAND = 12.0  # how much more often a word of `kinds.json` is said than a usual word of WordNet
GENERAL_DEPTH, GENERAL_THINGS = 6, 25  # a more general word is at least so special, and means at most so many things


@cache
def by_hand() -> dict[str, list[str]]:
    """Return the words of `kinds.json` by the label of the thing."""
    return json.loads(Path(__file__).with_name("kinds.json").read_text(encoding="utf-8"))


@cache
def _ranks() -> dict[str, int]:
    words = Path(__file__).with_name("usual_words.txt").read_text(encoding="utf-8").split()
    return {word: rank for rank, word in enumerate(words, start=1)}


@cache
def usual_words() -> frozenset[str]:
    """Return the nouns of `usual_words.txt`."""
    return frozenset(_ranks())


def usualness(words: str) -> float:
    """Return how often to say a word against the most usual one: 1 over the square root of its rank.

    Several words together are taken for `RARER` times as rare as the rarest of them, for each that is added.
    """
    ranks, unlisted = _ranks(), 4 * len(_ranks())
    rank = max(ranks.get(word, unlisted) for word in words.split())
    return (rank * RARER ** words.count(" ")) ** -0.5


class Kinds:
    """The other words for each label, with a weight each."""

    def __init__(self, rows: Sequence[dict], thesaurus: Thesaurus):
        self.known = known_words(rows)
        self._names = {name.lower() for row in rows for name in nouns(row["label"])}
        meant = self._meanings(rows, thesaurus)
        words: dict[str, dict[str, float]] = {}
        for label, found in self._special(meant, thesaurus).items():
            best = sorted(found.items(), key=lambda item: -item[1])[:MOST]
            words[label] = dict(best)
        for label, found in self._general(meant, thesaurus).items():
            words.setdefault(label, {}).update(found)
        for label, listed in by_hand().items():
            kept = words.get(label, {}) if label not in _PEOPLE else {}
            words[label] = kept | {word: BY_HAND * usualness(word) for word in listed if word not in self._names}
        self.words = {label: (list(found), list(found.values())) for label, found in words.items() if found}

    def draw(self, label: str, rng: Random) -> str | None:
        """Return another word for a thing, or None where there is none."""
        if label not in self.words:
            return None
        words, weights = self.words[label]
        return rng.choices(words, weights)[0]

    def _meanings(self, rows: Iterable[dict], thesaurus: Thesaurus) -> dict[str, str]:
        """Return the label of the thing that each meaning names."""
        meant: dict[str, str] = {}
        for row in things(rows).values():
            senses = [one for noun in nouns(row["label"]) for one in thesaurus.found.get(noun.replace(" ", "_"), ())]
            kinds = KINDS.get(row["group"], ())
            sense = next((one for one in senses if thesaurus.senses[one].kind in kinds), None)
            if sense is not None:
                meant.setdefault(sense, row["label"])
        return meant

    def _special(self, meant: dict[str, str], thesaurus: Thesaurus) -> dict[str, dict[str, float]]:
        """Return words for kinds of each thing, by their usual meaning: 'labrador' for a dog."""
        found: dict[str, dict[str, float]] = {}
        for noun, senses in thesaurus.found.items():
            word = noun.replace("_", " ")
            if not re.fullmatch(r"[a-z]{3,}( [a-z]+){0,2}", word) or word in self._names or word in self.known:
                continue
            for place, sense in enumerate(senses[:2]):
                above = thesaurus.above(sense)
                near = min(((far, meant[one]) for one, far in above.items() if one in meant), default=None)
                if near is None or not thesaurus.senses[sense].kind or near[0] > (FARTHEST if place == 0 else 1):
                    continue
                far, label = near
                if self._misleads(word, label):
                    continue
                worth = usualness(word) / (1 + far)
                found.setdefault(label, {})[word] = max(worth, found.get(label, {}).get(word, 0.0))
        return found

    def _misleads(self, word: str, label: str) -> bool:
        """Return whether a kind's name contains another thing's: a 'cat shark' must not be read as a cat."""
        own = {part for name in nouns(label) for part in name.split()}
        parts = word.split()
        return len(parts) > 1 and any(part in self.known and part not in own for part in parts)

    def _general(self, meant: dict[str, str], thesaurus: Thesaurus) -> dict[str, dict[str, float]]:
        """Return words for the classes that a few things belong to: 'poultry', 'toy'."""
        under: dict[str, dict[str, int]] = {}
        for sense, label in meant.items():
            for one, far in thesaurus.above(sense).items():
                if 1 <= far <= 2 and thesaurus.depth(one) >= GENERAL_DEPTH:
                    for word in thesaurus.senses[one].words:
                        usual = word in _ranks() and thesaurus.found.get(word, ("",))[0] == one
                        if usual and word not in self.known and word not in self._names:
                            under.setdefault(word, {})[label] = far
        found: dict[str, dict[str, float]] = {}
        for word, labels in under.items():
            if len(labels) <= GENERAL_THINGS:
                for label, far in labels.items():
                    found.setdefault(label, {})[word] = usualness(word) / (1 + far)
        return found


_PEOPLE = frozenset(("woman", "man", "girl", "boy", "baby", "older person", "old man", "old woman", "person", "child"))


def keyword_weights(rows: Iterable[dict]) -> dict[str, tuple[list[str], list[float]]]:
    """Return the keywords of each label that its name does not say; one that many things share counts less."""
    found: dict[str, list[str]] = {}
    for row in rows:
        said = set(re.findall(r"[a-z]+", row["label"].lower()))
        words = dict.fromkeys(
            word for word in row["tags"] + row["keywords"] if re.fullmatch(r"[a-z]{3,}( [a-z]+)?", word)
        )
        found.setdefault(row["label"], [word for word in words if not said.issuperset(word.split())])
    shared = Counter(word for words in found.values() for word in words)
    return {label: (words, [1 / shared[word] for word in words]) for label, words in found.items() if words}
