"""A mask over a photo: inside it all is drawn, outside nothing changes, by whatever sampler and in every picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from stable_diffusion.batching.engine import Engine
from stable_diffusion.images import ImageError, fit_image
from stable_diffusion.levels import SAMPLERS
from stable_diffusion.mask import Mask, read_mask, soften
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import FIT_LABELS, MAX_MASK_BLUR, Request, RequestError
from stable_diffusion.schedule import CLEAN
from tests.tiny import save_model

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8))
SIZE = {"width": 64, "height": 64}
WHITE, BLACK = Image.new("L", PHOTO.size, 255), Image.new("L", PHOTO.size, 0)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(save_model(tmp_path_factory.mktemp("model")))


def request(mask: Image.Image | str | Path | None, **options: object) -> Request:
    settings = {"image": PHOTO, "seed": 3, "num_inference_steps": 5, "strength": 0.6, "sampler": "ddim", **SIZE}
    return Request("a red fox", mask=mask, **{**settings, **options})  # type: ignore[arg-type]


def disc() -> Image.Image:
    """A round mask with a soft edge, in the middle of the photo."""
    y, x = np.mgrid[:70, :100]
    return Image.fromarray((255 * (24 - np.hypot(x - 50, y - 35)).clip(0, 12) / 12).astype(np.uint8))


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_mask_is_the_photo_in_every_picture_and_every_question(
    pipe: Pipeline, sampler: str, strength: float
) -> None:
    run = pipe.begin(request(disc(), sampler=sampler, strength=strength, num_images=2, preview="linear"))
    assert run.render.mask is not None
    levels = np.asarray(run.render.mask.white)
    white, photo = levels > 0, np.asarray(fit_image(PHOTO, **SIZE))
    outside = torch.from_numpy(~white.reshape(8, 8, 8, 8).any(axis=(1, 3)))
    assert torch.equal(outside, ~run.render.mask.inside)
    assert 0 < outside.sum() < outside.numel()

    steps = list(run.steps())
    for step in steps:
        assert step.images is not None
        for picture in map(np.asarray, step.images):
            assert np.array_equal(picture[~white], photo[~white])
            assert not np.array_equal(picture[white], photo[white])
            assert (picture != photo).any(axis=2)[levels == 255].mean() > 0.9
    # With one noise for all steps, x_t outside goes straight from noise to the photo, whatever the sampler.
    for step in steps[1:]:
        known = step.alpha * run.render.mask.x_0 + step.sigma * run.render.mask.noise
        torch.testing.assert_close(step.latents[..., outside], known[..., outside], rtol=0, atol=1e-5)
    assert torch.equal(steps[-1].final[..., outside], run.render.mask.x_0[..., outside])


@pytest.mark.parametrize("sampler", ["ddim", "heun", "unipc"])
def test_a_white_mask_is_plain_image_to_image(pipe: Pipeline, sampler: str) -> None:
    """Where the sampler draws no noise: a mask takes one more draw from the seed, as in diffusers."""
    masked, plain = (pipe(request(mask, sampler=sampler)) for mask in (WHITE, None))
    assert torch.equal(masked.latents, plain.latents)
    assert np.array_equal(masked.images[0], plain.images[0])


def test_at_strength_one_nothing_is_left_in_a_white_mask(pipe: Pipeline) -> None:
    inverted = Image.fromarray(255 - np.asarray(PHOTO))
    drawn = [pipe(request(WHITE, image=image, strength=1.0)).latents for image in (PHOTO, inverted)]
    assert torch.equal(*drawn)


@settings(deadline=None)
@given(
    st.tuples(st.integers(0, 63), st.integers(0, 47)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, MAX_MASK_BLUR),
)
def test_every_dot_changes_its_place_and_nothing_beyond_its_blur(
    place: tuple[int, int], size: tuple[int, int], blur: int
) -> None:
    (x, y), (width, height) = place, size
    dot = Image.new("L", (64, 48))
    dot.paste(255, (x, y, x + width, y + height))
    white = np.asarray(dot) > 0
    near = np.zeros_like(white)
    near[max(0, y - blur) : y + height + blur, max(0, x - blur) : x + width + blur] = True

    photo, drawn, known = Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48), "white"), torch.zeros(1, 4, 6, 8)
    mask = Mask(soften(read_mask(dot, photo, 64, 48, "crop"), blur), photo, known, known)
    latents = F.interpolate(mask.blend(known + 1, CLEAN), scale_factor=8)[0, 0].numpy()
    picture = np.asarray(mask.paste([drawn])[0])[..., 0].astype(int)
    assert latents[picture > 0].all()
    assert (picture[white] == 255).all()
    assert not picture[~near].any()
    steps = [np.abs(np.diff(picture, axis=axis)).max(initial=0) for axis in (0, 1)]
    assert max(steps) <= 255 / (blur + 1) + 1, "the drawn part fades into the photo"


def test_a_line_at_the_edge_is_drawn(pipe: Pipeline) -> None:
    line = Image.new("L", (64, 64))
    line.paste(255, (63, 0, 64, 64))
    photo = fit_image(PHOTO, **SIZE)
    picture = pipe(request(line, image=photo, mask_blur=0)).images[0]
    changed = (np.asarray(picture) != np.asarray(photo)).any(axis=2)
    assert changed[:, 63].mean() > 0.9
    assert not changed[:, :63].any()


def test_a_masked_picture_does_not_depend_on_its_batch(pipe: Pipeline) -> None:
    wanted = request(disc(), sampler="ddpm", num_images=2)
    together = pipe(wanted).latents
    for i in range(2):
        alone = pipe(request(disc(), sampler="ddpm", seed=3 + i)).latents
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-4)


def test_the_engine_draws_the_same_pictures(pipe: Pipeline) -> None:
    wanted = request(disc(), sampler="ddpm", preview="vae")
    engine = Engine()
    try:
        handles = [engine.submit(lambda: pipe.begin(wanted), owner=i) for i in range(2)]
        results = [list(handle)[-1].result for handle in handles]
    finally:
        engine.close()
    alone = np.asarray(pipe(wanted).images[0], dtype=int)
    for result in results:
        assert result is not None
        assert np.abs(np.asarray(result.images[0], dtype=int) - alone).max() <= 1


@pytest.mark.parametrize("fit", FIT_LABELS)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_mask_goes_with_its_photo(fit: str, scale: float) -> None:
    """A photo that is its own mask, of any resolution: black and white lie in the same places."""
    photo = Image.new("RGB", (120, 60))
    photo.paste("white", (60, 0, 90, 60))
    mask = photo.resize((round(120 * scale), round(60 * scale)), Image.Resampling.NEAREST)
    fitted = np.asarray(fit_image(photo, 48, 48, fit, background="black").convert("L")) >= 128
    differing = fitted ^ (np.asarray(read_mask(mask, photo, 48, 48, fit)) >= 128)
    assert fitted.any()
    assert differing.mean() <= 1 / 48  # resampled twice, an edge may move by a pixel


def row(*levels: int) -> Image.Image:
    return Image.fromarray(np.array([levels], dtype=np.uint8))


@pytest.mark.parametrize(
    ("mask", "levels"),
    [
        (row(0, 127, 128, 255), [0, 127, 128, 255]),
        (row(0, 7, 8, 255), [0, 0, 8, 255]),
        (row(0, 1, 1, 0), [0, 255, 255, 0]),
        (row(0, 255, 0, 255).convert("1"), [0, 255, 0, 255]),
        (Image.fromarray(np.array([[0, 255, 0, 65535]], np.uint16)), [0, 0, 0, 255]),
        (Image.merge("LA", (row(255, 255, 255, 255), row(0, 100, 255, 0))), [0, 100, 255, 0]),
        (
            Image.merge("RGBA", (row(255, 255, 0, 9), row(212, 0, 0, 9), row(0, 0, 0, 9), row(255, 255, 255, 0))),
            [255, 255, 0, 0],
        ),
    ],
    ids=["grey", "faint", "numbers", "one bit", "16 bits", "white paint", "coloured paint"],
)
def test_levels_of_a_mask(tmp_path: Path, mask: Image.Image, levels: list[int]) -> None:
    mask.save(tmp_path / "mask.png")
    assert list(read_mask(tmp_path / "mask.png", Image.new("RGB", (4, 1)), 4, 1, "crop").tobytes()) == levels


SIDE = Image.new("L", (100, 70))
SIDE.paste(255, (0, 0, 10, 70))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (BLACK, "mask has no white, and black or transparent parts stay as they are: make white what should change"),
        (Image.merge("LA", (BLACK, disc())), "mask has no white, "),
        (row(0, 2, 3, 0), "mask has no white, "),
        (SIDE, "mask has no white inside the picture, with fit='crop', "),
        (
            Image.new("L", (70, 100), 255),
            "mask is 70x100 and its photo, upright, 100x70: lay it out as the photo is seen",
        ),
    ],
    ids=["black", "alpha alone", "numbers", "cut away", "raw pixels"],
)
def test_a_mask_that_would_change_nothing_is_refused(pipe: Pipeline, mask: Image.Image, sentence: str) -> None:
    with pytest.raises(RequestError, match=f"^{sentence}"):
        pipe.begin(request(mask))


def test_a_file_that_is_no_mask_is_named(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"^mask 'mask.png' is not a picture that can be read"):
        pipe(request(tmp_path / "mask.png"))
