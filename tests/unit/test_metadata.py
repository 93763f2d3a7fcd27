"""Settings inside pictures: written and read in every format, of this page and of other programs; and the mark."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stable_diffusion.request import Request
from tests.marks import is_marked
from ui.keep.infotext import holds_settings, parse_infotext, write_infotext
from ui.keep.metadata import FORMAT_OPTIONS, MAX_TEXT, encoded, read_infotext

REQUEST = Request(
    prompt="a red fox, noto style", negative_prompt="blue", num_inference_steps=12, guidance_scale=5.5, height=96,
    width=128, sampler="euler_a",
)  # fmt: skip


def test_a_mask_is_told_and_what_is_drawn_without_one_says_nothing():
    photo = replace(REQUEST, image=Image.new("RGB", (8, 8)), strength=0.6)
    plain, masked = (write_infotext(one, 42, "emoji") for one in (photo, replace(photo, mask=Image.new("L", (8, 8)))))
    assert "Mask" not in plain
    assert ", Mask: painted, Mask blur: 4" in masked
    assert parse_infotext(masked) == {**parse_infotext(plain), "mask": "painted", "mask_blur": 4}
    other = parse_infotext("a fox\nSteps: 20, Sampler: Euler, Denoising strength: 0.5, Mask blur: 12")
    assert (other["mask"], other["mask_blur"], "others" in other) == ("painted", 12, False)


def test_the_infotext_of_another_program_is_read():
    text = (
        "masterpiece, (cat:1.2)\nin two lines\nNegative prompt: blurry, bad\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: abc, "
        'Denoising strength: 0.55, Lora hashes: "a: 1, b: 2", Version: v1.10'
    )
    assert parse_infotext(text) == {
        "prompt": "masterpiece, (cat:1.2)\nin two lines", "negative_prompt": "blurry, bad", "num_inference_steps": 20,
        "sampler": "dpmpp_2m", "schedule": "karras", "clip_skip": 0, "then": "", "fast": False,
        "guidance_scale": 7.0, "seed": 123, "width": 512, "height": 768, "strength": 0.55,
        "prompt_syntax": "weighted",
    }  # fmt: skip


def test_the_precision_is_told_where_it_is_not_the_exact_one():
    exact, rounded = (write_infotext(REQUEST, 42, "emoji", precision=name) for name in ("float32", "bfloat16"))
    assert "Precision" not in exact
    assert "Precision: bfloat16" in rounded
    assert parse_infotext(rounded) == parse_infotext(exact), "no setting of a request"


@pytest.mark.parametrize(
    ("line", "schedule", "clip_skip"),
    [
        ("Steps: 20, Sampler: Euler, Schedule type: Karras, Clip skip: 2", "karras", 1),
        ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic", "model", 0),
        ("Steps: 20, Sampler: DPM++ 2M SDE Exponential, Clip skip: 1", "exponential", 0),
        ("Steps: 20, Sampler: Euler a Karras", "model", 0),  # which has its own levels only
        ("Steps: 20, Sampler: Euler, Schedule type: SGM Uniform", "model", 0),
    ],
)
def test_schedule_and_clip_skip_are_read_as_other_programs_write_them(line: str, schedule: str, clip_skip: int):
    settings = parse_infotext(f"a fox\n{line}")
    assert (settings["schedule"], settings["clip_skip"]) == (schedule, clip_skip)


def test_the_line_of_settings_is_found_where_it_is():
    text = (
        "a fox\nSteps: none at all\nNegative prompt: blue\nSteps: 9, Sampler: Euler a, CFG scale: 7, Seed: 5, "
        'Size: 64x64, Note: "two\nlines, Seed: 6", Clip skip: 2\nTemplate: a {fox|cat}, Seed: 7\nNegative Template: b'
    )
    settings = parse_infotext(text)
    assert settings["prompt"] == "a fox\nSteps: none at all"
    assert settings["negative_prompt"] == "blue"
    assert (settings["num_inference_steps"], settings["seed"], settings["clip_skip"]) == (9, 5, 1)
    assert settings["others"] == {"Note": "two\nlines, Seed: 6"}


def test_a_strength_of_zero_is_no_photo():
    """AUTOMATIC1111's API writes it into pictures that are drawn from words."""
    settings = parse_infotext("a fox\nSteps: 20, Sampler: Euler, Denoising strength: 0, Seed: 1")
    assert "strength" not in settings
    assert "others" not in settings


