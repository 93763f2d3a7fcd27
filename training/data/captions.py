"""Training examples composed on the fly: a picture, and a caption that is true of it.

`Composer.sample` draws a recipe (one object, recoloured, placed, two objects, several), paints it on a background and
says in words what it did, so that colours, places, counts and relations mean something to the model beyond the
pairs it has seen. A background that is not named is white. The trainer adds the empty caption for guidance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data.dataset import SIDE, Dataset, recolourable, simple
from training.data.grammar import (
    COLOUR_WORDS,
    base_noun,
    countable,
    nouns,
    phrases,
    plural,
    with_article,
    without_colours,
)
from training.data.heldout import Heldout
from training.data.paint import BACKGROUNDS, COLOURS, Box, background_colour, natural_colour, paste, recolour, varied

STYLES = ("fluent 3d", "fluent color", "fluent flat", "noto", "noto blob", "twemoji", "emojitwo", "streamline")
# A prompt without a style means this one. Were all styles left out alike, it would mean the mean of the eight.
HOUSE_STYLE = "fluent 3d"
# Share of the captions that leave the style out; the four most usual of the others are left out now and then too
UNNAMED = dict.fromkeys(STYLES, 0.0) | {
    HOUSE_STYLE: 0.65,
    "fluent color": 0.14,
    "fluent flat": 0.14,
    "noto": 0.14,
    "twemoji": 0.14,
}
BY_NAME = 4 / 7  # of the captions with a style, against a synonym of `phrases.json`
# How often a drawing is taken among those of its concept. The fluent styles share one shape, which is learned first
STYLE_WEIGHTS = {
    HOUSE_STYLE: 5.0,
    "fluent color": 1.5,
    "fluent flat": 1.5,
    "noto": 1.5,
    "noto blob": 0.7,
    "twemoji": 1.5,
    "emojitwo": 0.7,
    "streamline": 0.7,
}
# Most captions are of one thing that fills the picture: people ask for it most, and the other recipes build on it
RECIPES = {"plain": 0.62, "recolour": 0.12, "place": 0.09, "pair": 0.13, "count": 0.04}
# Shares of the samples; people are 43 % of the pictures and the hardest to draw
GROUP_SHARES = {
    "animals-nature": 0.24,
    "food-drink": 0.18,
    "travel-places": 0.18,
    "objects": 0.14,
    "smileys-emotion": 0.12,
    "activities": 0.07,
    "people-body": 0.04,
    "symbols": 0.03,
}
OTHER_GROUP_SHARE = 0.01
EVERYDAY_WORTH = 3.0  # of a concept that people ask for first, against 1 for another of its group
NAMED_BACKGROUND = 0.45  # share of the pictures; the others are on white
KEYWORDS = 0.15  # share of the single things whose caption says more of them
WHOLE = 0.7  # share of the single things that reach from edge to edge; the others have a little room
MIRRORED, VARIED = 0.5, 0.75  # shares of the drawings: without them a thing and a style mean a single drawing
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
SIZES = {"tiny": (0.22, 0.30), "small": (0.34, 0.46), "large": (0.92, 1.0), "big": (0.92, 1.0)}
PLACES = {
    "in the top left corner": (0, 0),
    "in the top right corner": (1, 0),
    "in the bottom left corner": (0, 1),
    "in the bottom right corner": (1, 1),
    "at the top": (0.5, 0),
    "at the bottom": (0.5, 1),
    "on the left": (0, 0.5),
    "on the right": (1, 0.5),
    "in the center": (0.5, 0.5),
}
# How the first object lies to the second: unit step from the second to the first. None leaves the side open; here the
# first then lies on the left, as it is written: a small model that is taught both sides blends them.
RELATIONS = {
    "next to": None,
    "and": None,
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
LAYOUTS: dict[int, tuple[tuple[float, float, float], ...]] = {
    2: ((0.27, 0.5, 0.48), (0.73, 0.5, 0.48)),
    3: ((0.5, 0.27, 0.46), (0.27, 0.73, 0.46), (0.73, 0.73, 0.46)),
    4: ((0.27, 0.27, 0.46), (0.73, 0.27, 0.46), (0.27, 0.73, 0.46), (0.73, 0.73, 0.46)),
    5: ((0.2, 0.2, 0.36), (0.8, 0.2, 0.36), (0.5, 0.5, 0.36), (0.2, 0.8, 0.36), (0.8, 0.8, 0.36)),
}


@dataclass(frozen=True)
class Part:
    """One object of a picture: its row in the data set, its name and its drawing."""

    row: int
    noun: str
    picture: np.ndarray
    colour: str | None = None


class Composer:
    """Draws captioned pictures from a data set, never one that `heldout` keeps for evaluation.

    Args:
        dataset: pictures and rows, see `training.data.dataset`.
        size: side of the composed pictures in pixels.
        heldout: what to leave out; None leaves nothing out.
        recipe: the one of `RECIPES` to draw by; None draws by all, in their shares.
    """

    def __init__(
        self, dataset: Dataset, size: int = 128, heldout: Heldout | None = None, recipe: str | None = None
    ) -> None:
        if size < 8:
            raise ValueError(f"size must be at least 8 pixels, got {size}")
        if recipe is not None and recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)} or None, got {recipe!r}")
        self.dataset, self.size, self.heldout, self.recipe = dataset, size, heldout or Heldout(), recipe
        rows = dataset.rows
        kept = [i for i, row in enumerate(rows) if (row["concept"], row["style"]) not in self.heldout.cells]
        short = [i for i in kept if simple(rows[i])]
        members = {
            "plain": kept,
            "recolour": [i for i in kept if recolourable(rows[i])],
            "pair": short,
            "count": [i for i in short if any(map(countable, nouns(rows[i]["label"])))],
        }
        for recipe, part in members.items():
            if not part:
                raise ValueError(f"heldout leaves none of the {len(rows)} pictures of dataset for the recipe {recipe}")
        self._pools = {recipe: _Pool(rows, part) for recipe, part in members.items()}
        styles = {rows[i]["style"] for i in short}
        self._by_style = {style: _Pool(rows, [i for i in short if rows[i]["style"] == style]) for style in styles}
        self._natural: dict[int, str | None] = {}

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, str, dict]:
        """Return one example: rgb (size, size, 3) uint8, its caption, and the facts that the caption states.

        Facts: recipe, concepts, labels, rows, style, colours, background (name), background_rgb, size, place, relation,
        count; None where the recipe has no such thing.
        """
        recipe = self.recipe or str(rng.choice(list(RECIPES), p=list(RECIPES.values())))
        facts: dict[str, Any] = {"recipe": recipe, "size": None, "place": None, "relation": None, "count": 1}
        parts, boxes, words = getattr(self, f"_{recipe}")(rng, facts)
        background, rgb = self._background(rng, parts)
        canvas = Image.new("RGB", (self.size, self.size), rgb)
        for part, box in zip(parts, boxes, strict=True):
            paste(canvas, part.picture, box)
        rows = [self.dataset.rows[part.row] for part in parts]
        facts |= {
            "rows": [part.row for part in parts],
            "concepts": [row["concept"] for row in rows],
            "labels": [row["label"] for row in rows],
            "style": rows[0]["style"],
            "colours": [part.colour for part in parts],
            "background": background or "white",
            "background_rgb": rgb,
        }
        return np.array(canvas), self._caption(rng, words, parts, background), facts

    def reference(self, row: int) -> tuple[np.ndarray, str]:
        """Return picture `row` on white, (size, size, 3) uint8, and its caption with the style named."""
        canvas = Image.new("RGB", (self.size, self.size), BACKGROUNDS["white"])
        paste(canvas, self.dataset.pictures[row], Box())
        facts = self.dataset.rows[row]
        return np.array(canvas), f"{with_article(nouns(facts['label'])[0])}{_skin(facts)}, {facts['style']} style"

    # Recipes: each returns the objects, where they lie and the words for them

    def _plain(self, rng: np.random.Generator, facts: dict) -> tuple[list[Part], list[Box], str]:
        part = self._part(rng, self._pools["plain"].draw(rng))
        side = 1.0 if rng.random() < WHOLE else rng.uniform(0.85, 1.0)
        return [part], [Box(side=side)], self._phrase(part)

    def _recolour(self, rng: np.random.Generator, facts: dict) -> tuple[list[Part], list[Box], str]:
        part = self._coloured(rng, self._pools["recolour"].draw(rng))
        return [part], [Box()], self._phrase(part)

    def _place(self, rng: np.random.Generator, facts: dict) -> tuple[list[Part], list[Box], str]:
        part = self._part(rng, self._pools["pair"].draw(rng))
        size = str(rng.choice(list(SIZES))) if rng.random() < 0.6 else None
        where = None
        side = rng.uniform(*SIZES[size]) if size else rng.uniform(0.42, 0.56)
        x = y = 0.5
        if size is None or (size in ("tiny", "small") and rng.random() < 0.6):
            where = str(rng.choice(list(PLACES)))
            x, y = (side / 2 + 0.02 + at * (0.96 - side) for at in PLACES[where])
        facts |= {"size": size, "place": where}
        words = with_article(f"{size} {part.noun}" if size else part.noun)
        return [part], [Box(x, y, side)], f"{words} {where}" if where else words

    def _pair(self, rng: np.random.Generator, facts: dict) -> tuple[list[Part], list[Box], str]:
        first = self._pools["pair"].draw(rng)
        pool = self._by_style[self.dataset.rows[first]["style"]]
        second = next((i for i in (pool.draw(rng) for _ in range(20)) if self._may_meet(first, i)), None)
        if second is None:
            facts["recipe"] = "plain"
            return self._plain(rng, facts)
        parts = [
            self._coloured(rng, i) if recolourable(self.dataset.rows[i]) and rng.random() < 0.3 else self._part(rng, i)
            for i in (first, second)
        ]
        relation = str(rng.choice(list(RELATIONS)))
        step = RELATIONS[relation] or (-1, 0)
        side = rng.uniform(0.44, 0.5)
        boxes = [Box(0.5 + sign * 0.25 * step[0], 0.5 + sign * 0.25 * step[1], side) for sign in (1, -1)]
        facts |= {"relation": relation, "count": 2}
        return parts, boxes, f"{self._phrase(parts[0])} {relation} {self._phrase(parts[1])}"

    def _count(self, rng: np.random.Generator, facts: dict) -> tuple[list[Part], list[Box], str]:
        row = self._pools["count"].draw(rng)
        names = [noun for noun in nouns(self.dataset.rows[row]["label"]) if countable(noun)]
        part = self._part(rng, row, str(rng.choice(names)))
        count = int(rng.choice(list(LAYOUTS), p=[0.35, 0.35, 0.2, 0.1]))
        facts["count"] = count
        return [part] * count, [Box(*box) for box in LAYOUTS[count]], f"{NUMBERS[count]} {plural(part.noun)}"

    # Their ingredients

    def _part(self, rng: np.random.Generator, row: int, noun: str | None = None) -> Part:
        facts = self.dataset.rows[row]
        return Part(row, noun or str(rng.choice(nouns(facts["label"]))), self._drawing(rng, row))

    def _drawing(self, rng: np.random.Generator, row: int) -> np.ndarray:
        """Return the artwork, (S, S, 4) uint8: now and then mirrored, where that stays true, and mostly varied."""
        picture = self.dataset.pictures[row]
        if self.dataset.rows[row]["flip"] and rng.random() < MIRRORED:
            picture = picture[:, ::-1]
        return varied(picture, rng) if rng.random() < VARIED else picture

    def _coloured(self, rng: np.random.Generator, row: int) -> Part:
        """Return the object in a named colour: now and then its own, else another one."""
        facts = self.dataset.rows[row]
        allowed = [name for name in COLOURS if (name, base_noun(facts["label"])) not in self.heldout.colour_nouns]
        own = self._own_colour(row)
        picture = self._drawing(rng, row)
        noun = without_colours(str(rng.choice(nouns(facts["label"]))))
        if own in allowed and rng.random() < 0.3:
            return Part(row, f"{own} {noun}", picture, own)
        colour = str(rng.choice([name for name in allowed if name != own]))
        return Part(row, f"{colour} {noun}", recolour(picture, facts["hue"], colour), colour)

    def _own_colour(self, row: int) -> str | None:
        if row not in self._natural:
            facts = self.dataset.rows[row]
            plain = facts["chroma"] > 0.6 and facts["unity"] > 0.85
            self._natural[row] = natural_colour(self.dataset.pictures[row], facts["hue"]) if plain else None
        return self._natural[row]

    def _may_meet(self, first: int, second: int) -> bool:
        one, other = self.dataset.rows[first]["concept"], self.dataset.rows[second]["concept"]
        return one != other and frozenset((one, other)) not in self.heldout.pairs

    def _phrase(self, part: Part) -> str:
        return with_article(part.noun) + _skin(self.dataset.rows[part.row])

    def _background(self, rng: np.random.Generator, parts: list[Part]) -> tuple[str | None, tuple[int, int, int]]:
        """Return a named background that no object has the colour of, or None and white."""
        taken = {part.colour for part in parts}
        if rng.random() >= NAMED_BACKGROUND and "white" not in taken:
            return None, BACKGROUNDS["white"]
        name = str(rng.choice([name for name in BACKGROUNDS if name not in taken]))
        return name, background_colour(name, rng)

    def _caption(self, rng: np.random.Generator, words: str, parts: list[Part], background: str | None) -> str:
        facts = self.dataset.rows[parts[0].row]
        pieces = [words]
        if len(parts) == 1 and rng.random() < KEYWORDS:
            pieces += _keywords(rng, facts)
        pieces += _style_words(rng, facts["style"])
        if background is not None:
            phrase = f"on {with_article(background + ' background')}"
            if rng.random() < 0.3:
                pieces[0] += f" {phrase}"
            else:
                pieces.append(phrase)
        return ", ".join(pieces)


class _Pool:
    """Rows to draw from: groups by their share, concepts by their worth, a concept's drawings by their style."""

    def __init__(self, rows: list[dict], members: Iterable[int]) -> None:
        self.members = np.array(list(members))
        everyday = set(phrases()["everyday"])
        groups: dict[str, dict[str, list[int]]] = {}
        for i in self.members:
            groups.setdefault(rows[i]["group"], {}).setdefault(rows[i]["concept"], []).append(int(i))
        weights: dict[int, float] = {}
        for group, concepts in groups.items():
            worth = {c: EVERYDAY_WORTH if rows[m[0]]["label"] in everyday else 1.0 for c, m in concepts.items()}
            total = sum(worth.values())
            for concept, rest in concepts.items():
                styles = [STYLE_WEIGHTS[rows[i]["style"]] for i in rest]
                share = GROUP_SHARES.get(group, OTHER_GROUP_SHARE) * worth[concept] / total / sum(styles)
                weights |= {i: share * style for i, style in zip(rest, styles, strict=True)}
        self._edges = np.cumsum([weights[int(i)] for i in self.members])

    def draw(self, rng: np.random.Generator) -> int:
        at = np.searchsorted(self._edges, rng.random() * self._edges[-1], side="right")
        return int(self.members[min(at, len(self.members) - 1)])


