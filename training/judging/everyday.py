"""Draw everyday prompts for a viewer who is not told them: `python -m training.judging.everyday [--model FOLDER]`.

The small CLIP of `networks.train_clip` cannot tell a good cat from a smear; a viewer can. `--out` gets sheets of
numbered pictures in shuffled order, on which no prompt comes twice, and `key.json` with the prompt and seed of each
number. Let the viewer name every picture at the first guess, and only then open the key. The command prints how many
the judge of `networks.train_things` names. `--artwork` shows the artwork in place of the model's pictures.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from stable_diffusion.pipeline import Pipeline
from training.data.captions import STYLE_WEIGHTS, UNNAMED
from training.data.dataset import Dataset
from training.data.sentences.paraphraser import HELDOUT as SENTENCES
from training.networks.train_style import on_white
from training.networks.train_things import Vocabulary, load_things
from training.sheets import grid

SEEDS = 3  # a prompt
PICTURES = 25  # a sheet
COLUMNS = 5


@dataclass(frozen=True)
class Question:
    """A picture to be named: its prompt, and the seed that it is drawn from."""

    prompt: str
    seed: int


Draw = Callable[[Question], Image.Image]


def listed_prompts(name: str) -> list[str]:
    """Return a list of prompts.

    "everyday": a hundred things that people ask for first, in plain words and no style. "public": forty sentences of
    PartiPrompts, none of which training has seen.
    """
    return Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8").splitlines()


def heldout_prompts(kinds: Sequence[str]) -> list[str]:
    """Return the sentences of some kinds that training never sees."""
    listed = json.loads(SENTENCES.read_text(encoding="utf-8"))
    return [sentence for kind in kinds for sentence, _ in listed[kind]]


def shuffled(prompts: Sequence[str], seeds: int, shuffle: int) -> list[Question]:
    """Return every prompt with every seed, seed by seed, in an order that `shuffle` decides."""
    rng = random.Random(shuffle)
    return [Question(prompt, seed) for seed in range(seeds) for prompt in rng.sample(prompts, len(prompts))]


def write(draw: Draw, questions: Sequence[Question], out: Path) -> list[np.ndarray]:
    """Draw the questions, write sheets of them, numbered from 1, and their key. Returns what was drawn."""
    out.mkdir(parents=True, exist_ok=True)
    key = {number: asdict(question) for number, question in enumerate(questions, start=1)}
    (out / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    drawn = []
    for start in range(0, len(questions), PICTURES):
        pictures = [draw(question) for question in questions[start : start + PICTURES]]
        numbers = [str(start + i) for i in range(1, len(pictures) + 1)]
        path = out / f"sheet-{start // PICTURES + 1:02d}.png"
        grid(pictures, numbers, columns=COLUMNS).save(path)
        print(path, flush=True)
        drawn += [np.asarray(picture) for picture in pictures]
    return drawn


def artwork(dataset: Dataset, vocabulary: Vocabulary, question: Question) -> Image.Image:
    """Return the artwork of a question on white, in one of the styles that captions leave out."""
    concept = vocabulary.concepts[vocabulary.meant(question.prompt)[0]]
    rows = [i for i, row in enumerate(dataset.rows) if row["concept"] == concept and row["skin_tone"] == "default"]
    styles = [dataset.rows[i]["style"] for i in rows]
    weights = [UNNAMED[style] * STYLE_WEIGHTS[style] for style in styles]
    [row] = random.Random(f"{question.prompt} {question.seed}").choices(rows, weights)
    return Image.fromarray(on_white(dataset.pictures[row]))


def main() -> None:
    """Draw everyday prompts, and ask the judge about them if it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--artwork", action="store_true", help="show the artwork itself")
    parser.add_argument("--public", action="store_true", help="draw the sentences of public.txt, as they are")
    parser.add_argument("--fast", action="store_true", help="draw in four evaluations, by the adapter beside the model")
    parser.add_argument(
        "--sentences", nargs="+", metavar="KIND", help="draw the held-out sentences of these kinds: people, de, zh ..."
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="pictures of each prompt")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--things", type=Path, default=Path("runs/things/checkpoint.pt"), help="no judge if not there")
    parser.add_argument("--out", type=Path, default=Path("runs/everyday"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--shuffle", type=int, default=0, help="another number is another order")
    args = parser.parse_args()
    if args.artwork:
        dataset = Dataset.load(args.data)
        draw: Draw = partial(artwork, dataset, Vocabulary(dataset.rows))
    else:
        pipeline = Pipeline.from_pretrained(args.model)
        usual = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "sampler": "ddim"}
        options = {"fast": True} if args.fast else usual

        def draw(question: Question) -> Image.Image:
            return pipeline(question.prompt, seed=question.seed, **options).images[0]

    prompts = (
        heldout_prompts(args.sentences) if args.sentences else listed_prompts("public" if args.public else "everyday")
    )
    questions = shuffled(prompts, args.seeds, args.shuffle)
    drawn = write(draw, questions, args.out)
    if args.things.exists() and not (args.sentences or args.public):
        judge = load_things(args.things, Dataset.load(args.data).rows)
        named = judge.named(drawn, [question.prompt for question in questions])
        print(f"the judge names {sum(named)} of {len(named)}")


if __name__ == "__main__":
    main()
