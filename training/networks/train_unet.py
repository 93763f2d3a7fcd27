"""Train U-Net and text encoder on cached latents: `python -m training.networks.train_unet --resolution 64`.

Small pictures first, where a step costs half, then `--resolution 128`, which goes on from the same checkpoint; with
`--decay 30` the learning rate falls to nothing over the last 30 minutes. The loss is the simple one on the
velocity (Eq. 14, arXiv:2006.11239; Appendix D, arXiv:2202.00512) under a schedule whose last step is pure noise
(arXiv:2305.08891), with the caption left out now and then for classifier-free guidance (arXiv:2207.12598).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.ddpm import q_sample
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.loading.config import (
    ATTENTION_DOWN,
    ATTENTION_UP,
    PLAIN_DOWN,
    PLAIN_UP,
    SchedulerConfig,
    UNetConfig,
)
from stable_diffusion.model_loader import Models
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.schedule import NoiseSchedule
from stable_diffusion.vae import VAE
from training.data.captions import without_style
from training.data.grammar import everyday
from training.sheets import contact_sheet

from .cache_latents import channel_statistics, load_latents, load_vae, standardise
from .fit import Look, LossByNoise, fit, linear_end
from .train_tokenizer import caption_tokens
from .train_vae import CONFIG

UNET = UNetConfig(
    block_out_channels=(96, 192, 224),
    down_block_types=(PLAIN_DOWN, ATTENTION_DOWN, ATTENTION_DOWN),
    up_block_types=(ATTENTION_UP, ATTENTION_UP, PLAIN_UP),
    layers_per_block=1,
    attention_head_dim=(3, 6, 7),  # heads of 32 channels, a multiple of the matrix units' width
    cross_attention_dim=256,
    in_channels=CONFIG.latent_channels,
    out_channels=CONFIG.latent_channels,
    sample_size=CONFIG.sample_size // CONFIG.downscale,
)
SCHEDULER = SchedulerConfig(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    steps_offset=1,
    set_alpha_to_one=True,
    class_name="DDIMScheduler",
)
TEXT_LAYERS, TEXT_HEADS = 3, 4
EMPTY_SHARE = 0.1  # of the captions
EVERYDAY_WEIGHT = 2.0  # of examples that show what people ask for first, against 1 for the rest
WARMUP = 200  # steps
SHEET_STEPS = 12  # of sampling: enough to judge by, and quick
EMA_DECAY = 0.996  # a step


class TextToLatents(nn.Module):
    """Text encoder and U-Net, with the statistics of the latents that they know."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, unet: UNetConfig, text: CLIPTextConfig):
        super().__init__()
        self.unet = UNet(unet)
        self.text_encoder = CLIPTextEncoder(text)
        self.register_buffer("latent_mean", torch.zeros(unet.in_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(unet.in_channels, 1, 1))

    def initialise(self) -> None:
        """Start from residual branches that add nothing, and from words that are far apart.

        CLIP's small embeddings (0.02) are lost among the branches of so shallow a tower: after 30,000 examples, all
        objects still had the same features.
        """
        for name, parameter in self.unet.named_parameters():
            if name.startswith("conv_out.") or ".conv2." in name or ".proj_out." in name:
                nn.init.zeros_(parameter)
        embeddings = self.text_encoder.text_model.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=1.0)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.3)

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """x_t (B, C, h, w), t (B,), tokens (B, S) -> velocity (B, C, h, w)."""
        return self.unet(x_t, t, self.unet.read(self.text_encoder(tokens)))


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Return a text tower as wide as the U-Net's context, for the vocabulary and length of `tokenizer`."""
    return CLIPTextConfig(
        hidden_size=UNET.cross_attention_dim,
        intermediate_size=4 * UNET.cross_attention_dim,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
        projection_dim=UNET.cross_attention_dim,
    )


def load_unet(checkpoint: Path, tokenizer: CLIPTokenizer) -> TextToLatents:
    """Return the averaged U-Net and text encoder of a checkpoint. Raises FileNotFoundError where there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_unet`")
    model = TextToLatents(UNET, text_config(tokenizer))
    model.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    return model.eval().requires_grad_(False)


class CaptionedLatents:
    """Cached latents and the tokens of their captions, in memory; everyday things are drawn more often.

    unnamed: share of the captions that leave out their style, beside those that do so from the start. The more do, the
    more drawings a prompt without a style means.
    """

    def __init__(self, folders: Sequence[Path], tokenizer: CLIPTokenizer, unnamed: float = 0.0):
        latents, listed = zip(*map(load_latents, folders), strict=True)
        self.latents, captions = torch.cat(latents), [caption for part in listed for caption in part]
        self.tokens, self.unnamed = caption_tokens(tokenizer, captions), unnamed
        self.unstyled = caption_tokens(tokenizer, [without_style(caption) for caption in captions])
        self.empty = caption_tokens(tokenizer, [""])
        self.weights = torch.tensor([EVERYDAY_WEIGHT if everyday(caption) else 1.0 for caption in captions])

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return latents (size, C, h, w) in float32, and tokens (size, S), some of them of the empty caption."""
        rows = self.weights.multinomial(size, replacement=True, generator=generator)
        empty = torch.rand(size, 1, generator=generator) < EMPTY_SHARE
        tokens = self.tokens[rows]
        if self.unnamed:
            unnamed = torch.rand(size, 1, generator=generator) < self.unnamed
            tokens = torch.where(unnamed, self.unstyled[rows], tokens)
        return self.latents[rows].float(), torch.where(empty, self.empty, tokens).long()


