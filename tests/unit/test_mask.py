"""A mask over a photo: inside it all is drawn, outside nothing changes, by whatever sampler and in every picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stable_diffusion.batching.engine import Engine
from stable_diffusion.images import ImageError, fit_image
from stable_diffusion.levels import SAMPLERS
from stable_diffusion.mask import read_mask
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import FIT_LABELS, Request
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
    return Image.fromarray((255 * (40 - np.hypot(x - 50, y - 35)).clip(0, 30) / 30).astype(np.uint8))


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_mask_is_the_photo_in_every_picture_and_every_question(
    pipe: Pipeline, sampler: str, strength: float
) -> None:
    white = np.asarray(read_mask(disc(), PHOTO, **SIZE, fit="crop")) > 0
    photo = np.asarray(fit_image(PHOTO, **SIZE))
    outside = torch.from_numpy(~white[::8, ::8])
    assert 0 < outside.sum() < outside.numel()

    run = pipe.begin(request(disc(), sampler=sampler, strength=strength, num_images=2, preview="linear"))
    steps = list(run.steps())
    for step in steps:
        assert step.images is not None
        for picture in map(np.asarray, step.images):
            assert np.array_equal(picture[~white], photo[~white])
            assert not np.array_equal(picture[white], photo[white])
    # With one noise for all steps, x_t outside goes straight from noise to the photo, whatever the sampler.
    assert run.render.mask is not None
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


def test_a_black_mask_leaves_the_photo(pipe: Pipeline) -> None:
    assert np.array_equal(pipe(request(BLACK)).images[0], fit_image(PHOTO, **SIZE))


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
    differing = fitted ^ (np.asarray(read_mask(mask, photo, 48, 48, fit)) > 0)
    assert fitted.any()
    assert differing.mean() <= 1 / 48  # resampled twice, an edge may move by a pixel


def test_grey_is_thresholded_and_clear_parts_are_black(tmp_path: Path) -> None:
    levels = Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8))
    photo = Image.new("RGB", (4, 1))
    assert list(read_mask(levels, photo, 4, 1, "crop").tobytes()) == [0, 0, 255, 255]
    levels.putalpha(Image.fromarray(np.array([[255, 255, 255, 0]], dtype=np.uint8)))
    levels.save(tmp_path / "mask.png")
    assert list(read_mask(tmp_path / "mask.png", photo, 4, 1, "crop").tobytes()) == [0, 0, 255, 0]


def test_a_file_that_is_no_mask_is_named(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"^mask 'mask.png' is not a picture that can be read"):
        pipe(request(tmp_path / "mask.png"))
