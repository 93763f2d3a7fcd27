"""The judge of styles: what it is shown, and that it learns to tell two hands apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from training.data.captions import STYLES
from training.data.dataset import Dataset
from training.data.heldout import Heldout
from training.networks.optimizer import MuonAdamW
from training.networks.train_style import Examples, StyleClassifier, load_style

HELDOUT = Heldout(cells=frozenset({("3", STYLES[0])}))


def drawing(style: int, size: int) -> np.ndarray:
    """A disc of `size` pixels, flat in the first style, outlined in the second, (128, 128, 4)."""
    image = Image.new("RGBA", (128, 128))
    outline = ("black", 8) if style else (None, 0)
    ImageDraw.Draw(image).ellipse((20, 20, 20 + size, 20 + size), fill="red", outline=outline[0], width=outline[1])
    return np.asarray(image)


@pytest.fixture
def dataset() -> Dataset:
    rows = [{"concept": str(i), "style": style} for style in STYLES[:2] for i in range(4)]
    return Dataset(np.stack([drawing(style, 50 + 10 * i) for style in range(2) for i in range(4)]), rows)


def test_what_is_held_out_is_measured_on_and_never_trained_on(dataset: Dataset):
    examples = Examples(dataset, HELDOUT)
    assert examples.heldout.tolist() == [3]
    examples.styles = torch.arange(8)
    torch.manual_seed(0)
    assert set(examples.batch(500)[1].tolist()) == {0, 1, 2, 4, 5, 6, 7}


def test_all_styles_are_drawn_alike(dataset: Dataset):
    few = Dataset(dataset.pictures[:5], dataset.rows[:5])
    torch.manual_seed(0)
    pictures, styles = Examples(few, HELDOUT).batch(1000)
    assert pictures.shape == (1000, 3, 128, 128)
    assert (pictures.min(), pictures.max()) == (-1, 1)
    assert styles.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_it_learns_to_tell_two_hands_apart(dataset: Dataset, tmp_path: Path):
    torch.manual_seed(0)
    examples, model = Examples(dataset, HELDOUT), StyleClassifier()
    optimizer = MuonAdamW(model, 3e-3)
    for _ in range(20):
        pictures, styles = examples.batch(16)
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), styles).backward()
        optimizer.step()
    torch.save({"ema": model.state_dict()}, tmp_path / "checkpoint.pt")
    judge = load_style(tmp_path / "checkpoint.pt")
    assert judge.styles(list(examples.pictures.numpy())) == [row["style"] for row in dataset.rows]
    assert examples.accuracy(judge) == 1


def test_a_missing_checkpoint_says_what_to_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"training\.networks\.train_style"):
        load_style(tmp_path / "none.pt")
