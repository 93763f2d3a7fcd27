"""Train an autoencoder of 256 px on the latents of that of 128 px: `python -m training.networks.train_vae_256 decoder`.

The U-Net stays as it is: with a level more at the side of the picture, 16 x 16 latents are those of the picture at half
size. The halves are trained one at a time, on what `cache_predictions` keeps:
- `decoder` to paint the picture from clean latents, from noisy ones and from the U-Net's own x_0, so that it learns to
  finish what the network leaves vague. Pixels alone would answer that with a blur, so a discriminator of patches looks
  on (arXiv:1611.07004, section 3.2.2; for autoencoders arXiv:2112.10752, section 3.1);
- `encoder` to give the latents that the known encoder gives for the picture at half size, and of all these the ones
  from which the decoder of `--decoder` paints best.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from stable_diffusion.vae import VAE

from .cache_predictions import load_known_vae
from .fit import cosine, fit
from .train_vae import CONFIG, decibels, psnr, reconstruction_loss

CONFIG_256 = replace(CONFIG, block_out_channels=(32, 32, 64, 96, 128), sample_size=256, scaling_factor=1.0)
CLEAN, NOISY = 0.15, 0.30  # shares of the latents that are painted from; the others are the U-Net's x_0
MOST_NOISE = 0.35  # deviation, where the latents have 1
SIDE = 8  # of a piece, in latents
AGREEMENT, SPREAD = 5.0, 0.1  # weights of the latents' squared error, and of their log-variances' in it
REALISM = 0.05  # weight of the discriminator's opinion
CRITIC_CHANNELS = (32, 64, 128, 128)
MEASURED = 48  # examples at the end of the first folder that are kept out of training, to measure on
WARMUP = 200  # steps
EMA_DECAY = 0.998  # a step


@torch.no_grad()
def grown(known: VAE) -> VAE:
    """Return a five-level autoencoder that begins as the four-level one between halving and doubling."""
    vae = VAE(CONFIG_256)
    moved = {
        re.sub(r"(?<=down_blocks\.)\d", lambda level: str(int(level[0]) + 1), name): weight
        for name, weight in known.state_dict().items()
    }
    vae.load_state_dict(vae.state_dict() | moved)
    state = vae.state_dict()  # which shares its memory with the network
    for name, weight in state.items():
        if name.startswith(("encoder.down_blocks.0.resnets", "decoder.up_blocks.4.resnets")) and ".conv2." in name:
            weight.zero_()
    halving, doubling = "encoder.down_blocks.0.downsamplers.0.conv", "decoder.up_blocks.3.upsamplers.0.conv"
    for name, taps in ((halving, [0.5, 0.5, 0.0]), (doubling, [0.0, 1.0, 0.0])):  # the mean of four; the pixel itself
        weight, line = state[f"{name}.weight"].zero_(), torch.tensor(taps)
        state[f"{name}.bias"].zero_()
        channels = torch.arange(len(weight))
        weight[channels, channels] = line[:, None] * line
    return vae


class Pieces:
    """Pieces of the pictures in folders of `cache_predictions`, with the latents to paint them from."""

    def __init__(self, folders: Sequence[Path]):
        self.pictures = [np.load(folder / "pictures.npy", mmap_mode="r") for folder in folders]
        self.latents = [np.load(folder / "latents.npy") for folder in folders]
        self.predictions = [np.load(folder / "predictions.npy") for folder in folders]
        counts = [len(part) for part in self.pictures]
        counts[0] -= MEASURED
        self.places = [(folder, row) for folder, count in enumerate(counts) for row in range(count)]

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return pictures (size, 3, 128, 128) in [-1, 1], their latents (size, C, 8, 8), and the decoder's input."""
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        pictures, *latents = zip(*(self._piece(rng) for _ in range(size)), strict=True)
        clean, given = (torch.from_numpy(np.stack(part)) for part in latents)
        return to_pictures(np.stack(pictures)), clean, given

    def _piece(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        folder, row = self.places[rng.integers(len(self.places))]
        scale, side = CONFIG_256.downscale, self.latents[folder].shape[-1]
        top, left = rng.integers(0, side - SIDE + 1, 2)
        window = slice(None), slice(top, top + SIDE), slice(left, left + SIDE)
        wide = slice(scale * top, scale * (top + SIDE)), slice(scale * left, scale * (left + SIDE))
        clean = self.latents[folder][row][window].astype(np.float32)
        kind, given = rng.random(), clean
        if kind > CLEAN + NOISY:
            given = self.predictions[folder][row][window].astype(np.float32)
        elif kind > CLEAN:
            given = clean + np.float32(rng.uniform(0, MOST_NOISE)) * rng.standard_normal(clean.shape, np.float32)
        return self.pictures[folder][row][wide], clean, given

    def measured(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the held-out pictures (N, 3, 256, 256), their latents (N, C, 16, 16) and the U-Net's x_0."""
        latents, predictions = (torch.from_numpy(part[0][-MEASURED:]) for part in (self.latents, self.predictions))
        return to_pictures(self.pictures[0][-MEASURED:]), latents.float(), predictions.float()


def to_pictures(array: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W) in [-1, 1]."""
    return (torch.from_numpy(array.copy()).permute(0, 3, 1, 2) / 127.5 - 1.0).contiguous()


class Critic(nn.Module):
    """A discriminator of patches: five convolutions, spectrally normalised (arXiv:1802.05957)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((3, *CRITIC_CHANNELS), CRITIC_CHANNELS, (2, 2, 2, 1), strict=False):
            layers += [spectral_norm(nn.Conv2d(before, after, 3, stride, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(CRITIC_CHANNELS[-1], 1, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> scores (B, 1, H/8, W/8), above 0 for what looks real."""
        return self.layers(x)


class AutoencoderWithCritic(nn.Module):
    """An autoencoder and the critic of its decoder, trained together."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae, self.critic = vae, Critic()


def adversarial_loss(pair: AutoencoderWithCritic, pictures: Tensor, latents: Tensor) -> Tensor:
    """Return both players' losses on pictures (B, 3, H, W) and their latents: hinge for the critic (arXiv:1705.02894).

    The critic's loss has the decoded pictures detached, the decoder's loss the critic's weights: so one step of one
    optimizer moves each by its own loss.
    """
    painted = pair.vae.decode(latents).float()
    fixed = {name: weight.detach() for name, weight in pair.critic.named_parameters()}
    opinion = functional_call(pair.critic, fixed, (painted,)).float().mean()
    real, false = pair.critic(pictures).float(), pair.critic(painted.detach()).float()
    hinge = F.relu(1 - real).mean() + F.relu(1 + false).mean()
    return reconstruction_loss(painted, pictures) - REALISM * opinion + hinge


def agreement_loss(known: VAE, vae: VAE, pictures: Tensor) -> Tensor:
    """Return the squared error to the known encoder's posterior of (B, 3, H, W), and the decoder's error."""
    with torch.no_grad():
        wanted = known.posterior(F.avg_pool2d(pictures, 2))
    posterior = vae.posterior(pictures)
    agreement = F.mse_loss(posterior.mean.float(), wanted.mean.float())
    agreement = agreement + SPREAD * F.mse_loss(posterior.logvar.float(), wanted.logvar.float())
    return AGREEMENT * agreement + reconstruction_loss(vae.decode(posterior.mean).float(), pictures)


def load_vae_256(encoder: Path, decoder: Path) -> VAE:
    """Return the averaged autoencoder of two checkpoints, one for each half.

    Raises FileNotFoundError where one of them is missing.
    """
    vae = VAE(CONFIG_256)
    vae.load_state_dict(_averaged(encoder, "encoder"))
    take_decoder(vae, decoder)
    return vae.eval().requires_grad_(False)


def take_decoder(vae: VAE, checkpoint: Path) -> None:
    """Give `vae` the averaged decoder of a checkpoint of the decoder's stage."""
    pair = _averaged(checkpoint, "decoder")
    own = {name.removeprefix("vae."): weight for name, weight in pair.items() if name.startswith("vae.")}
    vae.load_state_dict(vae.state_dict() | {n: w for n, w in own.items() if n.startswith(("decoder.", "post_quant_"))})


def _averaged(checkpoint: Path, half: str) -> dict[str, Tensor]:
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_vae_256 {half}`")
    return torch.load(checkpoint, weights_only=True, mmap=True)["ema"]


def train_decoder(vae: VAE, pieces: Pieces, out: Path, args: argparse.Namespace) -> None:
    """Train the decoder of `vae` with a critic, until the minutes are used up."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    pictures, _, predictions = pieces.measured()

    def look(step: int, averaged: AutoencoderWithCritic) -> None:
        device = averaged.vae.quant_conv.weight.device
        painted = averaged.vae.decode(predictions.to(device))
        print(f"step {step}: PSNR {decibels(painted.cpu(), pictures):.2f} dB from the U-Net's x_0", flush=True)

    fit(
        AutoencoderWithCritic(vae),
        adversarial_loss,
        lambda generator: pieces.batch(args.batch, generator)[::2],
        out,
        rate=args.rate,
        schedule=cosine,
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        steps=args.steps,
        minutes=args.minutes,
        look=look,
    )


def train_encoder(vae: VAE, known: VAE, pieces: Pieces, out: Path, args: argparse.Namespace) -> None:
    """Train the encoder of `vae` to agree with `known`, until the minutes are used up."""
    vae.decoder.requires_grad_(False)
    vae.post_quant_conv.requires_grad_(False)
    pictures, latents, _ = pieces.measured()

    def look(step: int, averaged: VAE) -> None:
        device = averaged.quant_conv.weight.device
        error = F.mse_loss(averaged.encode(pictures.to(device)).cpu(), latents).sqrt()
        print(f"step {step}: {error:.3f} from the known latents, PSNR {psnr(averaged, pictures.to(device)):.2f} dB")

    fit(
        vae,
        partial(agreement_loss, copy.deepcopy(known)),
        lambda generator: pieces.batch(args.batch, generator)[:1],
        out,
        rate=args.rate,
        schedule=cosine,
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        steps=args.steps,
        minutes=args.minutes,
        look=look,
    )


def main() -> None:
    """Train one half of the autoencoder of 256 px."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("half", choices=("decoder", "encoder"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--steps", type=int, help="stop at this step in all, if that comes first")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, help="safetensors of a decoder to begin with, in place of the grown one")
    parser.add_argument("--predictions", type=Path, nargs="+", default=[Path("runs/predictions")])
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/checkpoint.pt"), help="the one of 128 px")
    parser.add_argument("--unet", type=Path, default=Path("runs/unet/checkpoint.pt"), help="which has its statistics")
    parser.add_argument("--decoder", type=Path, default=Path("runs/vae-256-decoder/checkpoint.pt"))
    parser.add_argument("--out", type=Path, help="default: runs/vae-256-HALF")
    args = parser.parse_args()

    torch.manual_seed(0)
    known, pieces = load_known_vae(args.vae, args.unet), Pieces(args.predictions)
    vae, out = grown(known), args.out or Path(f"runs/vae-256-{args.half}")
    if args.half == "decoder":
        if args.start is not None:
            vae.decoder.load_state_dict(load_file(args.start))
        train_decoder(vae, pieces, out, args)
    else:
        take_decoder(vae, args.decoder)
        train_encoder(vae, known, pieces, out, args)


if __name__ == "__main__":
    main()
