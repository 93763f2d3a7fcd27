"""The classifier of styles: its training pictures, and that it learns to tell two styles apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from training.data.captions import STYLES
from training.data.dataset import Dataset
from training.data.heldout import Heldout
from training.networks.fit import fit, linear_end
from training.networks.train_style import StyleClassifier, StyledArtwork, load_style, style_loss

HELDOUT = Heldout(cells=frozenset({("3", STYLES[0])}))


def drawing(style: int, size: int) -> np.ndarray:
    """Return a disc of `size` pixels, flat in the first style, outlined in the second, (128, 128, 4)."""
    image = Image.new("RGBA", (128, 128))
    outline = ("black", 8) if style else (None, 0)
    ImageDraw.Draw(image).ellipse((20, 20, 20 + size, 20 + size), fill="red", outline=outline[0], width=outline[1])
    return np.asarray(image)


@pytest.fixture
def dataset() -> Dataset:
    rows = [{"concept": str(i), "style": style} for style in STYLES[:2] for i in range(4)]
    return Dataset(np.stack([drawing(style, 50 + 10 * i) for style in range(2) for i in range(4)]), rows)


def test_what_is_held_out_is_measured_on_and_never_trained_on(dataset: Dataset):
    artwork = StyledArtwork(dataset, HELDOUT)
    assert artwork.heldout.tolist() == [3]
    artwork.styles = torch.arange(8)
    assert set(artwork.batch(500, torch.Generator().manual_seed(0))[1].tolist()) == {0, 1, 2, 4, 5, 6, 7}


def test_all_styles_are_drawn_alike(dataset: Dataset):
    few = Dataset(dataset.pictures[:5], dataset.rows[:5])
    pictures, styles = StyledArtwork(few, HELDOUT).batch(1000, torch.Generator().manual_seed(0))
    assert pictures.shape == (1000, 3, 128, 128)
    assert (pictures.min(), pictures.max()) == (-1, 1)
    assert styles.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_it_learns_to_tell_two_hands_apart(dataset: Dataset, tmp_path: Path):
    torch.manual_seed(0)
    artwork, model = StyledArtwork(dataset, HELDOUT), StyleClassifier()
    options = {"rate": 3e-3, "schedule": linear_end(0), "warmup": 1, "ema_decay": 0.9, "steps": 20}
    fit(model, style_loss, lambda generator: artwork.batch(16, generator), tmp_path, **options)
    judge = load_style(tmp_path / "checkpoint.pt")
    assert judge.styles(list(artwork.pictures.numpy())) == [row["style"] for row in dataset.rows]
    assert artwork.accuracy(judge) == 1


def test_a_missing_checkpoint_says_what_to_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"training\.networks\.train_style"):
        load_style(tmp_path / "none.pt")
