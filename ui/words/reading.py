"""A prompt as a model with a vocabulary reads it: what it will draw, what it leaves out, and what it does not know.

Names are found longest first, whatever stands around them; a few small words tell how two of them belong together.
There is no grammar.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stable_diffusion.request import LORA_TAG

from .facts import Facts, Item, Thing, article_of
from .lexicon import CHARACTER, EMOJI, ENDS, ENGLISH, Entry, Lexicon, Lexicons, Name, fold, read_lexicons, split

MAX_READ, MAX_UNITS = 1000, 200
"""Characters of a prompt that are read, and units of letters and signs in them; a caption takes a tenth."""
CHOICES = 4
"""The most things to choose from."""
NAMED, LETTERS = 3, 30
"""How many unknown words a sentence names, and how many letters of each."""
LISTENED = 60
"""How many units tell the language."""
CHARACTERS = re.compile(f"({CHARACTER})+")
HEAD_LAST = ("ja", "zh", "zh-hant", "ko")
"""Languages in which the thing that a prompt is about comes after the others."""
WEIGHT = re.compile(r":\s*\d+(?:\.\d+)?")
"""The weight in `(fox:1.3)`."""


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
    subjects: what the prompt may mean; the first is drawn. unknown: the words that the model does not
    know. told: whether the prompt says something else than the caption. style: the style that the prompt names.
    """

    caption: str
    subjects: tuple[Subject, ...] = ()
    unknown: tuple[str, ...] = ()
    told: bool = False
    chips: tuple[Chip, ...] = ()
    style: str = ""

    @property
    def sentence(self) -> str:
        """A sentence in Markdown about a prompt that is drawn in other words; weights and punctuation do not count."""
        drawn = f"I draw: {self.chips[0].label}." if self.chips and self.told else ""
        named = [f"*{word[:LETTERS]}*" for word in self.unknown[:NAMED]]
        if len(self.unknown) > NAMED:
            named.append(f"{len(self.unknown) - NAMED} more")
        *first, last = named or [""]
        unknown = f"{', '.join(first)} and {last}" if first else last
        if not self.caption and not unknown and self.told:
            return "I find nothing to draw in it."
        return " ".join(filter(None, (drawn, f"I don't know {unknown}." if unknown else "")))


def read_prompt(
    prompt: str,
    folder: Path,
    beside: Collection[str] = (),
    *,
    typing: bool = False,
    seed: int | None = None,
    style: str = "",
) -> Reading | None:
    """Return a prompt as the model in a directory reads it; None if the model has no vocabulary.

    While somebody is `typing`, the last word is not called unknown as long as it may become a known one.

    A prompt that names no style gets `style` or, if that is empty, the one of the model's usual styles that `seed`
    chooses: otherwise two seeds of a prompt are two poses of one drawing.

    `beside` has the words that embeddings add to the model: they are kept as they are, as are the tags of LoRA files.
    """
    lexicons = read_lexicons(folder)
    if lexicons is None:
        return None
    if not style and seed is not None:
        style = lexicons.usual_styles[seed % len(lexicons.usual_styles)]
    return _Reader(lexicons, prompt, beside, typing, style).read()


