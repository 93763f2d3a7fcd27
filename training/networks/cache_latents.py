"""Compose captioned pictures and keep their latents: `python -m training.networks.cache_latents --resolution 64`.

Composing and encoding an example costs as much as training on it, and is done once. Folder `runs/latents-{resolution}`
then holds the composed examples, `pictures.npy` and `captions.json` (`captions.compose_many`), and `latents.npy`,
float16 (N, C, h, w), the posterior's mean of each as the autoencoder gives it. Files that exist are kept; delete
`latents.npy` when the autoencoder has changed.

With `--model FOLDER` the latents are those of a finished model directory, for training that starts from its weights:
pictures of 128 px are doubled to the 256 px that its encoder reads.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stable_diffusion.model_loader import load
from stable_diffusion.vae import VAE
from training.data.captions import RECIPES, compose_many

from .train_vae import CONFIG

BATCH = 64


def load_vae(checkpoint: Path) -> VAE:
    """Return the averaged autoencoder of a `train_vae` checkpoint, in evaluation mode.

    Raises FileNotFoundError where there is no checkpoint.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_vae`")
    vae = VAE(replace(CONFIG, scaling_factor=1.0))
    vae.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    # torch documents this form of `to` but has no annotation of it
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def standardise(vae: VAE, mean: Tensor, std: Tensor) -> VAE:
    """Let each latent channel of `vae` have mean 0 and deviation 1, given what they are, (C, 1, 1); returns `vae`.

    A model directory has one scaling factor for all channels. The 1x1 convolutions at the border of latent space take
    any scale and shift of each channel, so these go into their weights, and the pictures stay the same.
    """
    mean, std, channels = mean.flatten(), std.flatten(), len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    assert into.bias is not None
    assert out.bias is not None
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()  # the log-variances
    out.bias += out.weight.flatten(1) @ mean
    out.weight *= std[:, None, None]
    return vae


@torch.no_grad()
def encode(vae: VAE, pictures: np.ndarray, enlarged: int = 1) -> np.ndarray:
    """uint8 (N, H, W, 3) -> the posterior's mean, float16 (N, C, h, w), of pictures `enlarged` so many times."""
    latents: list[Tensor] = []
    for start in range(0, len(pictures), BATCH):
        batch = torch.tensor(pictures[start : start + BATCH]).permute(0, 3, 1, 2) / 127.5 - 1.0
        if enlarged > 1:
            batch = F.interpolate(batch, scale_factor=enlarged, mode="bicubic").clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.posterior(batch).mean.to(torch.float16, memory_format=torch.contiguous_format))
    return torch.cat(latents).numpy()


def load_latents(folder: Path) -> tuple[Tensor, list[str]]:
    """Return the latents of a folder, float16 (N, C, h, w), and their N captions.

    Raises FileNotFoundError where there are none.
    """
    if not (folder / "latents.npy").exists():
        raise FileNotFoundError(f"no latents in folder={folder}: run `python -m training.networks.cache_latents`")
    latents = torch.from_numpy(np.load(folder / "latents.npy"))
    return latents, json.loads((folder / "captions.json").read_text(encoding="utf-8"))


def load_facts(folders: Sequence[Path]) -> list[dict]:
    """Return the facts of the pictures of all folders (`Composer.sample`).

    Raises FileNotFoundError where a folder has no facts: those composed before captions were kept with theirs.
    """
    facts: list[dict] = []
    for folder in folders:
        if not (folder / "facts.json").exists():
            raise FileNotFoundError(f"no facts in folder={folder}: run `python -m training.networks.cache_latents`")
        facts += json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return facts


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel of latents (N, C, h, w), each (C, 1, 1) in float32."""
    channels = latents.float().transpose(0, 1).flatten(1)  # (N, C, h, w) -> (C, N h w)
    return channels.mean(1)[:, None, None], channels.std(1)[:, None, None]


def main() -> None:
    """Compose the pictures and, unless told to stop there, encode them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--count", type=int, default=60_000, help="how many pictures to compose")
    parser.add_argument("--recipe", choices=list(RECIPES), help="what all of them show; default: each in its share")
    parser.add_argument("--compose-only", action="store_true", help="stop before the autoencoder is needed")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/checkpoint.pt"))
    parser.add_argument("--model", type=Path, help="a model directory whose autoencoder takes the checkpoint's place")
    parser.add_argument("--seed", type=int, help="default: the resolution, so that no stage repeats another's pictures")
    parser.add_argument("--out", type=Path, help="default: runs/latents-RESOLUTION")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    out = args.out or Path(f"runs/latents-{args.resolution}")
    if not (out / "captions.json").exists():
        seed = args.resolution if args.seed is None else args.seed
        options = {"size": args.resolution, "workers": args.workers, "recipe": args.recipe}
        compose_many(args.count, seed, out, args.data, **options)
        print(f"{args.count} pictures in {out}", flush=True)
    if args.compose_only:
        return
    if not (out / "latents.npy").exists():
        partial, pictures = out / "latents.partial.npy", np.load(out / "pictures.npy", mmap_mode="r")
        if args.model:
            vae = load(args.model).vae
            assert isinstance(vae, VAE), f"the autoencoder of {args.model} is a tiny one"
            np.save(partial, encode(vae, pictures, enlarged=vae.config.sample_size // args.resolution))
        else:
            np.save(partial, encode(load_vae(args.vae), pictures))
        os.replace(partial, out / "latents.npy")
    latents, _ = load_latents(out)
    mean, std = (statistic.flatten().tolist() for statistic in channel_statistics(latents))
    print(f"{len(latents)} latents in {out}: channel means {mean}, deviations {std}")


if __name__ == "__main__":
    main()
