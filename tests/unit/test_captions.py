"""Composed training examples: English, pixels that agree with the caption, and held-out examples."""

import colorsys
import json
from itertools import pairwise

import numpy as np
import pytest

from training.data import captions
from training.data.captions import (
    BY_NAME,
    EVERYDAY_WORTH,
    HOUSE_STYLE,
    NAMED_BACKGROUND,
    PLACES,
    RECIPES,
    RELATIONS,
    STYLE_WEIGHTS,
    STYLES,
    UNNAMED,
    Composer,
    compose_many,
)
from training.data.dataset import Dataset
from training.data.grammar import base_noun, countable, everyday, nouns, phrases, plural, with_article, without_colours
from training.data.heldout import Heldout
from training.data.paint import BACKGROUNDS, COLOURS, JITTER, recolour, varied
from training.networks.cache_latents import load_facts

LABELS = {
    "1f34e": ("red apple", "food-drink"),
    "1f34f": ("green apple", "food-drink"),
    "1f697": ("automobile", "travel-places"),
    "1f431": ("cat", "animals-nature"),
    "1f347": ("grapes", "food-drink"),
    "1f44b": ("waving hand", "people-body"),
}


def disc(rgb: tuple[int, int, int], size: int = 32) -> np.ndarray:
    """Return a disc of one colour, with a green square inside and soft edges."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    picture = np.zeros((size, size, 4), np.uint8)
    picture[..., :3] = rgb
    picture[size // 2 : size // 2 + 4, size // 2 : size // 2 + 4, :3] = (20, 200, 60)
    picture[..., 3] = np.clip((size * 0.4 - np.hypot(x, y)) * 255, 0, 255)
    return picture


def row(concept: str, style: str, **changes) -> dict:
    label, group = LABELS[concept]
    facts = {"tags": ["tasty", "red"], "keywords": [], "skin_tone": "default", "subgroup": "", "flip": True}
    facts |= {"hue": 0.0, "chroma": 1.0, "unity": 1.0, "id": f"{style}/{concept}", "source": "made"}
    return facts | {"concept": concept, "label": label, "group": group, "style": style} | changes


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rows = [row(concept, style) for style in STYLES[:2] for concept in LABELS]
    return Dataset(np.stack([disc((220, 30, 30))] * len(rows)), rows)


def draw(composer: Composer, n: int, seed: int = 0) -> list[tuple]:
    return [composer.sample(np.random.default_rng((seed, i))) for i in range(n)]


def test_articles() -> None:
    for expected in ("a red apple", "an octopus", "a unicorn", "an hourglass", "a one-piece swimsuit"):
        assert with_article(expected.split(" ", 1)[1]) == expected
    for expected in ("a face with smiling eyes", "a two-hump camel", "the Statue of Liberty"):
        assert with_article(expected.split(" ", 1)[1]) == expected
    for noun in ("grapes", "small scissors", "men wrestling"):
        assert with_article(noun) == noun


def test_plurals() -> None:
    singular = ("cat", "red fox", "gray mouse", "berry", "key")
    assert [plural(noun) for noun in singular if countable(noun)] == [
        "cats",
        "red foxes",
        "gray mice",
        "berries",
        "keys",
    ]
    assert not any(countable(noun) for noun in ("grapes", "cup of coffee", "men wrestling", "person running"))


def test_only_countable_names_are_counted(dataset):
    """A cake is also called "slice of cake", of which "three slice of cakes" would be the plural."""
    rows = [row("1f34e", "noto", label="shortcake"), row("1f431", "noto")]
    listed = [caption for _, caption, _ in draw(Composer(Dataset(dataset.pictures[:2], rows), 16), 400)]
    assert any("strawberry cakes" in caption for caption in listed)
    assert not any("slice of cakes" in caption for caption in listed)


def test_keywords_say_something_new(dataset):
    rows = [row("1f431", "noto", tags=["cat", "pet"], keywords=["cat", "pet cat"]), row("1f697", "noto")]
    listed = [caption for _, caption, _ in draw(Composer(Dataset(dataset.pictures[:2], rows), 16), 400)]
    assert any(", pet" in caption for caption in listed)
    assert not any(", cat" in caption for caption in listed)


def test_everyday_things_are_known_by_all_their_names_and_by_nothing_else():
    for caption in ("a fox, noto style", "two red foxes", "an automobile", "a carp streamer next to a pizza"):
        assert everyday(caption), caption
    for caption in ("a carp streamer, noto style", "a shinto shrine on an orange background", ""):
        assert not everyday(caption), caption


def test_names_read_as_a_person_would_say_them():
    assert nouns("automobile")[0] == "car"
    assert nouns("woman: red hair") == ("woman with red hair",)
    assert nouns("man: bald") == ("bald man",)
    assert nouns("man’s shoe") == ("man's shoe",)


def test_colour_words_are_dropped_unless_they_are_the_name():
    assert without_colours("light blue heart") == "heart"
    assert without_colours("orange") == "orange"
    assert base_noun("green apple") == base_noun("red apple") == "apple"


@pytest.mark.parametrize("colour", ["yellow", "green", "blue", "purple", "pink"])
def test_recolouring_moves_the_main_hue_and_nothing_else(colour):
    picture = disc((220, 30, 30))
    painted = recolour(picture, 0.0, colour)
    hue = colorsys.rgb_to_hsv(*(painted[8, 16, :3] / 255))[0] * 360
    assert abs((hue - COLOURS[colour][0] + 180) % 360 - 180) < 8
    assert np.abs(painted[18, 18, :3].astype(int) - picture[18, 18, :3]).max() <= 6  # the green square
    np.testing.assert_array_equal(painted[..., 3], picture[..., 3])


@pytest.mark.parametrize(("colour", "low", "high"), [("black", 0, 80), ("gray", 110, 200), ("white", 225, 255)])
def test_recolouring_to_greys_sets_the_level(colour, low, high):
    level = recolour(disc((220, 30, 30)), 0.0, colour)[8, 16, :3]
    assert low <= level.min() <= level.max() <= high
    assert np.ptp(level.astype(int)) < 20


def test_background_is_the_one_that_the_caption_names(dataset):
    named = 0
    for picture, caption, facts in draw(Composer(dataset, 32), 150):
        if facts["recipe"] != "plain":
            continue
        name = next((n for n in sorted(BACKGROUNDS, key=len, reverse=True) if f" {n} background" in caption), "white")
        assert facts["background"] == name
        jitter = 0 if name == "white" else JITTER
        assert np.abs(picture[0, 0].astype(int) - BACKGROUNDS[name]).max() <= jitter
        named += "background" in caption
    assert named > 20


def test_edges_blend_without_a_fringe(dataset):
    """A red disc on white has pixels between red and white only: no dark or foreign rim."""
    picture, _ = Composer(dataset, 24).reference(0)
    rim = picture[picture[..., 0] > 225]
    assert (rim[:, 1] >= 28).all()
    assert (np.abs(rim[:, 1].astype(int) - rim[:, 2]) <= 12).all()


def test_reference_is_the_plain_caption(dataset):
    picture, caption = Composer(dataset, 32).reference(0)
    assert picture.shape == (32, 32, 3)
    assert caption == "an apple, fluent 3d style"
    assert (picture[0, 0] == 255).all()


def test_places_put_the_object_there(dataset):
    for picture, caption, facts in draw(Composer(dataset, 64), 400):
        if facts["place"] is None:
            continue
        assert facts["place"] in caption
        background = np.array(facts["background_rgb"])
        y, x = np.nonzero(np.abs(picture.astype(int) - background).max(-1) > 60)
        for at, want in zip((x.mean() / 63, y.mean() / 63), PLACES[facts["place"]], strict=True):
            assert abs(at - (0.28 if want == 0 else 0.72 if want == 1 else 0.5)) < 0.25


def test_pairs_lie_as_the_relation_says(dataset):
    """Objects differ by colour here, so that each can be found in the picture."""
    rows = [row("1f34e", "noto"), row("1f431", "noto", hue=240.0)]
    composer = Composer(Dataset(np.stack([disc((220, 30, 30)), disc((30, 30, 220))]), rows), 48)
    seen = set()
    for picture, caption, facts in draw(composer, 1500):
        plain = facts["colours"] == [None, None] and facts["background"] == "white"
        if facts["relation"] is None or not plain:
            continue
        red = np.argwhere((picture[..., 0] > 180) & (picture[..., 2] < 90)).mean(0)[::-1]
        blue = np.argwhere((picture[..., 2] > 180) & (picture[..., 0] < 90)).mean(0)[::-1]
        first, second = (red, blue) if facts["rows"][0] == 0 else (blue, red)
        assert f" {facts['relation']} " in caption
        left_to_right = (-1, 0)  # where the words leave it open
        assert np.dot(first - second, RELATIONS[facts["relation"]] or left_to_right) > 15
        seen.add(facts["relation"])
    assert seen == set(RELATIONS)


def test_counts_draw_that_many(dataset, monkeypatch):
    monkeypatch.setattr(captions, "VARIED", 0)  # which changes how much a thing covers
    for picture, caption, facts in draw(Composer(dataset, 96), 300):
        if facts["recipe"] != "count":
            continue
        assert len(facts["rows"]) == facts["count"] == {"two": 2, "three": 3, "four": 4, "five": 5}[caption.split()[0]]
        covered = (np.abs(picture.astype(int) - np.array(facts["background_rgb"])).max(-1) > 40).mean()
        side = 0.48 if facts["count"] == 2 else 0.36 if facts["count"] == 5 else 0.46
        assert covered == pytest.approx(facts["count"] * np.pi * (0.4 * side) ** 2, rel=0.25)


@pytest.fixture(scope="module")
def one_of_each_style() -> list[tuple]:
    """Return 3,000 examples of a single thing on its own, drawn in all styles."""
    rows = [row("1f34e", style) for style in STYLES]
    return draw(Composer(Dataset(np.stack([disc((220, 30, 30), 16)] * len(rows)), rows), 8, recipe="plain"), 3000)


def chance(share: float, count: int) -> float:
    """Return four standard deviations of a share among `count` draws."""
    return 4 * (share * (1 - share) / count) ** 0.5


@pytest.mark.parametrize("style", STYLES)
def test_styles_are_drawn_and_named_by_their_weights(one_of_each_style, style):
    share = STYLE_WEIGHTS[style] / sum(STYLE_WEIGHTS.values())
    drawn = np.mean([facts["style"] == style for _, _, facts in one_of_each_style])
    assert drawn == pytest.approx(share, abs=chance(share, 3000))
    listed = [caption for _, caption, facts in one_of_each_style if facts["style"] == style]
    by_name = [f"{style} style" in caption for caption in listed]
    synonym = [any(words in caption for words in phrases()["style_words"][style]) for caption in listed]
    named = [a or b for a, b in zip(by_name, synonym, strict=True)]
    assert 1 - np.mean(named) == pytest.approx(UNNAMED[style], abs=chance(UNNAMED[style], len(listed)))
    assert sum(by_name) / sum(named) == pytest.approx(BY_NAME, abs=chance(BY_NAME, sum(named)))


def test_most_captions_without_a_style_are_of_the_house_style():
    share = {style: STYLE_WEIGHTS[style] * UNNAMED[style] for style in STYLES}
    assert share[HOUSE_STYLE] > 0.75 * sum(share.values())


def test_a_background_is_named_in_its_share(one_of_each_style):
    named = np.mean(["background" in caption for _, caption, _ in one_of_each_style])
    assert named == pytest.approx(NAMED_BACKGROUND, abs=chance(NAMED_BACKGROUND, 3000))


def test_everyday_things_are_drawn_more_often_than_others_of_their_group(dataset):
    rows = [row("1f431", "noto"), row("1f431", "noto") | {"concept": "1f38f", "label": "carp streamer"}]
    drawn = draw(Composer(Dataset(dataset.pictures[:2], rows), 8, recipe="plain"), 2000)
    share = EVERYDAY_WORTH / (EVERYDAY_WORTH + 1)
    cats = np.mean([facts["labels"] == ["cat"] for _, _, facts in drawn])
    assert cats == pytest.approx(share, abs=chance(share, 2000))


def test_a_varied_drawing_is_the_same_thing_a_little_different():
    picture = disc((220, 30, 30), 64)
    before = picture.copy()
    others = [varied(picture, np.random.default_rng(seed)) for seed in range(50)]
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(others[0], varied(picture, np.random.default_rng(0)))
    covered = (picture[..., 3] > 128).mean()
    for one, other in pairwise(others):
        assert (one.shape, one.dtype) == (picture.shape, np.uint8)
        assert (one[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()  # the corners stay transparent
        assert (one != other).any()
        # Each axis at 0.84 to 1.02 of `room`, which is 0.89 at the largest turn; a percent for pixels at the rim
        assert 0.55 * covered < (one[..., 3] > 128).mean() < 1.05 * covered
        red, green, blue = one[20, 32, :3].astype(int)
        assert red > 150 > 70 > max(green, blue)


def test_a_varied_drawing_has_no_foreign_fringe():
    """The colour that hides in transparent pixels does not come out at the edges."""
    picture = disc((220, 30, 30), 64)
    picture[picture[..., 3] == 0, :3] = (0, 0, 255)
    for seed in range(20):
        out = varied(picture, np.random.default_rng(seed))
        assert out[out[..., 3] > 0][:, 2].max() < 120  # the green square has the most blue, 60, before its tint


def test_most_drawings_are_varied_and_half_of_them_mirrored():
    picture = disc((220, 30, 30))
    picture[:, :16, :3] = (30, 30, 220)  # blue on the left
    drawn = draw(Composer(Dataset(picture[None], [row("1f431", "noto")]), 32, recipe="plain"), 400)
    mirrored = np.mean([shown[16, 24, 2] > shown[16, 24, 0] for shown, _, _ in drawn])
    assert mirrored == pytest.approx(captions.MIRRORED, abs=chance(captions.MIRRORED, 400))

    def untouched(shown: np.ndarray) -> bool:
        """Return whether the artwork is there pixel for pixel."""
        solid = picture[..., 3] == 255
        ways = (picture, solid), (picture[:, ::-1], solid[:, ::-1])
        return any((shown[opaque] == way[opaque][:, :3]).all() for way, opaque in ways)

    share = (1 - captions.VARIED) * captions.WHOLE
    plain = np.mean([untouched(shown) for shown, _, _ in drawn])
    assert plain == pytest.approx(share, abs=chance(share, 400))


def test_held_out_is_never_sampled(dataset):
    heldout = Heldout(
        cells=frozenset({("1f431", "fluent 3d")}),
        colour_nouns=frozenset({("blue", "apple")}),
        pairs=frozenset({frozenset({"1f34e", "1f697"})}),
    )
    for _, caption, facts in draw(Composer(dataset, 16, heldout), 1500):
        assert not any((concept, facts["style"]) in heldout.cells for concept in facts["concepts"])
        assert "blue apple" not in caption
        assert frozenset(facts["concepts"]) not in heldout.pairs


def test_captions_say_no_colour_that_does_not_hold(dataset):
    """Every row here is tagged "red" and drawn in red, and recoloured at times."""
    for _, caption, facts in draw(Composer(dataset, 16), 400):
        assert ", red" not in caption.replace("red background", "")
        if facts["recipe"] == "recolour" and facts["colours"][0] != "red":
            assert "red" not in caption.split(" on ")[0].split()


def test_same_seed_gives_the_same_example(dataset):
    composer = Composer(dataset, 16)
    for (one, words, facts), (other, again, same) in zip(draw(composer, 30), draw(composer, 30), strict=True):
        np.testing.assert_array_equal(one, other)
        assert (words, facts) == (again, same)
    assert [caption for _, caption, _ in draw(composer, 30, seed=1)] != [c for _, c, _ in draw(composer, 30)]


def test_every_recipe_is_drawn_and_one_can_be_asked_for(dataset):
    assert {facts["recipe"] for _, _, facts in draw(Composer(dataset, 16), 200)} == set(RECIPES)
    assert sum(RECIPES.values()) == pytest.approx(1)
    for recipe in RECIPES:
        assert {facts["recipe"] for _, _, facts in draw(Composer(dataset, 16, recipe=recipe), 30)} == {recipe}


def test_compose_many_does_not_depend_on_workers_or_length(dataset, tmp_path):
    np.save(tmp_path / "pictures.npy", dataset.pictures)
    (tmp_path / "index.json").write_text(json.dumps(dataset.rows))
    options = {"seed": 3, "root": tmp_path, "heldout": None, "size": 16}
    short = compose_many(4, out=tmp_path / "short", workers=1, **options)
    long = compose_many(7, out=tmp_path / "long", workers=2, **options)
    assert long[:4] == short == json.loads((tmp_path / "short" / "captions.json").read_text())
    pictures = np.load(tmp_path / "long" / "pictures.npy")
    assert pictures.shape == (7, 16, 16, 3)
    np.testing.assert_array_equal(pictures[:4], np.load(tmp_path / "short" / "pictures.npy"))
    _, caption, facts = Composer(dataset, 16).sample(np.random.default_rng((3, 5)))
    assert (caption, json.loads(json.dumps(facts))) == (long[5], load_facts([tmp_path / "long"])[5])


def test_bad_arguments_are_named(dataset, tmp_path):
    with pytest.raises(ValueError, match="size must be at least 8"):
        Composer(dataset, 4)
    with pytest.raises(ValueError, match=r"recipe must be one of plain, .* got 'pizza'"):
        Composer(dataset, 16, recipe="pizza")
    with pytest.raises(ValueError, match="n must be at least 1"):
        compose_many(0, seed=0, out=tmp_path)
    everything = Heldout(cells=frozenset((r["concept"], r["style"]) for r in dataset.rows))
    with pytest.raises(ValueError, match="leaves none of the 12 pictures"):
        Composer(dataset, 16, everything)