class _Reader:
    def __init__(self, lexicons: Lexicons, prompt: str, beside: Collection[str], typing: bool, style: str):
        self.all, self.style = lexicons, style
        names = "|".join(re.escape(word) for word in sorted(beside, key=len, reverse=True))
        added = re.compile(rf"(?<!\w)(?:{names})(?!\w)" if names else r"(?!)", re.IGNORECASE)
        self.tags = [match[0] for kept in (added, LORA_TAG) for match in kept.finditer(prompt)]
        self.prompt = LORA_TAG.sub(" ", added.sub(" ", prompt))[:MAX_READ]
        self.units = split(WEIGHT.sub(" ", self.prompt))[:MAX_UNITS]
        self.typed = self.units[-1] if typing and self.units and prompt[-1:].isalnum() else ""
        self.sure = {ENGLISH}  # languages whose keywords may count

    def read(self) -> Reading:
        items: list[Item] = []
        for language in self._languages():
            for phrases in (True, False):  # where "eating pizza" is all there is, pizza is drawn
                found = self._items(self.all.lexicons[language], phrases)
                items = items or found
                facts = Facts.of(found)
                subjects = self._subjects(facts)
                if subjects:
                    facts.background = facts.background or facts.setting
                    return self._reading(found, subjects[:CHOICES], facts)
        return self._reading(items, self._near(), Facts.of(items))

    def _languages(self) -> list[str]:
        """Return the languages that the prompt may be in, the likeliest first; English before one as likely."""
        having = {code: self._covered(one) for code, one in self.all.lexicons.items() if code != EMOJI}
        foreign = any(letter.isalpha() and not letter.isascii() for letter in self.prompt)
        having[ENGLISH] -= foreign
        half = len(self.units[:LISTENED])
        ahead = {code for code in having if having[code] > having[ENGLISH]}
        self.sure = {code for code in ahead if self.all.lexicons[code].spoken or not self.prompt.isascii()} | {ENGLISH}
        likely = [
            code
            for code, one in self.all.lexicons.items()
            if code in having
            and code != ENGLISH
            and having[code] >= max(half, having[ENGLISH])
            and (code in ahead or one.spoken)
        ]
        return sorted([ENGLISH, *likely], key=lambda code: -having[code])[:CHOICES]

    def _covered(self, lexicon: Lexicon) -> int:
        """Return the number of the first units that a lexicon has, twice; keywords count once, famous names thrice."""
        units, start, count = self.units[:LISTENED], 0, 0
        worth = {"hints": 1, "people": 3}
        while start < len(units):
            entry, length = lexicon.find(units, start, True) or (Entry("end"), 1)
            count += length * worth.get(entry.kind, 2) if entry.kind != "end" else 0
            start += length
        return count

    def _items(self, lexicon: Lexicon, phrases: bool) -> list[Item]:
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
                    items.append(Item(found[0], start, start + found[1], one.language))
                    start += found[1]
                    break
            if not found:
                kind = "end" if ENDS.fullmatch(unit) else "unknown"
                if unit.isdigit() or (len(unit) == 1 and unit.isascii()):
                    kind = kind if kind == "end" else "fall"
                items.append(Item(Entry(kind), start, start + 1, lexicon.language))
                start += 1
        return items

    def _subjects(self, facts: Facts) -> list[Subject]:
        """Return the things of a prompt by themselves or in pairs; mere keywords only if there is nothing else."""
        named = [thing for thing in facts.things if thing[2].entry.kind != "hints"]
        if not named:  # other languages' keywords are too often English words
            hints = (one for one in facts.things if one[2].language in self.sure)
            return [subject for hint in hints for subject in self._hinted(hint)]
        subjects: list[Subject] = []
        before: Item | None = None
        for thing, relation, item in named:
            if relation and subjects and not subjects[-1].relation:
                subjects[-1] = Subject(replace(subjects[-1].thing, count=""), relation, replace(thing, count=""))
            elif before and not thing.colour and self._is_compound(before, item):
                if subjects[-1].partner:
                    subjects[-1] = replace(subjects[-1], partner=replace(subjects[-1].partner, name=thing.name))
                    continue
                first = subjects.pop().thing  # in "three red robot dogs" dogs are meant
                subjects.append(Subject(replace(thing, colour=first.colour, count=first.count or thing.count)))
                subjects.append(Subject(Thing(first.name)))
            else:
                subjects.append(Subject(thing))
            before = item
        unique = {subject.thing.name: subject for subject in reversed(subjects)}
        kept = [subject for subject in subjects if unique[subject.thing.name] is subject]
        if len(kept) == 1 and not kept[0].relation and not kept[0].thing.count and named[0][2].entry.many:
            kept.append(Subject(replace(kept[0].thing, count="two")))  # "cats": one is drawn better
        return kept[::-1] if named[-1][2].language in HEAD_LAST else kept

    def _is_compound(self, first: Item, second: Item) -> bool:
        """Whether the first of two things says which the second is: "a robot dog", but not "a helicopter flies"."""
        verb = second.entry.many and self.units[first.start - 1 : first.start] in (["a"], ["an"])
        return first.end == second.start and first.language == second.language == ENGLISH and not verb

    def _hinted(self, hint: tuple[Thing, str, Item]) -> list[Subject]:
        """Return the thing that a keyword stands for, or in English the things near to it."""
        thing, _, item = hint
        near = self.all.near.get(" ".join(self.units[item.start : item.end]), []) if not thing.name else []
        return [Subject(replace(thing, name=name)) for name in near or [thing.name] if name in self.all.names]

    def _near(self) -> list[Subject]:
        """Return the things near to the words of a prompt that names none."""
        lexicon = self.all.lexicons[ENGLISH]
        for unit in self.units:
            for form in lexicon.forms(unit):
                if form in self.all.near:
                    return [Subject(Thing(name)) for name in self.all.near[form] if name in self.all.names]
        return []

    def _reading(self, items: Sequence[Item], subjects: list[Subject], facts: Facts) -> Reading:
        style = facts.style or self.style
        rest = [style and f"{style} style"]
        if facts.background:
            rest.append(f"on {article_of(facts.background)} {facts.background} background")

        def label(subject: Subject) -> str:
            partner = self._phrase(subject.partner) if subject.partner else ""
            thing = replace(subject.thing, size=facts.size if facts.place else "")
            words = filter(None, (self._phrase(thing), subject.relation, partner, facts.place))
            return ", ".join(filter(None, (" ".join(words), *rest)))

        labels = [label(subject) for subject in subjects]
        chips = [
            Chip(text, ", ".join((text, *self.tags)), self._name(subject.thing).thing)
            for text, subject in zip(labels, subjects, strict=True)
        ]
        return Reading(
            caption=chips[0].prompt if chips else "",
            subjects=tuple(subjects),
            unknown=tuple(self._unknown(items, ("unknown", "people") if subjects else ("unknown", "people", "fall"))),
            told=_bare(split(labels[0] if labels else "")) != _bare(self.units),
            chips=tuple(chips),
            style=facts.style,
        )

    def _lexicon(self, item: Item) -> Lexicon:
        return self.all.lexicons[item.language]

    def _phrase(self, thing: Thing) -> str:
        return thing.phrase(self._name(thing))

    def _name(self, thing: Thing) -> Name:
        return self.all.names[self.all.drawn_as.get(thing.name, thing.name)]

    def _unknown(self, items: Sequence[Item], kinds: Sequence[str]) -> list[str]:
        """Return the words of some kinds as typed, each once."""
        typed = {fold(word): word for word in re.findall(r"[^\W\d_]+", self.prompt)}
        words: list[str] = []
        end = -1
        for item in items:
            spoken = self._lexicon(item).spoken
            for unit in self.units[item.start : item.end] if item.entry.kind in kinds else ():
                if unit.isascii() and len(unit) <= (1 if spoken else 3):
                    continue
                if item.start == end and CHARACTERS.fullmatch(words[-1] + unit):
                    words[-1] += unit
                else:
                    words.append(typed.get(unit, unit))
                end = item.end
        if self.typed and words and fold(words[-1]) == self.typed and self.all.begins(self.typed):
            words.pop()
        return list(dict.fromkeys(words))


def _bare(units: list[str]) -> list[str]:
    return [unit for unit in units if unit not in ("a", "an", "the") and not ENDS.fullmatch(unit)]
