"""The builder on made-up packages: joining names, drawing, filtering; and what it holds out."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.data import artwork, build_dataset, heldout
from training.data.artwork import Drawing, Name, code_points, find_code, shrink, slug
from training.data.build_dataset import dominant_hue, duplicates, wanted
from training.data.dataset import Dataset

NAME = Name("1f98a", "1f98a", "fox", ("animal",), (), "animals-nature", "animal-mammal", 1)


def write_package(cache, package: str, version: str, members: dict[str, object]) -> None:
    with tarfile.open(cache / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz", "w:gz") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def webp(rgb: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (256, 256), (*rgb, 255)).save(out, "WEBP", lossless=True)
    return out.getvalue()


@pytest.fixture
def packages(tmp_path):
    """Return a cache directory with tiny packages under the real names, so that nothing is fetched."""
    cache = tmp_path / "cache"
    cache.mkdir()
    entries = [
        {"label": "fox", "hexcode": "1F98A", "emoji": "🦊", "tags": ["animal"], "order": 1, "group": 3, "subgroup": 0},
        {"label": "red heart", "hexcode": "2764-FE0F", "emoji": "❤️", "order": 2, "group": 0, "subgroup": 1},
        {"label": "paperclip", "hexcode": "1F4CE", "emoji": "📎", "order": 3, "group": 7, "subgroup": 2},
        {"label": "flag: Italy", "hexcode": "1F1EE-1F1F9", "emoji": "🇮🇹", "order": 4, "group": 9, "subgroup": 3},
    ]
    subgroups = {"0": "animal-mammal", "1": "heart", "2": "office", "3": "country-flag"}
    groups = {"0": "smileys-emotion", "3": "animals-nature", "7": "objects", "9": "flags"}
    members = {"en/data.json": entries, "meta/groups.json": {"groups": groups, "subgroups": subgroups}}
    members |= {f"en/shortcodes/{name}.json": {} for name in ("emojibase", "cldr", "joypixels", "github", "iamcal")}
    write_package(cache, "emojibase-data", "17.0.0", members)
    write_package(cache, "emojilib", "4.0.3", {"dist/emoji-en-US.json": {"🦊": ["fox", "forest_animal"]}})
    circle = '<circle cx="16" cy="16" r="12" fill="#{}"/>'
    for style, source in artwork.sources()["styles"].items():
        if source["form"] == "webp":
            members = {"assets/1f98a.webp": webp((240, 120, 20)), "assets/2764-fe0f.webp": webp((220, 20, 40))}
            members["assets/1f4ce.webp"] = webp((90, 90, 90))
        else:
            colour = {"noto": "f80", "twemoji": "f60"}.get(style, "e70")
            bodies = {
                "fox-face": circle.format(colour),
                "red-heart": circle.format("d02"),
                "flag-italy": circle.format("0a0"),
            }
            icons = {name: {"body": body} for name, body in bodies.items()}
            members = {"icons.json": {"icons": icons, "width": 32, "height": 32}}
        write_package(cache, source["package"], source["version"], members)
    return cache


def test_names_join_to_code_points():
    assert code_points("2764-FE0F") == code_points("2764") == "2764"
    slugs = {"fox": "1f98a", slug("waving hand: dark skin tone"): "1f44b-1f3ff"}
    assert find_code("fox-face-2", slugs) == ("1f98a", 2)
    assert find_code("waving-hand-dark", slugs) == ("1f44b-1f3ff", 0)
    assert find_code("waving-hand-dark-skin-tone", slugs) == ("1f44b-1f3ff", 0)
    assert find_code("never-heard-of", slugs) is None


def test_microsofts_exclusions_apply_to_microsofts_sets_only():
    for label in ("paperclip", "woman technologist", "video game"):
        name = replace(NAME, label=label, group="objects")
        assert not any(wanted(Drawing(style, name, 0, b"")) for style in ("fluent 3d", "fluent color", "fluent flat"))
        assert wanted(Drawing("noto", name, 0, b""))


def test_unwanted_subjects_are_dropped():
    assert wanted(Drawing("noto", NAME, 0, b""))
    for change in ({"group": "flags"}, {"subgroup": "zodiac"}, {"label": "one-thirty"}, {"tone": 3}, {"tone": 6}):
        assert not wanted(Drawing("noto", replace(NAME, **change), 0, b""))


def test_shrinking_lets_no_hidden_colour_into_the_edges():
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[...] = (0, 255, 0, 0)
    picture[:, :31] = (255, 0, 0, 255)
    small = shrink(Image.fromarray(picture), 32)
    seen = small[small[..., 3] > 0]
    assert 0 < small[0, 15, 3] < 255
    assert (seen[:, 1] == 0).all()


def test_duplicates_keep_the_first():
    rows = np.random.default_rng(0).uniform(0, 255, (3, 64)).astype(np.float32)
    thumbs = np.stack([rows[0], rows[1], rows[0] + 0.5, rows[2], rows[1]])
    assert duplicates(thumbs).tolist() == [False, False, True, False, True]


def test_dominant_hue_is_the_mode():
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:6] = (200, 20, 20, 255)
    picture[6:] = (20, 200, 20, 255)
    hue, chroma, unity = dominant_hue(picture)
    assert min(hue, 360 - hue) < 1
    assert chroma == 1
    assert unity == pytest.approx(0.75)


def test_build_joins_draws_filters_and_repeats_itself(packages, tmp_path):
    pytest.importorskip("resvg_py")
    manifest = build_dataset.build(tmp_path / "one", packages, workers=1)
    dataset = Dataset.load(tmp_path / "one")
    assert len(dataset) == manifest["pictures"] == dataset.pictures.shape[0]
    assert {row["label"] for row in dataset.rows} == {"fox", "red heart"}
    # Hearts of all vector sets are alike, and so are most foxes: one of each drawing stays
    assert [row["style"] for row in dataset.rows if row["label"] == "red heart"] == ["fluent 3d", "fluent color"]
    fox = next(i for i, row in enumerate(dataset.rows) if row["id"] == "noto/1f98a")
    assert dataset.rows[fox]["keywords"] == ["fox", "forest animal"]
    assert dataset.pictures[fox, 64, 64].tolist() == [255, 136, 0, 255]
    assert dataset.pictures[fox, 0, 0].tolist() == [0, 0, 0, 0]
    assert build_dataset.build(tmp_path / "two", packages, workers=2) == manifest
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()


def test_the_same_pictures_can_be_drawn_at_another_size(packages, tmp_path):
    pytest.importorskip("resvg_py")
    build_dataset.build(tmp_path / "one", packages, workers=1)
    with pytest.raises(FileNotFoundError, match=r"--size 256"):
        Dataset.load(tmp_path / "one", 256)
    build_dataset.draw_again(tmp_path / "one", packages, 256, workers=1)
    small, large = (Dataset.load(tmp_path / "one", side) for side in (128, 256))
    assert large.pictures.shape == (len(small), 256, 256, 4)
    shrunk = [shrink(Image.fromarray(picture), 128) for picture in large.pictures]
    # Antialiased at twice the size first: an edge may fall a tenth of a pixel elsewhere
    assert np.abs(np.stack(shrunk).astype(int) - small.pictures).mean() < 0.5


def test_bad_data_sets_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m training\.data\.build_dataset --out"):
        Dataset.load(tmp_path)
    with pytest.raises(ValueError, match=r"rows must be as many as pictures \(2\), got 1"):
        Dataset(np.zeros((2, 8, 8, 4), np.uint8), [{}])
    with pytest.raises(ValueError, match=r"pictures must be uint8 \(N, S, S, 4\)"):
        Dataset(np.zeros((2, 8, 8, 3), np.uint8), [{}, {}])


def test_heldout_choice_is_fixed_by_its_seed_and_leaves_the_concept_in_training(tmp_path):
    styles = [f"style {i}" for i in range(6)]
    labels = ["fox", "cat", "dog", "pizza", "bus", "rocket", "horse", "lion", "tiger", "frog"]
    facts = {"group": "objects", "skin_tone": "default", "chroma": 1.0, "unity": 1.0, "hue": 0.0}
    rows = [facts | {"concept": label, "label": label, "style": style} for label in labels for style in styles]
    data, again, other = (heldout.choose(rows, seed=n, cells=8, colour_nouns=4, pairs=3) for n in (1, 1, 2))
    assert data == again != other
    assert len({cell["concept"] for cell in data["cells"]}) == len(data["cells"]) == 8
    assert not {item["colour"] for item in data["colour_nouns"]} & {"red", "orange", "yellow", "pink"}
    heldout.write(data, tmp_path / "heldout.json")
    read = heldout.Heldout.load(tmp_path / "heldout.json")
    assert (len(read.cells), len(read.colour_nouns), len(read.pairs)) == (8, 4, 3)


def test_evaluation_prompts_say_what_was_held_out():
    rows = [{"concept": "1f98a", "label": "fox", "group": "animals-nature", "skin_tone": "default"}]
    data = {
        "cells": [{"concept": "1f419", "label": "octopus", "style": "noto"}],
        "colour_nouns": [{"colour": "orange", "noun": "car"}],
        "pairs": [{"concepts": ["1f98a", "1f347"], "labels": ["fox", "grapes"]}],
    }
    assert [item["prompt"] for item in heldout.prompts(data, rows)] == [
        "an octopus, noto style",
        "an orange car",
        "a fox next to grapes",
        "a fox on a blue background",
    ]