def _skin(row: dict) -> str:
    return "" if row["skin_tone"] == "default" else f" with {row['skin_tone']} skin"


def _style_words(rng: np.random.Generator, style: str) -> list[str]:
    """Return the style by its name or by a synonym, or nothing."""
    if rng.random() < UNNAMED[style]:
        return []
    if rng.random() < BY_NAME:
        return [f"{style} style"]
    return [str(rng.choice(phrases()["style_words"][style]))]


def without_style(caption: str) -> str:
    """Return a caption without its style where captions leave that style out now and then, else unchanged."""
    left_out = {
        text
        for style, share in UNNAMED.items()
        if share
        for text in (f"{style} style", *phrases()["style_words"][style])
    }
    return ", ".join(piece for piece in caption.split(", ") if piece not in left_out)


def _keywords(rng: np.random.Generator, row: dict) -> list[str]:
    """Return one to three keywords that say something new, without colours: not every style draws a car in red."""
    said = set(re.findall(r"[a-z]+", row["label"].lower()))
    known = dict.fromkeys(w for w in row["tags"] + row["keywords"] if re.fullmatch(r"[a-z]{3,}( [a-z]+)?", w))
    words = [w for w in known if not said.issuperset(w.split()) and not COLOUR_WORDS & set(w.split())]
    if not words:
        return []
    return [str(w) for w in rng.choice(words, min(int(rng.integers(1, 4)), len(words)), replace=False)]


