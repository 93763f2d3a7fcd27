"""Draw pictures on labelled sheets; a fixed set of prompts by `python -m training.sheets [--model FOLDER]`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stable_diffusion.pipeline import Pipeline

PROMPTS = (
    "a red apple, fluent 3d style",
    "a banana, noto style",
    "a slice of pizza, fluent flat style, on a green background",
    "a cup of coffee, fluent color style, on a beige background",
    "a cat face, fluent 3d style, on a light blue background",
    "a dog face, twemoji style",
    "a fox, noto style, on a dark blue background",
    "a panda, fluent flat style, on a pink background",
    "a frog, noto blob style",
    "an owl, fluent color style, on a purple background",
    "a green fish, twemoji style, on an orange background",
    "a sunflower, fluent 3d style, on a blue background",
    "a cactus, streamline style",
    "a blue car, fluent color style",
    "a rocket, fluent 3d style, on a black background",
    "a sailboat, noto style, on a light blue background",
    "a house, emojitwo style, on a light green background",
    "a grinning face, fluent 3d style",
    "a robot, fluent flat style, on a yellow background",
    "a soccer ball, noto style, on a green background",
    "a purple umbrella, fluent color style",
    "a yellow heart, twemoji style, on a red background",
    "a cat next to a pizza, fluent 3d style",
    "three red apples, noto style, on a light blue background",
)
CAPTION_LINES = 3
FONT_SIZE = 12


def grid(pictures: Sequence[Image.Image], labels: Sequence[str], *, tile: int = 160, columns: int = 6) -> Image.Image:
    """Return pictures in rows of `columns`, each `tile` pixels wide over its label."""
    font = ImageFont.load_default(FONT_SIZE)
    wrapped = [textwrap.wrap(label, width=tile // 6)[:CAPTION_LINES] for label in labels]
    height = tile + max(map(len, wrapped)) * (FONT_SIZE + 2) + 8
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (tile + 8) + 8, rows * height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        left, top = 8 + index % columns * (tile + 8), 8 + index // columns * height
        sheet.paste(picture.resize((tile, tile), Image.Resampling.LANCZOS), (left, top))
        draw.multiline_text((left, top + tile + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet


def contact_sheet(
    pipeline: Pipeline,
    prompts: Sequence[str] = PROMPTS,
    *,
    size: int | None = None,
    tile: int = 160,
    columns: int = 6,
    steps: int = 25,
    guidance_scale: float = 4.0,
    seed: int = 0,
) -> Image.Image:
    """Return a grid of pictures, each over its prompt; prompt i is drawn from seed + i by DDIM.

    size is the side, in pixels, that is drawn (None: the model's own), tile the side shown.
    """
    pictures = [
        pipeline(
            prompt,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            sampler="ddim",
            seed=seed + index,
        ).images[0]
        for index, prompt in enumerate(prompts)
    ]
    return grid(pictures, prompts, tile=tile, columns=columns)


def main() -> None:
    """Draw the sheet and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--out", type=Path, default=Path("assets/contact_sheet.png"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pipeline = Pipeline.from_pretrained(args.model)
    sheet = contact_sheet(pipeline, steps=args.steps, guidance_scale=args.guidance_scale, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
