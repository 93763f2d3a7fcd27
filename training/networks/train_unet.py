"""Train U-Net and text encoder on cached latents: `python -m training.networks.train_unet --resolution 64`.

Small pictures first, where a step costs half, then `--resolution 128`, which goes on from the same checkpoint; with
`--decay 30` the learning rate falls to nothing over the last 30 minutes. The loss is the simple one on the
velocity (Eq. 14, arXiv:2006.11239; Appendix D, arXiv:2202.00512) under a schedule whose last step is pure noise
(arXiv:2305.08891), with the caption left out now and then for classifier-free guidance (arXiv:2207.12598).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.ddpm import training_loss
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.config import (
    ATTENTION_DOWN,
    ATTENTION_UP,
    PLAIN_DOWN,
    PLAIN_UP,
    CLIPTextConfig,
    SchedulerConfig,
    UNetConfig,
)
from stable_diffusion.model_loader import Models
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.schedule import NoiseSchedule
from stable_diffusion.vae import VAE
from training.data.cache_latents import channel_statistics, load_latents, load_vae, standardise
from training.data.grammar import everyday
from training.judging.contact_sheet import contact_sheet

from .optimizer import MuonAdamW
from .run import EMA, Run
from .train_vae import CONFIG

UNET = UNetConfig(
    block_out_channels=(96, 192, 224),
    down_block_types=(PLAIN_DOWN, ATTENTION_DOWN, ATTENTION_DOWN),
    up_block_types=(ATTENTION_UP, ATTENTION_UP, PLAIN_UP),
    layers_per_block=1,
    attention_head_dim=(3, 6, 7),  # heads of 32 channels, which matrix units like
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
EVERYDAY_WEIGHT = 4.0  # of examples that show what people ask for first, against 1 for the rest
WARMUP = 200  # steps
SHEET_STEPS = 12  # of sampling: enough to judge by, and quick
EMA_DECAY, EMA_EVERY = 0.99, 4  # decay a step; averaging every few steps costs less and is as smooth


class TextToLatents(nn.Module):
    """What is trained and shipped together: text encoder, U-Net, and the statistics of the latents that they know."""

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
        return self.unet(x_t, t, self.text_encoder(tokens))


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A text tower as wide as the U-Net's context, for the vocabulary and length of `tokenizer`."""
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


class Clock:
    """The budget of a stage: seconds spent at each resolution, kept in the checkpoint so that they survive a kill."""

    def __init__(self, resolution: int, budget: float):
        self.stage, self.budget = str(resolution), budget
        self.seconds: dict[str, float] = {self.stage: 0.0}
        self.steps = 0
        self.started = self._last = time.monotonic()

    def tick(self) -> None:
        """Count a step that has been taken."""
        now = time.monotonic()
        self.seconds[self.stage] += now - self._last
        self.steps, self._last = self.steps + 1, now

    @property
    def seconds_left(self) -> float:
        """What is left of the budget."""
        return max(0.0, self.budget - self.seconds[self.stage])

    @property
    def steps_left(self) -> int:
        """How many steps fit into the rest of the budget at the speed so far."""
        each = (self._last - self.started) / self.steps
        return math.ceil(self.seconds_left / each)

    def state_dict(self) -> dict[str, float]:
        return dict(self.seconds)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = {self.stage: 0.0, **state}
        self.started = self._last = time.monotonic()


