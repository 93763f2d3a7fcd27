"""Train an adapter that draws in four evaluations: `python -m training.networks.train_turbo --minutes 60`.

Consistency in segments (arXiv:2403.06807, 2405.18407): the timesteps are cut into segments of `SEGMENT`, and from
anywhere in one the network is to jump to the segment's end. The target is one step of the guided teacher on its grid,
and from there the student's own jump. Guidance is folded in, and no noise is added on the way, so that plain DDIM on
the trailing grid with a guidance scale of 1 draws it. U-Net and text encoder stay frozen. The file that
`--out` gets belongs in the folder `turbo` of the model's directory.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from stable_diffusion.loading.model_config import TURBO_FILE
from stable_diffusion.schedule import NoiseSchedule
from training.data.grammar import everyday

from .cache_latents import load_latents
from .fit import Loss, fit, linear_end
from .low_rank import LowRankAdapter
from .train_text_encoder import Teacher
from .train_tokenizer import caption_tokens

STEP = 50  # timesteps of a step of the teacher: 20 of them
SEGMENT = 250  # timesteps: four segments
CLEAN = -1  # the timestep behind the last
GUIDANCE = 4.0
STARTS = 0.4  # share of the examples at the start of a segment, where drawing begins
HUBER = 0.03  # where the loss turns from squared to absolute, in units of sigma and for each latent's value
EVERYDAY_WEIGHT = 2.0
WARMUP, EMA_DECAY = 50, 0.998


def level(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_t and sigma_t of timesteps (B,), each (B, 1, 1, 1); 1 and 0 for `CLEAN`."""
    alpha, sigma = schedule.alpha_sigma(t.clamp(min=0), torch.empty(len(t), 1, 1, 1))
    clean = (t == CLEAN)[:, None, None, None]
    return torch.where(clean, torch.ones_like(alpha), alpha), torch.where(clean, torch.zeros_like(sigma), sigma)


def ddim(schedule: NoiseSchedule, x_t: Tensor, velocity: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """x_t at timestep `end` by one step of DDIM from t (Eq. 12 with sigma 0, arXiv:2010.02502)."""
    (alpha, sigma), (alpha_end, sigma_end) = level(schedule, t), level(schedule, end)
    x_0, eps = alpha * x_t - sigma * velocity, alpha * velocity + sigma * x_t
    return alpha_end * x_0 + sigma_end * eps


def implied_x_0(schedule: NoiseSchedule, x_t: Tensor, x_end: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """Return the x_0 with which one step of DDIM from x_t at t gives x_end."""
    (alpha, sigma), (alpha_end, sigma_end) = level(schedule, t), level(schedule, end)
    ratio = sigma_end / sigma
    return (x_end - ratio * x_t) / (alpha_end - alpha * ratio)


def segment_ends(t: Tensor) -> Tensor:
    """Return the end of the segment in which a timestep lies: 749 for 999, 499 for 749, `CLEAN` for 249."""
    return t - (t % SEGMENT) - 1


def draw_grid(count: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps (count,) of the teacher's grid: 49, 99 .. 999, those at the start of a segment more often."""
    segments = torch.randint(1000 // SEGMENT, (count,), generator=generator)
    inside = torch.randint(1, SEGMENT // STEP + 1, (count,), generator=generator)
    starts = torch.rand(count, generator=generator) < STARTS
    inside = torch.where(starts, torch.full_like(inside, SEGMENT // STEP), inside)
    return SEGMENT * segments + STEP * inside - 1


def consistency_loss(teacher: Teacher, guidance_scale: float = GUIDANCE) -> Loss:
    """Return a loss: the pseudo-Huber distance of the student's x_0 from its target's, in units of sigma."""
    schedule, unet = teacher.schedule, teacher.unet

    @torch.no_grad()
    def target(adapter: LowRankAdapter, x_t: Tensor, t: Tensor, words: Tensor, empty: Tensor) -> Tensor:
        end = segment_ends(t)
        after = torch.maximum(t - STEP, end)
        both = torch.cat([empty.expand_as(words), words])
        plain, told = unet(torch.cat([x_t, x_t]), torch.cat([t, t]).float(), both).float().chunk(2)
        x_after = ddim(schedule, x_t, plain + guidance_scale * (told - plain), t, after)
        at = after.clamp(min=0)
        jump = ddim(schedule, x_after, adapter.predict(x_after, at.float(), words).float(), at, end)
        x_end = torch.where((after == end)[:, None, None, None], x_after, jump)
        return implied_x_0(schedule, x_t, x_end, t, end)

    def loss(adapter: LowRankAdapter, tokens: Tensor, latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            read = unet.read(teacher.text_encoder(tokens))
            empty, words = read[:1], read[1:]
            x_t = schedule.add_noise(latents, noise, t)
        wanted = target(adapter, x_t, t, words, empty)
        alpha, sigma = level(schedule, t)
        x_0 = alpha * x_t - sigma * adapter.predict(x_t, t.float(), words).float()
        distance = ((x_0 - wanted) / sigma).flatten(1)
        c = HUBER * math.sqrt(distance.shape[1])
        return ((distance.square().sum(1) + c**2).sqrt() - c).mean() / math.sqrt(distance.shape[1])

    return loss


def main() -> None:
    """Train the adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, help="to spend, over all restarts")
    parser.add_argument("--decay", type=float, default=0.6, help="share of the minutes in which the rate falls to zero")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rank", type=int, default=14, help="default: 3.3 MB")
    parser.add_argument("--precision", choices=("no", "bf16"), help="default: bf16 where the processor computes it")
    parser.add_argument("--latents", type=Path, nargs="+", required=True, help="folders of latents")
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--start", type=Path, help="an adapter's file to start from")
    parser.add_argument("--out", type=Path, default=Path("runs/turbo"))
    args = parser.parse_args()

    torch.manual_seed(0)
    teacher = Teacher(args.model)
    folders = [load_latents(folder) for folder in args.latents]
    latents = torch.cat([part for part, _ in folders])
    captions = [caption for _, part in folders for caption in part]
    tokens, empty = caption_tokens(teacher.tokenizer, captions), caption_tokens(teacher.tokenizer, [""])
    weights = torch.tensor([EVERYDAY_WEIGHT if everyday(caption) else 1.0 for caption in captions])
    adapter = LowRankAdapter(teacher.unet, args.rank)
    if args.start is not None:
        adapter.load(args.start)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        rows = weights.multinomial(args.batch, replacement=True, generator=generator)
        x_0 = latents[rows].float()
        noise = torch.randn(x_0.shape, generator=generator)
        return torch.cat([empty, tokens[rows]]).long(), x_0, draw_grid(args.batch, generator), noise

    fit(
        adapter,
        consistency_loss(teacher),
        draw,
        args.out,
        rate=args.rate,
        schedule=linear_end(args.decay),
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        minutes=args.minutes,
        stage="turbo",
        look=lambda _, averaged: averaged.save(args.out / Path(TURBO_FILE).name),
        mixed_precision=args.precision,
    )


if __name__ == "__main__":
    main()
