"""The words that a model knows, and what lies near others: as training writes them, and as the page reads them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from training.data.thesaurus import Thesaurus
from training.data.vocabulary import by_kind, known_words, things, vocabulary
from ui.form.model_menu import subjects
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels
from ui.words.vocabulary import subjects_of

KINDS = "entity object whole artifact instrument conveyance vehicle craft aircraft".split()  # noqa: SIM905
DATA = """  1 a line of the licence
00000009 06 n 01 airship 0 001 @ 00000008 n 0000 | lighter than air
00000010 06 n 02 balloon 0 hot-air_balloon 0 001 @ 00000009 n 0000 | a bag
00000011 06 n 02 zeppelin 0 dirigible 0 001 @ 00000009 n 0000 | a large one
00000012 18 n 01 Zeppelin 0 001 @i 00000000 n 0000 | who made them
00000013 07 n 01 joy 0 001 @ 00000000 n 0000 | no thing
"""
INDEX = """  1 a line of the licence
airship n 1 1 @ 1 0 00000009
balloon n 1 1 @ 1 1 00000010
zeppelin n 2 1 @ 2 0 00000012 00000011
joy n 1 1 @ 1 1 00000013
"""


@pytest.fixture(scope="module")
def thesaurus(tmp_path_factory: pytest.TempPathFactory) -> Thesaurus:
    """A few nouns in WordNet's files: a chain of nine kinds, and things of the last."""
    above = [f"{i:08} 06 n 01 {word} 0 001 @ {max(0, i - 1):08} n 0000 | \n" for i, word in enumerate(KINDS)]
    above[0] = "00000000 03 n 01 entity 0 000 | \n"
    archive = tmp_path_factory.mktemp("wordnet") / "wordnet.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (("data.noun", "".join(above) + DATA), ("index.noun", INDEX)):
            info = tarfile.TarInfo(f"package/dict/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return Thesaurus.read(archive)


ROWS = [
    {"label": "balloon", "group": "activities", "tags": ["party", "joy"], "keywords": ["red"]},
    {"label": "crossed swords", "group": "objects", "tags": ["weapon"], "keywords": []},
    {"label": "man mage", "group": "people-body", "tags": ["wizard"], "keywords": []},
    {"label": "mage", "group": "people-body", "tags": ["wizard"], "keywords": []},
]


def test_a_noun_means_what_it_means_most_often_unless_that_is_a_name(thesaurus: Thesaurus):
    assert thesaurus.drawable["zeppelin"] == "00000011"
    assert "joy" not in thesaurus.drawable
    assert thesaurus.above("00000011")["00000009"] == 1
    assert thesaurus.depth("00000011") == 11


def test_what_is_near_is_nearly_the_same_kind_of_thing(thesaurus: Thesaurus):
    near = by_kind(things(ROWS), thesaurus)
    assert near["zeppelin"] == ["balloon"]  # 2 * 10 / (2 * 10 + 1 + 1) by Wu and Palmer
    assert near["airship"] == ["balloon"]
    assert "joy" not in near


def test_names_are_known_and_keywords_are_not(thesaurus: Thesaurus):
    known = known_words(ROWS)
    assert {
        "balloon",
        "balloons",
        "crossed",
        "swords",
        "mage",
        "fluent",
        "style",
        "teal",
        "background",
        "left",
    } <= known
    assert not {"party", "weapon", "wizard", "sword", "zeppelin"} & known
    near = vocabulary(ROWS, thesaurus)["near"]
    assert near == {"balloon": "airship joy zeppelin"}  # of keywords those that are nouns there


@pytest.mark.parametrize("content", [None, "[]", "{", '{"near": {}}'])
def test_of_a_model_without_a_vocabulary_nothing_is_said(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "vocabulary.json").write_text(content)
    assert subjects_of(tmp_path) == ""


def test_every_model_says_what_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, width in (("one", 768), ("two", 1024), ("own", 320)):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text("{}")
        (tmp_path / name / "unet" / "config.json").write_text(
            json.dumps({"cross_attention_dim": width, "sample_size": 64})
        )
    monkeypatch.setenv("SD_MODELS", str(tmp_path))
    models = LoadedModels(Catalogue(), device="cpu")
    assert subjects(models).startswith("A small model, trained on emoji")
    assert subjects(models, "one").startswith(
        "A model like Stable Diffusion 1: it draws what you describe, best at 512 x 512"
    )
    assert subjects(models, "two").startswith("A model like Stable Diffusion 2: it draws")
    assert subjects(models, "own").startswith("It draws what you describe")
