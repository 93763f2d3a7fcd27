"""A request's pictures reach the run as they were sent: read once, at their own size, without loss on the way."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio.data_classes import ImageData
from PIL import Image

from stable_diffusion.images import ImageError
from stable_diffusion.mask import with_pictures
from stable_diffusion.request import Defaults, Request
from ui.form.mask import mask_painter
from ui.form.photo import photo_input

DEFAULTS = Defaults(64)


@pytest.fixture
def request_of_files(tmp_path: Path) -> Request:
    """A photo and a mask of other sizes than the images."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(pixels[::2, ::3, 0]).save(tmp_path / "mask.png")
    return Request("a fox", image=tmp_path / "photo.png", mask=tmp_path / "mask.png", width=64, height=48)


def pixels(request: Request) -> list[bytes]:
    pictures = (request.image, request.mask)
    assert all(isinstance(picture, Image.Image) and picture.size == (64, 48) for picture in pictures)
    return [picture.tobytes() for picture in pictures]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_pictures_that_are_read_again_stay_the_same(request_of_files: Request, fit: str):
    once = with_pictures(request_of_files.with_values(fit=fit), DEFAULTS)
    assert pixels(with_pictures(once, DEFAULTS)) == pixels(once)
    assert once.num_inference_steps == DEFAULTS.num_inference_steps


def test_a_request_crosses_to_another_process_with_its_pictures(request_of_files: Request):
    once = with_pictures(request_of_files, DEFAULTS)
    there = pickle.loads(pickle.dumps(once))
    assert pixels(there) == pixels(once)
    assert there.with_values(image=None, mask=None) == once.with_values(image=None, mask=None)


def test_without_a_photo_the_request_is_completed():
    assert with_pictures(Request("a fox"), DEFAULTS) == DEFAULTS.complete(Request("a fox"))


def test_a_jpeg_that_is_decoded_smaller_keeps_its_own_size(tmp_path: Path):
    Image.new("RGB", (4_200, 4_096)).save(tmp_path / "photo.jpg", exif=turned(6))
    request = with_pictures(Request("a fox", image=tmp_path / "photo.jpg"), Defaults(4_096))
    assert (request.width, request.height) == (4_096, 4_200)


def test_a_jpeg_is_decoded_at_the_size_of_the_run_at_least(tmp_path: Path):
    """Black and white columns would be grey at half the size."""
    columns = np.tile(np.array([0, 255], np.uint8), (4_096, 2_048))
    Image.fromarray(columns).save(tmp_path / "photo.jpg", quality=95)
    wanted = Request("a fox", image=tmp_path / "photo.jpg", width=4_096, height=4_096)
    drawn = np.asarray(with_pictures(wanted, DEFAULTS).image)
    assert np.abs(drawn[8:16, :, 0].astype(int) - columns[8:16]).max() < 40


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_text(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_a_photo_that_comes_as_text_becomes_a_file_as_it_is(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=turned(6))
    content = (tmp_path / "photo.png").read_bytes()
    path = photo_input().preprocess(ImageData(url=as_text(content)))
    assert Path(path).read_bytes() == content


def test_a_mask_is_written_once(request_of_files: Request):
    content = Path(request_of_files.mask).read_bytes()
    painter = mask_painter("mask")
    path = painter.preprocess(as_text(content))
    assert Path(path).read_bytes() == content
    written = Path(path).stat().st_ino
    assert painter.preprocess(as_text(content)) == path
    assert Path(path).stat().st_ino == written
    assert painter.preprocess(as_text(content + b"\0")) != path
    photo = photo_input().preprocess(ImageData(url=as_text(content)))
    assert Path(photo).read_bytes() == content, "the same content under another name"
    Path(path).unlink()  # after a day
    again = painter.preprocess(as_text(content))
    assert Path(again).read_bytes() == content


@pytest.mark.parametrize("text", ["data:,", "data:image/png;base64,a", "data:image/png;base64,\xe9"])
def test_text_that_is_not_a_photo_is_refused(text: str):
    with pytest.raises((gr.Error, ImageError), match=r"image is damaged on its way|'image' is not a picture"):
        with_pictures(Request("a fox", image=photo_input().preprocess(ImageData(url=text))), DEFAULTS)
