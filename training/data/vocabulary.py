"""The words that captions name things by, and the things near other words, which the page offers in their place.

Keywords of captions are no names: "puppy" stands behind a name in a few of them, and the model draws nothing like one.
`sentences/lexicon.py` writes the file. A word is near the things that WordNet has near it, then those that have it as a
keyword. The text encoder cannot tell: it cuts an unknown word into syllables, and finds words with the same syllables
near it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

from training.data.captions import NUMBERS, PLACES, RELATIONS, SIZES, STYLES
from training.data.grammar import COLOUR_WORDS, countable, nouns, phrases, plural
from training.data.paint import BACKGROUNDS, COLOURS
from training.data.thesaurus import Thesaurus

DRAWS = "A small model, trained on emoji, draws on this computer: one thing at a time, in any colour."
"""The page's sentence about the model."""
USUAL_STYLES = ("fluent 3d", "noto", "fluent flat", "twemoji")
"""A seed chooses one of these styles where a prompt names none: the four best whose drawings differ."""
DRAWN_AS = {"girl": "child", "boy": "child"}
"""Names of which the model draws lumps, by the nearest that it draws."""
NEAREST = 3
"""How many near things are listed for a word."""
SIMILAR, SPECIAL = 0.82, 7
"""How like a thing must be (Wu and Palmer, ACL 1994, Eq. 1, from 0 to 1), and how special what they share."""
KINDS = {
    "animals-nature": ("animal", "plant", "object"),
    "food-drink": ("food", "plant", "artifact"),
    "travel-places": ("artifact", "object"),
    "objects": ("artifact", "food", "object"),
    "activities": ("artifact",),
    "people-body": ("person", "body"),
}
"""A drawing's name has its most usual meaning of these kinds."""


def words_of(text: str) -> list[str]:
    """'A t-shirt, two socks' -> ['a', 't-shirt', 'two', 'socks']."""
    return re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())


def things(rows: Iterable[dict]) -> dict[str, dict]:
    """Return a row for each name of a drawing, everyday things first; people only without a stated sex."""
    order = {label: place for place, label in enumerate(phrases()["everyday"])}
    ranked = sorted(rows, key=lambda row: (order.get(row["label"], len(order)), row["label"]))
    found: dict[str, dict] = {}
    for row in ranked:
        if re.match(r"(wo)?m[ae]n\b.", row["label"]):
            continue
        found.setdefault(nouns(row["label"])[0], row)
    return found


def known_words(rows: Iterable[dict]) -> set[str]:
    """Return every word that captions have beside keywords, with plurals."""
    names = {noun for row in rows for noun in nouns(row["label"])}
    said = {
        *names,
        *(plural(name) for name in names if countable(name)),
        *STYLES,
        *COLOUR_WORDS,
        *COLOURS,
        *BACKGROUNDS,
    }
    said |= {*NUMBERS.values(), *SIZES, *PLACES, *RELATIONS, "skin"}
    said |= {text for texts in phrases()["style_words"].values() for text in texts}
    return {word for text in said for word in words_of(text)} | set(phrases()["function"])


def by_keyword(things: dict[str, dict]) -> dict[str, list[str]]:
    """Return the things of each keyword of one word, first the things with that word in their names."""
    near: dict[str, list[str]] = {}
    for name, row in things.items():
        for word in dict.fromkeys(row["tags"] + row["keywords"]):
            if re.fullmatch("[a-z]{3,}", word):
                near.setdefault(word, []).append(name)
    for name in things:
        for word in words_of(name):  # "crossed swords" are near to a sword
            if word.endswith("s"):
                near.setdefault(word.removesuffix("s"), []).append(name)
    return {word: sorted(names, key=lambda name: word not in name) for word, names in near.items()}


def by_kind(things: dict[str, dict], thesaurus: Thesaurus) -> dict[str, list[str]]:
    """Return the things nearest in kind to each noun that can be drawn, the nearest first."""
    at: dict[str, list[tuple[str, int]]] = {}
    for name, row in things.items():
        meanings = (one for noun in nouns(row["label"]) for one in thesaurus.found.get(noun.replace(" ", "_"), ()))
        kinds = KINDS.get(row["group"], ())
        meaning = next((one for one in meanings if thesaurus.senses[one].kind in kinds), None)
        for above, far in thesaurus.above(meaning).items() if meaning else ():
            at.setdefault(above, []).append((name, far))
    rank = {name: place for place, name in enumerate(things)}
    near = {}
    for noun, meaning in thesaurus.drawable.items():
        found: dict[str, float] = {}
        for above, far in thesaurus.above(meaning).items():
            shared = 2 * thesaurus.depth(above)
            for name, other in at.get(above, ()) if thesaurus.depth(above) >= SPECIAL else ():
                found[name] = max(found.get(name, 0), shared / (shared + far + other))
        alike = [name for name, similarity in found.items() if similarity >= SIMILAR]
        if alike:
            near[noun] = sorted(alike, key=lambda name: (-found[name], rank[name]))
    return near


def vocabulary(rows: list[dict], thesaurus: Thesaurus) -> dict:
    """Return the vocabulary file: a sentence, styles, and words that it does not name by the things `near` them."""
    named, known = things(rows), known_words(rows)
    keywords, kinds = by_keyword(named), by_kind(named, thesaurus)
    near: dict[str, list[str]] = {}
    for word in sorted(
        {*thesaurus.drawable, *(keywords.keys() & thesaurus.found.keys())} - known - set(phrases()["media"])
    ):
        nearest = list(dict.fromkeys(chain(kinds.get(word, ()), keywords.get(word, ()))))[:NEAREST]
        if nearest:
            near.setdefault(", ".join(nearest), []).append(word)
    joined = {names: " ".join(words) for names, words in sorted(near.items())}
    return {"draws": DRAWS, "usual_styles": ", ".join(USUAL_STYLES), "drawn_as": DRAWN_AS, "near": joined}
