"""What a visitor brings or finds beside the models: pictures of other programs, LoRA files, embeddings."""

from __future__ import annotations

import re
from pathlib import Path

from gradio_client import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect

from ui.keep.metadata import read_infotext

from .visitor import Visitor

TEXT = """a (red:1.3) fox <lora:pen:1> <b>
Negative prompt: blue
Steps: 200, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 512x768, Clip skip: 2, \
Denoising strength: 0.6, Hires upscale: 2, Model: dreams"""


def test_a_picture_of_another_program_says_what_was_taken_and_what_not(page: Page, tmp_path: Path):
    chunks = PngInfo()
    chunks.add_text("parameters", TEXT)
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.png", pnginfo=chunks)
    page.set_input_files("#restore input[type=file]", str(tmp_path / "fox.png"))
    told = page.locator(".toast-body").filter(has_text="Taken: Prompt, Negative prompt")
    for part in (
        "Prompt syntax Weighted", "Schedule Karras", "Changed: Steps 200 to 150", "Size 512x768 to 256x256",
        "Not taken: LoRA pen (not here), Denoising strength 0.6, Hires upscale 2, Model dreams",
    ):  # fmt: skip
        expect(told).to_contain_text(part)
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a (red:1.3) fox  <b>")
    expect(page.locator("#t2i-steps input[type=number]")).to_have_value("150")
    visitor = Visitor(page)
    visitor.open_settings()
    expect(page.locator("#t2i-height input[type=number]")).to_have_value("256")
    expect(page.locator("#t2i-syntax input")).to_have_value("Weighted")
    expect(page.get_by_role("tab", name="Text2Image")).to_have_attribute("aria-selected", "true")
    visitor.ask("a (red:1.3) fox", steps=2, seed="-1")
    visitor.generate()
    visitor.wait_until("finished")


def test_a_pasted_text_with_settings_fills_the_form(page: Page):
    prompt, fill = page.locator("#t2i-prompt textarea"), page.locator("#t2i-fill")
    prompt.fill("a fox in 3 lines\nSteps: 3")
    expect(page.locator("#t2i-words")).to_be_visible()
    expect(fill).to_be_hidden()
    prompt.fill(TEXT)
    fill.click()
    told = page.locator(".toast-body").filter(has_text="Taken: Prompt, Negative prompt")
    expect(told).to_contain_text("Changed: Steps 200 to 150")
    expect(prompt).to_have_value("a (red:1.3) fox  <b>")
    expect(page.locator("#t2i-seed textarea, #t2i-seed input")).to_have_value("7")
    expect(fill).to_be_hidden()


def test_a_picture_drawn_with_a_mask_says_that_photo_and_mask_are_missing(page: Page, tmp_path: Path):
    chunks = PngInfo()
    chunks.add_text("parameters", "a fox\nSteps: 9, Sampler: Euler, Seed: 7, Denoising strength: 0.6, Mask: painted")
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.png", pnginfo=chunks)
    page.set_input_files("#restore input[type=file]", str(tmp_path / "fox.png"))
    told = page.locator(".toast-body").filter(has_text="Taken: Prompt")
    expect(told).to_contain_text("Not taken: the photo and its mask, which are not in the file")


def test_a_picture_of_a_program_that_can_not_be_read_names_it(page: Page, tmp_path: Path):
    chunks = PngInfo()
    chunks.add_text("workflow", "{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.png", pnginfo=chunks)
    page.set_input_files("#restore input[type=file]", str(tmp_path / "fox.png"))
    Visitor(page).expect_error("was made by ComfyUI, in a way that can't be read here")


def test_a_lora_is_chosen_and_an_embedding_named(page: Page, tmp_path: Path):
    expect(page.locator("#model-note")).to_contain_text("takes about")  # before it is loaded, nobody counts its tokens
    visitor, prompt = Visitor(page), " ".join(["a zub fox"] * 13)
    visitor.ask(prompt, steps=2, seed="3")
    expect(page.locator("#t2i-embeddings")).to_have_text("Words of your embeddings: zub")
    visitor.open_settings()
    page.locator("#t2i-syntax input").click()
    page.get_by_role("option", name="As typed").click()
    expect(page.locator("#t2i-words")).to_contain_text("52 of 62 tokens.")  # two of each zub
    visitor.generate()
    visitor.wait_until("finished")
    without = visitor.pixels()
    expect(page.locator("#t2i-lora input")).to_be_visible()
    visitor.set_number("lora-weight", 0.5)
    expect(page.locator("#t2i-lora-weight input[type=range]")).to_have_value("0.5")
    page.locator("#t2i-lora input").click()
    page.get_by_role("option", name="ink").click()
    expect(page.locator("#t2i-prompt textarea")).to_have_value(f"{prompt} <lora:ink:0.5>")
    expect(page.locator("#t2i-words")).to_contain_text("52 of 62 tokens.")
    visitor.generate()
    expect(page.locator("#history button.thumbnail-item")).to_have_count(2)
    assert (visitor.pixels() != without).any()
    (tmp_path / "fox.png").write_bytes(visitor.file())
    assert read_infotext(tmp_path / "fox.png")["prompt"] == f"{prompt} <lora:ink:0.5>"


def test_programs_name_loras_and_weigh_words(client: Client):
    def drawn(prompt: str, **settings: str) -> bytes:
        images, _ = client.predict(prompt, num_inference_steps=1, seed=1, api_name="/text2image", **settings)
        with Image.open(images[0]["image"]) as image:
            return image.tobytes()

    assert drawn("a fox <lora:ink:2>") != drawn("a fox")
    assert drawn("a (fox:1.9)", prompt_syntax="weighted") != drawn("a fox", prompt_syntax="weighted")


def test_the_page_says_what_a_picture_takes_here(page: Page):
    expect(page.locator("#model-note")).to_have_text(
        re.compile(r"A small model, trained on emoji, .*\. A picture of 20 steps takes about [\d.]+ s here\.")
    )
    page.locator("#model input").click()
    for name in ("Stable Diffusion 1.5 (from the hub), 4.3 GB", "BK-SDM tiny (from the hub), 2.1 GB"):
        expect(page.get_by_role("option", name=name)).to_be_visible()
