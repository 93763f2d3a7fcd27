"""Programs use the same runs through gradio_client."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from stable_diffusion.images import fit_image, read_image
from ui.keep.metadata import read_infotext


def picture(answer: tuple) -> Image.Image:
    """The first picture of an answer."""
    return Image.open(answer[0][0]["image"])


def preview(answer: tuple) -> Image.Image:
    """The preview of a step's answer."""
    return Image.open(io.BytesIO(base64.b64decode(answer[1]["preview"].split(",")[1])))


def test_text2image_answers_with_a_picture_that_carries_its_settings(client: Client):
    answer = client.predict("a red apple", num_inference_steps=3, seed=5, api_name="/text2image")
    assert answer[1]["finished"]
    assert answer[1]["seed"] == 5
    assert picture(answer).format == "PNG"
    settings = read_infotext(answer[0][0]["image"])
    assert (settings["prompt"], settings["seed"], settings["num_inference_steps"]) == ("a red apple", 5, 3)


def test_the_stream_carries_every_step_with_its_own_preview(client: Client):
    answers = list(client.submit("a red apple", num_inference_steps=6, seed=1, api_name="/text2image"))
    assert [answer[1]["step"] for answer in answers] == [1, 2, 3, 4, 5, 6]
    assert [bool(answer[0]) for answer in answers] == [False] * 5 + [True]
    assert len({preview(answer).tobytes() for answer in answers}) == 6


def test_the_same_seed_gives_the_same_picture_whatever_the_previews(client: Client):
    settings = {"num_inference_steps": 3, "seed": 11, "api_name": "/text2image"}
    pictures = [picture(client.predict("a cat", preview=name, **settings)) for name in ("vae", "linear", "none")]
    assert len({image.tobytes() for image in pictures}) == 1


def test_several_pictures_have_consecutive_seeds(client: Client):
    images, _ = client.predict("a cat", num_inference_steps=2, seed=8, num_images=2, api_name="/text2image")
    assert [read_infotext(image["image"])["seed"] for image in images] == [8, 9]


def test_image2image_runs_the_steps_that_its_strength_asks_for(client: Client, photo: dict):
    settings = {"strength": 0.5, "num_inference_steps": 10, "width": 64, "height": 96}
    answers = list(client.submit(photo, "a dog", **settings, api_name="/image2image"))
    assert [answer[1]["step"] for answer in answers] == [1, 2, 3, 4, 5]
    assert picture(answers[-1]).size == (64, 96)


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(client: Client, prompt: str):
    with pytest.raises(AppError, match="prompt must not be empty: describe the picture"):
        client.predict(prompt, num_inference_steps=1, api_name="/text2image")


def test_a_prompt_of_11_000_characters_is_cut_and_says_so(client: Client):
    prompt = "grmpf zwrt " * 1000  # no word that the model knows
    _, step = client.predict(prompt, num_inference_steps=1, api_name="/text2image")
    assert step["finished"]
    assert "grmpf" in step["dropped"]["prompt"]


BAD = {
    "num_inference_steps 0": ({"num_inference_steps": 0}, "num_inference_steps must be between 1 and 1,000, got 0"),
    "num_inference_steps 5000": ({"num_inference_steps": 5000}, "num_inference_steps must be .* got 5000"),
    "num_inference_steps 2.5": ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number, got 2.5"),
    "width 100": ({"width": 100}, "width must be a multiple of 16 with this model, got 100: try 96"),
    "width 104": ({"width": 104}, "width must be a multiple of 16 with this model, got 104: try 96"),
    "height 2048": ({"height": 2048}, "height must be at most .* with this model, got 2048: choose a smaller number"),
    "seed -2": ({"seed": -2}, "seed must be between 0 and .* got -2: .* leave it empty for a random one"),
    "seed 2^70": ({"seed": 2**70}, "seed must be between 0 and .* got 1180591620717411303424"),
    "seed 2^32": ({"seed": 2**32}, "seed must be at most 4,294,967,295 here, got 4294967296"),
    "guidance_scale -1": ({"guidance_scale": -1}, "guidance_scale must be between 0 and .* got -1"),
    "num_images 100": ({"num_images": 100}, "num_images must be at most 4 here, got 100: choose a smaller number"),
    "sampler": ({"sampler": "magic"}, "sampler must be one of ddpm, .* got 'magic'"),
    "preview": ({"preview": "best"}, "preview must be one of auto, .* got 'best'"),
    "prompt": ({"prompt": "x" * 30_000}, "prompt must be at most 20,000 characters long, got 30,000"),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_with_its_value_and_the_remedy(client: Client, settings: dict[str, Any], message: str):
    with pytest.raises(AppError, match=message):
        client.predict(**{"prompt": "a cat", **settings}, api_name="/text2image")


def test_a_mask_keeps_the_rest_of_the_photo(client: Client, photo: dict, tmp_path: Path):
    mask = Image.new("L", (300, 200))
    mask.paste(255, (0, 0, 150, 200))
    mask.save(tmp_path / "mask.png")
    settings = {"num_inference_steps": 3, "width": 128, "height": 64, "strength": 1.0}
    options = {**settings, "mask": handle_file(str(tmp_path / "mask.png")), "api_name": "/image2image"}
    drawn = np.asarray(picture(list(client.submit(photo, "a dog", **options))[-1]))
    kept = np.asarray(fit_image(read_image(photo["path"]), 128, 64))
    assert np.array_equal(drawn[:, 70:], kept[:, 70:])  # the mask, and its blur
    assert not np.array_equal(drawn[:, :62], kept[:, :62])
    (tmp_path / "mask.png").write_text("This is no picture.")
    with pytest.raises(AppError, match=r"mask 'mask.png' is not a picture that can be read"):
        client.predict(photo, "a dog", **options)


@pytest.mark.parametrize("strength", [0, 1.5])
def test_strength_out_of_range_is_refused(client: Client, photo: dict, strength: float):
    with pytest.raises(AppError, match=rf"strength must be in \(0, 1\], got {strength}: low stays close to the photo"):
        client.predict(photo, "a dog", strength=strength, api_name="/image2image")


def test_a_text_file_named_png_is_refused(client: Client, tmp_path: Path):
    (tmp_path / "text.png").write_text("This is no picture.")
    with pytest.raises(AppError, match=r"'text.png' is not a picture that can be read: use PNG, JPEG or WebP"):
        client.predict(handle_file(str(tmp_path / "text.png")), "a dog", api_name="/image2image")


def test_a_truncated_jpeg_is_refused(client: Client, photo: dict, tmp_path: Path):
    (tmp_path / "cut.jpg").write_bytes(Path(photo["path"]).read_bytes()[:5000])
    with pytest.raises(AppError, match=r"'cut.jpg' is damaged .*: save it again"):
        client.predict(handle_file(str(tmp_path / "cut.jpg")), "a dog", api_name="/image2image")


def test_only_the_two_endpoints_are_offered(client: Client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/text2image", "/image2image"}
