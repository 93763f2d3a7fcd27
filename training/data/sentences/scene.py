"""The facts of a composed picture, and the plain caption that states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.captions import NUMBERS
from training.data.grammar import countable, nouns, plural, with_article, without_colours


@dataclass(frozen=True)
class Thing:
    """One drawn object: its label and code points in Unicode, its colour where that is stated, and its skin tone."""

    label: str
    concept: str
    colour: str | None = None
    skin: str = "default"

    @property
    def emoji(self) -> str:
        """The character itself, without the variation selectors that some keyboards add."""
        return "".join(chr(int(code, 16)) for code in self.concept.split("-"))


@dataclass(frozen=True)
class Scene:
    """The contents of a picture; `background` is None for white, and `style` None where a caption leaves it out."""

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None
    size: str | None = None
    place: str | None = None
    background: str | None = None
    style: str | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any], rows: Sequence[dict]) -> Scene:
        """Return the scene that `Composer.sample` composed from the data set's `rows`."""
        pair = facts["relation"] is not None
        parts = list(zip(facts["labels"], facts["concepts"], facts["colours"], facts["rows"], strict=True))
        return cls(
            things=tuple(
                Thing(label, concept, colour, rows[row]["skin_tone"])
                for label, concept, colour, row in (parts if pair else parts[:1])
            ),
            count=1 if pair else facts["count"],
            relation=facts["relation"],
            size=facts["size"],
            place=facts["place"],
            background=None if facts["background"] == "white" else facts["background"],
            style=facts["style"],
        )

    @property
    def single(self) -> bool:
        """Whether nothing but one thing as large as the picture is shown, and its colour is not stated."""
        bare = self.size is None and self.place is None and self.things[0].colour is None
        return len(self.things) == 1 and self.count == 1 and bare


def plain_name(thing: Thing, count: int = 1) -> str:
    """'a red fox', or 'three foxes' for a count of 3."""
    names = [name for name in nouns(thing.label) if count == 1 or countable(name)] or [nouns(thing.label)[0]]
    name = f"{thing.colour} {without_colours(names[0])}" if thing.colour else names[0]
    words = with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"
    return words if thing.skin == "default" else f"{words} with {thing.skin} skin"


def plain_caption(scene: Scene) -> str:
    """Return the caption as the network has learned it: 'a fox next to a cat, noto style, on a blue background'."""
    first = scene.things[0]
    if scene.relation is not None:
        words = f"{plain_name(first)} {scene.relation} {plain_name(scene.things[1])}"
    elif scene.size is not None:
        words = with_article(f"{scene.size} {nouns(first.label)[0]}")
    else:
        words = plain_name(first, scene.count)
    pieces = [f"{words} {scene.place}" if scene.place else words]
    if scene.style is not None:
        pieces.append(f"{scene.style} style")
    if scene.background is not None:
        pieces.append(f"on {with_article(scene.background + ' background')}")
    return ", ".join(pieces)