def test_what_was_not_understood_is_kept_apart():
    line = (
        "Steps: 20, Sampler: DPM++ 3M SDE, Schedule type: Karras, CFG scale: nan, Seed: 1, Denoising strength: 0.7, "
        "Hires upscale: 2, Hires upscaler: Latent, Model: dreams_8, image: /etc/passwd, Version: v1.10.0"
    )
    settings = parse_infotext(f"a fox\n{line}")
    assert settings["others"] == {
        "Sampler": "DPM++ 3M SDE", "Schedule type": "Karras", "CFG scale": "nan", "Denoising strength": "0.7",
        "Hires upscale": "2", "Hires upscaler": "Latent", "Model": "dreams_8", "image": "/etc/passwd",
    }  # fmt: skip
    # The strength is that of the second pass: the picture was drawn from words.
    assert settings.keys() == {"prompt", "negative_prompt", "num_inference_steps", "seed", "prompt_syntax", "others"}


@pytest.mark.parametrize("model", ["a, Seed: 9", '"a', 'a: "b"\\', "c:d"])
def test_a_models_name_can_hold_anything(model: str):
    settings = parse_infotext(write_infotext(REQUEST, 42, model))
    assert (settings["others"], settings["seed"]) == ({"Model": model}, 42)


def test_a_text_with_settings_is_told_from_a_prompt():
    written = write_infotext(REQUEST, 42, "emoji")
    for text in (
        written,
        f"{written}\nTemplate: a fox",
        "Steps: 9, Size: 8x8, Sampler: Euler",
        "a\nSteps: 2, Sampler: x",
    ):
        assert holds_settings(text)
    for text in ("", "a fox", "a fox\nSteps: 3", "a fox, Steps: 3, Sampler: Euler", "Steps: 3\nSampler: Euler"):
        assert not holds_settings(text)


@pytest.mark.parametrize("text", ["", "just a prompt", "Steps: many, Sampler: ?, CFG scale: high", "a: 1, b: 2, c: 3"])
def test_odd_infotext_gives_no_settings(text: str):
    assert parse_infotext(text).keys() == {"prompt", "negative_prompt"}


def picture(kind: str, prompt: str = "ein Füchslein 🦊") -> bytes:
    text = write_infotext(replace(REQUEST, prompt=prompt), 1, "emoji")
    return encoded(Image.new("RGB", (8, 8), "red"), text, kind)


@pytest.mark.parametrize("kind", FORMAT_OPTIONS)
def test_a_picture_carries_its_settings(tmp_path: Path, kind: str):
    file = tmp_path / f"fox.{kind.lower()}"
    file.write_bytes(picture(kind))
    with Image.open(file) as image:
        assert image.format == kind
    settings = read_infotext(file)
    assert (settings["prompt"], settings["seed"]) == ("ein Füchslein 🦊", 1)


def test_a_jpeg_has_no_room_for_the_longest_prompts(tmp_path: Path):
    longest = "a fox " * 3333 + "🦊"
    (tmp_path / "fox.webp").write_bytes(picture("WEBP", longest))
    assert read_infotext(tmp_path / "fox.webp")["seed"] == 1
    with pytest.raises(ValueError, match="of settings are too long for a JPEG: choose PNG"):
        encoded(Image.new("RGB", (8, 8)), longest + "\n" * 20_000, "JPEG")


@pytest.mark.parametrize("text", ["一只狐狸", "가", "Āa", "一" * 1000, "{a|b} fox", '{"prompt": "a fox"}'])
@pytest.mark.parametrize("kind", FORMAT_OPTIONS)
def test_a_prompt_may_begin_like_the_other_byte_order_or_like_json(tmp_path: Path, text: str, kind: str):
    (tmp_path / "fox").write_bytes(picture(kind, text))
    assert read_infotext(tmp_path / "fox")["prompt"] == text


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "一只狐狸 ü\nSteps: 4".encode("utf-16-be"),
        b"UNICODE\0" + "一只狐狸 ü\nSteps: 4".encode("utf-16-le"),
        b"UNICODE\0" + "a fox ü\nSteps: 4".encode("utf-16-be"),
        b"UNICODE\0" + "a fox ü\nSteps: 4".encode("utf-16-le"),
        b"ASCII\0\0\0a fox \xfc\nSteps: 4",
        b"\0" * 8 + "a fox ü\nSteps: 4".encode(),
    ],
)
def test_comments_of_every_code_are_read(tmp_path: Path, comment: bytes):
    for endian in "<>":
        exif = Image.Exif()
        exif.endian = endian
        exif.get_ifd(0x8769)[0x9286] = comment
        Image.new("RGB", (8, 8)).save(tmp_path / "fox.jpg", exif=exif)
        settings = read_infotext(tmp_path / "fox.jpg")
        assert settings["prompt"] in ("a fox ü", "一只狐狸 ü", "a fox \ufffd")
        assert settings["num_inference_steps"] == 4


