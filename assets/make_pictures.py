"""Make the README's pictures with the bundled model: `python -m assets.make_pictures`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stable_diffusion import Pipeline, Step
from stable_diffusion.images import to_images

HERE = Path(__file__).parent
PROMPTS = (
    "a panda, fluent flat style, on a pink background",
    "a red apple, fluent 3d style",
    "a blue car, fluent color style",
    "a purple umbrella, fluent color style, on a yellow background",
)
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
PHOTOS = (
    ("cat", "a cat face, fluent 3d style"),
    ("coffee", "a cup of coffee, noto style"),
    ("flower", "a sunflower, noto style"),
    ("rocket", "a rocket, noto style"),
)
SIDE, GAP, LABEL = 192, 8, 26
INK, PAPER = "#1c1917", "#fafaf9"


def canvas(columns: int, rows: int) -> Image.Image:
    """An empty sheet of labelled cells."""
    return Image.new("RGB", (GAP + columns * (SIDE + GAP), GAP + rows * (SIDE + LABEL + GAP)), PAPER)


def place(sheet: Image.Image, picture: Image.Image, column: int, row: int, label: str) -> None:
    """Put an enlarged picture and its label into a cell."""
    left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + LABEL + GAP)
    sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
    ImageDraw.Draw(sheet).text((left, top + SIDE + 4), label, fill=INK, font=ImageFont.load_default(13))


def noisy_picture(pipe: Pipeline, step: Step) -> Image.Image:
    """x_t, brought to unit variance and decoded, as the network sees it."""
    scale = (step.alpha**2 + step.sigma**2) ** 0.5
    return to_images(pipe.models.vae.decode_finite(step.latents / scale))[0]


def animate(pipe: Pipeline, steps: int = 30) -> None:
    """Four prompts, from noise to picture: x_t above, the network's x_0 below."""
    runs = [
        pipe.stream(prompt, num_inference_steps=steps, guidance_scale=5.0, sampler="ddim", seed=7, preview="vae")
        for prompt in PROMPTS
    ]
    frames = []
    for events in zip(*runs, strict=True):
        sheet = canvas(len(PROMPTS), 2)
        for column, step in enumerate(events):
            place(sheet, noisy_picture(pipe, step), column, 0, f"x_t, step {step.index} of {step.total}")
            place(sheet, step.images[0], column, 1, "x_0, the model's guess")
        frames.append(sheet)
    durations = [120] * (len(frames) - 1) + [2500]
    frames[0].save(
        HERE / "run.webp", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=75, method=4
    )


def strengths(pipe: Pipeline) -> None:
    """A photo at rising strength, one row a photo."""
    sheet = canvas(len(STRENGTHS) + 1, len(PHOTOS))
    for row, (name, prompt) in enumerate(PHOTOS):
        with Image.open(HERE / "examples" / f"{name}.jpg") as photo:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            square = photo.crop((left, top, left + side, top + side)).resize((pipe.default_size,) * 2)
        place(sheet, square, 0, row, "photo")
        for column, strength in enumerate(STRENGTHS, start=1):
            options = {"num_inference_steps": 40, "guidance_scale": 5.0, "sampler": "ddim", "seed": 3}
            picture = pipe(prompt, image=square, strength=strength, **options).images[0]
            place(sheet, picture, column, row, f"strength {strength}")
    sheet.save(HERE / "strengths.webp", quality=85)


def main() -> None:
    pipe = Pipeline.from_pretrained()
    animate(pipe)
    strengths(pipe)


if __name__ == "__main__":
    main()
