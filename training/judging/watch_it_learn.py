"""Draw the same seeds by every U-Net of this repository's history: `python -m training.judging.watch_it_learn`.

Writes `assets/learning/`, which the page plays: `pictures.webp` has a row for each version, and in it the x_0 of some
steps for each prompt; `index.json` tells prompts, steps and versions. Every version is drawn with the autoencoder, text
encoder and tokenizer of its own commit; all have latents of one size, so that a seed is the same first noise for each.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from stable_diffusion.loading.config import BUNDLED
from stable_diffusion.pipeline import Pipeline

MODEL = "assets/models/emoji"
PROMPTS = (
    ("a rocket, on a blue background", 0),
    ("an owl", 1),
    ("a fox", 4),
    ("a sunflower, on a blue background", 13),
)
"""Prompts and seeds."""
TOTAL, SHOWN = 16, (1, 2, 4, 8, 16)
"""Steps of a run, and those whose x_0 is kept."""
TILE, QUALITY = 224, 70


@dataclass(frozen=True)
class Version:
    """Weights of the U-Net: the commit that brought them, the examples seen by then, and what they can do.

    examples: of the training runs that led to these weights, from the model card of the commit.
    """

    commit: str
    examples: int
    note: str


VERSIONS = (
    Version("10014ab", 110_900, "The background has the colour asked for. Of the things there are only blots."),
    Version("fe675e9", 212_700, "Things have a colour and a rough shape."),
    Version("1cb435a", 348_300, "Owl, fox and sunflower can be told apart."),
    Version("86ba76e", 465_600, "Faces and outlines are in place, and the rocket is one."),
    Version("d450c74", 542_200, "Edges are cleaner: the decoder was trained further too."),
    Version("da77841", 1_684_200, "Three times the examples, and a decoder of twice the width: crisp."),
)


def git(*arguments: str) -> bytes:
    """Return what git prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, cwd=BUNDLED.parents[2]).stdout


def films(version: Version) -> Iterator[list[Image.Image]]:
    """Yield for each prompt the kept x_0 of a run with the weights of a version, `TILE` pixels wide."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", version.commit, MODEL))) as archive:
            archive.extractall(folder, filter="data")
        pipeline = Pipeline.from_pretrained(Path(folder) / MODEL)
    for prompt, seed in PROMPTS:
        steps = pipeline.stream(
            prompt, seed=seed, num_inference_steps=TOTAL, guidance_scale=4.0, sampler="ddim", preview="vae"
        )
        kept = [step.images[0] for step in steps if step.index in SHOWN and step.images]
        yield [picture.resize((TILE, TILE), Image.Resampling.LANCZOS) for picture in kept]


def main() -> None:
    """Draw all versions and write the sheet with its index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUNDLED.parents[1] / "learning")
    args = parser.parse_args()
    sheet = Image.new("RGB", (TILE * len(SHOWN) * len(PROMPTS), TILE * len(VERSIONS)))
    for row, version in enumerate(VERSIONS):
        tiles = [picture for film in films(version) for picture in film]
        for column, picture in enumerate(tiles):
            sheet.paste(picture, (TILE * column, TILE * row))
    args.out.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out / "pictures.webp", quality=QUALITY, method=6)
    dates = (git("show", "--no-patch", "--format=%cs", version.commit).decode().strip() for version in VERSIONS)
    versions = [asdict(version) | {"date": date} for version, date in zip(VERSIONS, dates, strict=True)]
    index = {"prompts": PROMPTS, "steps": SHOWN, "versions": versions}
    (args.out / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    print(sum(file.stat().st_size for file in args.out.iterdir()), "bytes")


if __name__ == "__main__":
    main()
