"""Draw a wall of everything that the bundled model knows by name: `python -m ui.form.make_wall`.

Each kind of thing, and the styles, become one WebP sheet of small pictures in rows, and `index.json` lists the things
of each sheet in their order, with their prompts. By fast drawing, where the model has it, three minutes on two cores;
otherwise twenty.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

from PIL import Image

from stable_diffusion import Pipeline
from stable_diffusion.loading.config import BUNDLED
from stable_diffusion.loading.files import read_json

from ..words.lexicon import VOCABULARY, Name
from .chips import STYLES

SIDE, COLUMNS = 48, 20
"""Pixels of a picture, and pictures in a row."""
MOST_BYTES = 1_500_000
"""The most that all sheets take together."""
QUALITIES = (80, 70, 60, 50, 40, 30)
VARIANTS = "variants"
"""The group of the people whose sex is stated, who look much like the others."""
SEED = 0
SHOWN = "a fox"
"""What shows the styles."""


def prompts(vocabulary: Mapping[str, Mapping[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    """Return a prompt for each thing by kind, everyday things first; of several names the most usual one.

    Names that the page reads as others are left out.
    """
    kinds = {}
    for kind, names in vocabulary["names"].items():
        forms = {name: Name(*text.split("|")) for name, text in names.items()}
        shown = {
            name: form for name, form in forms.items() if name == form.thing and name not in vocabulary["drawn_as"]
        }
        kinds[kind] = {name: f"{form.article} {name}".strip() for name, form in shown.items()}
    styles = {style: f"{SHOWN}, {style} style" for style in vocabulary["words"]["styles"]}
    return {STYLES: styles} | {kind: found for kind, found in kinds.items() if kind != VARIANTS}


def sheet(pictures: Iterable[Image.Image]) -> Image.Image:
    """Return pictures in rows, each `SIDE` pixels wide."""
    small = [picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for picture in pictures]
    whole = Image.new("RGB", (SIDE * min(COLUMNS, len(small)), SIDE * -(-len(small) // COLUMNS)), "white")
    for number, picture in enumerate(small):
        whole.paste(picture, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    return whole


def compress(sheets: Mapping[str, Image.Image]) -> dict[str, bytes]:
    """Return the sheets as WebP, in the best quality in which they take at most `MOST_BYTES` together."""
    for quality in QUALITIES:
        files = {kind: io.BytesIO() for kind in sheets}
        for kind, picture in sheets.items():
            picture.save(files[kind], "webp", quality=quality, method=6)
        written = {kind: file.getvalue() for kind, file in files.items()}
        if sum(map(len, written.values())) <= MOST_BYTES:
            return written
    raise ValueError(f"the sheets take more than {MOST_BYTES:,} bytes: lower SIDE, or leave kinds out")


def write(out: Path, kinds: Mapping[str, Mapping[str, str]], draw: Callable[[str], Image.Image]) -> None:
    """Write the sheets and their index into a directory."""
    files = compress({kind: sheet(map(draw, found.values())) for kind, found in kinds.items()})
    out.mkdir(parents=True, exist_ok=True)
    for kind, data in files.items():
        (out / f"{kind}.webp").write_bytes(data)
    index = {"side": SIDE, "columns": COLUMNS, "kinds": kinds}
    (out / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUNDLED / "wall")
    parser.add_argument("--device", help="where to draw; the fastest there is, if not given")
    parser.add_argument("--first", type=int, help="draw only so many things of each kind")
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(device=args.device)
    kinds = {
        kind: dict(islice(found.items(), args.first))
        for kind, found in prompts(read_json(BUNDLED / VOCABULARY)).items()
    }

    def draw(prompt: str) -> Image.Image:
        return pipe(prompt, seed=SEED, fast=pipe.defaults.fast).images[0]

    write(args.out, kinds, draw)
    total = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {sum(map(len, kinds.values()))} things, {total / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
