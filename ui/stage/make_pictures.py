"""Make the pictures of README and page with the bundled model: `python -m ui.stage.make_pictures`."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stable_diffusion import Pipeline, Step
from stable_diffusion.images import fit_image, read_image
from stable_diffusion.loading.config import BUNDLED
from stable_diffusion.request import Request

from ..runs.events import event_of
from ..runs.prepare import as_read
from ..runs.registry import PageRun
from . import live, opening

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PROMPTS = (
    "a panda, fluent flat style, on a pink background",
    "a red apple, fluent 3d style",
    "a blue car, fluent color style",
    "a purple umbrella, fluent color style, on a yellow background",
)
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
CARD = 128  # pixels of a picture of the strip of strengths
SIDE, GAP, LINE = 192, 8, 18
LETTERS = 30  # of a label's line below a picture
INK, PAPER = "#1c1917", "#fafaf9"


class Sheet:
    """Pictures in columns and rows, each with a label of at most `lines` lines."""

    def __init__(self, columns: int, rows: int, lines: int = 1):
        self.height = SIDE + LINE * lines + 2 * GAP
        self.image = Image.new("RGB", (GAP + columns * (SIDE + GAP), GAP + rows * self.height), PAPER)

    def place(self, picture: Image.Image, column: int, row: int, label: str) -> None:
        """Put an enlarged picture and its label into a cell."""
        left, top = GAP + column * (SIDE + GAP), GAP + row * self.height
        self.image.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        text, font = "\n".join(textwrap.wrap(label, LETTERS)), ImageFont.load_default(13)
        ImageDraw.Draw(self.image).text((left, top + SIDE + 4), text, fill=INK, font=font)


def noisy_picture(step: Step) -> Image.Image:
    """Return x_t, scaled to unit variance and decoded."""
    return step.render(step.latents / step.level.scale).images[0]


def animate(pipe: Pipeline, steps: int = 30) -> None:
    """Four prompts, from noise to picture: x_t above, the network's x_0 below."""
    runs = [
        pipe.stream(prompt, num_inference_steps=steps, guidance_scale=5.0, sampler="ddim", seed=7, preview="vae")
        for prompt in PROMPTS
    ]
    frames = []
    for events in zip(*runs, strict=True):
        sheet = Sheet(len(PROMPTS), 2)
        for column, step in enumerate(events):
            sheet.place(noisy_picture(step), column, 0, f"x_t, step {step.index} of {step.total}")
            sheet.place(step.images[0], column, 1, "x_0, the model's guess")
        frames.append(sheet.image)
    durations = [120] * (len(frames) - 1) + [2500]
    frames[0].save(
        ASSETS / "run.webp", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=75, method=4
    )


def strengths(pipe: Pipeline) -> None:
    """The page's examples at rising strength, one row a photo."""
    sheet = Sheet(len(STRENGTHS) + 1, len(opening.PHOTO_EXAMPLES), lines=2)
    for row, (name, prompt) in enumerate(opening.PHOTO_EXAMPLES):
        photo = fit_image(read_image(opening.ASSETS / "examples" / name), pipe.default_size, pipe.default_size)
        sheet.place(photo, 0, row, prompt)
        for column, strength in enumerate(STRENGTHS, start=1):
            options = Request(prompt, num_inference_steps=40, guidance_scale=5.0, sampler="ddim", seed=3)
            picture = pipe(replace(options, image=photo, strength=strength)).images[0]
            sheet.place(picture, column, row, f"strength {strength}")
    sheet.image.save(ASSETS / "strengths.webp", quality=85)


def open_page(pipe: Pipeline) -> None:
    """The runs that the tabs open with, as messages of the live view."""
    prompt, seed = opening.EXAMPLES[0]
    record(pipe, "t2i", Request(prompt, seed=seed, preview="vae", prompt_syntax="read"))
    record(pipe, "i2i", photo_request(opening.STRENGTH).with_values(preview="vae"))


def photo_request(strength: float) -> Request:
    """Return the request of the first photo's example at a strength."""
    name, prompt = opening.PHOTO_EXAMPLES[0]
    return Request(prompt, image=opening.PHOTOS / name, strength=strength, seed=opening.SEED)


def record(pipe: Pipeline, kind: str, request: Request) -> None:
    """Record a run as the opening film of a tab."""
    request = request.with_values(width=pipe.default_size, height=pipe.default_size)
    run = pipe.begin(as_read(request, BUNDLED, ()))
    page_run, start = PageRun(kind, request, request=run.request), run.query
    for step in run.steps():
        page_run.add(event_of(step, run.request, pipe.models.name, 0.0, start=start))
        start = None
    film = live.steps(page_run.run_id, page_run.film, run.request.image)
    text = json.dumps(live.so_far("opening", film, page_run.link))
    opening.FILMS[kind].write_text(text, encoding="utf-8")


def strip(pipe: Pipeline) -> None:
    """The first photo's picture at every strength of the strip below it."""
    for strength in opening.STRENGTHS:
        size = {"width": pipe.default_size, "height": pipe.default_size}
        picture = pipe(photo_request(strength).with_values(**size)).images[0]
        opening.strength_card(strength).parent.mkdir(exist_ok=True)
        picture.resize((CARD, CARD), Image.Resampling.LANCZOS).save(
            opening.strength_card(strength), quality=85, method=6
        )


def cards(pipe: Pipeline) -> None:
    """The pictures of the page's examples, as Generate draws them."""
    for number, (prompt, seed) in enumerate(opening.EXAMPLES):
        picture = pipe(as_read(Request(prompt, seed=seed, prompt_syntax="read"), BUNDLED, ())).images[0]
        opening.card(number).parent.mkdir(exist_ok=True)
        picture.save(opening.card(number), quality=90, method=6)


def main() -> None:
    """Make all pictures."""
    pipe = Pipeline.from_pretrained()
    animate(pipe)
    strengths(pipe)
    open_page(pipe)
    cards(pipe)
    strip(pipe)


if __name__ == "__main__":
    main()
