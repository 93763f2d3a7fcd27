"""A person's path through both tabs, in a real browser."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from stable_diffusion.images import fit_image, read_image
from tests.conftest import ROOT
from ui.stage.opening import EXAMPLES, PHOTO_EXAMPLES, PHOTOS, STRENGTHS

from .conftest import Server
from .visitor import Visitor, decoded

CAT = ROOT / "assets" / "examples" / "cat.jpg"
COPY_A_PICTURE = """async () => {
  const canvas = document.createElement('canvas');
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
  await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
}"""


def test_a_prompt_becomes_a_picture_step_by_step(visit: Callable[..., Page]):
    page = visit(reduced_motion="no-preference")
    visitor = Visitor(page)
    visitor.record()
    visitor.ask("a rocket, noto style, on a blue background", steps=8, seed="4")
    visitor.generate()
    visitor.wait_until("finished")
    assert len(set(visitor.seen("step"))) >= 4  # a busy machine leaves some out
    assert visitor.status() == "Finished in 8 steps."
    expect(page.locator("#t2i-live [data-fact=step]")).to_have_text("8 of 8")
    expect(page.locator("#t2i-live [data-fact=seed]")).to_have_text("4")
    visitor.expect_result()


def test_only_the_finished_picture_and_the_film_become_files(page: Page, server: Server):
    def files() -> set[Path]:
        return {path for path in server.files.rglob("*") if path.is_file()}

    before = files()
    visitor = Visitor(page)
    visitor.ask("a file of its own", steps=8, seed="77")
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    assert sorted(path.name for path in files() - before) == ["a-file-of-its-own-77.png", "film.json"]


def test_stop_keeps_the_partial_picture(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=150)
    visitor.generate()
    visitor.wait_until("step")
    visitor.stop()
    visitor.wait_until("stopped")
    step = int(re.fullmatch(r"Stopped at step (\d+) of 150.", visitor.status())[1])
    assert step < 150
    visitor.expect_result()


def test_a_photo_becomes_another_picture(visit: Callable[..., Page]):
    page = visit(reduced_motion="no-preference")
    visitor = Visitor(page, "i2i")
    visitor.choose_photo(CAT)
    expect(page.locator("#i2i-start img")).to_have_count(3)
    visitor.record()
    visitor.ask("a dog face", steps=10)
    visitor.set_number("strength", 0.5)
    expect(page.locator("#i2i-runs")).to_contain_text("Runs 5 of 10 steps")
    visitor.generate()
    visitor.wait_until("finished")
    assert len(set(visitor.seen("step"))) >= 2
    assert visitor.status() == "Finished in 5 steps."
    visitor.expect_result()


def test_fast_drawing_takes_four_evaluations_with_and_without_a_photo(page: Page):
    visitor = Visitor(page)
    page.get_by_label("Fast").locator("visible=true").check()
    expect(page.locator("#t2i-steps input[type=number]")).to_have_value("4")
    visitor.generate()
    visitor.wait_until("finished")
    assert visitor.status() == "Finished in 4 steps."
    photos = Visitor(page, "i2i")
    page.get_by_label("Fast").locator("visible=true").check()
    expect(page.locator("#i2i-steps input[type=number]")).to_have_value("9")
    page.locator("#i2i-strengths").get_by_role("button").nth(STRENGTHS.index(0.2)).click()
    photos.wait_until("finished")
    expect(page.locator("#i2i-runs")).to_contain_text("Runs 4 of 20 steps")
    assert photos.status() == "Finished in 4 steps."


def test_a_card_fills_the_form_and_draws_its_picture(page: Page):
    prompt, seed = EXAMPLES[1]
    page.locator("#t2i-cards").get_by_role("button").nth(1).click()
    visitor = Visitor(page)
    visitor.wait_until("finished")
    expect(page.locator("#t2i-prompt textarea")).to_have_value(prompt)
    expect(page.locator("#t2i-live [data-fact=seed]")).to_have_text(str(seed))


def test_the_first_press_draws_something(page: Page):
    visitor = Visitor(page)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()


def test_an_example_photo_brings_its_prompt(page: Page):
    Visitor(page, "i2i")
    start = page.locator("#i2i-start img")
    expect(start).to_have_count(3)  # of the first photo, which is there when the tab opens
    cat = start.first.get_attribute("src")
    page.locator("#i2i-photos").get_by_role("button").nth(1).click()
    prompt = "a cup of coffee, fluent color style, on a brown background"
    expect(page.locator("#i2i-prompt textarea")).to_have_value(prompt)
    expect(start.first).not_to_have_attribute("src", cat)


def test_only_what_is_painted_over_changes(page: Page):
    visitor = Visitor(page, "i2i")
    visitor.ask("a dog face", steps=4, seed="1")
    visitor.set_number("strength", 1)
    visitor.paint()
    page.get_by_label("Change only a part").uncheck()
    expect(page.locator("#i2i-mask canvas")).to_be_hidden()
    page.get_by_label("Change only a part").check()
    expect(page.locator("#i2i-mask canvas")).to_be_visible()  # with its strokes
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    photo = np.asarray(fit_image(read_image(PHOTOS / PHOTO_EXAMPLES[0][0]), 256, 256))  # which is there from the start
    changed = (photo != visitor.pixels()).any(axis=2)
    # The brush is 16 % of the height; where it went along the middle, most pixels differ.
    assert changed[120:136, 100:156].mean() > 0.9
    assert not changed[:96].any()
    assert not changed[160:].any()


def test_a_tap_paints_a_dot_on_what_the_run_uses_of_the_photo(page: Page):
    Visitor(page, "i2i")
    page.get_by_label("Change only a part").check()
    sheet = page.locator("#i2i-mask canvas")
    page.wait_for_function("document.querySelector('#i2i-mask canvas').width > 1")
    sheet.wait_for()
    box = sheet.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)  # of a photo in landscape
    sheet.click(position={"x": 1, "y": box["height"] / 2})
    left = page.evaluate("""() => {
      const sheet = document.querySelector('#i2i-mask canvas');
      const {data, width} = sheet.getContext('2d').getImageData(0, 0, sheet.width, sheet.height);
      const painted = [];
      for (let i = 3; i < data.length; i += 4) if (data[i]) painted.push(((i - 3) / 4) % width);
      return (Math.min(...painted) + Math.max(...painted)) / 2 / width;
    }""")
    photo = read_image(PHOTOS / PHOTO_EXAMPLES[0][0])
    assert left == pytest.approx((1 - photo.height / photo.width) / 2, abs=0.02)  # where the crop begins


def test_another_photo_takes_the_mask_away(page: Page):
    visitor = Visitor(page, "i2i")
    visitor.paint()
    ink = "document.querySelector('#i2i-mask canvas').getContext('2d').getImageData(0, 0, 9e3, 9e3).data.some(Boolean)"
    assert page.evaluate(ink)
    page.locator("#i2i-photos").get_by_role("button").nth(1).click()
    page.wait_for_function(f"!{ink}")


def test_the_dice_leave_the_seed_to_chance(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=1, seed="5")
    page.get_by_role("button", name="Random").first.click()
    expect(page.locator("#t2i-seed").get_by_role("textbox")).to_have_value("")
    visitor.generate()
    visitor.wait_until("finished")
    assert int(page.inner_text("#t2i-live [data-fact=seed]")) != 5


def test_the_start_follows_fit_and_strength(page: Page):
    visitor = Visitor(page, "i2i")
    visitor.choose_photo(CAT)
    pictures = page.locator("#i2i-start img")
    expect(pictures).to_have_count(3)
    fitted, noisy = (pictures.nth(i).get_attribute("src") for i in range(2))
    visitor.set_number("strength", 0.9)
    expect(pictures.nth(1)).not_to_have_attribute("src", noisy)
    expect(pictures.nth(0)).to_have_attribute("src", fitted)
    page.locator("#i2i-fit").get_by_label("Pad").check()
    expect(pictures.nth(0)).not_to_have_attribute("src", fitted)


def test_a_photo_can_come_from_the_clipboard(visit: Callable[..., Page]):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    visitor = Visitor(page, "i2i")
    page.evaluate(COPY_A_PICTURE)
    page.locator(visitor.at("photo")).get_by_label("Paste from clipboard").click()
    expect(page.locator("#i2i-start img")).to_have_count(3)


def test_a_photo_can_come_from_the_camera(visit: Callable[..., Page]):
    page = visit(permissions=["camera"])
    visitor = Visitor(page, "i2i")
    photo = page.locator(visitor.at("photo"))
    photo.get_by_label("Capture from camera").click()
    photo.get_by_role("button", name="Click to Access Webcam").click()
    # Before the first frame has come the button does nothing
    page.wait_for_function("document.querySelector('#i2i-photo video').videoWidth > 0")
    photo.get_by_label("capture photo").click()
    expect(page.locator("#i2i-start img")).to_have_count(3)
    visitor.ask("a dog face", steps=4)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()


def test_closing_the_page_ends_the_work(visit: Callable[..., Page], server: Server):
    page, before = visit(), server.count("stopped at step")
    visitor = Visitor(page)
    visitor.ask("a cat", steps=150)
    visitor.generate()
    visitor.wait_until("step")
    page.close()
    line = server.wait_for_log("stopped at step", before + 1)
    assert int(re.search(r"stopped at step (\d+) of 150", line)[1]) < 150


def test_a_reload_in_mid_run_ends_the_work_and_the_page_goes_on(page: Page, server: Server):
    before = server.count("stopped at step")
    visitor = Visitor(page)
    visitor.ask("a cat", steps=150)
    visitor.generate()
    visitor.wait_until("step")
    page.reload()
    server.wait_for_log("stopped at step", before + 1)
    visitor.ask("a dog", steps=2)
    visitor.generate()
    visitor.wait_until("finished")


def noise_share(page: Page) -> float:
    """How much of the stage shows the noisy picture, from 0 to 1."""
    right = page.locator("#t2i-live .xt").evaluate("element => getComputedStyle(element).clipPath")
    return 1 - float(re.search(r"([\d.]+)%", right)[1]) / 100 if "%" in right else 1.0


def test_noise_and_picture_share_the_stage_and_a_divider_moves_between_them(visit: Callable[..., Page]):
    """On a phone; on a wide screen they stand side by side."""
    page = visit(viewport={"width": 390, "height": 844})
    visitor = Visitor(page)
    visitor.ask("a cat", steps=150)
    visitor.generate()
    visitor.wait_until("step")
    expect(page.locator("#t2i-live .xt img")).to_be_visible()
    expect(page.locator("#t2i-live .noise")).to_be_hidden()
    assert noise_share(page) == pytest.approx(0.5, abs=0.01)
    visitor.wait_until("finished")
    assert noise_share(page) == 0  # the divider has moved aside by itself
    visitor.view.locator(".film button").nth(1).click()
    visitor.view.get_by_label("Divider").fill("80")
    assert noise_share(page) == pytest.approx(0.8, abs=0.01)
    page.set_viewport_size({"width": 1440, "height": 900})
    expect(page.locator("#t2i-live .noise img")).to_be_visible()
    expect(visitor.view.get_by_label("Divider")).to_be_hidden()


def test_a_recorded_run_plays_before_the_first_and_its_first_steps_are_held(visit: Callable[..., Page]):
    page = visit(reduced_motion="no-preference")
    visitor, steps = Visitor(page), page.locator("#t2i-live [data-fact=step]")
    expect(visitor.view.locator(".status")).to_contain_text(
        "A recorded run: a rocket, fluent 3d style"
    )  # as seed 0 chooses
    visitor.ask("a cat", steps=20)
    page.evaluate("""() => {
      window.times = {};
      const fact = document.querySelector("#t2i-live [data-fact=step]");
      const note = () => (window.times[fact.textContent] ??= performance.now());
      new MutationObserver(note).observe(fact, {childList: true});
    }""")
    visitor.generate()
    visitor.wait_until("finished")
    expect(steps).to_have_text("20 of 20")
    times = page.evaluate("window.times")
    assert times["5 of 20"] - times["1 of 20"] >= 4 * 290
    assert visitor.view.locator(".film button").first.get_attribute("aria-label") == "Show the noise"


def test_generate_pressed_during_a_run_draws_anew(page: Page, server: Server):
    visitor = Visitor(page)
    visitor.ask("one that takes long", steps=150, seed="1")
    visitor.generate()
    visitor.wait_until("step")
    visitor.ask("a cat", steps=2, seed="8")
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    expect(visitor.view.locator("[data-fact=seed]")).to_have_text("8")
    expect(page.locator("#history button.thumbnail-item")).to_have_count(1)
    expect(page.locator("#t2i-stop")).to_be_disabled()


def test_keys_present_the_run_and_show_what_guidance_does(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=3)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.view.get_by_label("Show step 1").click()
    pushed = visitor.view.locator(".x0 img").get_attribute("src")
    page.keyboard.press("g")
    expect(visitor.view.locator(".guess figcaption")).to_have_text("pushed by guidance")
    expect(visitor.view.locator(".x0 img")).not_to_have_attribute("src", pushed)
    page.keyboard.press("p")
    picture = visitor.view.locator(".guess .frame").bounding_box()
    assert picture is not None
    assert picture["height"] > 500
    page.keyboard.press("ArrowRight")
    expect(visitor.view.locator("[data-fact=step]")).to_have_text("2 of 3")
    page.keyboard.press("Escape")
    expect(visitor.view.locator("[data-present]")).to_have_count(0)


def test_the_film_begins_with_the_noise_that_the_seed_gives(visit: Callable[..., Page]):
    noise = []
    for prompt in ("a cat", "a rocket"):
        visitor = Visitor(visit())
        visitor.ask(prompt, steps=4, seed="6")
        visitor.generate()
        visitor.wait_until("finished")
        visitor.view.get_by_label("Show the noise").click()
        assert visitor.view.locator("[data-fact=step]").inner_text() == "0 of 4"
        noise += [visitor.pixels(), visitor.pixels(".xt img")]
    assert all((other == noise[0]).all() for other in noise)


def test_one_picture_is_shown_once_and_it_is_the_file(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=4)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    assert (visitor.pixels() == decoded(visitor.file())).all()
    expect(page.locator("#t2i-results")).to_be_hidden()
    visitor.open_settings()
    visitor.set_number("count", 2)
    visitor.generate()
    expect(page.locator("#t2i-results img")).to_have_count(2)
    expect(page.locator("#t2i-download")).to_be_hidden()  # the gallery has its own
    expect(page.locator("#t2i-use")).to_be_visible()


def test_steps_are_told_at_each_quarter_of_the_run(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=40)
    page.evaluate("""() => {
      const status = document.querySelector("#t2i-live .status");
      window.told = [];
      new MutationObserver(() => window.told.push(status.textContent)).observe(status, {childList: true});
    }""")
    visitor.generate()
    visitor.wait_until("finished")
    told = list(filter(None, page.evaluate("window.told")))
    assert told[-1] == "Finished in 40 steps."
    assert len(told) == len(set(told)) >= 2
    assert all(re.fullmatch(r"Step \d+ of 40", one) for one in told[:-1])


@pytest.mark.parametrize("width", [390, 1366, 2560])
def test_the_stage_grows_with_the_window(visit: Callable[..., Page], width: int):
    page = visit(viewport={"width": width, "height": 1440})
    visitor = Visitor(page)
    visitor.ask("a cat", steps=2)
    visitor.generate()
    visitor.wait_until("finished")
    box = page.locator("#t2i-live .guess .frame").bounding_box()
    assert box is not None
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["width"] >= {390: 340, 1366: 470, 2560: 1000}[width]


@pytest.mark.parametrize("height", [500, 1000])
def test_the_whole_picture_is_seen_in_a_low_window(visit: Callable[..., Page], height: int):
    page = visit(viewport={"width": 1440, "height": height})
    visitor = Visitor(page)
    visitor.ask("a cat", steps=1)
    visitor.generate()
    visitor.wait_until("finished")
    frame, picture = (page.locator(f"#t2i-live {part}").bounding_box() for part in (".guess .frame", ".x0 img"))
    assert frame is not None
    assert picture is not None
    assert picture["height"] <= frame["height"]
    assert page.locator("#t2i-live .x0 img").evaluate("image => getComputedStyle(image).objectFit") == "contain"


def test_the_last_seed_can_be_used_again(page: Page):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=12)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    seed, picture = page.inner_text("#t2i-live [data-fact=seed]"), visitor.pixels()
    page.get_by_role("button", name="Reuse last").first.click()
    expect(page.locator("#t2i-seed").get_by_role("textbox")).to_have_value(seed)
    visitor.generate()
    expect(page.locator("#history button.thumbnail-item")).to_have_count(2)
    visitor.expect_result()
    assert (visitor.pixels() == picture).all()


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("-2", "Seed must be between 0 and 9223372036854774807, got -2"),
        ("99999999999", "Seed must be at most 4,294,967,295 here, got 99999999999"),
        ("<b>x</b>", "Seed must be a whole number, got '<b>x</b>': leave it empty for a random one"),
    ],
)
def test_a_bad_seed_is_named_and_the_page_goes_on(page: Page, seed: str, message: str):
    visitor = Visitor(page)
    visitor.ask("a cat", steps=1, seed=seed)
    visitor.generate()
    visitor.expect_error(message)
    box = page.locator("#t2i-seed textarea")
    expect(box).to_be_focused()
    expect(box).to_have_attribute("aria-invalid", "true")
    assert message in box.evaluate("box => box.validationMessage")
    visitor.ask("a cat", steps=1, seed="1")
    expect(box).not_to_have_attribute("aria-invalid", "true")
    visitor.generate()
    visitor.wait_until("finished")


def test_a_file_that_is_no_picture_is_named_and_the_page_goes_on(page: Page, tmp_path: Path):
    (tmp_path / "text.png").write_text("This is no picture.")
    visitor = Visitor(page, "i2i")
    page.locator(visitor.at("photo")).get_by_label("Remove Image").click()
    visitor.generate()
    visitor.expect_error("Photo is missing: upload a photo")
    visitor.choose_photo(tmp_path / "text.png")
    visitor.generate()
    visitor.expect_error("Photo 'text.png' is not a picture that can be read: use PNG, JPEG or WebP")
    visitor.wait_until("failed")
    page.locator(visitor.at("photo")).get_by_label("Remove Image").click()
    visitor.choose_photo(CAT)
    visitor.ask("a dog", steps=2)
    visitor.generate()
    visitor.wait_until("finished")


def test_a_refused_file_leaves_the_box_for_pictures(page: Page, tmp_path: Path):
    Visitor(page)
    (tmp_path / "text.png").write_text("This is no picture.")
    page.set_input_files("#restore input[type=file]", str(tmp_path / "text.png"))
    Visitor(page).expect_error("is not a picture that can be read")
    expect(page.locator("#restore")).not_to_contain_text("text")


def test_a_link_draws_without_the_right_to_store(page: Page, server: Server):
    page.add_init_script("""for (const store of ["localStorage", "sessionStorage", "indexedDB"])
      Object.defineProperty(window, store, {get() { throw new DOMException("denied", "SecurityError"); }});
    Object.defineProperty(Document.prototype, "cookie", {get() { throw new DOMException("denied", "SecurityError"); }});
    """)
    page.goto(f"{server.url}/?prompt=a+fox&seed=4&num_inference_steps=2")
    visitor = Visitor(page)
    visitor.wait_until("finished")
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a fox")


def test_a_shared_link_shows_this_page(server: Server):
    """And a picture at the name by which the page was asked for, behind a proxy too."""
    asked = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "localhost"}
    with urllib.request.urlopen(urllib.request.Request(server.url, headers=asked)) as answer:
        page = answer.read().decode()
    tags = re.findall(
        r'<meta (?:property="og:|name="twitter:|name=")(title|description|image)" content="([^"]*)"', page
    )
    assert sorted(name for name, _ in tags) == ["description", "description", "image", "title"]
    found = dict(tags)
    assert found["title"] == "Stable Diffusion, live"
    assert found["description"].startswith("Watch a picture come out of noise. A small model, trained on emoji")
    assert found["image"].startswith("https://localhost/")
    with urllib.request.urlopen(found["image"].replace("https://localhost", server.url)) as answer:
        assert answer.headers["Content-Type"] == "image/webp"


def test_a_prompt_that_is_too_long_says_what_was_left_out(page: Page):
    visitor = Visitor(page)
    visitor.ask("grmpf zwrt " * 900, steps=1)  # no word that the model knows
    visitor.generate()
    visitor.expect_error("Prompt is too long for this model. Left out:")
    visitor.wait_until("finished")


def test_hostile_text_stays_text(page: Page):
    visitor = Visitor(page)
    visitor.ask("<img src=x onerror='window.hacked=1'>" * 40, steps=1)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    assert page.evaluate("window.hacked") is None


def test_nothing_is_fetched_from_elsewhere(visit: Callable[..., Page], server: Server):
    page = visit()
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.reload()
    Visitor(page, "i2i").choose_photo(CAT)
    expect(page.locator("#i2i-start img")).to_have_count(3)
    local = (server.url, "data:", "blob:")
    assert [address for address in addresses if not address.startswith(local)] == []


@pytest.mark.parametrize("width", [360, 390])
def test_the_page_fits_a_phone(visit: Callable[..., Page], width: int):
    page = visit(viewport={"width": width, "height": 844}, is_mobile=True, has_touch=True)
    for kind in ("t2i", "i2i"):
        visitor = Visitor(page, kind)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        generate, stop = (page.locator(visitor.at(name)) for name in ("generate", "stop"))
        for place in ("prompt", "live", "seed"):
            page.locator(visitor.at(place)).scroll_into_view_if_needed()
            expect(generate).to_be_in_viewport(ratio=1)
            expect(stop).to_be_in_viewport(ratio=1)
        tops = [page.locator(visitor.at(name)).bounding_box()["y"] for name in ("prompt", "live", "seed")]
        assert tops == sorted(tops)


def test_on_a_phone_the_picture_and_the_button_are_on_one_screen(visit: Callable[..., Page]):
    page = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    for place in ("#t2i-prompt", "#t2i-live .guess .frame", "#t2i-generate"):
        expect(page.locator(place)).to_be_in_viewport(ratio=1)
    Visitor(page, "i2i")
    page.locator("#i2i-seed").scroll_into_view_if_needed()
    expect(page.locator("#i2i-live .guess .frame")).not_to_be_in_viewport()
    page.locator("#i2i-photos button.thumbnail-lg").nth(1).dispatch_event("click")  # which does not scroll to it
    expect(page.locator("#i2i-live .guess .frame")).to_be_in_viewport(ratio=0.95)  # scrolling ends between pixels
