"""Train the tiny autoencoder, which previews each step: `python -m training.networks.train_tiny_vae --minutes 60`.

It has TAESD's layers (`stable_diffusion.tiny_vae`) and paints 256 px from the latents of the large one, at a quarter of
its time. It learns on the same pieces. A preview may stay vague where the U-Net's x_0 is, so that no discriminator is
needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_diffusion.loading.config import TinyVAEConfig
from stable_diffusion.tiny_vae import TinyVAE

from .fit import cosine, fit
from .train_vae import CONFIG, decibels, reconstruction_loss
from .train_vae_256 import Pieces

# Sixteen channels: the last levels, where pictures are large, take most of the time. More blocks below cost little
CONFIG_TINY = TinyVAEConfig(
    latent_channels=CONFIG.latent_channels,
    encoder_block_out_channels=(16,) * 5,
    decoder_block_out_channels=(16,) * 5,
    num_encoder_blocks=(1, 1, 1, 1, 1),
    num_decoder_blocks=(6, 5, 4, 3, 1),
)
WARMUP = 200  # steps
EMA_DECAY = 0.998  # a step


def tiny_loss(vae: TinyVAE, pictures: Tensor, latents: Tensor, given: Tensor) -> Tensor:
    """Return the decoder's error on pictures (B, 3, 16h, 16w) from latents `given`, and the encoder's."""
    painted = reconstruction_loss(vae.decode(given).float(), pictures)
    return painted + F.mse_loss(vae.encode(pictures).float(), latents)


def load_tiny(checkpoint: Path) -> TinyVAE:
    """Return the averaged model of a checkpoint. Raises FileNotFoundError where there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_tiny_vae`")
    vae = TinyVAE(CONFIG_TINY)
    vae.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    return vae.eval().requires_grad_(False)


def main() -> None:
    """Train the tiny autoencoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--steps", type=int, help="stop at this step in all, if that comes first")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--predictions", type=Path, nargs="+", default=[Path("runs/predictions")])
    parser.add_argument("--out", type=Path, default=Path("runs/vae-tiny"))
    args = parser.parse_args()

    torch.manual_seed(0)
    pieces = Pieces(args.predictions)
    pictures, latents, _ = pieces.measured()

    def look(step: int, averaged: TinyVAE) -> None:
        painted = averaged.decode(latents.to(next(averaged.parameters()).device))
        print(f"step {step}: PSNR {decibels(painted.cpu(), pictures):.2f} dB", flush=True)

    fit(
        TinyVAE(CONFIG_TINY),
        tiny_loss,
        lambda generator: pieces.batch(args.batch, generator),
        args.out,
        rate=args.rate,
        schedule=cosine,
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        steps=args.steps,
        minutes=args.minutes,
        look=look,
    )


if __name__ == "__main__":
    main()