@cache
def _composer(root: Path, heldout: str | None, size: int, recipe: str | None) -> Composer:
    """Return the composer of a worker process, made once: reading the index costs as much as hundreds of pictures."""
    return Composer(
        Dataset.load(root, max(size, SIDE)), size, None if heldout is None else Heldout.load(heldout), recipe
    )


def _compose_range(job: tuple[Path, Path, str | None, int, str | None, int, int, int]) -> list[tuple[str, dict]]:
    root, out, heldout, size, recipe, seed, start, stop = job
    composer = _composer(root, heldout, size, recipe)
    pictures = np.load(out, mmap_mode="r+")
    said = []
    for i in range(start, stop):
        pictures[i], caption, facts = composer.sample(np.random.default_rng((seed, i)))
        said.append((caption, facts))
    pictures.flush()
    return said


def compose_many(
    n: int,
    seed: int,
    out: Path | str,
    root: Path | str = "data/emoji",
    heldout: Path | str | None = "training/data/heldout.json",
    size: int = 128,
    workers: int = 2,
    recipe: str | None = None,
) -> list[str]:
    """Compose `n` examples into `out/pictures.npy` (uint8 (n, size, size, 3)), `captions.json` and `facts.json`.

    Example i depends on `seed`, `recipe` and i alone, not on `n` or `workers`. Returns the captions.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(out / "pictures.npy", "w+", np.uint8, (n, size, size, 3)).flush()
    step = 500
    jobs = [
        (
            Path(root),
            out / "pictures.npy",
            None if heldout is None else str(heldout),
            size,
            recipe,
            seed,
            start,
            min(start + step, n),
        )
        for start in range(0, n, step)
    ]
    with Pool(workers) as pool:
        captions, facts = zip(*(said for part in pool.imap(_compose_range, jobs) for said in part), strict=True)
    for name, listed in (("facts", facts), ("captions", captions)):
        (out / f"{name}.json").write_text(json.dumps(listed, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return list(captions)
