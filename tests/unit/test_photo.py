"""A request's pictures are read once: what they become stays the same when they are read again, or sent elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.mask import with_pictures
from stable_diffusion.request import Defaults, Request

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
