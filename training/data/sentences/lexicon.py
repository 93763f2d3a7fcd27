"""Write the words that the page reads prompts by: `python -m training.data.sentences.lexicon`.

`vocabulary.json` has the names of everything that the model draws, the English words for them, and the words that
change nothing of a picture; `names.json.xz` has names in the other languages of `emojibase-data` (MIT). `reading.json`
beside this module has words by hand. A WordNet noun stands for a thing that it is a kind of if that is what it mostly
means, by the counts of meanings that come with WordNet; a word that is mostly a verb or an adjective changes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from training.data.artwork import fetch, sources
from training.data.captions import NUMBERS, SIZES, STYLES
from training.data.grammar import article, countable, nouns, phrases, plural
from training.data.paint import BACKGROUNDS
from training.data.thesaurus import Thesaurus
from training.data.vocabulary import KINDS, things, vocabulary

from .kinds import by_hand, usual_words
from .language import word_list
from .names import LocalNames, read_local_names

VARIANT = re.compile(r"(wo)?m[ae]n\b.")
"""Labels of people whose sex is stated: the same thing again, which the wall of pictures leaves out."""
OCCASIONS = ("red heart", "party popper", "birthday cake", "Christmas tree", "jack-o-lantern", "sunrise")
"""Labels whose words in `kinds.json` are occasions: near to the thing, but not a name of it."""
MISLEADING = ("black cat", "wooden log", "herb", "baby", "artist", "scientist", "judge", "technologist")
"""Names whose meaning in WordNet is another one, or has kinds that nobody would see in the picture."""
MOSTLY, FARTHEST = 0.6, 3
"""Share of a noun's uses that its meaning must have to stand for a thing, and the most steps to that thing."""
SHARED = 12
"""Most emoji that may have a keyword of another language for it to stand for one of them."""
SHAPES = re.compile("(circle|square|heart|Claus)$")
"""Labels whose keywords are colours and occasions."""
OTHER_WORDS = (
    "openings",
    "actions",
    "settings",
    "links",
    "qualities",
    "keyword_openings",
    "keyword_endings",
    "endings",
)
"""Word lists of a language that change nothing of a picture."""
OPPOSITE = {"above": "below", "below": "above", "to the left of": "to the right of"} | {
    "to the right of": "to the left of"
}


@cache
def reading() -> dict[str, Any]:
    """Return the words by hand of `reading.json`."""
    return json.loads(Path(__file__).with_name("reading.json").read_text(encoding="utf-8"))


def listed(text: str) -> list[str]:
    """'a, b c' -> ['a', 'b c']."""
    return [word for word in text.split(", ") if word]


# English


def names(rows: Iterable[dict]) -> dict[str, dict[str, str]]:
    """Return all names by group, everyday things first; 'automobile' has 'an|automobile|automobiles|car'.

    These are its article, itself, its plural, and the most usual name of the same thing.
    """
    order = {label: place for place, label in enumerate(phrases()["everyday"])}
    found: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: order.get(row["label"], len(order))):
        group = "variants" if VARIANT.match(row["label"]) else row["group"]
        first, *others = nouns(row["label"])
        for name in (first, *others):
            if name not in seen:
                seen.add(name)
                several = plural(name) if countable(name) and not name.endswith("s") else ""
                found.setdefault(group, {})[name] = f"{article(name)}|{name}|{several}|{first}"
    return found


class Counts:
    """How often the tagged texts of WordNet mean each meaning of a word."""

    def __init__(self, archive: Path):
        self.meanings: dict[tuple[str, str], int] = {}
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        with tarfile.open(archive) as tar:
            handle = tar.extractfile("package/dict/index.sense")
            assert handle is not None, "a regular file"
            for line in io.TextIOWrapper(handle, "latin-1"):
                key, offset, _, count = line.split()  # senseidx(5WN)
                word, _, sense = key.partition("%")
                self.kinds[word][sense[0]] += int(count)
                if sense[0] == "1":
                    self.meanings[word, offset] = int(count)

    def mostly(self, word: str, meaning: str, senses: int) -> bool:
        """Return whether a noun mostly has a meaning. One that the texts don't have is only a noun, of two meanings."""
        total = self.kinds[word].total()
        if total:
            return self.meanings.get((word, meaning), 0) >= MOSTLY * total
        return self.kinds[word].keys() == {"1"} and senses <= 2

    def noun(self, word: str) -> bool:
        """Return whether a word is a noun at least as often as anything else."""
        counts = self.kinds[word]
        return "1" in counts and 2 * counts["1"] >= counts.total()


