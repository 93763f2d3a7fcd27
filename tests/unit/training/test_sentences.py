"""Sentences for the facts of composed pictures: complete word lists, true plain captions, and the first noun first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from stable_diffusion.loading.config import BUNDLED
from training.data.captions import PLACES, RELATIONS, SIZES
from training.data.paint import BACKGROUNDS, COLOURS
from training.data.sentences import paraphraser as module
from training.data.sentences.language import FOLDER, word_list
from training.data.sentences.names import OWN_WORD, local_names
from training.data.sentences.paraphraser import Paraphraser
from training.data.sentences.scene import Scene, plain_caption
from training.data.thesaurus import Sense, Thesaurus
from training.networks.train_text_encoder import Examples, facts_of

LISTED = sorted(path.stem for path in FOLDER.glob("*.json"))
LABELS = {"1f98a": ("fox", "animals-nature"), "1f355": ("pizza", "food-drink"), "1f511": ("key", "objects")}
ROWS = [
    {
        "label": label,
        "concept": concept,
        "group": group,
        "tags": [],
        "keywords": [],
        "skin_tone": "default",
        "style": "noto",
        "chroma": 0.8,
        "unity": 0.8,
    }
    for concept, (label, group) in LABELS.items()
]
NAMES = {"1f98a": "Fuchs", "1f355": "Pizza", "1f511": "Schlüssel"}
FACTS: dict[str, Any] = {
    **{"rows": [0], "labels": ["fox"], "concepts": ["1f98a"], "colours": [None], "style": "noto", "count": 1},
    **{"background": "white", "relation": None, "size": None, "place": None},
}
PAIR = {"rows": [0, 1], "labels": ["fox", "pizza"], "concepts": ["1f98a", "1f355"], "colours": [None, "blue"]}


@pytest.fixture(scope="module")
def paraphraser() -> Paraphraser:
    """Return a paraphraser of three things, one hyponym, and one list of names for all languages."""
    senses = {
        "1": Sense("animal", ("fox",), ()),
        "2": Sense("animal", ("vixen",), ("1",)),
        "3": Sense("", ("zeal",), ()),
    }
    thesaurus = Thesaurus(senses, {"fox": ("1",), "vixen": ("2",), "zeal": ("3",)})
    names = local_names(
        [
            {"hexcode": code.upper(), "label": name, "tags": ["Ding"], "unicode": chr(int(code, 16)) + "\ufe0f"}
            for code, name in NAMES.items()
        ]
    )
    return Paraphraser(ROWS, thesaurus, {code: names for code in [*LISTED, "xx"] if code != "en"})


@pytest.mark.parametrize("code", LISTED)
def test_a_word_list_has_words_for_all_that_is_composed(code: str) -> None:
    words = word_list(code)
    assert words["colours"].keys() >= {*COLOURS, *BACKGROUNDS} - {"white"}
    assert words["relations"].keys() == RELATIONS.keys()
    assert words["places"].keys() == PLACES.keys()
    assert words["sizes"].keys() == SIZES.keys()
    assert words["numbers"].keys() == {"2", "3", "4", "5"}


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({}, "a fox, noto style"),
        ({"background": "blue", "style": None}, "a fox, on a blue background"),
        ({"colours": ["green"]}, "a green fox, noto style"),
        (
            {"count": 3, "rows": [0] * 3, "labels": ["fox"] * 3, "concepts": ["1f98a"] * 3, "colours": [None] * 3},
            "three foxes, noto style",
        ),
        ({"size": "small", "place": "on the left"}, "a small fox on the left, noto style"),
        (PAIR | {"relation": "above", "count": 2}, "a fox above a blue pizza, noto style"),
    ],
)
def test_a_plain_caption_states_the_facts_as_the_composer_does(changes: dict, caption: str) -> None:
    assert plain_caption(Scene.of(FACTS | changes, ROWS)) == caption


@pytest.mark.parametrize("code", [*LISTED, "xx"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"colours": ["light blue"], "background": "beige"},
        {"count": 2, "rows": [0, 0], "labels": ["fox"] * 2, "concepts": ["1f98a"] * 2, "colours": [None] * 2},
        {"size": "big", "place": "at the top"},
        *(PAIR | {"relation": relation, "count": 2} for relation in RELATIONS),
    ],
)
def test_every_language_says_every_kind_of_picture(paraphraser: Paraphraser, code: str, changes: dict) -> None:
    for seed in range(40):
        sentence = paraphraser.pair(FACTS | changes, Random(seed), code).sentence
        assert sentence.strip()
        assert not re.search(r"[{}]|  ", sentence), sentence


def test_the_first_noun_is_the_picture(paraphraser: Paraphraser) -> None:
    """Also where the thing holds, chases or eats another one, and under each of its names."""
    second = 0
    for seed in range(600):
        sentence = paraphraser.english.say(Scene.of(FACTS | {"style": None}, ROWS), Random(seed))
        first = re.search(r"fox|vixen|🦊", sentence)
        other = re.search(r"pizza|key\b|keys\b", sentence)
        assert first, sentence
        if other:
            second += 1
            assert first.start() < other.start(), sentence
    assert second > 50


def test_a_kind_is_said_now_and_then(paraphraser: Paraphraser) -> None:
    said = [paraphraser.english.say(Scene.of(FACTS, ROWS), Random(seed)) for seed in range(300)]
    assert 30 < sum("vixen" in sentence for sentence in said) < 200


def test_pairs_of_a_picture_share_their_plain_caption(paraphraser: Paraphraser) -> None:
    groups = [paraphraser.pairs(FACTS | {"background": "red"}, Random(seed), 6) for seed in range(200)]
    assert all(len({pair.plain for pair in pairs}) == 1 for pairs in groups)
    assert {"", "a fox, on a red background", "a fox, noto style, on a red background"} == {p[0].plain for p in groups}
    assert {"en", "de", "ja"} <= {pair.language for pairs in groups for pair in pairs}


def test_a_tiny_thing_is_drawn_large_unless_it_has_a_place(paraphraser: Paraphraser) -> None:
    """The words "a tiny turtle" mean a cute one."""
    plain = {paraphraser.pair(FACTS | {"size": "tiny"}, Random(seed), "en").plain for seed in range(40)}
    assert plain == {"a fox", "a fox, noto style"}
    placed = FACTS | {"size": "tiny", "place": "on the left"}
    assert "tiny" in paraphraser.pair(placed, Random(0), "en").plain


def test_sentences_held_out_are_never_said(paraphraser: Paraphraser, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [paraphraser.pair(FACTS, Random(seed), "de").sentence for seed in range(300)]
    usual = max(said, key=said.count)
    monkeypatch.setattr(module, "heldout_sentences", lambda: frozenset({usual.lower()}))
    assert usual not in [paraphraser.pair(FACTS, Random(seed), "de").sentence for seed in range(300)]


def test_a_keyword_of_many_things_weighs_less_and_a_part_of_the_name_more() -> None:
    names = local_names(
        [
            {"hexcode": "1F436", "label": "Hundegesicht", "tags": ["Hund", "Tier", "treu"]},
            {"hexcode": "1F431", "label": "Katze", "tags": ["Tier"]},
        ]
    )
    weights = dict(zip(names["1f436"].keywords, names["1f436"].weights, strict=True))
    assert weights == {"Hund": OWN_WORD, "Tier": 0.5, "treu": 1.0}


def test_an_emoji_comes_with_and_without_its_variation_selector(paraphraser: Paraphraser) -> None:
    thing = Scene.of(FACTS, ROWS).things[0]
    assert {paraphraser.english.emoji(thing, Random(seed)) for seed in range(30)} == {"🦊", "🦊\ufe0f"}


def test_words_that_a_language_joins_are_mostly_joined(paraphraser: Paraphraser) -> None:
    scene = Scene.of(FACTS | {"style": None}, ROWS)
    rng = Random(0)
    said = [paraphraser.languages["fr"].say(scene, rng) for _ in range(4000)]
    joined, apart = (sum(words in sentence for sentence in said) for words in ("d'un", "de un"))
    assert joined > apart > 0


def test_no_name_is_lost_to_everyday_things(paraphraser: Paraphraser, tmp_path: Path) -> None:
    """The composed pictures all show a fox: half of the examples are about any other thing, its plain caption first."""
    assert plain_caption(Scene.of(facts_of(1, ROWS), ROWS)) == "a pizza, noto style"
    np.save(tmp_path / "latents.npy", np.zeros((1, 4, 2, 2), np.float16))
    for name, content in (("captions", ["a fox"]), ("facts", [FACTS])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer")
    examples = Examples([tmp_path], paraphraser, tokenizer, tokenizer)
    sentences, plain, *_ = examples.batch(300, 2, 1.5, torch.Generator().manual_seed(0))
    asked = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in plain]
    assert min(sum(name in caption for caption in asked) for name in ("fox", "pizza", "key")) > 30
    assert len({colour for colour in COLOURS if any(f"{colour} pizza" in caption for caption in asked)}) > 1
    assert len({name for name in BACKGROUNDS if any(f"on a {name} background" in caption for caption in asked)}) > 1
    others = [row for row, caption in enumerate(asked) if "pizza" in caption or "key" in caption]
    assert sentences[::2][others].equal(plain[others])
    sentences, plain, *_ = examples.batch(100, 1, 1.5, torch.Generator().manual_seed(0))
    assert (sentences == plain).all(dim=1).float().mean() < 0.4, "one sentence is mostly another than the caption"
