"""A prompt as a model with a vocabulary reads it: what it will draw, what it leaves out, and what it does not know.

Names are found longest first, whatever stands around them; a few small words tell how two of them belong together. There
is no grammar.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stable_diffusion.request import LORA_TAG, MAX_PROMPT

from .lexicon import EMOJI, ENDS, ENGLISH, Entry, Lexicon, Lexicons, Name, fold, read_lexicons, split

CHOICES = 4
"""The most things to choose from."""
NAMED, LETTERS = 3, 30
"""How many unknown words a sentence names, and how many letters of each."""
LISTENED = 60
"""How many units tell the language."""
HEAD_LAST = ("ja", "zh", "zh-hant", "ko")
"""Languages in which the thing that a prompt is about comes after the others."""
PAINT = {"light blue": "blue", "light green": "green", "dark blue": "blue", "beige": "brown"}
"""The colours that things have in place of those that only backgrounds have."""
WEIGHT = re.compile(r":\s*\d+(?:\.\d+)?")
"""The weight in `(fox:1.3)`."""


@dataclass(frozen=True)
class Thing:
    """A thing to draw: its name, and what the prompt says of it."""

    name: str
    colour: str = ""
    count: str = ""
    skin: str = ""

    def phrase(self, name: Name) -> str:
        """Return the words for the thing as captions have them: 'a red fox', 'two foxes'."""
        if self.count and name.several:
            return " ".join(filter(None, (self.count, self.colour, name.several)))
        article, _, noun = name.one.partition(" ") if name.one.startswith(("a ", "an ")) else ("", "", name.one)
        words = " ".join(filter(None, (self.colour, noun, self.skin)))
        if not article:
            return words
        return f"{_article(self.colour) if self.colour else article} {words}"


@dataclass(frozen=True)
class Subject:
    """One thing, or two and how the first lies to the second."""

    thing: Thing
    relation: str = ""
    partner: Thing | None = None


@dataclass(frozen=True)
class Chip:
    """A button below the prompt: its label, the prompt that it stands for, and the thing whose picture it shows."""

    label: str
    prompt: str
    thing: str


@dataclass(frozen=True)
class Reading:
    """A prompt as it was read.

    caption: what to draw, in the words of the model's captions; an empty string if nothing can be drawn.
    subjects: what the prompt may mean; the first is drawn. near: whether these are only near to its words.
    unknown: the words that the model does not know. told: whether the prompt says something else than the caption.
    """

    caption: str
    subjects: tuple[Subject, ...] = ()
    background: str = ""
    style: str = ""
    place: str = ""
    near: bool = False
    unknown: tuple[str, ...] = ()
    told: bool = False
    chips: tuple[Chip, ...] = ()

    @property
    def sentence(self) -> str:
        """A sentence in Markdown about a prompt that is not drawn as it is; empty where it is."""
        drawn = f"I draw: {self.caption}." if self.caption and self.told else ""
        named = [f"*{word[:LETTERS]}*" for word in self.unknown[:NAMED]]
        if len(self.unknown) > NAMED:
            named.append(f"{len(self.unknown) - NAMED} more")
        *first, last = named or [""]
        unknown = f"{', '.join(first)} and {last}" if first else last
        if not self.caption and not unknown and self.told:
            return "I find nothing to draw in it."
        return " ".join(filter(None, (drawn, f"I don't know {unknown}." if unknown else "")))


def read_prompt(prompt: str, folder: Path, beside: Container[str] = ()) -> Reading | None:
    """Return a prompt as the model in a directory reads it; None if the model has no vocabulary.

    `beside` has the words that embeddings add to the model, in small letters: they are kept as they are, as LoRA tags are.
    """
    lexicons = read_lexicons(folder)
    return None if lexicons is None else _Reader(lexicons, prompt[:MAX_PROMPT], beside).read()


@dataclass(frozen=True)
class _Item:
    """An entry found in the prompt, from one unit to the one before `end`; kind "unknown" where there is none."""

    entry: Entry
    start: int
    end: int
    language: str = ENGLISH


@dataclass
class _Facts:
    """What the items of a prompt state, collected from left to right."""

    things: list[tuple[Thing, str, _Item]] = field(default_factory=list)  # with the relation to the one before
    background: str = ""
    setting: str = ""
    style: str = ""
    place: str = ""


class _Reader:
    def __init__(self, lexicons: Lexicons, prompt: str, beside: Container[str]):
        self.all, self.prompt = lexicons, prompt
        self.tags = [match[0] for match in LORA_TAG.finditer(prompt)]
        self.units = split(WEIGHT.sub(" ", LORA_TAG.sub(" ", prompt)))
        self.added = [unit for unit in dict.fromkeys(self.units) if unit in beside]

    def read(self) -> Reading:
        items: list[_Item] = []
        for language in self._languages():
            for phrases in (True, False):  # where "eating pizza" is all there is, pizza is drawn
                found = self._items(self.all.lexicons[language], phrases)
                items = items or found
                facts = _facts(found)
                subjects = self._subjects(facts)
                if subjects:
                    facts.background = facts.background or facts.setting
                    return self._reading(found, subjects[:CHOICES], facts)
        return self._reading(items, self._near(), _facts(items), near=True)

    def _languages(self) -> list[str]:
        """Return the languages that the prompt may be in, the likeliest first; English before one as likely."""
        having = {code: self._covered(one) for code, one in self.all.lexicons.items() if code != EMOJI}
        having[ENGLISH] -= any(letter.isalpha() and not letter.isascii() for letter in self.prompt)
        likely = [code for code in having if code != ENGLISH and having[code] >= max(having[ENGLISH], 1)]
        return sorted([ENGLISH, *likely], key=lambda code: -having[code])[:CHOICES]

    def _covered(self, lexicon: Lexicon) -> int:
        """Return how many of the first units a lexicon has; a famous name counts twice for English."""
        units, start, count = self.units[:LISTENED], 0, 0
        while start < len(units):
            found = lexicon.find(units, start, True)
            count += found[1] + (found[0].kind == "unknown") if found else 0
            start += found[1] if found else 1
        return count

    def _items(self, lexicon: Lexicon, phrases: bool) -> list[_Item]:
        english, emoji = self.all.lexicons[ENGLISH], self.all.lexicons[EMOJI]
        others = [one for one in self.all.lexicons.values() if one not in (lexicon, english, emoji)]
        items, start = [], 0
        while start < len(self.units):
            unit = self.units[start]
            tried = [lexicon, english] if unit.isascii() else [lexicon, emoji, english, *others]
            found = None
            for one in dict.fromkeys(tried):
                found = one.find(self.units, start, phrases)
                if found:
                    items.append(_Item(found[0], start, start + found[1], one.language))
                    start += found[1]
                    break
            if not found:
                kind = "end" if ENDS.fullmatch(unit) else "unknown"
                if unit.isdigit() or unit in self.added or (len(unit) == 1 and unit.isascii()):
                    kind = kind if kind == "end" else "fall"
                items.append(_Item(Entry(kind), start, start + 1, lexicon.language))
                start += 1
        return items

    def _subjects(self, facts: _Facts) -> list[Subject]:
        """Return the things of a prompt by themselves or in pairs; mere keywords only if there is nothing else."""
        named = [thing for thing in facts.things if thing[2].entry.kind != "hints"]
        if not named:
            return [subject for hint in facts.things for subject in self._hinted(hint)]
        subjects: list[Subject] = []
        before: _Item | None = None
        for thing, relation, item in named:
            if relation and subjects and not subjects[-1].relation:
                subjects[-1] = Subject(replace(subjects[-1].thing, count=""), relation, replace(thing, count=""))
            elif (
                before and before.end == item.start and item.language == before.language == ENGLISH and not thing.colour
            ):
                colour = subjects[-1].thing.colour  # in "robot dog" the dog is meant
                subjects.insert(len(subjects) - 1, Subject(replace(thing, colour=colour)))
            else:
                subjects.append(Subject(thing))
            before = item
        unique = {subject.thing.name: subject for subject in reversed(subjects)}
        kept = [subject for subject in subjects if unique[subject.thing.name] is subject]
        if len(kept) == 1 and not kept[0].relation and not kept[0].thing.count and named[0][2].entry.many:
            kept.append(Subject(replace(kept[0].thing, count="two")))  # "cats": one is drawn better
        return kept[::-1] if named[-1][2].language in HEAD_LAST else kept

    def _hinted(self, hint: tuple[Thing, str, _Item]) -> list[Subject]:
        """Return the thing that a keyword stands for, or in English the things near to it."""
        thing, _, item = hint
        near = self.all.near.get(" ".join(self.units[item.start : item.end]), []) if not thing.name else []
        return [Subject(replace(thing, name=name)) for name in near or [thing.name] if name in self.all.names]

    def _near(self) -> list[Subject]:
        """Return the things near to the words of a prompt that names none."""
        lexicon = self.all.lexicons[ENGLISH]
        for unit in self.units:
            for form in lexicon._forms(unit):
                if form in self.all.near:
                    return [Subject(Thing(name)) for name in self.all.near[form] if name in self.all.names]
        return []

    def _reading(self, items: Sequence[_Item], subjects: list[Subject], facts: _Facts, near: bool = False) -> Reading:
        rest = [facts.style and f"{facts.style} style"]
        if facts.background:
            rest.append(f"on {_article(facts.background)} {facts.background} background")
        rest += [*self.added, *self.tags]

        def caption(subject: Subject) -> str:
            words = [self._phrase(subject.thing), subject.relation, subject.partner and self._phrase(subject.partner)]
            return ", ".join(filter(None, (" ".join(filter(None, (*words, facts.place))), *rest)))

        captions = [caption(subject) for subject in subjects]
        chips = [
            Chip(text, text, self.all.names[subject.thing.name].thing)
            for text, subject in zip(captions, subjects, strict=True)
        ]
        said = captions[0] if captions else ""
        return Reading(
            said,
            tuple(subjects),
            facts.background,
            facts.style,
            facts.place,
            near,
            tuple(map(self._as_typed, self._unknown(items))),
            _bare(split(said)) != _bare(self.units),
            tuple(chips),
        )

    def _phrase(self, thing: Thing) -> str:
        return thing.phrase(self.all.names[thing.name])

    def _as_typed(self, word: str) -> str:
        typed = re.findall(r"[^\W\d_]+", self.prompt)
        return next((one for one in typed if fold(one) == word), word)

    def _unknown(self, items: Sequence[_Item]) -> list[str]:
        """Return the unknown words, each once, but not the last while it may become a known one."""
        words: list[str] = []
        end = -1
        for item in items:
            if item.entry.kind == "unknown":
                unit = self.units[item.start]
                spoken = self.all.lexicons[item.language].spoken
                if item.start == end and not unit.isascii() and len(unit) == 1 == len(words[-1][-1:]):
                    words[-1] += unit
                elif len(unit) > (1 if spoken else 3) or not unit.isascii():
                    words.append(unit)
                else:
                    continue
                end = item.end
        typing = self.units and self.prompt[-1:].isalnum() and words and words[-1] == self.units[-1]
        if typing and self.all.begins(words[-1]):
            words.pop()
        return list(dict.fromkeys(words))


def _bare(units: list[str]) -> list[str]:
    return [unit for unit in units if unit not in ("a", "an", "the") and not ENDS.fullmatch(unit)]


def _facts(items: Sequence[_Item]) -> _Facts:
    """Collect facts. A colour belongs to the next thing, but to the one just before it if none follows at once."""
    facts = _Facts()
    colour: _Item | None = None  # that waits for its thing
    count = ""  # which waits too
    relation, waiting = "", False  # waiting: for the colour of a background
    previous = Entry("end")

    def give_back() -> None:
        """Give a colour for which no thing has come to the background, or to the thing before it."""
        nonlocal colour
        if colour is not None and facts.things:
            if on:
                facts.background = colour.entry.value
            elif not facts.things[-1][0].colour:
                thing, *others = facts.things[-1]
                facts.things[-1] = (replace(thing, colour=_paint(colour.entry.value)), *others)
        colour = None

    on = False
    for place, item in enumerate(items):
        entry = item.entry
        after = next((other.entry.kind for other in items[place + 1 :][:1]), "end")
        if entry.kind == "colours" and entry.also and after not in ("things", "hints", "backgrounds"):
            adjective = previous.kind == "things" and item.language != ENGLISH
            entry = entry if adjective or waiting or previous.kind == "on" else Entry("things", entry.also)
        if entry.kind == "colours":
            if waiting:
                facts.background, waiting = entry.value, False
            else:
                give_back()
                colour, on = replace(item, entry=entry), previous.kind == "on"
        elif entry.kind == "backgrounds":
            if colour is not None and colour.end == item.start:
                facts.background, colour = colour.entry.value, None
            else:
                give_back()
                waiting = True
        elif entry.kind in ("things", "hints"):
            last = facts.things[-1][2] if facts.things else None
            if colour is not None and last and last.end == colour.start and colour.end != item.start:
                give_back()
            thing = Thing(entry.value, _paint(colour.entry.value) if colour else "", count)
            facts.things.append((thing, relation, replace(item, entry=entry)))
            colour, count, relation = None, "", ""
        elif entry.kind == "skins" and facts.things:
            thing, *others = facts.things[-1]
            facts.things[-1] = (replace(thing, skin=f"with {entry.value} skin"), *others)
        elif entry.kind == "numbers":
            count = entry.value
        elif entry.kind == "relations":
            give_back()
            relation = entry.value if facts.things else ""
        elif entry.kind == "settings":
            facts.setting = facts.setting or entry.value
        elif entry.kind == "styles":
            facts.style = entry.value
        elif entry.kind == "places":
            facts.place = entry.value
        elif entry.kind in ("end", "unknown"):
            give_back()
            waiting = waiting and entry.kind == "unknown"
            relation = "" if entry.kind == "unknown" else relation
            count = ""
        if entry.kind != "fall":
            previous = entry
    give_back()
    return facts


def _paint(colour: str) -> str:
    return PAINT.get(colour, colour)


def _article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"
