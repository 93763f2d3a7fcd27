"""Train a small CLIP on the composed pictures: `python -m training.networks.train_clip`.

Picture and caption are drawn together, and all other pairs of a batch apart (Figure 3, arXiv:2103.00020). It judges the
U-Net's pictures and does not condition them: the U-Net has a text encoder of its own. `judging.evaluate` uses it, and
so does the page, to tell how well picture and prompt match.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIP, CLIPModel
from stable_diffusion.loading.clip_config import CLIPConfig, CLIPImageConfig, CLIPTextConfig, CLIPVisionConfig

from .fit import cosine, fit
from .train_tokenizer import caption_tokens

WIDTH = 128
SIDE = 64
VISION = CLIPVisionConfig(
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=6,
    num_attention_heads=4,
    image_size=SIDE,
    patch_size=8,
    hidden_act="gelu",
)
IMAGES = CLIPImageConfig(
    crop_size=(SIDE, SIDE),
    shortest_edge=SIDE,
    size=None,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    rescale_factor=1 / 255,
    resample=3,
)
MAX_SCALE = math.log(100.0)  # of the inverse temperature, as in section 2.5 of the paper
SHIFT = 4  # pixels that a picture is moved by at most, so that no place is learned by heart
ALIKE_SHARE = 0.5  # of the batches are of one background
WARMUP = 100  # steps
EMA_DECAY = 0.995  # a step
BACKGROUND = re.compile(r"on an? ([\w ]+) background")


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Return two towers of the same width, for the vocabulary and length of `tokenizer`."""
    text = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        eos_token_id=tokenizer.eos_token_id,
        projection_dim=WIDTH,
    )
    return CLIPConfig(text, VISION, projection_dim=WIDTH)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained model, with the paper's temperature and embeddings large enough for shallow towers."""
    model = CLIPModel(clip_config(tokenizer))
    for name, parameter in model.named_parameters():
        if name.endswith("embedding.weight") and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(model.logit_scale, math.log(1 / 0.07))
    return model


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Return the symmetric cross-entropy over the similarities of all pairs of a batch (Figure 3, arXiv:2103.00020).

    images and texts are (B, D), of length 1, row i of the one belonging to row i of the other.
    """
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round a logit of 100 by up to 0.25
        logits = logit_scale.clamp(max=MAX_SCALE).exp() * images.float() @ texts.float().T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def clip_loss(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> Tensor:
    """Normalised pictures (B, 3, 64, 64) and tokens (B, S) of their captions -> `contrastive_loss`."""
    return contrastive_loss(model.embed_images(pixels), model.embed_texts(tokens), model.logit_scale)


class CaptionedPictures:
    """Composed pictures of 64 pixels with their captions, in memory; larger ones are averaged down.

    Half of the batches are of one background: in mixed ones the background tells most pairs apart, and the model hardly
    learns things.
    """

    def __init__(self, folders: list[Path], tokenizer: CLIPTokenizer):
        stored = [np.load(folder / "pictures.npy", mmap_mode="r") for folder in folders]
        captions = [json.loads((folder / "captions.json").read_text(encoding="utf-8")) for folder in folders]
        self.pictures = torch.cat([shrink(pictures) for pictures in stored])
        self.tokens = caption_tokens(tokenizer, [caption for part in captions for caption in part])
        self.background = [named_background(caption) for part in captions for caption in part]
        self.rows = {name: torch.tensor(rows) for name, rows in rows_by(self.background).items()}

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return normalised pictures (size, 3, 64, 64), shifted a little, and tokens (size, S)."""
        rows = torch.randint(len(self.pictures), (size,), generator=generator)
        if torch.rand((), generator=generator) < ALIKE_SHARE:
            alike = self.rows[self.background[rows[0]]]
            rows = alike[torch.randint(len(alike), (size,), generator=generator)]
        framed = F.pad(self.pictures[rows] / 127.5 - 1.0, (SHIFT,) * 4, mode="replicate")
        top, left = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
        tokens = self.tokens[rows].long()
        longest = int((tokens != tokens[:, -1:]).sum(dim=1).max()) + 1  # tokens behind the end are not attended to
        return framed[..., top : top + SIDE, left : left + SIDE], tokens[:, :longest]


def named_background(caption: str) -> str:
    """Return the background's colour that a caption names, or an empty string."""
    found = BACKGROUND.search(caption)
    return found[1] if found else ""


def rows_by(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each name."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def shrink(pictures: np.ndarray) -> Tensor:
    """Pictures uint8 (N, H, W, 3) -> (N, 3, 64, 64), each pixel the mean of those it covers."""
    small = [
        F.adaptive_avg_pool2d(torch.from_numpy(part.astype(np.float32)).permute(0, 3, 1, 2), SIDE).round().byte()
        for part in np.array_split(pictures, -(-len(pictures) // 1024))
    ]
    return torch.cat(small)


def load_clip(checkpoint: Path, tokenizer: CLIPTokenizer) -> CLIP:
    """Return the averaged model of a checkpoint. Raises FileNotFoundError where there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_clip`")
    model = CLIPModel(clip_config(tokenizer))
    model.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    return CLIP(model.eval().requires_grad_(False), tokenizer, IMAGES)


def main() -> None:
    """Train CLIP's two towers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pictures", type=Path, nargs="+", default=[Path("runs/latents-64"), Path("runs/latents-128")])
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("runs/clip"))
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(str(args.tokenizer), local_files_only=True)
    examples = CaptionedPictures(args.pictures, tokenizer)
    fit(
        new_clip(tokenizer),
        clip_loss,
        lambda generator: examples.batch(args.batch, generator),
        args.out,
        rate=args.rate,
        schedule=cosine,
        warmup=WARMUP,
        ema_decay=EMA_DECAY,
        steps=args.steps,
    )


if __name__ == "__main__":
    main()
