"""Train the judge of styles: `python -m training.networks.train_style`.

A small convolutional classifier of the artwork at full size: outlines and gradients tell the style, and the CLIP of
`train_clip` loses them at 64 pixels. `judging.evaluate` uses it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.captions import STYLES
from training.data.dataset import Dataset
from training.data.heldout import Heldout
from training.data.paint import Box, paste

from .fit import cosine, fit

CHANNELS = (32, 64, 128, 192)
SIDE = 128
SHIFT = 8  # pixels that a picture is moved by at most
WARMUP = 50  # steps
EMA_DECAY = 0.99  # a step


def convolutions(widths: Sequence[int]) -> nn.Sequential:
    """Return a pair of convolutions for each width, which halves a picture (B, 3, H, W)."""
    layers: list[nn.Module] = []
    for before, after in pairwise((3, *widths)):
        for channels, stride in ((before, 2), (after, 1)):
            layers += [nn.Conv2d(channels, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)


class StyleClassifier(nn.Module):
    """Four pairs of convolutions, averaged over the picture, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = convolutions(CHANNELS)
        self.head = nn.Linear(CHANNELS[-1], len(STYLES))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, 8), in the order of `STYLES`."""
        return self.head(self.features(x).mean((2, 3)))

    @torch.no_grad()
    def styles(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """Return the style that each picture (H, W, 3) uint8 looks most like."""
        batches = torch.from_numpy(np.stack(pictures)).to(self.head.weight.device).split(64)
        best = [self(normalised(batch)).argmax(dim=1).tolist() for batch in batches]
        return [STYLES[i] for part in best for i in part]


def normalised(pictures: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def style_loss(model: StyleClassifier, pictures: Tensor, styles: Tensor) -> Tensor:
    """Return the cross-entropy of pictures (B, 3, H, W) in [-1, 1] against the indices (B,) of their styles."""
    return F.cross_entropy(model(pictures).float(), styles)


class StyledArtwork:
    """The artwork on white with its styles, all as often; the held-out part measures accuracy."""

    def __init__(self, dataset: Dataset, heldout: Heldout):
        self.pictures = torch.from_numpy(np.stack([on_white(picture) for picture in dataset.pictures]))
        self.styles = torch.tensor([STYLES.index(row["style"]) for row in dataset.rows])
        unseen = torch.tensor([(row["concept"], row["style"]) in heldout.cells for row in dataset.rows])
        self.heldout = unseen.nonzero()[:, 0]
        counts = self.styles[~unseen].bincount(minlength=len(STYLES))
        self.weights = torch.where(unseen, 0.0, 1 / counts[self.styles])

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pictures (size, 3, 128, 128), moved, mirrored and now and then blurred, and their styles (size,)."""
        rows = self.weights.multinomial(size, replacement=True, generator=generator)
        mirrored, blurred = (torch.rand(2, generator=generator) < 0.5).tolist()
        pictures = normalised(self.pictures[rows])
        framed = F.pad(pictures.flip(3) if mirrored else pictures, (SHIFT,) * 4, value=1.0)
        top, left = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
        x = framed[..., top : top + SIDE, left : left + SIDE]
        if blurred:  # so that sharpness does not tell the style
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        return x.contiguous(), self.styles[rows]

    def accuracy(self, model: StyleClassifier) -> float:
        """Return the share of the held-out pictures whose style `model` names."""
        named = model.styles(list(self.pictures[self.heldout].numpy()))
        right = torch.tensor([STYLES.index(name) for name in named]) == self.styles[self.heldout]
        return right.float().mean().item()


def on_white(picture: np.ndarray) -> np.ndarray:
    """Return artwork (128, 128, 4) as a whole picture, (128, 128, 3) uint8."""
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    paste(canvas, picture, Box())
    return np.asarray(canvas)


def load_style(checkpoint: Path) -> StyleClassifier:
    """Return the averaged model of a checkpoint. Raises FileNotFoundError where there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_style`")
    model = StyleClassifier()
    model.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    return model.eval().requires_grad_(False)


def main() -> None:
    """Train the classifier of styles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, default=Path("runs/style"))
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    artwork = StyledArtwork(Dataset.load(args.data), Heldout.load())

    def look(step: int, averaged: StyleClassifier) -> None:
        print(f"step {step}: {100 * artwork.accuracy(averaged):.1f} % of held-out pictures", flush=True)

    fit(
        StyleClassifier(),
        style_loss,
        lambda generator: artwork.batch(args.batch, generator),
        args.out,
        rate=args.rate,
        schedule=cosine,
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        steps=args.steps,
        look=look,
    )


if __name__ == "__main__":
    main()