def kinds(rows: list[dict], thesaurus: Thesaurus, counts: Counts) -> dict[str, list[str]]:
    """Return other words for the things by name: by hand, by the last word of a name, and kinds of them by WordNet."""
    named = things(rows)
    taken = {name for row in rows for noun in nouns(row["label"]) for name in (noun, plural(noun))}
    taken |= set(listed(reading()["unknown"]))
    found: dict[str, list[str]] = {name: [] for name in named}

    def add(name: str, word: str) -> None:
        if word not in taken:
            taken.add(word)
            found.setdefault(name, []).append(word)

    for name, words in reading()["kinds"].items():
        if name not in taken:
            raise ValueError(f"reading.json has other words for {name}, which is not a name of any thing")
        for word in listed(words):
            add(name, word)
    taken |= set(listed(reading()["fall"]))
    for label, others in by_hand().items():
        for word in others if label not in OCCASIONS else ():
            add(nouns(label)[0], word)
    for noun, name in _special(named, thesaurus, counts):
        add(name, noun)
    return {name: words for name, words in found.items() if words}


def _special(named: Mapping[str, dict], thesaurus: Thesaurus, counts: Counts) -> Iterable[tuple[str, str]]:
    """Yield usual nouns with the name of the thing that they are a kind of."""
    meant: dict[str, str] = {}
    for name, row in named.items():
        for noun in nouns(row["label"]) if name not in MISLEADING else ():
            senses = thesaurus.found.get(noun.lower().replace(" ", "_"), ())
            kind = KINDS.get(row["group"], ())
            sense = next((one for one in senses if thesaurus.senses[one].kind in kind), None)
            if sense is not None:
                meant.setdefault(sense, name)
    for noun, senses in thesaurus.found.items():
        words, sense = noun.split("_"), senses[0]
        usual = re.fullmatch(r"[a-z]{3,}(_[a-z]{3,})?", noun) and usual_words().issuperset(words)
        if not usual or noun not in thesaurus.senses[sense].words or not counts.mostly(noun, sense, len(senses)):
            continue
        above = thesaurus.above(sense)
        far, name = min(((far, meant[one]) for one, far in above.items() if one in meant), default=(FARTHEST + 1, ""))
        if far <= FARTHEST and thesaurus.senses[sense].kind and not name.endswith(words[-1]):
            yield noun.replace("_", " "), name


def falling(thesaurus: Thesaurus, counts: Counts) -> list[str]:
    """Return English words that change nothing of a picture: usual ones that are mostly no nouns, and places."""
    said = {*listed(reading()["fall"]), *phrases()["function"], *phrases()["media"]}
    words = word_list("en")
    for part in (*OTHER_WORDS, "adjectives", "owners"):
        for phrase in words[part]:
            plain = re.sub(r"[^\w' -]", "", phrase.replace("{}", "")).strip()
            said |= {plain, *plain.split()} if part != "links" else set(plain.split())
    for words_of_setting in reading()["settings"].values():
        among = re.compile(rf"\b({'|'.join(listed(words_of_setting))})\b")
        said = {phrase for phrase in said if not among.search(phrase)}
    for word in counts.kinds:
        usual = counts.kinds[word].total() or word in usual_words()
        if word.isalpha() and len(word) > 1 and usual and not counts.noun(word):
            said.add(word)
        elif word.isalpha() and "2" in counts.kinds[word]:  # "spraying"
            said.add(word.removesuffix("e") + "ing")
    for word, senses in thesaurus.found.items():
        first = thesaurus.senses[senses[0]]
        if first.place and word in usual_words() and counts.mostly(word, senses[0], len(senses)):
            said.add(word)
    return sorted(said - {""})