@pytest.mark.parametrize("kind", FORMAT_OPTIONS)
def test_every_picture_is_marked_as_generated(kind: str):
    assert is_marked(picture(kind))


def test_a_picture_without_settings_is_named(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"'plain.png' carries no settings"):
        read_infotext(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"'text.png' is not a picture"):
        read_infotext(tmp_path / "text.png")


def test_a_comma_in_quotes_ends_nothing():
    text = 'Steps: 4, Lora hashes: "a, Seed: 9, \\", Seed: 8", Note: 3" wide, Seed: 7, Size: 99999999x9, CFG scale: 2'
    assert parse_infotext(text) == {
        "prompt": "", "negative_prompt": "", "num_inference_steps": 4, "seed": 7, "guidance_scale": 2.0,
        "prompt_syntax": "weighted", "others": {"Note": '3" wide', "Size": "99999999x9"},
    }  # fmt: skip


def test_hostile_infotext_is_read_in_linear_time():
    """In quadratic time 60,000 characters take more than a minute."""
    begun = time.process_time()
    for piece in ("a", "a ", '"', ': "', '\\"', "a:", ",", "\n", "\nSteps: 1", "\nSteps:  ", "\nNegative prompt: "):
        parse_infotext("Steps: 1, " + piece * (60_000 // len(piece)))
        holds_settings("Steps: 1, " + piece * (60_000 // len(piece)))
        assert time.process_time() - begun < 20


def text_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def with_chunk(path: Path, chunk: bytes) -> Path:
    """Write a small PNG with one more chunk after its header of 33 bytes; return its path."""
    Image.new("RGB", (8, 8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk + content[33:])
    return path


def test_too_much_text_in_a_picture_is_refused(tmp_path: Path):
    body = b"parameters\0Steps: 1" + b"x" * MAX_TEXT
    with pytest.raises(
        ValueError, match=r"'long.png' carries 1,048,584 characters of settings, at most 1,048,576 are read"
    ):
        read_infotext(with_chunk(tmp_path / "long.png", text_chunk(b"tEXt", body)))
    bomb = b"parameters\0\0" + zlib.compress(b"a" * 50_000_000)
    with pytest.raises(ValueError, match=r"'bomb.png' is not a picture that can be read"):
        read_infotext(with_chunk(tmp_path / "bomb.png", text_chunk(b"zTXt", bomb)))


# Pictures of other programs.


def saved(path: Path, **texts: Any) -> Path:
    """Save a PNG with these texts inside, objects as JSON; return its path."""
    chunks = PngInfo()
    for key, value in texts.items():
        chunks.add_text(key, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def comfy(**changed: Any) -> dict[str, Any]:
    """Return ComfyUI's first workflow with a LoRA and CLIP skip, with `changed` nodes by name."""
    sampler = {
        "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "euler_ancestral", "scheduler": "karras",
        "denoise": 1, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    nodes = {
        "n3": ("KSampler", sampler),
        "n4": ("CheckpointLoaderSimple", {"ckpt_name": "sd/dreams_8.safetensors"}),
        "n5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
        "n6": ("CLIPTextEncode", {"text": "a (red:1.3) fox", "clip": ["11", 0]}),
        "n7": ("CLIPTextEncode", {"text": "blue", "clip": ["11", 0]}),
        "n10": ("LoraLoader", {"lora_name": "ink.safetensors", "strength_model": 0.8, "model": ["4", 0]}),
        "n11": ("CLIPSetLastLayer", {"stop_at_clip_layer": -2, "clip": ["10", 1]}),
        "n8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        **changed,
    }
    return {name[1:]: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_comfyui_is_read(tmp_path: Path):
    file = saved(tmp_path / "fox.png", prompt=comfy(), workflow={"nodes": []})
    assert read_infotext(file) == {
        "prompt": "a (red:1.3) fox <lora:ink:0.8>", "negative_prompt": "blue", "prompt_syntax": "weighted",
        "num_inference_steps": 20, "guidance_scale": 8.0, "seed": 156680208700286, "clip_skip": 1, "then": "",
        "fast": False, "sampler": "euler_a",
        "schedule": "model", "width": 512, "height": 768, "others": {"Schedule type": "Karras", "Model": "dreams_8"},
    }  # fmt: skip


def test_of_comfyuis_samplers_the_one_that_draws_from_noise_counts(tmp_path: Path):
    second = {"seed": 2, "steps": 9, "latent_image": ["13", 0], "positive": ["6", 0], "denoise": 0.5}
    graph = comfy(n12=("KSampler", second), n13=("LatentUpscale", {"samples": ["3", 0]}))
    settings = read_infotext(saved(tmp_path / "fox.png", prompt=graph))
    assert settings["num_inference_steps"] == 20
    assert "strength" not in settings
    assert settings["others"]["Further samplers"] == "1"


def test_a_photo_in_comfyui_is_image_to_image(tmp_path: Path):
    graph = comfy(n5=("VAEEncode", {"pixels": ["9", 0]}))
    graph["3"]["inputs"]["denoise"] = 0.6
    assert read_infotext(saved(tmp_path / "fox.png", prompt=graph))["strength"] == 0.6


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": {"1": {"class_type": "FluxGuidance", "inputs": {"text": "a fox"}}}},
        {"prompt": comfy(n6=("SomeNode", {"text": ["6", 0]}))},
        {"prompt": comfy(n6=("CLIPTextEncode", {"text": ["6", 0]}), n10=("LoraLoader", {"model": ["10", 0]}))},
        {"prompt": "{" * 500, "workflow": "{}"},
        {"workflow": {"nodes": [{"type": "KSampler"}]}},
    ],
)
def test_what_is_not_plain_in_comfyui_names_it(tmp_path: Path, texts: dict[str, Any]):
    with pytest.raises(ValueError, match=r"'fox.png' was made by ComfyUI, in a way that can't be read here"):
        read_infotext(saved(tmp_path / "fox.png", **texts))


def test_invokeai_is_read(tmp_path: Path):
    values = {
        "app_version": "5.4.0", "generation_mode": "txt2img", "positive_prompt": "a fox++", "negative_prompt": "blue",
        "width": 512, "height": 640, "seed": 7, "cfg_scale": 7.5, "steps": 30, "scheduler": "dpmpp_2m_k",
        "clip_skip": 0, "then": "", "model": {"key": "1", "name": "dreams", "base": "sd-1"}, "loras": [{"weight": 0.5}],
    }  # fmt: skip
    assert read_infotext(saved(tmp_path / "fox.png", invokeai_metadata=values)) == {
        "prompt": "a fox++", "negative_prompt": "blue", "prompt_syntax": "plain", "num_inference_steps": 30,
        "guidance_scale": 7.5, "seed": 7, "clip_skip": 0, "then": "", "fast": False,
        "sampler": "dpmpp_2m", "schedule": "karras", "width": 512,
        "height": 640, "others": {"Model": "dreams", "LoRAs": "1"},
    }  # fmt: skip
    with pytest.raises(ValueError, match="was made by InvokeAI, in a way that can't be read here"):
        read_infotext(saved(tmp_path / "fox.png", **{"sd-metadata": "{}"}))


def test_fooocus_is_read(tmp_path: Path):
    values = {
        "prompt": "a fox", "negative_prompt": "", "styles": "['Fooocus V2']", "performance": "Speed", "steps": 30,
        "resolution": "(1152, 896)", "guidance_scale": 4, "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras",
        "seed": "123", "base_model": "juggernaut", "lora_combined_1": "ink : 0.1", "metadata_scheme": "fooocus",
    }  # fmt: skip
    expected = {
        "prompt": "a fox", "negative_prompt": "", "prompt_syntax": "weighted", "num_inference_steps": 30,
        "guidance_scale": 4.0, "seed": 123, "clip_skip": 0, "then": "", "fast": False,
        "sampler": "dpmpp_2m_sde", "schedule": "karras",
        "width": 1152, "height": 896,
        "others": {"Model": "juggernaut", "Styles": "['Fooocus V2']", "lora_combined_1": "ink : 0.1"},
    }  # fmt: skip
    assert read_infotext(saved(tmp_path / "fox.png", parameters=values, fooocus_scheme="fooocus")) == expected
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(values).encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.jpg", exif=exif)
    assert read_infotext(tmp_path / "fox.jpg") == expected
