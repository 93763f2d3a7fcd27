"""The facts that the words of a prompt state: which things, in which colours, before which background.

Words are taken from left to right. A colour belongs to the next thing; where none follows, to the one just before it,
as in "un chat noir".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .lexicon import ENGLISH, SILENT, Entry, Name

PAINT = {"light blue": "blue", "light green": "green", "dark blue": "blue", "beige": "brown"}
"""The colours that things have in place of those that only backgrounds have."""
OWN_COLOUR = re.compile("^(red|orange|yellow|green|blue|purple|pink|brown|black|white) ")
END = Entry("end")


@dataclass(frozen=True)
class Thing:
    """A thing to draw: its name, and what the prompt says of it."""

    name: str
    colour: str = ""
    count: str = ""
    skin: str = ""
    size: str = ""

    def phrase(self, name: Name) -> str:
        """Return the words for the thing as captions have them: 'a red fox', 'two foxes'."""
        article, noun, several = name.article, name.noun, name.several
        if self.colour:  # of the names "red circle" and "blue circle" one stands for circles
            noun, several = OWN_COLOUR.sub("", noun), OWN_COLOUR.sub("", several)
        if self.count and several:
            return " ".join(filter(None, (self.count, self.colour, several)))
        words = " ".join(filter(None, (self.size, self.colour, noun, self.skin)))
        if not article:
            return words
        return f"{article_of(words) if self.size or self.colour else article} {words}"


@dataclass(frozen=True)
class Item:
    """An entry found in a prompt, from one unit to the one before `end`; of kind "unknown" where there is none."""

    entry: Entry
    start: int
    end: int
    language: str = ENGLISH


@dataclass
class Facts:
    """What the items of a prompt state.

    things: with the relation to the thing before, and the item that names it. setting: the colour of a place. size:
    how large the first is, which counts only beside a place.
    """

    things: list[tuple[Thing, str, Item]] = field(default_factory=list)
    background: str = ""
    setting: str = ""
    style: str = ""
    place: str = ""
    size: str = ""
    _colour: Item | None = None  # waits for its thing, as do count and relation
    _on: bool = False  # "on" came before the colour
    _count: str = ""
    _relation: str = ""
    _asked: bool = False  # a background waits for its colour
    _broken: bool = False  # something unknown has come since the last thing
    _before: Entry = END

    @classmethod
    def of(cls, items: Iterable[Item]) -> Facts:
        """Return the facts that items state."""
        facts, listed = cls(), list(items)
        end = listed[-1].end if listed else 0
        listed += [Item(END, end, end)] * 3
        for item, *after in zip(listed, listed[1:], listed[2:], strict=False):
            facts._take(replace(item, entry=facts._meant(item, [one.entry.kind for one in after])))
        return facts

    def _meant(self, item: Item, after: list[str]) -> Entry:
        """Return an entry; one of a colour and a thing is the thing where it colours nothing: "an orange"."""
        if item.entry.kind != "colours" or not item.entry.also or self._asked or self._before.kind == "on":
            return item.entry
        noun = self._before.kind == "things" and item.language != ENGLISH
        colours = after[0] not in ("end", "relations", *SILENT) or after == ["relations", "colours"]
        return item.entry if noun or colours else Entry("things", item.entry.also)

    def _take(self, item: Item) -> None:
        entry = item.entry
        match entry.kind:
            case "colours" if self._asked:
                self.background, self._asked = entry.value, False
            case "colours":
                self._settle(item)
                self._colour, self._on = item, self._before.kind == "on"
            case "backgrounds" if self._colour is not None and self._colour.end == item.start:
                self.background, self._colour = self._colour.entry.value, None
            case "backgrounds":
                self._settle(item)
                self._asked = True
            case "things" | "hints":
                self._add(item)
            case "skins" if self.things:
                self._change(skin=f"with {entry.value} skin")
            case "numbers":
                self._count = entry.value
            case "relations":
                self._settle(item)
                self._relation, self._count = (entry.value if self.things and not self._broken else ""), ""
            case "settings":
                self.setting = self.setting or entry.value
            case "styles":
                self.style = entry.value
            case "places":
                self.place = entry.value
            case "sizes":
                self.size = entry.value
            case "unknown" | "people":  # colour and relation are about it, unless a thing follows at once
                if item.language != ENGLISH:
                    self._settle(item)
                self._relation, self._broken = "", True
            case "small" if self._broken:
                self._colour = None
            case "end":
                self._settle(item)
                self._asked, self._count = False, ""
        if entry.kind not in SILENT:
            self._before = entry

    def _add(self, item: Item) -> None:
        colour = self._colour
        if colour is not None and self.things and self.things[-1][2].end == colour.start and colour.end != item.start:
            self._settle(item)
        paint = PAINT.get(self._colour.entry.value, self._colour.entry.value) if self._colour else ""
        self.things.append((Thing(item.entry.value, paint, self._count), self._relation, item))
        self._colour, self._count, self._relation, self._broken = None, "", "", False

    def _change(self, **changes: str) -> None:
        thing, *others = self.things[-1]
        self.things[-1] = (replace(thing, **changes), *others)  # type: ignore[assignment]

    def _settle(self, item: Item) -> None:
        """Give a colour that no thing has followed to the background, or to the thing before it."""
        colour, self._colour = self._colour, None
        if colour is None or not self.things:
            return
        if colour.end == item.start or colour.start == self.things[-1][2].end:
            if self._on:
                self.background = colour.entry.value
            elif not self.things[-1][0].colour:
                self._change(colour=PAINT.get(colour.entry.value, colour.entry.value))


def article_of(word: str) -> str:
    """Return "a" or "an" for a colour or a size."""
    return "an" if word[0] in "aeiou" else "a"