def english(rows: list[dict], thesaurus: Thesaurus, counts: Counts) -> dict[str, Any]:
    """Return the English words by what they stand for."""
    words = word_list("en")
    styles = {style: [f"{style} style", *phrases()["style_words"][style]] for style in STYLES}
    others = kinds(rows, thesaurus, counts)
    singular = {word for some in others.values() for word in some} | {
        noun for row in rows for noun in nouns(row["label"])
    }
    fall = [word for word in falling(thesaurus, counts) if word.removesuffix("s") not in singular]
    nouns_only = usual_words() & thesaurus.found.keys() - singular - {*fall, *phrases()["function"]}
    return {
        "fall": fall,
        "things": others,
        "hints": {"": list(reading()["hints"])},
        "small": [*phrases()["function"], *listed(reading()["small"]["en"])],
        "colours": words["colours"],
        "numbers": {NUMBERS[int(number)]: _around(patterns[:2]) for number, patterns in words["numbers"].items()}
        | {"five": ["five", "5", "six", "seven", "eight", "nine", "ten", "many", "several", "dozens of", "lots of"]},
        "places": words["places"],
        "sizes": {size: [size] for size in SIZES},
        "relations": relations(words["relations"]),
        "people": words["names"],
        "unknown": [*listed(reading()["unknown"]), *sorted(nouns_only)],
        "skins": words["skins"],
        "styles": styles,
        "backgrounds": listed(reading()["backgrounds"]["en"]),
        "settings": {colour: listed(words) for colour, words in reading()["settings"].items()},
        "on": listed(reading()["on"]),
    }


# Other languages


def _around(patterns: Iterable[str]) -> list[str]:
    """Return the words before or after the gap of patterns that have one: '两只{}' -> '两只'."""
    return [pattern.replace("{}", "").strip() for pattern in patterns]


def relations(patterns: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return the words between two things by their relation; 'with' and verbs are none, as things are with others."""
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for relation, listed_patterns in patterns.items():
        for pattern in listed_patterns:
            straight, turned = re.fullmatch(r"\{\}(.+)\{\}", pattern), re.fullmatch(r"\{1\}(.+)\{0\}", pattern)
            between = (straight or turned or [""])[1 if straight or turned else 0].strip()
            kept = re.search(r"[\w&]", between) and between not in {*listed(reading()["with"]), *taken}
            if kept and not between.endswith("ing") and (between == relation or between not in patterns):
                taken.add(between)
                found.setdefault(OPPOSITE.get(relation, relation) if turned else relation, []).append(between)
    return found


def local(code: str, local_names: Mapping[str, LocalNames], rows: Mapping[str, dict]) -> dict[str, Any]:
    """Return a language's words by what they stand for; `rows` has a row of the data set for each emoji."""
    words = word_list(code)
    order = {label: place for place, label in enumerate(phrases()["everyday"])}
    found: dict[str, list[str]] = {}
    taken: set[str] = set()

    def add(to: dict[str, list[str]], concept: str, word: str) -> None:
        if word.lower() not in taken:
            taken.add(word.lower())
            to.setdefault(nouns(rows[concept]["label"])[0], []).append(word)

    ranked = sorted(
        (one for one, row in rows.items() if one in local_names and not VARIANT.match(row["label"])),
        key=lambda concept: order.get(rows[concept]["label"], len(order)),
    )
    concepts = {rows[concept]["label"]: concept for concept in ranked}
    for label, by_hand_words in sorted(words.get("things", {}).items(), key=lambda item: item[0].endswith(" face")):
        for word in by_hand_words:
            add(found, concepts[label], word)
    for name, more in reading()["things_by_language"].get(code, {}).items():
        for word in listed(more):
            add(found, next(one for one in ranked if name in nouns(rows[one]["label"])), word)
    for concept in ranked:
        add(found, concept, local_names[concept].name)
    hints: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = defaultdict(list)
    for concept in ranked:
        for tag in local_names[concept].keywords:
            if " " not in tag and (len(tag) > 2 or not tag.isascii()) and not SHAPES.search(rows[concept]["label"]):
                shared[tag].append(concept)
    for tag, having in shared.items():
        if len(having) <= SHARED:
            best = max(
                having, key=lambda one: (rows[one]["label"] in order, tag in local_names[one].name.lower().split())
            )
            add(hints, best, tag)
    by_hand_numbers = listed(reading()["numbers_by_language"].get(code, ""))
    colours = words.get("colours") or local_colours(local_names, rows)
    return {
        "things": found,
        "hints": hints,
        "colours": colours,
        "numbers": {NUMBERS[int(number)]: _around(patterns) for number, patterns in words.get("numbers", {}).items()}
        or dict(zip(NUMBERS.values(), map(str.split, by_hand_numbers), strict=False)),
        "places": {} if words.get("joined") else words.get("places", {}),
        "relations": relations(words.get("relations", {})),
        "backgrounds": listed(reading()["backgrounds"].get(code, "")),
        "fall": _local_fall(words),
        "small": [
            *listed(reading()["small"].get(code, "")),
            *words.get("determiners", ()),
            *words.get("adjectives", ()),
        ],
    }


def _local_fall(words: Mapping[str, Any]) -> list[str]:
    """Return the words of a language that change nothing of a picture."""
    said: set[str] = set()
    for part in OTHER_WORDS:
        for phrase in words.get(part, ()):
            plain = phrase.replace("{}", " ").strip()
            said |= {plain} if "{}" not in phrase else set()
            said |= set(plain.split())
    return sorted(said - {""})


def local_colours(local_names: Mapping[str, LocalNames], rows: Mapping[str, dict]) -> dict[str, list[str]]:
    """Return a language's colours: what the names of circles, squares and hearts of several colours don't share."""
    found: dict[str, list[str]] = {}
    for shape in ("circle", "square", "heart"):
        named = {}
        for concept, row in rows.items():
            colour = row["label"].replace("grey", "gray").removesuffix(f" {shape}")
            if row["label"].endswith(f" {shape}") and colour in BACKGROUNDS and concept in local_names:
                named[colour] = local_names[concept].name.lower().split()
        if all(len(words) == 1 for words in named.values()):  # written without spaces, or as one word
            start, end = _shared(named.values(), 1), _shared(named.values(), -1)
            named = {colour: [words[0][start : len(words[0]) - end]] for colour, words in named.items()}
        common = Counter(word for words in named.values() for word in set(words))
        for colour, words in named.items():
            own = [word for word in words if common[word] < len(named) / 2]
            if len(own) == 1 and own[0] not in found.get(colour, ()):
                found.setdefault(colour, []).append(own[0])
    return found


def _shared(words: Iterable[list[str]], step: int) -> int:
    """Return how many letters words have in common from the start, or for a step of -1 from the end."""
    columns = zip(*(word[::step] for [word] in words), strict=False)
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, columns))


