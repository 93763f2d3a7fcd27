"""Any photo becomes the picture that a person sees, at the size asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stable_diffusion.images import ImageError, fit_image, read_image, to_images, to_tensor
from stable_diffusion.request import FIT_LABELS

RED, BLUE = (255, 0, 0), (0, 0, 255)


def left_red_right_blue(size: tuple[int, int] = (40, 20)) -> Image.Image:
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    left_red_right_blue().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "turned.jpg")
    assert image.size == (20, 40)
    assert np.allclose(image.getpixel((10, 5)), RED, atol=12)
    assert np.allclose(image.getpixel((10, 35)), BLUE, atol=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_the_background(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "clear.png")
    seen = read_image(tmp_path / "clear.png")
    assert seen.mode == "RGB"
    assert seen.getpixel((1, 4)) == (0, 0, 0)
    assert seen.getpixel((6, 4)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    left_red_right_blue().convert(mode).save(tmp_path / "picture.tiff")
    image = read_image(tmp_path / "picture.tiff")
    assert (image.mode, image.size) == ("RGB", (40, 20))


def test_large_photo_is_read_and_one_pixel_is_enough(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 5_000), RED).save(tmp_path / "large.jpg")
    large = read_image(tmp_path / "large.jpg")
    assert large.width == 2 * large.height
    assert np.allclose(large.getpixel((5, 5)), RED, atol=3)
    thin = fit_image(Image.new("RGB", (1, 500), BLUE), 64, 64)
    assert thin.size == (64, 64)
    assert thin.getpixel((32, 32)) == BLUE


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"'words.png' is not a picture"):
        read_image(tmp_path / "words.png")
    left_red_right_blue((400, 400)).save(tmp_path / "whole.jpg", quality=100)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with pytest.raises(ImageError, match=r"'cut.jpg' is damaged"):
        read_image(tmp_path / "cut.jpg")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb.png.*at most 100,000,000 pixels"):
        read_image(tmp_path / "bomb.png")


def test_fits() -> None:
    image = left_red_right_blue((80, 40))
    pixels = {fit: np.asarray(fit_image(image, 40, 40, fit)) for fit in FIT_LABELS}
    assert all(array.shape == (40, 40, 3) for array in pixels.values())
    assert (pixels["pad"][0] == 255).all()
    assert tuple(pixels["pad"][20, 2]) == RED
    assert tuple(pixels["crop"][0, 0]) == RED
    assert tuple(pixels["stretch"][0, 39]) == BLUE
    with pytest.raises(ValueError, match="fit must be one of crop, pad, stretch, got 'zoom'"):
        fit_image(image, 40, 40, "zoom")  # type: ignore[arg-type]


def test_pixels_survive_the_way_to_a_tensor_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor([Image.fromarray(pixels)])
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1.0, 1.0)
    assert (np.asarray(to_images(tensor)[0]) == pixels).all()


def test_rounding_and_clamping() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 127.6 / 127.5 - 1, 1.0, 3.0]).expand(1, 3, 1, -1)
    assert np.asarray(to_images(values)[0])[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]
