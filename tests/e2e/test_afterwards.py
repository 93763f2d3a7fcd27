"""What a visitor can do with a run that is over, and what others can't."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.marks import READ
from ui.keep.metadata import read_infotext
from ui.stage.frames import BOX, MARGIN, TOP

from .conftest import PATIENCE
from .visitor import Visitor

FOX = "a red fox, noto style"
"""With its style, which otherwise the seed would choose and add."""


@pytest.fixture
def finished(page: Page) -> Visitor:
    """A visitor who has just seen a run of four steps."""
    visitor = Visitor(page)
    visitor.ask(FOX, steps=4, seed="42")
    page.press("#t2i-prompt textarea", "Control+Enter")
    visitor.wait_until("finished")
    visitor.expect_result()
    return visitor


def form(page: Page) -> tuple[str, str, str]:
    """Prompt, seed and steps in the form."""
    boxes = (page.locator("#t2i-prompt textarea"), page.locator("#t2i-seed").get_by_role("textbox"))
    return (*(box.input_value() for box in boxes), page.input_value("#t2i-steps input[type=number]"))


def expect_form(page: Page, prompt: str, seed: str, steps: str) -> None:
    """The form holds these settings."""
    expect(page.locator("#t2i-prompt textarea")).to_have_value(prompt)
    expect(page.locator("#t2i-seed").get_by_role("textbox")).to_have_value(seed)
    expect(page.locator("#t2i-steps input[type=number]")).to_have_value(steps)


def test_the_film_can_be_watched_again(finished: Visitor):
    page, view = finished.page, finished.view
    expect(view.locator(".film button").last).to_have_accessible_name("Show step 4")
    last = view.locator(".x0 img").get_attribute("src")
    assert last is not None
    view.get_by_label("Show the noise").click()
    expect(view.locator("[data-fact=step]")).to_have_text("0 of 4")
    expect(view.locator(".x0 img")).not_to_have_attribute("src", last)
    page.keyboard.press("ArrowRight")
    expect(view.locator("[data-fact=step]")).to_have_text(re.compile("[1-3] of 4"))  # a busy machine leaves some out
    view.get_by_label("Play the steps").click()
    expect(view.locator("[data-fact=step]")).to_have_text("4 of 4")
    expect(view.locator(".x0 img")).to_have_attribute("src", last)


def test_a_press_saves_the_film_and_another_the_strip(finished: Visitor, tmp_path: Path):
    page = finished.page
    with page.expect_download() as film:
        page.get_by_role("button", name="Save film").click()
    assert film.value.suggested_filename == "a-red-fox-noto-style-42.mp4"
    with av.open(film.value.path()) as video:
        assert "Seed: 42" in video.metadata["comment"]
        last = [frame.to_image(**READ) for frame in video.decode(video=0)][-1]
    picture = last.crop((MARGIN, TOP, MARGIN + BOX, TOP + BOX))
    final = Image.open(io.BytesIO(finished.file())).convert("RGB").resize((BOX, BOX))
    assert np.abs(np.asarray(picture, float) - np.asarray(final, float)).mean() < 4
    with page.expect_download() as strip:
        page.get_by_role("button", name="Save strip").click()
    assert strip.value.suggested_filename == "a-red-fox-noto-style-42-strip.png"
    assert Image.open(strip.value.path()).width > Image.open(strip.value.path()).height


def test_a_phone_shares_the_film(visit: Callable[..., Page]):
    page = visit("?prompt=an+owl,+noto+style&seed=3&num_inference_steps=2", has_touch=True, is_mobile=True)
    page.evaluate("""() => {
      navigator.canShare = () => true;
      navigator.share = async ({files: [film]}) => (window.shared = [film.name, film.type, film.size > 1000]);
    }""")
    Visitor(page).expect_result()
    page.get_by_role("button", name="Save film").click()
    page.wait_for_function("window.shared")
    assert page.evaluate("window.shared") == ["an-owl-noto-style-3.mp4", "video/mp4", True]


def test_the_visit_comes_back_in_another_tab_of_the_browser(finished: Visitor):
    page = finished.page
    finished.open_settings()
    finished.set_number("count", 2)
    finished.generate()
    thumbnails = "#history button.thumbnail-item"
    expect(page.locator(thumbnails)).to_have_count(3)
    expect(page.locator("#t2i-results").get_by_text("closest to your words")).to_have_count(1)
    page.close()
    other = page.context.new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(page.url)
    expect(other.locator(thumbnails)).to_have_count(3)
    other.locator(thumbnails).last.click()
    expect_form(other, FOX, "42", "4")
    expect(other.locator("#t2i-live .film button").last).to_have_accessible_name("Show step 4")


def test_settings_come_back_from_history_from_a_picture_and_from_a_link(finished: Visitor, tmp_path: Path):
    page = finished.page
    finished.ask("something else", steps=9, seed="1")
    page.locator("#history button.thumbnail-item").first.click()
    expect_form(page, FOX, "42", "4")
    expect(finished.view.locator(".film button").last).to_have_accessible_name("Show step 4")

    picture = tmp_path / "fox.png"
    picture.write_bytes(finished.file())
    assert read_infotext(picture)["seed"] == 42
    finished.ask("something else", steps=9, seed="1")
    page.set_input_files("#restore input[type=file]", str(picture))
    expect_form(page, FOX, "42", "4")

    page.get_by_role("button", name="Copy link").first.click()
    page.wait_for_url("**/?*seed=42*")
    page.goto(page.url)
    expect_form(page, FOX, "42", "4")


def test_a_link_that_no_server_would_take_is_not_made(finished: Visitor):
    page, address = finished.page, finished.page.url
    page.evaluate("document.querySelector('#t2i-live .live').dataset.link = 'prompt=' + 'a'.repeat(70000)")
    page.get_by_role("button", name="Copy link").first.click()
    expect(finished.view.locator(".status")).to_have_text(
        "The prompt is too long for a link: the downloaded picture carries all settings."
    )
    assert page.url == address


def test_the_whole_visit_can_be_downloaded(finished: Visitor, tmp_path: Path):
    page = finished.page
    finished.ask("a blue fish, noto style", steps=2, seed="7")
    finished.generate()
    expect(page.locator("#history button.thumbnail-item")).to_have_count(2)
    with page.expect_download() as download:
        page.locator("#history").get_by_label("Download All").click()
    with zipfile.ZipFile(download.value.path()) as pictures:
        settings = [read_infotext(pictures.extract(name, tmp_path)) for name in pictures.namelist()]
    assert [(facts["prompt"], facts["seed"]) for facts in settings] == [("a blue fish, noto style", 7), (FOX, 42)]


def test_a_picture_goes_on_to_image2image(finished: Visitor):
    page = finished.page
    page.get_by_role("button", name="Use as photo").first.click()
    expect(page.locator("#i2i-prompt textarea")).to_have_value(FOX)
    expect(page.locator("#i2i-photo")).to_be_in_viewport(ratio=0.95)  # scrolling ends between pixels
    expect(page.locator("#i2i-start img")).to_have_count(3)
    photos = Visitor(page, "i2i")
    photos.ask("a blue fox", steps=4)
    photos.generate()
    photos.wait_until("finished")
    expect(photos.view.get_by_alt_text("The photo that it was drawn from").first).to_be_visible()
    expect(page.locator("#history button.thumbnail-item")).to_have_count(2)


def test_control_enter_generates_and_escape_stops(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=150)
    page.locator("#t2i-prompt textarea").press("Control+Enter")
    visitor.wait_until("step")
    page.keyboard.press("Escape")
    visitor.wait_until("stopped")


def test_two_visitors_at_once_never_see_each_others_pictures(visit: Callable[..., Page]):
    first, second = (Visitor(visit()) for _ in range(2))
    for visitor, seed in ((first, "1"), (second, "2")):
        visitor.ask(f"prompt {seed}", steps=6, seed=seed)
        visitor.generate()
    for visitor, seed in ((first, "1"), (second, "2")):
        visitor.wait_until("finished")
        visitor.expect_result()
        expect(visitor.view.locator("[data-fact=seed]")).to_have_text(seed)
        expect(visitor.page.locator("#history button.thumbnail-item")).to_have_count(1)
    # Which steps have previews is the engine's choice where two draw at once; the last always has its picture.
    assert (first.pixels() != second.pixels()).any()


@pytest.mark.parametrize("query", ["", "?prompt=a+cat&model=another"])
def test_a_model_that_cannot_be_loaded_leaves_the_one_before(visit: Callable[..., Page], query: str):
    page = visit(query)
    menu = page.locator("#model input")
    expect(menu).to_have_value("another" if query else "emoji")
    before = menu.input_value()
    menu.click()
    page.get_by_role("option", name="broken").click()
    Visitor(page).expect_error("The model stays as it was. The model 'broken' could not be loaded")
    expect(menu).to_have_value(before)
    visitor = Visitor(page)
    visitor.ask("a cat", steps=1)
    visitor.generate()
    visitor.wait_until("finished")


def test_a_model_from_the_hub_comes_with_progress_and_draws(page: Page):
    page.locator("#model input").click()
    page.get_by_role("option", name="Stable Diffusion 1.5").click()
    expect(page.get_by_text(re.compile(r"Downloading .*, [1-9]\d* of \d\d MB")).first).to_be_visible()
    expect(page.get_by_text(re.compile("Downloading|Loading"))).to_have_count(0)
    visitor = Visitor(page)
    visitor.ask("a cat", steps=2)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    expect(page.locator(".toast-body")).to_have_count(0)
    picture = Image.open(io.BytesIO(visitor.file()))
    assert "Model: stable-diffusion-v1-5" in picture.info["parameters"]


DROP = """([selector, content]) => {
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "owl.png", {type: "image/png"}));
  const drop = new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true});
  document.querySelector(selector).dispatchEvent(drop);
}"""


def test_a_link_with_a_seed_plays_and_its_picture_dropped_anywhere_gives_its_settings(visit: Callable[..., Page]):
    page = visit("?prompt=an+owl,+noto+style&seed=3&num_inference_steps=3")
    visitor = Visitor(page)
    visitor.wait_until("finished")
    visitor.expect_result()
    expect(page.locator("#t2i-live [data-fact=seed]")).to_have_text("3")
    picture = base64.b64encode(visitor.file()).decode()
    page.fill("#t2i-prompt textarea", "something else")
    page.evaluate(DROP, ["#heading", picture])
    expect(page.locator("#t2i-prompt textarea")).to_have_value("an owl, noto style")


def test_escape_in_an_open_list_closes_the_list_and_not_the_run(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=150)
    visitor.generate()
    visitor.wait_until("step")
    page.locator("#model input").click()
    expect(page.locator("#model input")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#model input")).to_have_attribute("aria-expanded", "false")
    visitor.wait_until("step")
    page.keyboard.press("Escape")
    visitor.wait_until("stopped")
