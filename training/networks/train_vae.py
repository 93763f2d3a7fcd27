"""Train the bundled model's autoencoder: `python -m training.networks.train_vae`.

Three of four examples are 64 px crops at full size, one is a whole picture at half size, each on a random background.
The loss is L1 on a four-level pyramid, L1 on the gradients, which keeps outlines crisp, the squared error that PSNR
tells, and a small KL term (arXiv:2112.10752, section 3.1: KL regularisation, without the discriminator).
`--decoder-of CHECKPOINT` goes on with the decoder alone, so that latents already trained on stay valid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stable_diffusion.loading.config import VAEConfig
from stable_diffusion.vae import VAE, Autoencoder

from .fit import cosine, fit

# Eight latent channels instead of Stable Diffusion's four: with four, this small decoder gave up a colour axis, and
# purple came back grey.
CONFIG = VAEConfig(
    block_out_channels=(32, 64, 96, 128),
    latent_channels=8,
    norm_num_groups=16,
    sample_size=128,
    mid_block_add_attention=False,
)
KL_WEIGHT = 3e-4
SQUARED_WEIGHT = 5.0
CROP = 64
HELDOUT_EVERY = 97  # every 97th picture is kept out of training, to measure on
MEASURED = 64  # of those, while training
WARMUP = 200  # steps
EMA_DECAY = 0.998  # a step


class Crops:
    """Crops of pictures composed on random backgrounds, and now and then of photos."""

    def __init__(self, data: Path, photos: Path):
        self.pictures = np.load(data / "pictures.npy", mmap_mode="r")  # (N, 128, 128, 4) uint8, straight alpha
        rows = np.arange(len(self.pictures))
        self.rows, self.heldout_rows = rows[rows % HELDOUT_EVERY != 0], rows[::HELDOUT_EVERY]
        self.photos = [self._photo(path) for path in sorted(photos.glob("*.jpg"))]

    def heldout(self, size: int) -> Tensor:
        """`size` held-out pictures on white, (size, 3, 128, 128) in [-1, 1]."""
        rgba = self.pictures[self.heldout_rows[:size]].astype(np.float32)
        picture = rgba[..., :3] * (rgba[..., 3:] / 255.0) + 255.0 - rgba[..., 3:]
        return torch.from_numpy(picture).permute(0, 3, 1, 2) / 127.5 - 1.0

    @staticmethod
    def _photo(path: Path) -> np.ndarray:
        with Image.open(path) as photo:
            return np.asarray(photo.convert("RGB").resize((256, 256)))

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pictures (size, 3, 64, 64) in [-1, 1], and the noise that their latents are sampled with."""
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        pictures = torch.from_numpy(np.stack([self._crop(rng) for _ in range(size)])).permute(0, 3, 1, 2)
        side = CROP // CONFIG.downscale
        noise = torch.randn(size, CONFIG.latent_channels, side, side, generator=generator)
        return (pictures / 127.5 - 1.0).contiguous(), noise

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        if self.photos and rng.random() < 0.08:
            picture = self.photos[rng.integers(len(self.photos))].astype(np.float32)
            step = int(rng.integers(1, 3))
            picture = picture[::step, ::step]
        else:
            picture = self._composed(rng)
        top, left = rng.integers(0, picture.shape[0] - CROP + 1), rng.integers(0, picture.shape[1] - CROP + 1)
        picture = picture[top : top + CROP, left : left + CROP]
        return picture[:, ::-1] if rng.random() < 0.5 else picture

    def _composed(self, rng: np.random.Generator) -> np.ndarray:
        rgba = self.pictures[rng.choice(self.rows)].astype(np.float32)
        background = np.full(3, 255.0) if rng.random() < 0.3 else rng.uniform(0, 255, 3)
        alpha = rgba[..., 3:] / 255.0
        picture = (rgba[..., :3] * alpha + background * (1 - alpha)).astype(np.float32)
        if rng.random() < 0.25:
            picture = picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
        if rng.random() < 0.2:
            picture = picture[..., rng.permutation(3)]
        return picture


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the L1 of a four-level pyramid, half the L1 of its differences, and the squared error.

    At the coarsest level a pixel is one latent: its mean colour has to be right.
    """
    loss = SQUARED_WEIGHT * F.mse_loss(output, target)
    for level in range(4):
        if level:
            output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
        loss = loss + F.l1_loss(output, target)
        if level == 0:
            for dim in (2, 3):
                loss = loss + 0.5 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def autoencoder_loss(vae: VAE, pictures: Tensor, noise: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], noise (B, C, H/8, W/8) -> reconstruction and KL term, a scalar."""
    posterior = vae.posterior(pictures)
    output = vae.decode(posterior.sample(noise) * vae.config.scaling_factor)
    return reconstruction_loss(output.float(), pictures) + KL_WEIGHT * posterior.kl().float().mean()


@torch.no_grad()
def psnr(vae: Autoencoder, pictures: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1] that were encoded."""
    return decibels(vae.decode(vae.encode(pictures)), pictures)


def decibels(painted: Tensor, pictures: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of decoded pictures (B, 3, H, W) in [-1, 1]."""
    error = (painted.clamp(-1, 1) - pictures).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


def main() -> None:
    """Train the autoencoder of 128 px."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--photos", type=Path, default=Path("assets/examples"))
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decoder-of", type=Path, help="go on with this checkpoint's decoder; its encoder stays")
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = VAE(CONFIG)
    if args.decoder_of:
        vae.load_state_dict(torch.load(args.decoder_of, weights_only=True)["ema"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    crops = Crops(args.data, args.photos)
    heldout = crops.heldout(MEASURED)

    def look(step: int, averaged: VAE) -> None:
        decibels = psnr(averaged, heldout.to(averaged.quant_conv.weight.device))
        print(f"step {step}: PSNR {decibels:.2f} dB on held-out pictures", flush=True)

    fit(
        vae,
        autoencoder_loss,
        lambda generator: crops.batch(args.batch, generator),
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
