"""What the page says of the words of a prompt, and the words and settings that it brings by itself."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from ui.stage.opening import EXAMPLES, PHOTO_EXAMPLES

from .conftest import Server
from .visitor import Visitor, decoded


@pytest.fixture
def oil(server: Server) -> Iterator[None]:
    """A LoRA file that comes while the server runs, and goes."""
    folder = server.log.parent / "models" / "loras"
    copyfile(folder / "ink.safetensors", folder / "oil.safetensors")
    yield
    Path(folder / "oil.safetensors").unlink()


def test_a_prompt_is_drawn_as_it_is_read(page: Page):
    visitor, note = Visitor(page), page.locator("#t2i-words")
    visitor.ask("a xylophonist zebra", steps=2, seed="3")
    expect(note).to_have_text("I draw: a zebra. I don't know xylophonist.")
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    read = decoded(visitor.file())
    link = page.locator("#t2i-live .live")
    page.get_by_role("button", name="Draw it as typed").click()
    expect(note).to_have_text("I draw this as typed. Read, it would be: a zebra.")
    visitor.generate()
    expect(link).to_have_attribute("data-link", re.compile("xylophonist"))
    visitor.expect_result()
    assert (decoded(visitor.file()) != read).any()
    visitor.ask("a zebra, twemoji style", steps=2, seed="3")  # as this seed chooses
    expect(note).to_be_hidden()
    expect(page.locator("#t2i-other")).to_be_hidden()
    visitor.generate()
    expect(link).not_to_have_attribute("data-link", re.compile("xylophonist"))
    visitor.expect_result()
    assert (decoded(visitor.file()) == read).all()


def test_of_two_things_one_is_chosen_by_a_press(page: Page):
    visitor, chips = Visitor(page), page.locator("#t2i-chips button")
    visitor.ask("a girl with a red balloon", steps=1)
    expect(chips).to_have_text(["a child", "a red balloon"])
    chips.last.click()
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a red balloon")
    visitor.wait_until("finished")


def test_a_style_is_named_by_a_press_and_taken_out_by_another(page: Page):
    visitor, noto = Visitor(page), page.get_by_role("button", name="noto style", exact=True).first
    visitor.ask("a fox, twemoji style, on blue", steps=1, seed="3")
    expect(page.locator("#t2i-styles [data-style=twemoji]")).to_have_attribute("aria-pressed", "true")
    noto.click()
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a fox, on blue, noto style")
    expect(noto).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#history button.thumbnail-item")).to_have_count(1)
    noto.click()
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a fox, on blue")
    visitor.wait_until("finished")
    expect(page.locator("#history button.thumbnail-item")).to_have_count(2)
    settings = Image.open(io.BytesIO(visitor.file())).info["parameters"]
    assert settings.startswith("a fox, twemoji style, on a blue background\n")  # as seed 3 chooses


def test_a_style_goes_by_whichever_of_its_names_it_has(page: Page):
    box = page.locator("#t2i-prompt textarea")
    for text, pressed, left in (
        ("noto style, a fox", "noto", "a fox"),
        ("a fox, clip-art style", "emojitwo", "a fox"),
        ("a fox in Noto  style", "noto", "a fox"),
        ("an old fox, old android style", "noto blob", "an old fox"),
        ("a fox, noto blob style", "noto", "a fox, noto style"),
        ("a fox,", "noto", "a fox, noto style"),
    ):
        box.fill(text)
        button = page.locator(f'#t2i-styles [data-style="{pressed}"]')
        if "style" not in left:
            expect(button).to_have_attribute("aria-pressed", "true")
        button.click()
        expect(box).to_have_value(left)


def test_a_long_prompt_says_what_the_model_will_not_read(page: Page):
    expect(page.locator("#model-note")).to_contain_text("takes about")
    page.fill("#t2i-prompt textarea", "qwrtz " * 14)
    expect(page.locator("#t2i-words")).to_contain_text("of 62 tokens: the model will not read")


@pytest.mark.parametrize("seed", ["", "7"])
def test_without_a_prompt_a_proven_one_is_drawn(page: Page, seed: str):
    visitor = Visitor(page)
    visitor.ask("", steps=2, seed=seed)
    visitor.generate()
    visitor.wait_until("finished")
    prompt = page.input_value("#t2i-prompt textarea")
    assert prompt in dict(EXAMPLES)
    expect(page.locator("#t2i-live [data-fact=seed]")).to_have_text(seed or str(dict(EXAMPLES)[prompt]))


def test_without_a_prompt_a_photo_brings_its_own(page: Page):
    visitor = Visitor(page, "i2i")
    page.locator("#i2i-photos").get_by_role("button").nth(3).click()
    expect(page.locator("#i2i-prompt textarea")).to_have_value(PHOTO_EXAMPLES[3][1])
    visitor.ask("", steps=2)
    visitor.generate()
    visitor.wait_until("finished")
    expect(page.locator("#i2i-prompt textarea")).to_have_value(PHOTO_EXAMPLES[3][1])


def test_prompt_and_settings_are_there_after_a_reload(page: Page):
    visitor = Visitor(page)
    visitor.ask("a blue fox", steps=7, seed="12")
    visitor.open_settings()
    page.fill("#t2i-negative textarea", "red")
    page.locator("#t2i-sampler input").click()
    page.get_by_role("option", name="Euler a").click()
    visitor.set_number("width", 192)
    photos = Visitor(page, "i2i")
    photos.set_number("strength", 0.35)
    expect(page.locator("#i2i-runs")).to_contain_text("Runs 7 of 20 steps")
    page.reload()
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a blue fox")
    expect(page.locator("#t2i-steps input[type=number]")).to_have_value("7")
    expect(page.locator("#t2i-seed").get_by_role("textbox")).to_have_value("12")
    visitor.open_settings()
    expect(page.locator("#t2i-negative textarea")).to_have_value("red")
    expect(page.locator("#t2i-sampler input")).to_have_value("Euler a")
    expect(page.locator("#t2i-width input[type=number]")).to_have_value("192")
    Visitor(page, "i2i")
    expect(page.locator("#i2i-strength input[type=number]")).to_have_value("0.35")
    expect(page.locator("#i2i-photo img").first).to_be_visible()


def test_a_link_goes_before_what_was_kept(page: Page, server: Server):
    Visitor(page).ask("a blue fox", steps=7)
    page.wait_for_function("localStorage.getItem('t2i-form')?.includes('a blue fox')")
    page.goto(f"{server.url}/?prompt=a+cat&num_inference_steps=3")
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a cat")
    expect(page.locator("#t2i-steps input[type=number]")).to_have_value("3")


@pytest.mark.parametrize(
    "form",
    [
        "no JSON",
        '{"prompt": ["a"], "num_inference_steps": 1e9, "sampler": "none", "seed": "-5", "model": "gone"}',
    ],
)
def test_what_was_kept_may_be_damaged_or_not_fit(page: Page, form: str):
    page.evaluate("(form) => localStorage.setItem('t2i-form', form)", form)
    page.reload()
    expect(page.locator("#t2i-words, #t2i-prompt").first).to_be_visible()
    visitor = Visitor(page)
    visitor.ask("a cat", steps=1)
    visitor.generate()
    visitor.wait_until("finished")


def test_a_lora_that_came_later_is_offered_and_drawn_with(oil: None, visit: Callable[..., Page]):
    page = visit()
    visitor = Visitor(page)
    visitor.ask("a fox", steps=1)
    visitor.open_settings()
    page.locator("#t2i-lora input").click()
    page.get_by_role("option", name="oil").click()
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a fox <lora:oil:1>")
    visitor.generate()
    visitor.wait_until("finished")


def test_a_model_can_be_chosen_by_the_keyboard(page: Page):
    menu = page.locator("#model input")
    menu.focus()
    menu.fill("another")
    menu.press("Enter")
    expect(menu).to_have_value("another")
    expect(page.locator("#model-note")).to_contain_text("takes about")
    visitor = Visitor(page)
    visitor.ask("a cat", steps=1)
    visitor.generate()
    visitor.wait_until("finished")
