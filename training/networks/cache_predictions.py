"""Keep what decoders of 256 px learn from: `python -m training.networks.cache_predictions`.

Folder `runs/predictions` then holds composed examples, `pictures.npy`, uint8 (N, 256, 256, 3), and `captions.json`; and
their latents, float16 (N, C, 16, 16): `latents.npy`, which the autoencoder of 128 px gives for the picture at half
size, standardised as the U-Net knows them, and `predictions.npy`, its x_0 of these latents with a little noise and of
the caption. A decoder learns from them to finish the network's vague parts. With `--photos FOLDER` the examples are
pieces of photos without a caption, so that these can be painted too. Files that exist are kept; delete
`predictions.npy` when the U-Net has changed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from stable_diffusion.schedule import NoiseSchedule
from stable_diffusion.vae import VAE
from training.data.captions import compose_many

from .cache_latents import BATCH, encode, load_vae, standardise
from .train_tokenizer import caption_tokens
from .train_unet import SCHEDULER, TextToLatents, load_unet

SIDE = 256
TIMESTEPS = (20, 350)  # the contents of a picture are settled here, and its finer parts are not
SMALLEST_PIECE = 0.4  # of a photo's shorter side


def load_known_vae(vae: Path, unet: Path) -> VAE:
    """Return the autoencoder of a checkpoint, scaled to the latents of the U-Net of the other."""
    network = torch.load(unet, weights_only=True, mmap=True)["ema"]
    return standardise(load_vae(vae), network["latent_mean"], network["latent_std"])


def photo_pieces(photos: Sequence[Path], count: int, seed: int) -> np.ndarray:
    """Return square pieces of photos, some mirrored, half of them in other colours, (count, 256, 256, 3) uint8."""
    rng = np.random.default_rng(seed)
    opened = [Image.open(path).convert("RGB") for path in photos]
    pieces = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for piece in pieces:
        photo = opened[rng.integers(len(opened))]
        side = rng.uniform(SMALLEST_PIECE, 1) * min(photo.size)
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        box = (left, top, left + side, top + side)
        piece[...] = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box))
        if rng.random() < 0.5:
            piece[...] = piece[:, ::-1].copy()
        if rng.random() < 0.5:
            piece[...] = piece[..., rng.permutation(3)]
    return pieces


def halved(pictures: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, H/2, W/2, 3), each pixel the mean of four."""
    n, height, width, channels = pictures.shape
    return np.round(pictures.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))).astype(np.uint8)


def encode_halved(vae: VAE, pictures: np.ndarray) -> np.ndarray:
    """uint8 (N, 256, 256, 3) -> latents of each at half size, float16 (N, C, 16, 16)."""
    parts = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
    return np.concatenate([encode(vae, halved(part)) for part in parts])


@torch.no_grad()
def predict(model: TextToLatents, latents: np.ndarray, tokens: Tensor, seed: int) -> np.ndarray:
    """Return the model's x_0 of latents (N, C, h, w), noised at random `TIMESTEPS`, for the tokens (N, S)."""
    schedule, generator = NoiseSchedule(SCHEDULER), torch.Generator().manual_seed(seed)
    predictions = np.empty_like(latents)
    for start in range(0, len(latents), BATCH):
        rows = slice(start, start + BATCH)
        x_0 = torch.from_numpy(latents[rows]).float()
        t = torch.randint(*TIMESTEPS, (len(x_0),), generator=generator)
        x_t = schedule.add_noise(x_0, torch.randn(x_0.shape, generator=generator), t)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(x_t, t, tokens[rows].long()).float()
        predictions[rows] = schedule.predict_x_0(velocity, x_t, t)
    return predictions


def save(path: Path, array: np.ndarray) -> None:
    """Write under another name and rename, so that what has the name is whole."""
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array)
    os.replace(partial, path)


def main() -> None:
    """Compose pictures and keep the U-Net's predictions of their latents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=24_000, help="how many pictures to compose")
    parser.add_argument("--seed", type=int, default=SIDE)
    parser.add_argument("--photos", type=Path, help="take pieces of the photos in this folder instead of artwork")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/checkpoint.pt"))
    parser.add_argument("--unet", type=Path, default=Path("runs/unet/checkpoint.pt"))
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("runs/predictions"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    out: Path = args.out
    if not (out / "captions.json").exists():
        if args.photos:
            out.mkdir(parents=True, exist_ok=True)
            save(out / "pictures.npy", photo_pieces(sorted(args.photos.glob("*.jpg")), args.count, args.seed))
            (out / "captions.json").write_text(json.dumps([""] * args.count) + "\n", encoding="utf-8")
        else:
            compose_many(args.count, args.seed, out, args.data, size=SIDE, workers=args.workers)
        print(f"{args.count} pictures in {out}", flush=True)
    if not (out / "latents.npy").exists():
        vae = load_known_vae(args.vae, args.unet)
        save(out / "latents.npy", encode_halved(vae, np.load(out / "pictures.npy", mmap_mode="r")))
        print(f"latents in {out}", flush=True)
    if not (out / "predictions.npy").exists():
        tokenizer = CLIPTokenizer.from_pretrained(str(args.tokenizer), local_files_only=True)
        captions = json.loads((out / "captions.json").read_text(encoding="utf-8"))
        model, tokens = load_unet(args.unet, tokenizer), caption_tokens(tokenizer, captions)
        save(out / "predictions.npy", predict(model, np.load(out / "latents.npy"), tokens, args.seed))
        print(f"predictions in {out}", flush=True)


if __name__ == "__main__":
    main()
