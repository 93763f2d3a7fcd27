"""Pictures, colours and pairs that training never sees, so that evaluation can tell composing from remembering.

`heldout.json` beside this module is drawn once from a seed and committed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.dataset import recolourable, simple
from training.data.grammar import base_noun, nouns, phrases, with_article
from training.data.paint import COLOURS

HUES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
HELDOUT = Path(__file__).with_name("heldout.json")


@dataclass(frozen=True)
class Heldout:
    """Pictures (concept, style), colours of things (colour, noun) and pairs of concepts kept for evaluation."""

    cells: frozenset[tuple[str, str]] = frozenset()
    colour_nouns: frozenset[tuple[str, str]] = frozenset()
    pairs: frozenset[frozenset[str]] = frozenset()

    @classmethod
    def load(cls, path: Path | str = HELDOUT) -> Heldout:
        """Read what `choose` wrote."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(
            cells=frozenset((cell["concept"], cell["style"]) for cell in data["cells"]),
            colour_nouns=frozenset((item["colour"], item["noun"]) for item in data["colour_nouns"]),
            pairs=frozenset(frozenset(pair["concepts"]) for pair in data["pairs"]),
        )


def choose(rows: list[dict], seed: int = 0, cells: int = 104, colour_nouns: int = 32, pairs: int = 40) -> dict:
    """Draw the held-out cells, colours and pairs among everyday things that most styles show.

    A concept gives at most one cell, so that its other styles stay in training.
    """
    rng = np.random.default_rng(seed)
    everyday = set(phrases()["everyday"])
    styles: dict[str, list[dict]] = {}
    for row in rows:
        if simple(row):
            styles.setdefault(row["concept"], []).append(row)
    known = {c: found for c, found in styles.items() if len({row["style"] for row in found}) >= 5}
    usual = [c for c in known if known[c][0]["label"] in everyday]
    names = sorted({row["style"] for row in rows})
    chosen, order = [], [str(c) for c in rng.permutation(sorted(known))]
    for i in range(cells):
        style = names[i % len(names)]
        concept = next((c for c in order if any(row["style"] == style for row in known[c])), None)
        if concept is None:
            break
        order.remove(concept)
        chosen.append({"concept": concept, "label": known[concept][0]["label"], "style": style})
    vivid: dict[str, list[float]] = {}
    for concept in usual:
        found = [row["hue"] for row in known[concept] if recolourable(row)]
        if len(found) >= 3:
            vivid.setdefault(base_noun(known[concept][0]["label"]), []).extend(found)
    coloured = []
    for i, noun in enumerate(rng.permutation(sorted(vivid))[:colour_nouns]):
        unusual = [colour for colour in HUES if _foreign(COLOURS[colour][0], vivid[noun])]
        coloured += [{"colour": unusual[i % len(unusual)], "noun": str(noun)}] if unusual else []
    ends = rng.permutation(sorted(usual))
    met = [[str(a), str(b)] for a, b in zip(ends[:pairs], ends[pairs : 2 * pairs], strict=False)]
    return {
        "seed": seed,
        "cells": chosen,
        "colour_nouns": coloured,
        "pairs": [{"concepts": pair, "labels": [known[c][0]["label"] for c in pair]} for pair in met],
    }


def _foreign(hue: float, own: list[float]) -> bool:
    """Return whether a hue lies more than 60 degrees from all that a thing has by itself."""
    return all(abs((hue - other + 180) % 360 - 180) > 60 for other in own)


def prompts(data: dict, rows: list[dict]) -> list[dict]:
    """Return the same evaluation prompts each time: kind, prompt and the facts that its picture should show.

    Kinds: `cell`, `colour` and `pair` are held out of training; `seen` are everyday things on named backgrounds.
    """
    labels = {row["concept"]: row["label"] for row in rows if simple(row)}
    everyday = sorted(c for c, label in labels.items() if label in phrases()["everyday"])
    backgrounds = ("blue", "yellow", "pink", "green", "black", "orange")
    relations = ("next to", "above", "to the left of", "below", "to the right of")
    out = [{"kind": "cell", "prompt": described(cell["label"], style=cell["style"]), **cell} for cell in data["cells"]]
    for item in data["colour_nouns"]:
        words = with_article(f"{item['colour']} {item['noun']}")
        out.append({"kind": "colour", "prompt": words, **item})
    for i, pair in enumerate(data["pairs"]):
        first, second = (with_article(nouns(label)[0]) for label in pair["labels"])
        relation = relations[i % len(relations)]
        out.append({"kind": "pair", "prompt": f"{first} {relation} {second}", "relation": relation, **pair})
    for i, concept in enumerate(everyday):
        colour = backgrounds[i % len(backgrounds)]
        prompt = described(labels[concept], background=colour)
        out.append({"kind": "seen", "prompt": prompt, "concept": concept, "background": colour})
    return out


def described(label: str, *, style: str | None = None, background: str | None = None) -> str:
    """Return a thing in words, by the first noun of its label."""
    words = with_article(nouns(label)[0])
    if background:
        words += f" on {with_article(background)} background"
    return f"{words}, {style} style" if style else words


def write(data: dict, path: Path | str = HELDOUT) -> None:
    """Write a choice, one item a line."""
    parts = [f'  "seed": {data["seed"]}']
    for key in ("cells", "colour_nouns", "pairs"):
        body = ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in data[key])
        parts.append(f'  "{key}": [\n{body}\n  ]')
    Path(path).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
