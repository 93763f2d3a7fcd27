"""Compose captioned pictures and keep their latents: `python -m training.cache_latents --resolution 64`.

Composing and encoding cost as much as a training step, and need not be paid again when an example is seen again. Shard
i of `runs/latents-{resolution}/` is a pair of files: `0000.npy`, float16 (n, 4, h, w), the posterior's mean as the
autoencoder gives it, and `0000.jsonl`, one caption, a JSON string, a line. A shard depends on its number and the
autoencoder alone, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stable_diffusion.vae import VAE

from .captions import Composer
from .dataset import Dataset
from .heldout import Heldout
from .train_vae import CONFIG

SHARD = 1024
BATCH = 32


class Job(NamedTuple):
    """One shard to make."""

    number: int
    resolution: int
    data: Path
    heldout: Path
    vae: Path
    out: Path


def load_vae(checkpoint: Path) -> VAE:
    """The averaged autoencoder of a `train_vae` checkpoint, in evaluation mode.

    Raises FileNotFoundError where there is no checkpoint.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.train_vae`")
    vae = VAE(replace(CONFIG, scaling_factor=1.0))
    vae.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def standardise(vae: VAE, mean: Tensor, std: Tensor) -> VAE:
    """Let each latent channel of `vae` have mean 0 and deviation 1, given what they are, (C, 1, 1); returns `vae`.

    A model directory has one scaling factor for all channels. The 1x1 convolutions at the border of latent space take
    any scale and shift of each channel, so these go into their weights, and the pictures stay the same.
    """
    mean, std, channels = mean.flatten(), std.flatten(), len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()  # the log-variances
    out.bias += out.weight.flatten(1) @ mean
    out.weight *= std[:, None, None]
    return vae


@torch.no_grad()
def encode(vae: VAE, pictures: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) -> unscaled mean latents, float16 (n, 4, H/8, W/8)."""
    latents: list[Tensor] = []
    for start in range(0, len(pictures), BATCH):
        batch = torch.from_numpy(pictures[start : start + BATCH]).permute(0, 3, 1, 2) / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.posterior(batch).mean.to(torch.float16, memory_format=torch.contiguous_format))
    return torch.cat(latents).numpy()


@cache
def _tools(data: Path, heldout: Path, vae: Path, resolution: int) -> tuple[Composer, VAE]:
    """Composer and autoencoder of a worker process, which makes many shards."""
    torch.set_num_threads(1)
    return Composer(Dataset.load(data), resolution, Heldout.load(heldout)), load_vae(vae)


def make_shard(job: Job) -> int:
    """Write one shard; the latents come last, under their name only when complete. Returns its number."""
    composer, vae = _tools(job.data, job.heldout, job.vae, job.resolution)
    pictures, captions = [], []
    for index in range(SHARD):
        picture, caption, _ = composer.sample(np.random.default_rng((job.resolution, job.number, index)))
        pictures.append(picture)
        captions.append(caption)
    path = job.out / f"{job.number:04d}.npy"
    path.with_suffix(".jsonl").write_text("".join(json.dumps(text) + "\n" for text in captions), encoding="utf-8")
    partial = path.with_suffix(".partial.npy")
    np.save(partial, encode(vae, np.stack(pictures)))
    os.replace(partial, path)
    return job.number


def load_shards(folder: Path) -> tuple[Tensor, list[str]]:
    """All complete shards of a folder: unscaled latents, float16 (N, 4, h, w), and their N captions.

    Raises FileNotFoundError where there is none.
    """
    paths = sorted(folder.glob("[0-9]*[0-9].npy"))
    if not paths:
        raise FileNotFoundError(f"no latents in folder={folder}: run `python -m training.cache_latents`")
    latents = torch.cat([torch.from_numpy(np.load(path)) for path in paths])
    captions = [
        json.loads(line) for path in paths for line in path.with_suffix(".jsonl").read_text("utf-8").splitlines()
    ]
    return latents, captions


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of latents (N, C, h, w), each (C, 1, 1) in float32."""
    channels = latents.float().transpose(0, 1).flatten(1)  # (N, C, h, w) -> (C, N h w)
    return channels.mean(1)[:, None, None], channels.std(1)[:, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--count", type=int, default=65_536, help="pictures in all, rounded up to whole shards")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--heldout", type=Path, default=Path(__file__).with_name("heldout.json"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/checkpoint.pt"))
    parser.add_argument("--out", type=Path, help="default: runs/latents-RESOLUTION")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    out = args.out or Path(f"runs/latents-{args.resolution}")
    out.mkdir(parents=True, exist_ok=True)
    numbers = [n for n in range(-(-args.count // SHARD)) if not (out / f"{n:04d}.npy").exists()]
    jobs = [Job(number, args.resolution, args.data, args.heldout, args.vae, out) for number in numbers]
    started = time.monotonic()
    # Forking a process that has used torch's threads can hang: start fresh ones.
    with get_context("spawn").Pool(args.workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(make_shard, jobs), start=1):
            rate = done * SHARD / (time.monotonic() - started)
            left = (len(jobs) - done) * SHARD / rate / 60
            print(f"shard {done}/{len(jobs)}  {rate:.0f} pictures/s  {left:.0f} min left", flush=True)
    latents, _ = load_shards(out)
    mean, std = (statistic.flatten().tolist() for statistic in channel_statistics(latents))
    print(f"{len(latents)} latents in {out}: channel means {mean}, deviations {std}")


if __name__ == "__main__":
    main()