def joined(lexicon: Mapping[str, Any]) -> dict[str, Any]:
    """Return a lexicon with each list as one string; empty parts are left out."""
    flat = {
        part: ", ".join(filter(None, dict.fromkeys(words)))
        if isinstance(words, list)
        else {name: ", ".join(dict.fromkeys(some)) for name, some in words.items() if some}
        for part, words in lexicon.items()
    }
    return {part: words for part, words in flat.items() if words}


def main() -> None:
    """Write both files into the model's directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/emoji"), help="the data set that the model learned")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"), help="where the npm archives are kept")
    parser.add_argument("--out", type=Path, default=Path("assets/models/emoji"), help="the model's directory")
    args = parser.parse_args()
    rows = json.loads((args.root / "index.json").read_text(encoding="utf-8"))
    package = sources()["thesaurus"]
    archive = fetch(package["package"], package["version"], args.cache)
    thesaurus = Thesaurus.read(archive)
    written = vocabulary(rows, thesaurus)
    words = english(rows, thesaurus, Counts(archive))
    near = {word: others for others, some in written["near"].items() for word in some.split()}
    near = {word: others for word, others in near.items() if word not in words["fall"]}
    near |= reading()["hints"] | reading()["near"]
    grouped: dict[str, list[str]] = {}
    for word, others in sorted(near.items()):
        grouped.setdefault(others, []).append(word)
    written["near"] = {others: ", ".join(words) for others, words in sorted(grouped.items())}
    written["names"] = names(rows)
    written["words"] = joined(words)
    path = args.out / "vocabulary.json"
    path.write_text(json.dumps(written, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")

    concepts = {row["concept"]: row for row in rows}
    languages = read_local_names(args.cache)
    emoji = {concept: found.emoji for concept, found in languages["de"].items()}
    content = {code: joined(local(code, found, concepts)) for code, found in languages.items()}
    pictures: dict[str, list[str]] = {}
    for concept, row in concepts.items():
        characters = "".join(chr(int(code, 16)) for code in concept.split("-"))
        pictures.setdefault(nouns(row["label"])[0], []).append(emoji.get(concept) or characters)
    content["emoji"] = joined({"things": pictures})
    path = args.out / "names.json.xz"
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    path.write_bytes(lzma.compress(text.encode(), preset=9))
    print(f"{path}: {len(content) - 1} languages, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