class Sheets:
    """Contact sheets of the averaged weights, drawn with the library's own pipeline beside the checkpoint."""

    def __init__(self, out: Path, resolution: int, tokenizer: CLIPTokenizer, vae: VAE):
        self.out, self.resolution, self.tokenizer, self.vae = out, resolution, tokenizer, vae

    def __call__(self, step: int, averaged: TextToLatents) -> None:
        """Draw the sheet of a step."""
        averaged = copy.deepcopy(averaged)  # a pipeline packs weights, which must not change afterwards
        mean, std = averaged.latent_mean, averaged.latent_std
        vae = standardise(copy.deepcopy(self.vae).to(mean.device), mean, std)
        models = Models(
            self.tokenizer, averaged.text_encoder, averaged.unet, vae, SCHEDULER, name="emoji", source="training"
        )
        sheet = contact_sheet(Pipeline(models), size=self.resolution, steps=SHEET_STEPS)
        sheet.save(self.out / f"sheet-{step:06d}.png")


def draw_timesteps(count: int, steps: int, power: float, generator: torch.Generator) -> Tensor:
    """Draw timesteps int64 (count,) below `steps`, their density growing like t^power: 0 draws all alike.

    Little noise drowns small latents. After 130,000 examples the caption lowered the loss by half at t = 950, by a
    tenth at 650 and by a hundredth at 150: the late ones decide the contents of a picture, the early ones how it is
    drawn.
    """
    return (torch.rand(count, generator=generator) ** (1 / (1 + power)) * steps).long().clamp(max=steps - 1)


def denoising_loss(
    schedule: NoiseSchedule,
    by_noise: LossByNoise,
    model: TextToLatents,
    latents: Tensor,
    tokens: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the simple loss (Eq. 14, arXiv:2006.11239): latents and noise (B, C, h, w), tokens (B, S), t (B,)."""
    x_0 = (latents - model.latent_mean) / model.latent_std
    error = model(q_sample(schedule, x_0, t, noise), t, tokens) - schedule.velocity(x_0, noise, t)
    return by_noise.add(t, error.float().square().flatten(1).mean(1))


def train(
    model: TextToLatents, examples: CaptionedLatents, look: Look[TextToLatents], args: argparse.Namespace
) -> None:
    """Train until the minutes at this resolution, or `args.steps`, are used up."""
    schedule = NoiseSchedule(SCHEDULER)
    by_noise = LossByNoise(schedule.num_train_timesteps)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents, tokens = examples.batch(args.batch, generator)
        t = draw_timesteps(args.batch, schedule.num_train_timesteps, args.timestep_power, generator)
        return latents, tokens, t, torch.randn(latents.shape, generator=generator)

    fit(
        model,
        partial(denoising_loss, schedule, by_noise),
        draw,
        args.out,
        rate=args.rate,
        schedule=linear_end(args.decay / args.minutes),
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        steps=args.steps,
        minutes=args.minutes,
        stage=str(args.resolution),
        look=look,
        by_noise=by_noise,
    )


def main() -> None:
    """Train the U-Net and its text encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, required=True, help="side of the pictures: 64 first, then 128")
    parser.add_argument("--minutes", type=float, required=True, help="to spend at this resolution, over all restarts")
    parser.add_argument(
        "--decay", type=float, default=0.0, help="of these, the last minutes let the learning rate fall to zero"
    )
    parser.add_argument("--steps", type=int, help="stop at this step in all, if that comes first")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--timestep-power", type=float, default=0.75, help="0 draws all timesteps alike, more late ones"
    )
    parser.add_argument(
        "--unnamed", type=float, default=0.0, help="share of the captions whose style is left out, beside those without"
    )
    parser.add_argument("--latents", type=Path, nargs="+", help="default: runs/latents-RESOLUTION")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/checkpoint.pt"))
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(str(args.tokenizer), local_files_only=True)
    examples = CaptionedLatents(args.latents or [Path(f"runs/latents-{args.resolution}")], tokenizer, args.unnamed)
    model = TextToLatents(UNET, text_config(tokenizer))
    model.initialise()
    model.latent_mean, model.latent_std = channel_statistics(examples.latents)
    train(model, examples, Sheets(args.out, args.resolution, tokenizer, load_vae(args.vae)), args)


if __name__ == "__main__":
    main()
