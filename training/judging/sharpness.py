"""Measure how sharply models paint at 256 px: `python -m training.judging.sharpness [MODEL ...]`.

Artwork that training held out goes through encoder and decoder of each model. Pictures of 128 px are enlarged.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.vae import Autoencoder
from training.data.dataset import Dataset
from training.data.heldout import Heldout
from training.data.paint import Box, paste
from training.networks.train_vae import decibels

SIDE = 256
STRONG = 0.99  # quantile of the gradients of a picture


def heldout_artwork(dataset: Dataset, heldout: Heldout) -> Tensor:
    """Return the drawings that training never sees, on white: (N, 3, S, S) in [-1, 1]."""
    drawn = []
    for picture, row in zip(dataset.pictures, dataset.rows, strict=True):
        if (row["concept"], row["style"]) in heldout.cells:
            canvas = Image.new("RGB", (len(picture),) * 2, "white")
            paste(canvas, picture, Box())
            drawn.append(np.asarray(canvas))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) / 127.5 - 1.0


def strong_edges(pictures: Tensor) -> float:
    """Return the steepness of the strongest edges of pictures (N, 3, H, W) in [-1, 1], in 8-bit levels a pixel.

    The measure is the mean over pictures of the 99th percentile of the gradient of lightness. Outlines are thin, so
    that blur lowers it in proportion, and flat areas do not count.
    """
    grey = 127.5 * pictures.mean(dim=1)
    across, down = grey[:, :-1].diff(dim=2), grey[:, :, :-1].diff(dim=1)
    return float(torch.hypot(across, down).flatten(1).quantile(STRONG, dim=1).mean())


@torch.no_grad()
def painted(vae: Autoencoder, pictures: Tensor) -> Tensor:
    """Return pictures (N, 3, 256, 256) encoded and decoded, at half size where that is the model's."""
    side = getattr(vae.config, "sample_size", SIDE)
    parts = F.interpolate(pictures, size=(side, side), mode="area").split(8)
    out = torch.cat([vae.decode(vae.encode(part)) for part in parts]).clamp(-1, 1)
    return F.interpolate(out, size=pictures.shape[-2:], mode="bicubic") if side != SIDE else out


def report(models: Sequence[Path], pictures: Tensor) -> None:
    """Print a table of models."""
    print("| | strong edges, levels a pixel | PSNR |\n| --- | --- | --- |")
    print(f"| {len(pictures)} held-out pictures | {strong_edges(pictures):.1f} | |")
    for model in models:
        result = painted(Pipeline.from_pretrained(model).models.vae, pictures)
        print(f"| {model} | {strong_edges(result):.1f} | {decibels(result, pictures):.2f} dB |", flush=True)


def main() -> None:
    """Print the sharpness of each model's autoencoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", default=[Path("assets/models/emoji")])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    args = parser.parse_args()
    report(args.models, heldout_artwork(Dataset.load(args.data, SIDE), Heldout.load()))


if __name__ == "__main__":
    main()
