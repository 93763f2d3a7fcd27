"""Train the judge of things: `python -m training.networks.train_things`.

A convolutional classifier that names the thing in a picture, or says that it shows nothing nameable. CLIP, at 64 px,
ranks the right name first for a smear as for a good drawing; this one sees the artwork at full size, and beside it what
a generator makes when it fails: drawings that are smeared, half drawn, or mixed with another, all of which are called
nothing. `judging.evaluate` and `judging.everyday` ask it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.dataset import Dataset
from training.data.grammar import nouns
from training.data.heldout import Heldout
from training.data.paint import BACKGROUNDS, Box, background_colour, paste, varied

from .fit import cosine, fit
from .train_style import SIDE, convolutions, normalised, on_white

CHANNELS = (24, 48, 96, 160, 224)
SPOILT = 0.25  # share of the examples that show nothing
ON_WHITE = 0.5  # share of the backgrounds
BEND, SMEAR = (0.0, 0.025), (0.07, 0.14)  # deviation of a drawing's points, in sides: still itself, and no more
KNOTS = 5  # along each side, between which points move together
KEPT = (0.1, 0.4)  # the part of a half-drawn thing that is left, in sides
MIXED = (0.35, 0.65)  # share of one of two things in each other
WARMUP = 100  # steps
EMA_DECAY = 0.995  # a step
# Everyday prompts that no label says in these words
OTHER_WORDS = {
    "smiling face with heart eyes": "smiling face with heart-eyes",
    "pair of eyes": "eyes",
    "pair of glasses": "glasses",
    "glass of beer": "beer mug",
    "loaf of bread": "bread",
    "slice of pizza": "pizza",
}


class ThingClassifier(nn.Module):
    """Pairs of convolutions, each pair halving the picture, averaged over it, and a linear layer.

    concepts: how many it can name, numbered as in the data set; the class behind them means nothing nameable.
    """

    def __init__(self, concepts: int):
        super().__init__()
        self.features = convolutions(CHANNELS)
        self.head = nn.Linear(CHANNELS[-1], concepts + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, concepts + 1)."""
        return self.head(self.features(x).mean((2, 3)))

    @torch.no_grad()
    def shares(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures (H, W, 3) uint8 of one size -> how sure it is of each concept and of nothing, (N, concepts + 1)."""
        batches = torch.from_numpy(np.stack(pictures)).to(self.head.weight.device).split(64)
        parts = [F.interpolate(normalised(batch), size=(SIDE, SIDE), mode="area") for batch in batches]
        return torch.cat([self(part).softmax(dim=1) for part in parts]).cpu()


class Vocabulary:
    """The concepts that the judge knows, with the words for each: things and faces, not people and signs."""

    def __init__(self, rows: Sequence[dict]):
        known = {row["concept"]: row["label"] for row in rows if nameable(row)}
        self.concepts = sorted(known)
        self.names = [nouns(known[concept]) for concept in self.concepts]

    def meant(self, thing: str) -> list[int]:
        """Return the concepts that 'a cat' or 'cat' may mean: a name that ends so, its face or its front.

        The one with the shortest name comes first.
        """
        words = re.sub(r"^(a|an|the) ", "", thing)
        found = re.compile(rf"(.* )?{re.escape(OTHER_WORDS.get(words, words))}( face| seen .*| showing .*)?")
        known = [i for i, names in enumerate(self.names) if any(map(found.fullmatch, names))]
        return sorted(known, key=lambda i: min(map(len, self.names[i])))


def nameable(row: dict) -> bool:
    """Return whether a row shows a thing, a face or a hand, rather than a whole person or a sign."""
    person = row["group"] == "people-body" and not row["subgroup"].startswith(("hand", "body"))
    return not person and row["group"] != "symbols" and row["skin_tone"] == "default"


class ThingJudge:
    """A judge that names pictures at the first guess, and is right where the name is the prompt's."""

    def __init__(self, model: ThingClassifier, vocabulary: Vocabulary):
        self.model, self.vocabulary = model, vocabulary

    def named(self, pictures: Sequence[np.ndarray], things: Sequence[str]) -> list[bool]:
        """Return for each picture (H, W, 3) uint8 whether the judge names its thing, 'a cat'.

        A picture that is more likely nothing than any one thing is not named.
        """
        shares = self.model.shares(pictures)
        guesses = torch.where(shares[:, -1] < 0.5, shares[:, :-1].argmax(dim=1), -1).tolist()
        return [guess in self.vocabulary.meant(thing) for guess, thing in zip(guesses, things, strict=True)]


class Drawings:
    """Drawings of any quality with the numbers of their concepts; the held-out ones measure accuracy."""

    def __init__(self, dataset: Dataset, heldout: Heldout, vocabulary: Vocabulary):
        self.pictures = dataset.pictures
        number = {concept: i for i, concept in enumerate(vocabulary.concepts)}
        self.nothing = len(number)
        rows = [(i, row) for i, row in enumerate(dataset.rows) if nameable(row)]
        unseen = [(row["concept"], row["style"]) in heldout.cells for _, row in rows]
        self.rows, self.heldout = (
            [(i, number[row["concept"]]) for (i, row), held in zip(rows, unseen, strict=True) if held == wanted]
            for wanted in (False, True)
        )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return pictures (size, 3, 128, 128) in [-1, 1], and the numbers (size,) of what they show."""
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        spoilt = round(SPOILT * size)
        pairs = [self._drawn(rng) for _ in range(size)]
        pictures = normalised(torch.from_numpy(np.stack([picture for picture, _ in pairs])))
        numbers = torch.tensor([number for _, number in pairs])
        numbers[:spoilt] = self.nothing
        pictures[:spoilt] = spoil(pictures[:spoilt], pictures[spoilt : 2 * spoilt], generator)
        pictures[spoilt:] = bent(pictures[spoilt:], BEND, generator)
        if rng.random() < 0.5:  # so that sharpness does not tell the thing
            pictures = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
        return pictures.contiguous(), numbers

    def _drawn(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        row, number = self.rows[rng.integers(len(self.rows))]
        picture = self.pictures[row]
        picture = varied(picture[:, ::-1] if rng.random() < 0.5 else picture, rng)
        name = "white" if rng.random() < ON_WHITE else str(rng.choice(list(BACKGROUNDS)))
        canvas = Image.new("RGB", (SIDE, SIDE), background_colour(name, rng))
        side = rng.uniform(0.8, 1.0)
        x, y = 0.5 + (1 - side) * rng.uniform(-0.5, 0.5, 2)
        paste(canvas, picture, Box(x, y, side))
        return np.array(canvas), number

    def accuracy(self, model: ThingClassifier) -> float:
        """Return the share of the held-out drawings, on white, that `model` names, if it must name each."""
        shares = model.shares([on_white(self.pictures[row]) for row, _ in self.heldout])
        numbers = torch.tensor([number for _, number in self.heldout])
        return (shares[:, :-1].argmax(dim=1) == numbers).float().mean().item()


def spoil(pictures: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (B, 3, H, W) made unrecognisable: a third each smeared, half drawn, mixed with `others`."""
    kind = torch.arange(len(pictures)) % 3
    smeared = bent(pictures, SMEAR, generator)
    mixed = torch.lerp(pictures, bent(others, SMEAR, generator), between(MIXED, len(pictures), generator))
    for i, result in enumerate((smeared, half_drawn(pictures, generator), mixed)):
        pictures = torch.where((kind == i)[:, None, None, None], result, pictures)
    return pictures


def half_drawn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return a band at one side of each picture (B, 3, H, W), the rest filled with its corner's colour."""
    kept = between(KEPT, len(pictures), generator)
    along = torch.linspace(0, 1, pictures.shape[-1]).expand(pictures.shape[-2:])
    turned = torch.randint(4, (len(pictures),), generator=generator).tolist()
    hidden = torch.stack([along.rot90(turn) for turn in turned])[:, None] > kept
    return torch.where(hidden, pictures[..., :1, :1], pictures)


def bent(pictures: Tensor, deviation: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Return pictures (B, 3, H, W) bent smoothly, by a share of the side with this `deviation`."""
    count, side = len(pictures), pictures.shape[-1]
    knots = torch.randn(count, 2, KNOTS, KNOTS, generator=generator) * between(deviation, count, generator)
    moves = 2 * F.interpolate(knots, size=(side, side), mode="bicubic", align_corners=True)  # the side is 2 long
    grid = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, side, side], align_corners=False)
    return F.grid_sample(pictures, grid + moves.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def between(ends: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Return uniform numbers (count, 1, 1, 1)."""
    low, high = ends
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def naming_loss(model: ThingClassifier, pictures: Tensor, numbers: Tensor) -> Tensor:
    """Return the cross-entropy of pictures (B, 3, H, W) in [-1, 1] against the numbers (B,) of what they show."""
    return F.cross_entropy(model(pictures).float(), numbers, label_smoothing=0.05)


def load_things(checkpoint: Path, rows: Sequence[dict]) -> ThingJudge:
    """Return a judge with the averaged model of a checkpoint and the rows that it was trained on.

    Raises FileNotFoundError where there is no checkpoint.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint={checkpoint}: run `python -m training.networks.train_things`")
    vocabulary = Vocabulary(rows)
    model = ThingClassifier(len(vocabulary.concepts))
    model.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True)["ema"])
    return ThingJudge(model.eval().requires_grad_(False), vocabulary)


def main() -> None:
    """Train the classifier of things."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, default=Path("runs/things"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    dataset = Dataset.load(args.data)
    vocabulary = Vocabulary(dataset.rows)
    drawings = Drawings(dataset, Heldout.load(), vocabulary)

    def look(step: int, averaged: ThingClassifier) -> None:
        print(f"step {step}: {100 * drawings.accuracy(averaged):.1f} % of held-out drawings", flush=True)

    fit(
        ThingClassifier(len(vocabulary.concepts)),
        naming_loss,
        lambda generator: drawings.batch(args.batch, generator),
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
