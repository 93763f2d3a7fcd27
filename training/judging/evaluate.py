"""Measure what the model draws: `python -m training.judging.evaluate`.

Prompts that training held out, and everyday ones, are drawn with fixed seeds; the same measures are taken of the
artwork, composed for the same prompts, as the ceiling. The classifier of `networks.train_things` names pictures, the
one of `networks.train_style` their styles, and the CLIP of `networks.train_clip` ranks the contents of their halves;
none of them was trained on generated pictures. Colours and places are measured in pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIP
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request
from training.data.captions import PLACES, RELATIONS
from training.data.dataset import Dataset, simple
from training.data.grammar import base_noun, nouns, with_article
from training.data.heldout import HELDOUT, Heldout, described, prompts
from training.data.paint import BACKGROUNDS, COLOURS, Box, paste, recolour
from training.networks.train_clip import load_clip
from training.networks.train_style import StyleClassifier, load_style, on_white
from training.networks.train_things import ThingJudge, load_things

SIDE = 128
REPEATS = {"cell": 2, "colour": 2, "pair": 2, "seen": 1, "place": 1}
STEPS, GUIDANCE = (5, 10, 20, 50), (1.0, 2.0, 4.0, 6.0, 9.0)
FRAME = 3  # pixels at the border that show nothing but background
FAR = 45.0  # distance in RGB from which on a pixel is no background
SMALL = 0.4  # side of an object that is asked to be small


@dataclass(frozen=True)
class Case:
    """A prompt, its seed, and what it asks for; see `heldout.prompts` for the facts."""

    facts: dict
    seed: int

    @property
    def kind(self) -> str:
        """Return which part of the evaluation the prompt belongs to."""
        return self.facts["kind"]


def cases(dataset: Dataset, heldout: dict) -> list[Case]:
    """Return all prompts with their seeds: those of `heldout.prompts`, and everyday things in named places."""
    listed = prompts(heldout, dataset.rows)
    seen = [facts for facts in listed if facts["kind"] == "seen"]
    labels = {row["concept"]: row["label"] for row in dataset.rows}
    for i, place in enumerate([*PLACES] * 5):
        concept = seen[4 * i]["concept"]
        words = with_article("small " + nouns(labels[concept])[0])
        listed.append({"kind": "place", "prompt": f"{words} {place}", "concept": concept, "place": place})
    return [Case(facts, 1000 * n + i) for i, facts in enumerate(listed) for n in range(REPEATS[facts["kind"]])]


def generate(pipeline: Pipeline, case: Case, steps: int, guidance_scale: float) -> np.ndarray:
    """Draw a case at the model's own size and shrink it to what judges see, (128, 128, 3) uint8."""
    prompt = case.facts["prompt"]
    request = Request(prompt, num_inference_steps=steps, guidance_scale=guidance_scale, sampler="ddpm", seed=case.seed)
    picture = pipeline(request).images[0]
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