class Examples:
    """Cached latents and the tokens of their captions, in memory; everyday things are drawn more often."""

    def __init__(self, folders: Sequence[Path], tokenizer: CLIPTokenizer):
        latents, listed = zip(*map(load_latents, folders), strict=True)
        self.latents, captions = torch.cat(latents), [caption for part in listed for caption in part]
        self.tokens = tokenize(tokenizer, captions)
        self.empty = tokenize(tokenizer, [""])
        self.weights = torch.tensor([EVERYDAY_WEIGHT if everyday(caption) else 1.0 for caption in captions])

    def batch(self, size: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised latents (size, C, h, w) in float32, and tokens (size, S), some of them of the empty caption."""
        rows = self.weights.multinomial(size, replacement=True)
        tokens = torch.where(torch.rand(size, 1) < EMPTY_SHARE, self.empty, self.tokens[rows])
        return (self.latents[rows].float() - mean) / std, tokens.long()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions -> int32 (N, S), padded and cut to the tokenizer's length."""
    limit = tokenizer.model_max_length
    ids = tokenizer(captions, padding="max_length", max_length=limit, truncation=True).input_ids
    return torch.tensor(ids, dtype=torch.int32)


class Sheets:
    """Contact sheets of the averaged weights, drawn every few minutes beside the checkpoint."""

    def __init__(self, pipeline: Pipeline, out: Path, resolution: int, minutes: float):
        self.pipeline, self.out, self.resolution, self.seconds = pipeline, out, resolution, 60 * minutes
        self.drawn = time.monotonic()

    def __call__(self, step: int, *, due: bool = False) -> None:
        """Draw a sheet if its time has come, or if it is `due` anyway."""
        if due or time.monotonic() - self.drawn > self.seconds:
            with torch.autocast("cpu", torch.bfloat16):
                sheet = contact_sheet(self.pipeline, size=self.resolution, steps=SHEET_STEPS)
            sheet.save(self.out / f"sheet-{step:06d}.png")
            self.drawn = time.monotonic()


def as_pipeline(model: TextToLatents, tokenizer: CLIPTokenizer, vae: VAE) -> Pipeline:
    """The library's pipeline around networks in training."""
    return Pipeline(Models(tokenizer, model.text_encoder, model.unet, vae, SCHEDULER, name="emoji", source="training"))


def draw_timesteps(count: int, steps: int, power: float) -> Tensor:
    """Timesteps int64 (count,) below `steps`, their density growing like t^power: 0 draws all alike.

    Little noise drowns small latents. After 130,000 examples the caption lowered the loss by half at t = 950, by a
    tenth at 650 and by a hundredth at 150: what a picture shows is decided at the late ones. How it is drawn is decided
    at the early ones.
    """
    return (torch.rand(count) ** (1 / (1 + power)) * steps).long().clamp(max=steps - 1)


def train_step(
    model: TextToLatents, optimizer: MuonAdamW, schedule: NoiseSchedule, x_0: Tensor, tokens: Tensor, t: Tensor
) -> float:
    """One step of Algorithm 1, arXiv:2006.11239, on latents (B, C, h, w) at timesteps t (B,), tokens (B, S).

    Returns the loss.
    """

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x_t, t, tokens)

    loss = training_loss(predict, x_0, schedule, t=t)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train(model: TextToLatents, examples: Examples, tokenizer: CLIPTokenizer, args: argparse.Namespace) -> None:
    """Train until the stage's minutes, or `args.steps`, are used up."""
    ema = EMA(model, EMA_DECAY**EMA_EVERY)
    optimizer = MuonAdamW(model, args.rate)
    clock = Clock(args.resolution, args.minutes * 60)
    run = Run(args.out, {"model": model, "ema": ema.model, "optimizer": optimizer, "clock": clock}, args.steps)
    run.resume()
    torch.manual_seed(run.step)
    schedule = NoiseSchedule(SCHEDULER)
    vae = standardise(load_vae(args.vae), model.latent_mean, model.latent_std)
    sheets = Sheets(as_pipeline(ema.model, tokenizer, vae), args.out, args.resolution, args.sheet_minutes)
    for step in run.steps():
        rate = args.rate * min(1.0, (step + 1) / WARMUP)
        optimizer.set_rate(rate * min(1.0, clock.seconds_left / (60 * args.decay)) if args.decay else rate)
        x_0, tokens = examples.batch(args.batch, model.latent_mean, model.latent_std)
        t = draw_timesteps(args.batch, schedule.num_train_timesteps, args.timestep_power)
        run.record(args.batch, train_step(model, optimizer, schedule, x_0, tokens, t))
        if step % EMA_EVERY == 0:
            ema.update(model, step)
        sheets(step)
        clock.tick()
        run.total = min(args.steps, step + 1 + clock.steps_left)
    sheets(run.step, due=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, required=True, help="side of the pictures: 64 first, then 128")
    parser.add_argument("--minutes", type=float, required=True, help="to spend at this resolution, over all restarts")
    parser.add_argument(
        "--decay", type=float, default=0.0, help="of these, the last minutes let the learning rate fall to zero"
    )
    parser.add_argument("--steps", type=int, default=10**9, help="stop at this step in all, if that comes first")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--timestep-power", type=float, default=0.75, help="0 draws all timesteps alike, more late ones"
    )
    parser.add_argument("--sheet-minutes", type=float, default=10.0)
    parser.add_argument("--latents", type=Path, nargs="+", help="default: runs/latents-RESOLUTION")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/checkpoint.pt"))
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(str(args.tokenizer), local_files_only=True)
    examples = Examples(args.latents or [Path(f"runs/latents-{args.resolution}")], tokenizer)
    model = TextToLatents(UNET, text_config(tokenizer))
    model.initialise()
    model.latent_mean, model.latent_std = channel_statistics(examples.latents)
    # The fused attention's backward pass is slow on CPUs: at these sizes it took a third of the step.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH):
        train(model, examples, tokenizer, args)


if __name__ == "__main__":
    main()
