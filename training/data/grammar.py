"""English for captions: names of things, articles and plurals."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

COLOUR_WORDS = frozenset(
    "black blond blue brown gold golden gray green grey orange pink purple red silver teal white yellow".split()  # noqa: SIM905
)
PREPOSITIONS = frozenset("at behind for from in of on showing with without".split())  # noqa: SIM905


@cache
def phrases() -> dict:
    """Return the word lists of `phrases.json`."""
    return json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))


@cache
def nouns(label: str) -> tuple[str, ...]:
    """Names of a thing without article, the most usual first: 'automobile' -> ('car', 'automobile')."""
    listed = phrases()["names"].get(label)
    if listed is not None:
        return tuple(listed)
    text = label.replace("’", "'")
    if m := re.fullmatch(r"(.+): (.+)", text):
        text = f"{m[2]} {m[1]}" if m[2] == "bald" else f"{m[1]} with {'a beard' if m[2] == 'beard' else m[2]}"
    elif text.endswith("o'clock"):
        text = f"clock showing {text}"
    return (text,)


@cache
def _everyday() -> re.Pattern:
    words = {noun for label in phrases()["everyday"] for name in nouns(label) for noun in (name, plural(name))}
    words -= COLOUR_WORDS  # an orange is one, its background is not
    return re.compile(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b")


def everyday(caption: str) -> bool:
    """Return whether a caption names one of the everyday things that `phrases.json` lists."""
    return _everyday().search(caption) is not None


def article(noun: str) -> str:
    """'a', 'an', 'the' or '' by the sound of the first word and by whether the noun takes one at all."""
    lists = phrases()
    if noun in lists["the"]:
        return "the"
    # "red grapes" and "small scissors" go without, as "grapes" and "scissors" do, but not "a face with smiling eyes"
    words = noun.split()
    ends = [noun] if PREPOSITIONS & set(words) else [" ".join(words[i:]) for i in range(len(words))]
    if any(end in lists["bare"] for end in ends) or re.match(r"(two|people|men|women) ", noun):
        return ""
    return "an" if re.match(r"(?i)(?!eu|ewe|uni|u[ft]|one|once|ukulele)([aeiou]|hour|x-ray|suv\b|ufo\b)", noun) else "a"


def with_article(noun: str) -> str:
    """'octopus' -> 'an octopus', 'grapes' -> 'grapes'."""
    return f"{article(noun)} {noun}".strip()


def countable(noun: str) -> bool:
    """Return whether `plural` can be trusted with a noun: one or two plain words, the last not a participle."""
    plain = re.fullmatch(r"[a-z]+( [a-z]+)?", noun) is not None and re.search(r"[a-z]{3}ing$", noun) is None
    return plain and article(noun) in ("a", "an")


def plural(noun: str) -> str:
    """'cat' -> 'cats', 'red fox' -> 'red foxes', 'mouse' -> 'mice'."""
    words = noun.split()
    for i in range(len(words)):
        if " ".join(words[i:]) in phrases()["plurals"]:
            return " ".join([*words[:i], phrases()["plurals"][" ".join(words[i:])]])
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def without_colours(text: str) -> str:
    """'red apple' -> 'apple', 'light blue heart' -> 'heart'; a name that is nothing but a colour stays."""
    words = re.sub(rf"\b((light|dark) )?({'|'.join(sorted(COLOUR_WORDS))})\b", " ", text, flags=re.IGNORECASE).split()
    return " ".join(words) or text


def base_noun(label: str) -> str:
    """The name that things of all colours share: 'green apple' and 'red apple' -> 'apple'."""
    return without_colours(nouns(label)[0])
