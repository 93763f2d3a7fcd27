"""The classifier of things: its training pictures, spoilt ones, and that it learns to tell two things apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from training.data.dataset import Dataset
from training.data.heldout import Heldout
from training.judging.choose_seeds import ordered
from training.networks.fit import fit, linear_end
from training.networks.train_style import on_white
from training.networks.train_things import (
    SPOILT,
    Drawings,
    ThingClassifier,
    Vocabulary,
    bent,
    half_drawn,
    load_things,
    naming_loss,
    spoil,
)

HELDOUT = Heldout(cells=frozenset({("disc", "noto")}))
FACTS = {"group": "objects", "subgroup": "tool", "skin_tone": "default"}


def drawing(shape: str) -> np.ndarray:
    """Return a red disc or a blue bar, (128, 128, 4)."""
    image = Image.new("RGBA", (128, 128))
    draw = ImageDraw.Draw(image)
    if shape == "disc":
        draw.ellipse((24, 24, 104, 104), fill="red")
    else:
        draw.rectangle((52, 8, 76, 120), fill="blue")
    return np.asarray(image)


@pytest.fixture
def dataset() -> Dataset:
    rows = [
        FACTS | {"concept": c, "label": c, "style": style} for style in ("noto", "twemoji") for c in ("disc", "bar")
    ]
    return Dataset(np.stack([drawing(row["concept"]) for row in rows]), rows)


def test_a_thing_is_what_its_name_ends_with_and_its_face() -> None:
    labels = ["cat face", "cat", "black cat", "cat with wry smile", "hot dog", "locomotive", "eyes"]
    groups = ["animals-nature"] * 6 + ["people-body"]
    rows = [
        FACTS | {"concept": f"{i}", "label": label, "group": group, "subgroup": "body-parts"}
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]
    vocabulary = Vocabulary(rows)
    assert [vocabulary.concepts[i] for i in vocabulary.meant("a cat")] == ["1", "0", "2"]
    assert vocabulary.meant("a ca") == []
    assert [vocabulary.concepts[i] for i in vocabulary.meant("a pair of eyes")] == ["6"]


def test_whole_people_and_signs_have_no_name() -> None:
    others = [{"group": "symbols"}, {"group": "people-body", "subgroup": "person-role"}, {"skin_tone": "dark"}]
    assert not Vocabulary([FACTS | {"concept": "x", "label": "x"} | other for other in others]).concepts


def test_held_out_drawings_are_measured_on_and_a_share_is_spoilt(dataset: Dataset) -> None:
    drawings = Drawings(dataset, HELDOUT, Vocabulary(dataset.rows))
    assert drawings.rows == [(1, 0), (2, 1), (3, 0)]  # bars have the first number
    assert drawings.heldout == [(0, 1)]
    pictures, numbers = drawings.batch(64, torch.Generator().manual_seed(0))
    assert (pictures.shape, numbers.shape) == ((64, 3, 128, 128), (64,))
    assert numbers.bincount()[drawings.nothing] == SPOILT * 64
    assert torch.equal(pictures, drawings.batch(64, torch.Generator().manual_seed(0))[0])


def test_spoiling_smears_halves_and_mixes() -> None:
    disc, bar = (torch.tensor(on_white(drawing(s))).permute(2, 0, 1) / 127.5 - 1 for s in ("disc", "bar"))
    generator = torch.Generator().manual_seed(0)
    discs, bars = disc.expand(30, -1, -1, -1), bar.expand(30, -1, -1, -1)
    result = spoil(discs, bars, generator)
    blue = (result[:, 2] - result[:, 0]).flatten(1).amax(1)
    assert (blue[2::3] > 0.5).all()  # something of the bar, in those that are mixed
    assert (blue[:2] < 0.1).all()
    halves = half_drawn(discs, generator)
    ink = (halves != 1).any(1).flatten(1).sum(1)
    assert (ink < 0.5 * (disc != 1).any(0).sum()).all()
    still = bent(discs, (0.0, 0.0), generator)
    torch.testing.assert_close(still, discs, atol=1e-4, rtol=0)
    assert (bent(discs, (0.1, 0.1), generator) - discs).abs().mean() > 0.05


def test_it_learns_to_name_and_to_refuse(dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(dataset.rows)
    drawings, model = Drawings(dataset, HELDOUT, vocabulary), ThingClassifier(2)
    options = {"rate": 3e-3, "schedule": linear_end(0), "warmup": 1, "ema_decay": 0.9, "steps": 25}
    fit(model, naming_loss, lambda generator: drawings.batch(32, generator), tmp_path, **options)
    judge = load_things(tmp_path / "checkpoint.pt", dataset.rows)
    pictures = [on_white(picture) for picture in dataset.pictures[:2]]
    assert judge.named(pictures, ["a disc", "a bar"]) == [True, True]
    assert judge.named(pictures, ["a bar", "a disc"]) == [False, False]
    assert [n for _, n in ordered(judge, "a bar", [Image.fromarray(p) for p in pictures])] == [1, 0]
    with pytest.raises(ValueError, match="knows no 'a bat'"):
        ordered(judge, "a bat", [])
    assert judge.named([np.kron(p, np.ones((2, 2, 1), np.uint8)) for p in pictures], ["a disc", "a bar"]) == [True] * 2
    assert judge.model.shares(pictures).sum(1) == pytest.approx(1)
    assert drawings.accuracy(judge.model) == 1


def test_a_missing_checkpoint_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.networks\.train_things"):
        load_things(tmp_path / "none.pt", [])
