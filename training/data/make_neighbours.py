"""Write small copies of the training drawings into a model directory: `python -m training.data.make_neighbours`.

The page finds the drawings nearest to a picture among them (`stable_diffusion.inspect.neighbours`). One drawing for
each thing and style that training sees, the first of the data set: no second skin tone, nothing that is held out, and
no people, which only 4 % of the examples show. The licences in the model's NOTICE.md hold for the copies too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from stable_diffusion.inspect.neighbours import SIDE, sheet_name
from stable_diffusion.loading.config import BUNDLED
from training.data.dataset import DEFAULT_ROOT, Dataset
from training.data.heldout import Heldout

COLUMNS, QUALITY = 32, 38
"""Copies in a row, and WebP's quality: 3 MB in all."""


def chosen(rows: list[dict], heldout: Heldout) -> dict[str, list[int]]:
    """Return by style the rows of the drawings to copy."""
    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        cell = row["concept"], row["style"]
        if row["group"] != "people-body" and row["skin_tone"] == "default" and cell not in heldout.cells:
            first.setdefault(cell, i)
    styles: dict[str, list[int]] = {}
    for i in first.values():
        styles.setdefault(rows[i]["style"], []).append(i)
    return styles


def copy_of(picture: np.ndarray) -> Image.Image:
    """Return a small RGB copy, on white, of a picture (S, S, 4) uint8 with straight alpha."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def sheet_of(pictures: np.ndarray) -> Image.Image:
    """Return small copies of pictures (N, S, S, 4) in rows."""
    whole = Image.new("RGB", (SIDE * COLUMNS, SIDE * -(-len(pictures) // COLUMNS)), "white")
    for i, picture in enumerate(pictures):
        whole.paste(copy_of(picture), (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    return whole


def write(out: Path, dataset: Dataset, heldout: Heldout) -> int:
    """Write the sheets and their index into a directory, and return the number of copies."""
    out.mkdir(parents=True, exist_ok=True)
    styles = chosen(dataset.rows, heldout)
    for style, found in styles.items():
        sheet_of(dataset.pictures[found]).save(out / sheet_name(style), quality=QUALITY, method=6)
    index = {style: [dataset.rows[i]["label"] for i in found] for style, found in styles.items()}
    (out / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return sum(map(len, styles.values()))


def main() -> None:
    """Copy the drawings of the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--out", type=Path, default=BUNDLED / "drawings")
    args = parser.parse_args()
    count = write(args.out, Dataset.load(args.data), Heldout.load())
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{count} drawings, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
