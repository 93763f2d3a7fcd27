"""Sentences in one language, by its word lists in `languages/`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from training.data.grammar import nouns, phrases

from .names import LocalNames
from .scene import Scene, Thing

FOLDER = Path(__file__).with_name("languages")
# Shares of the sentences that have each part, where nothing else rules it out
BARE = 0.28  # no more than the facts
OPENING, ADJECTIVE, ACTION, SECOND, SETTING = 0.36, 0.4, 0.25, 0.34, 0.3
QUALITY, ENDING, KEYWORD = 0.28, 0.1, 0.14
CONTRACTED = 0.8
EMOJI = 0.07  # share of the names that are the emoji itself
KEYWORD_FOR_NAME = 0.4  # share of the names that are a keyword, in languages whose names are translated labels
NAMED_BY_HAND = 0.7  # share of the names that are those of the word list, where it has some


@cache
def word_list(code: str) -> dict[str, Any]:
    """Return the word list of a language, empty where there is none."""
    path = FOLDER / f"{code}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclass(frozen=True)
class Slots:
    """The parts of a sentence that are no fact of the picture, each empty or with words."""

    opening: str = ""
    action: str = ""
    setting: str = ""


class Language:
    """Says scenes in one language.

    Args:
        code: of the language, as `emojibase-data` has it.
        names: what the language calls each emoji, by code points.
        others: things that may be named although they are not drawn, as somebody holds them.
        words: the word list; None reads the one of `code`.
    """

    def __init__(
        self,
        code: str,
        names: Mapping[str, LocalNames],
        others: Sequence[Thing],
        words: Mapping[str, Any] | None = None,
    ):
        self.code, self.names = code, names
        self.words = word_list(code) if words is None else words
        self.others = [thing for thing in others if thing.concept in names]
        self.space = "" if self.words.get("joined") else " "

    def can_say(self, scene: Scene) -> bool:
        """Return whether there are words for all that a sentence must state."""
        toned = any(thing.skin != "default" for thing in scene.things)
        if any(thing.concept not in self.names for thing in scene.things) or (toned and "skins" not in self.words):
            return False
        if self.words:
            return True
        return scene.single and scene.background is None

    def say(self, scene: Scene, rng: Random) -> str:
        """Return a sentence that states the scene, among words that change nothing."""
        if scene.single and rng.random() < KEYWORD and (said := self._keywords(scene.things[0], rng)):
            head = said
        elif not self.words:
            head = self.name(scene.things[0], rng)
        else:
            head = self._head(scene, rng)
        return self._finished(scene, head, rng)

    # Names

    def name(self, thing: Thing, rng: Random) -> str:
        """Return one of the names of a thing, without article; now and then the emoji itself."""
        if rng.random() < EMOJI:
            return self.emoji(thing, rng)
        by_hand = self.words.get("things", {}).get(thing.label)
        if by_hand and rng.random() < NAMED_BY_HAND:
            return rng.choice(by_hand)
        local = self.names[thing.concept]
        if local.keywords and rng.random() < KEYWORD_FOR_NAME:
            return rng.choices(local.keywords, local.weights)[0]
        return local.name

    def emoji(self, thing: Thing, rng: Random) -> str:
        """Return the emoji of a thing, mostly as keyboards send it, with variation selectors."""
        return self.names[thing.concept].emoji if rng.random() < 0.7 else thing.emoji

    def plural(self, name: str, rng: Random) -> str:
        """Return a name for several of a thing; its ending is a guess, as a learner's would be."""
        return name + rng.choice(self.words.get("plural_suffixes", [""]))

    def keywords(self, thing: Thing, rng: Random) -> list[str]:
        """Return one or two keywords of a thing, or none where it has none."""
        local = self.names[thing.concept]
        if not local.keywords:
            return []
        return list(dict.fromkeys(rng.choices(local.keywords, local.weights, k=rng.choice((1, 1, 2)))))

    # Parts of a sentence

    def _head(self, scene: Scene, rng: Random) -> str:
        slots = Slots() if rng.random() < BARE else self._slots(scene, rng)
        noun = self._noun(scene, rng, adjective=slots != Slots() and rng.random() < ADJECTIVE)
        head = rng.choice(self.words["patterns"]).format(
            opening=slots.opening, noun=noun, action=slots.action, setting=slots.setting
        )
        return self._contracted(tidy(head), rng)

    def _contracted(self, text: str, rng: Random) -> str:
        """Return text with the language's contractions, which some people leave out: 'de un' as "d'un"."""
        if rng.random() < CONTRACTED:
            for apart, together in self.words.get("contractions", {}).items():
                text = re.sub(rf"\b{apart}", together, text)
        return text

    def _slots(self, scene: Scene, rng: Random) -> Slots:
        """Return words that change nothing of the picture; fewer where two things or a place are told."""
        slots = Slots(opening=self._maybe("openings", OPENING, rng))
        crowded = len(scene.things) > 1 or scene.place is not None
        if crowded and rng.random() < 0.7:
            return slots
        action = self._maybe("actions", ACTION, rng)
        if not crowded and rng.random() < SECOND and self.others:
            action = rng.choice(self.words["links"]).format(self._second(rng))
        return replace(slots, action=action, setting=self._maybe("settings", SETTING, rng))

    def _maybe(self, part: str, share: float, rng: Random) -> str:
        return rng.choice(self.words[part]) if rng.random() < share else ""

    def _second(self, rng: Random) -> str:
        """Return the noun of a thing that is not drawn."""
        thing = rng.choice(self.others)
        if rng.random() < 0.2:
            thing = replace(thing, colour=rng.choice(list(self.words["colours"])))
        return self.phrase(thing, rng, adjective=rng.random() < 0.15)

    def _noun(self, scene: Scene, rng: Random, *, adjective: bool) -> str:
        first = scene.things[0]
        if scene.relation is not None:
            parts = [self.phrase(thing, rng, adjective=adjective and rng.random() < 0.5) for thing in scene.things]
            return rng.choice(self.words["relations"][scene.relation]).format(*parts)
        if scene.count > 1:
            return self.several(first, scene.count, rng, adjective=adjective)
        size = rng.choice(self.words["sizes"][scene.size]) if scene.size else ""
        noun = self.phrase(first, rng, adjective=adjective, size=size)
        if scene.place is None:
            return noun
        place = rng.choice(self.words["places"][scene.place])
        if self.space:
            return f"{noun} {place}"
        return place + noun if place.endswith(("の", "的")) else noun + place

    def phrase(self, thing: Thing, rng: Random, *, adjective: bool = False, size: str = "") -> str:
        """Return a noun with article, adjectives and colour: 'eine kleine rote Katze'."""
        colour = rng.choice(self.words["colours"][thing.colour]) if thing.colour else ""
        said = self.words["phrase"].format(
            determiner=rng.choice(self.words["determiners"]),
            adjective=self.space.join(filter(None, (size, self.adjective(rng) if adjective else ""))),
            colour=colour,
            name=self.name(thing, rng),
        )
        return tidy(said)

    def adjective(self, rng: Random) -> str:
        """Return one or two adjectives that change nothing."""
        return self.space.join(rng.choice(self.words["adjectives"]) for _ in range(rng.choice((1, 1, 1, 2))))

    def several(self, thing: Thing, count: int, rng: Random, *, adjective: bool) -> str:
        """'drei rote Katzen'."""
        colour = rng.choice(self.words["colours"][thing.colour]) if thing.colour else ""
        said = self.words["phrase"].format(
            determiner="",
            adjective=self.adjective(rng) if adjective else "",
            colour=colour,
            name=self.plural(self.name(thing, rng), rng),
        )
        return rng.choice(self.words["numbers"][str(count)]).format(tidy(said))

    def _keywords(self, thing: Thing, rng: Random) -> str:
        """Return an occasion or a use in place of a thing's name: 'happy birthday to you'."""
        words = self.keywords(thing, rng)
        if not words:
            return ""
        if "keyword_openings" in self.words and rng.random() < 0.35:
            words.insert(0, rng.choice(self.words["keyword_openings"]))
        if "keyword_endings" in self.words and rng.random() < 0.15:
            words.append(rng.choice(self.words["keyword_endings"]))
        return self.space.join(words)

    def background(self, scene: Scene, rng: Random) -> str:
        """Return the background in words, or nothing for white."""
        if scene.background is None:
            return ""
        colour = rng.choice(self.words["colours"][scene.background])
        return tidy(rng.choice(self.words["backgrounds"]).format(colour))

    def _finished(self, scene: Scene, head: str, rng: Random) -> str:
        """Return the head with background, style and quality behind it, in any order."""
        background = self.background(scene, rng)
        if background and rng.random() < 0.4:
            head, background = self.space.join((head, background)), ""
        rest = [background] if background else []
        if scene.style is not None:
            rest.append(style_words(scene.style, rng))
        if rng.random() < QUALITY and (qualities := self.words.get("qualities") or word_list("en")["qualities"]):
            rest += rng.sample(qualities, rng.choice((1, 1, 2, 2, 3)))
        rng.shuffle(rest)
        comma = rng.choice(("，", "、", ", ", " ")) if not self.space else rng.choice((", ", ", ", ", ", " "))
        said = comma.join((head, *rest))
        return said + rng.choice(word_list("en")["endings"]) if rng.random() < ENDING else said


def style_words(style: str, rng: Random) -> str:
    """Return a style by its name or by a synonym."""
    return f"{style} style" if rng.random() < 0.6 else rng.choice(phrases()["style_words"][style])


def tidy(text: str) -> str:
    """Return text without the spaces of empty parts, nor a particle twice in Chinese or Japanese."""
    return re.sub(r"([的の])\1", r"\1", re.sub(r"\s+", " ", text)).strip()


def simple_things(rows: Sequence[dict]) -> list[Thing]:
    """Return things with a short name that somebody may hold, wear or chase, one of each concept."""
    groups = ("objects", "food-drink", "travel-places", "animals-nature", "activities")
    found: dict[str, Thing] = {}
    for row in rows:
        short = len(nouns(row["label"])[0].split()) <= 2 and row["skin_tone"] == "default"
        if row["group"] in groups and short:
            found.setdefault(row["concept"], Thing(row["label"], row["concept"]))
    return list(found.values())