class Artwork:
    """The ceiling: each prompt as the artwork itself shows it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.rows: dict[str, list[int]] = {}
        for index, row in enumerate(dataset.rows):
            if simple(row):
                self.rows.setdefault(row["concept"], []).append(index)

    def draw(self, case: Case) -> np.ndarray:
        """Return artwork that shows what the case asks for, (128, 128, 3) uint8."""
        facts, rng = case.facts, np.random.default_rng(case.seed)
        canvas = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[facts.get("background", "white")])
        if case.kind == "pair":
            for concept, box in zip(facts["concepts"], boxes(facts["relation"]), strict=True):
                paste(canvas, self.dataset.pictures[rng.choice(self.rows[concept])], box)
        elif case.kind == "place":
            x, y = (SMALL / 2 + at * (1 - SMALL) for at in PLACES[facts["place"]])
            paste(canvas, self.dataset.pictures[rng.choice(self.rows[facts["concept"]])], Box(x, y, SMALL))
        else:
            paste(canvas, self._picture(case, rng), Box())
        return np.asarray(canvas)

    def _picture(self, case: Case, rng: np.random.Generator) -> np.ndarray:
        facts, rows = case.facts, self.dataset.rows
        if case.kind == "cell":
            return self.dataset.pictures[
                next(i for i in self.rows[facts["concept"]] if rows[i]["style"] == facts["style"])
            ]
        if case.kind == "colour":
            named = [i for part in self.rows.values() for i in part if base_noun(rows[i]["label"]) == facts["noun"]]
            row = int(rng.choice([i for i in named if rows[i]["chroma"] > 0.4] or named))
            return recolour(self.dataset.pictures[row], rows[row]["hue"], facts["colour"])
        return self.dataset.pictures[rng.choice(self.rows[facts["concept"]])]


def boxes(relation: str) -> tuple[Box, Box]:
    """Return where two objects lie that stand in a relation to each other; `next to` means side by side."""
    x, y = RELATIONS[relation] or (-1, 0)
    return Box(0.5 + 0.25 * x, 0.5 + 0.25 * y, 0.5), Box(0.5 - 0.25 * x, 0.5 - 0.25 * y, 0.5)


class Judge:
    """Says what pictures show, by a classifier and by a CLIP, and in what style."""

    def __init__(self, clip: CLIP, style_classifier: StyleClassifier, things: ThingJudge, dataset: Dataset):
        self.clip, self.style_classifier, self.things = clip, style_classifier, things
        self.labels = {row["concept"]: row["label"] for row in dataset.rows if simple(row)}
        self.concepts = list(self.labels)
        self._names: dict[tuple[str | None, str | None], Tensor] = {}

    def names(self, style: str | None, background: str | None) -> Tensor:
        """Return the vectors (N, D) of all concepts' names, in this style and on this background."""
        key = style, background
        if key not in self._names:
            texts = [described(label, style=style, background=background) for label in self.labels.values()]
            self._names[key] = self.clip.embed_texts(texts)
        return self._names[key]

    def ranks(self, pictures: Sequence[np.ndarray], asked: Sequence[dict]) -> Tensor:
        """Return the rank, from 0, of each picture's concept among all concepts.

        The names are in the prompt's style and on its background: to this CLIP "a giraffe" means one on white.
        """
        names = torch.stack([self.names(facts.get("style"), facts.get("background")) for facts in asked])
        scores = torch.einsum("nd,nkd->nk", self.embed(pictures), names)
        own = torch.tensor([self.concepts.index(facts["concept"]) for facts in asked])
        return (scores > scores.gather(1, own[:, None])).sum(dim=1)

    def embed(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures (H, W, 3) uint8 -> vectors (N, D) of length 1."""
        images = [Image.fromarray(picture) for picture in pictures]
        return torch.cat([self.clip.embed_images(images[i : i + 256]) for i in range(0, len(images), 256)])


def background(picture: np.ndarray) -> np.ndarray:
    """Return the colour at the border: the median of its frame, (3,)."""
    inner = np.ones(picture.shape[:2], bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = False
    return np.median(picture[inner].astype(float), axis=0)


def nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    """Return the name of the nearest colour in RGB."""
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(names[name]))))


def foreground(picture: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) of the pixels far from the background."""
    return np.linalg.norm(picture - background(picture), axis=-1) > FAR


def main_colour(picture: np.ndarray) -> str | None:
    """Return the colour word that most pixels of the object are nearest to; black outlines do not count."""
    words = {name: _rgb(*hsv) for name, hsv in COLOURS.items()}
    pixels = picture[foreground(picture)].astype(float)
    if not len(pixels):
        return None
    distances = np.stack([np.linalg.norm(pixels - np.array(rgb), axis=-1) for rgb in words.values()])
    counts = np.bincount(distances.argmin(axis=0), minlength=len(words))
    counts[[list(words).index(name) for name in ("black", "white", "gray")]] = 0
    return list(words)[int(counts.argmax())]


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    hsv = Image.new("HSV", (1, 1), (round(hue / 360 * 255), round(saturation * 255), round(value * 255)))
    red, green, blue = np.asarray(hsv.convert("RGB"))[0, 0].tolist()
    return red, green, blue


def place(picture: np.ndarray) -> tuple[float, float] | None:
    """Return the third in which the object's centre lies, 0, 0.5 or 1 on each axis; None without an object."""
    rows, columns = np.nonzero(foreground(picture))
    if not len(rows):
        return None
    x, y = (float(np.clip(np.floor(3 * np.mean(part) / SIDE), 0, 2)) / 2 for part in (columns, rows))
    return x, y


def halves(picture: np.ndarray, relation: str) -> list[np.ndarray]:
    """Return the squares in which the two objects should be, in the prompt's order, each enlarged to the whole size."""
    image = Image.fromarray(picture)
    corners = [(round((box.x - 0.25) * SIDE), round((box.y - 0.25) * SIDE)) for box in boxes(relation)]
    crops = [image.crop((left, top, left + SIDE // 2, top + SIDE // 2)) for left, top in corners]
    return [np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for crop in crops]


def both_present(judge: Judge, picture: np.ndarray, facts: dict) -> bool:
    """Return whether each half's object is among the judge's first five guesses; `next to` allows both orders."""
    parts, asked = halves(picture, facts["relation"]), [{"concept": concept} for concept in facts["concepts"]]
    ways = [parts, parts[::-1]] if RELATIONS[facts["relation"]] is None else [parts]
    return any(bool((judge.ranks(way, asked) < 5).all()) for way in ways)


def frechet(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, each taken as a Gaussian (arXiv:1706.08500, Eq. 6)."""
    a, b = a.double(), b.double()
    both = torch.cov(a.T) @ torch.cov(b.T)
    trace = torch.linalg.eigvals(both).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * trace)


def measure(judge: Judge, listed: Sequence[Case], pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the shares of pictures that show what their cases ask for."""

    def of(*kinds: str) -> Iterator[tuple[np.ndarray, dict]]:
        return ((p, case.facts) for p, case in zip(pictures, listed, strict=True) if case.kind in kinds)

    def share(right: Sequence[bool]) -> float:
        return float(np.mean(right))

    result = {}
    for kind, name in (("seen", "everyday thing"), ("cell", "thing in a style that training held out")):
        shown, facts = zip(*of(kind), strict=True)
        things = [nouns(judge.labels[f["concept"]])[0] for f in facts]
        result[f"{name}, named at first guess"] = share(judge.things.named(shown, things))
        result[f"{name}, in CLIP's top 5"] = share((judge.ranks(shown, facts) < 5).tolist())
    shown, facts = zip(*of("cell"), strict=True)
    styles = judge.style_classifier.styles(shown)
    result["style"] = share([style == f["style"] for style, f in zip(styles, facts, strict=True)])
    result["background colour"] = share([nearest(background(p), BACKGROUNDS) == f["background"] for p, f in of("seen")])
    result["object colour that training held out"] = share([main_colour(p) == f["colour"] for p, f in of("colour")])
    result["place"] = share([place(p) == PLACES[f["place"]] for p, f in of("place")])
    result["both things of a pair that training held out"] = share([both_present(judge, p, f) for p, f in of("pair")])
    return result


def originals(dataset: Dataset, heldout: Heldout) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the artwork on white, the part that training saw and the part that it did not."""
    seen: list[np.ndarray] = []
    unseen: list[np.ndarray] = []
    for picture, row in zip(dataset.pictures, dataset.rows, strict=True):
        cell = (row["concept"], row["style"]) in heldout.cells
        (unseen if cell else seen).append(on_white(picture))
    return seen, unseen


def main() -> None:
    """Evaluate a model and print the measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--clip", type=Path, default=Path("runs/clip/checkpoint.pt"))
    parser.add_argument("--style", type=Path, default=Path("runs/style/checkpoint.pt"))
    parser.add_argument("--things", type=Path, default=Path("runs/things/checkpoint.pt"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--table", action="store_true", help="also try all steps by all guidance scales")
    parser.add_argument("--table-prompts", type=int, default=48)
    args = parser.parse_args()

    dataset, pipeline = Dataset.load(args.data), Pipeline.from_pretrained(args.model)
    tokenizer = CLIPTokenizer.from_pretrained(str(args.model / "tokenizer"), local_files_only=True)
    things = load_things(args.things, dataset.rows)
    judge = Judge(load_clip(args.clip, tokenizer), load_style(args.style), things, dataset)
    listed = cases(dataset, json.loads(HELDOUT.read_text(encoding="utf-8")))
    artwork = Artwork(dataset)
    real = [artwork.draw(case) for case in listed]
    drawn = [generate(pipeline, case, args.steps, args.guidance_scale) for case in listed]

    print(f"{len(listed)} pictures, {args.steps} steps, guidance {args.guidance_scale:g}\n")
    print("| share that is right | model | artwork |\n| --- | --- | --- |")
    ceiling = measure(judge, listed, real)
    for name, value in measure(judge, listed, drawn).items():
        print(f"| {name} | {100 * value:.1f} % | {100 * ceiling[name]:.1f} % |")

    features, references = judge.embed(drawn), judge.embed(real)
    order = torch.randperm(len(references), generator=torch.Generator().manual_seed(0))
    one, other = references[order].chunk(2)
    print(f"\nFréchet distance to the artwork: {frechet(features, references):.4f}")
    print(f"between two halves of the artwork: {frechet(one, other):.4f}")
    known, unknown = (judge.embed(part) for part in originals(dataset, Heldout.load()))
    cells = torch.tensor([case.kind == "cell" for case in listed])
    for name, vectors in (("drawn", features[cells]), ("held-out artwork", unknown)):
        print(f"distance to the nearest training picture, {name}: {(1 - (vectors @ known.T).amax(dim=1)).mean():.4f}")

    if args.table:
        chosen = [case for case in listed if case.kind == "seen"][:: max(1, 194 // args.table_prompts)]
        asked = [case.facts for case in chosen]
        print(f"\ntop 5 of {len(chosen)} everyday things\n")
        print("| steps | " + " | ".join(f"guidance {scale:g}" for scale in GUIDANCE) + " |")
        print("| --- |" + " --- |" * len(GUIDANCE))
        for steps in STEPS:
            row = []
            for scale in GUIDANCE:
                ranks = judge.ranks([generate(pipeline, case, steps, scale) for case in chosen], asked)
                row.append(f"{100 * (ranks < 5).float().mean():.0f} %")
            print(f"| {steps} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
