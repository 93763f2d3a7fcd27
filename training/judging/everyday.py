"""Draw everyday prompts for a viewer who is not told them: `python -m training.judging.everyday [--model FOLDER]`.

The small CLIP of `networks.train_clip` cannot tell a good cat from a smear; whoever looks can. `--out` gets sheets of
numbered pictures in shuffled order, on which no prompt comes twice, and `key.json` with the prompt and seed of each
number. Let the viewer name every picture at the first guess, and only then open the key.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stable_diffusion.pipeline import Pipeline

from .contact_sheet import grid

SEEDS = 3  # a prompt
PICTURES = 25  # a sheet
COLUMNS = 5


@dataclass(frozen=True)
class Question:
    """A picture to be named: its prompt, and the seed that it is drawn from."""

    prompt: str
    seed: int


def everyday_prompts() -> list[str]:
    """A hundred things that people ask for first, in plain words and no style."""
    return Path(__file__).with_name("everyday.txt").read_text(encoding="utf-8").splitlines()


def shuffled(prompts: Sequence[str], seeds: int, shuffle: int) -> list[Question]:
    """Every prompt once from each seed, in an order that `shuffle` decides; one seed's pictures follow another's."""
    rng = random.Random(shuffle)
    return [Question(prompt, seed) for seed in range(seeds) for prompt in rng.sample(prompts, len(prompts))]


def write(pipeline: Pipeline, questions: Sequence[Question], out: Path, steps: int, guidance_scale: float) -> None:
    """Write sheets of the questions, numbered from 1, and their key."""
    out.mkdir(parents=True, exist_ok=True)
    key = {number: asdict(question) for number, question in enumerate(questions, start=1)}
    (out / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "sampler": "ddim"}
    for start in range(0, len(questions), PICTURES):
        asked = questions[start : start + PICTURES]
        pictures = [pipeline(question.prompt, seed=question.seed, **options).images[0] for question in asked]
        numbers = [str(start + i) for i in range(1, len(asked) + 1)]
        path = out / f"sheet-{start // PICTURES + 1:02d}.png"
        grid(pictures, numbers, columns=COLUMNS).save(path)
        print(path, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--out", type=Path, default=Path("runs/everyday"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--shuffle", type=int, default=0, help="another number is another order")
    args = parser.parse_args()
    questions = shuffled(everyday_prompts(), SEEDS, args.shuffle)
    write(Pipeline.from_pretrained(args.model), questions, args.out, args.steps, args.guidance_scale)


if __name__ == "__main__":
    main()
