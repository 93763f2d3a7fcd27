"""Find the seeds that draw a thing most plainly: `python -m training.judging.choose_seeds PROMPT ...`.

The page's cards and films need them. The judge of `networks.train_things` puts them in order; choose by looking at
`runs/seeds.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request
from training.data.dataset import Dataset
from training.networks.train_things import ThingJudge, load_things
from training.sheets import grid

SEEDS, SHOWN = 16, 8


def ordered(judge: ThingJudge, thing: str, pictures: Sequence[Image.Image]) -> list[tuple[float, int]]:
    """Return the judge's probability that each picture shows `thing`, with the picture's number; highest first.

    Raises ValueError for a thing that the judge does not know.
    """
    meant = judge.vocabulary.meant(thing)
    if not meant:
        raise ValueError(f"the judge knows no {thing!r}: name one thing, then a comma")
    shares = judge.model.shares([np.asarray(picture) for picture in pictures])[:, meant].sum(dim=1)
    return sorted(((share, number) for number, share in enumerate(shares.tolist())), reverse=True)


def main() -> None:
    """Draw each prompt with many seeds, and save the best pictures as one sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="+", help="each names one thing, then a comma")
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--things", type=Path, default=Path("runs/things/checkpoint.pt"))
    parser.add_argument("--out", type=Path, default=Path("runs/seeds.png"))
    args = parser.parse_args()
    pipeline, judge = Pipeline.from_pretrained(args.model), load_things(args.things, Dataset.load(args.data).rows)
    shown: list[Image.Image] = []
    labels: list[str] = []
    for prompt in args.prompts:
        usual = Request(prompt, preview="none")
        pictures = [pipeline(replace(usual, seed=seed)).images[0] for seed in range(SEEDS)]
        best = ordered(judge, prompt.split(",")[0].split(" next to ")[0], pictures)[:SHOWN]
        shown += [pictures[seed] for _, seed in best]
        labels += [f"{prompt} {seed}: {share:.2f}" for share, seed in best]
        print(prompt, ", ".join(f"{seed}: {share:.2f}" for share, seed in best), flush=True)
    grid(shown, labels, columns=SHOWN).save(args.out)


if __name__ == "__main__":
    main()
