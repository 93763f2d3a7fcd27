"""The laboratory of the Inside tab in a real browser: each of its views from all sides."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from .test_access import serious
from .visitor import unfold

SECTIONS = {
    "Run": ("run", "look", "inside-steps"),
    "Samplers": ("samplers", "compare", "inside-compare-evaluations"),
    "Memory": ("memory", "remember", "inside-memory-steps"),
}
"""By the name of a section's tab: its view, its button, and its slider of steps or evaluations."""
TABS = ["Noise", *SECTIONS, "Learning"]


@pytest.fixture
def inside(page: Page) -> Page:
    """The page with the laboratory open."""
    return opened(page)


@pytest.fixture
def page(visit: Callable[..., Page]) -> Page:
    """The page of a visitor who likes motion: what is recorded plays by itself."""
    return visit(reduced_motion="no-preference")


def opened(page: Page, section: str | None = None) -> Page:
    """The page at the laboratory, or at one of its sections."""
    if not page.locator("#inside-tabs").is_visible():
        unfold(page, "tab", "Inside", "#laboratory")
        unfold(page, "button", "Laboratory: all numbers", "#inside-tabs")
    if section is not None:
        shown = f"#inside-{SECTIONS[section][1]}" if section in SECTIONS else "#inside-learning"
        unfold(page, "tab", section, shown)
    return page


def curves(page: Page, kind: str) -> Locator:
    """The numbers and curves of a view, unfolded."""
    page.locator(f"#inside-{kind}-fold").get_by_role("button", name="Numbers and curves").click()
    return page.locator(f"#inside-{kind}-numbers")


def set_number(page: Page, elem_id: str, value: float) -> None:
    """Type into a slider's number field."""
    field = page.locator(f"#{elem_id} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def look_inside(page: Page, prompt: str, steps: int, guidance: float = 4) -> Locator:
    """Record a run, and wait until it was played to its end; returns the view."""
    opened(page, "Run")
    page.locator("#inside-prompt textarea, #inside-prompt input").first.fill(prompt)
    set_number(page, "inside-steps", steps)
    set_number(page, "inside-guidance", guidance)
    page.locator("#inside-look").click()
    view = page.locator("#inside-run")
    over(page, "look")
    expect(view.locator(".play")).to_have_text("▶")
    expect(view.locator("output")).to_contain_text(f"Step {steps} of {steps}")
    return view


def over(page: Page, name: str) -> None:
    """Wait for the end of a run, as the buttons tell it."""
    expect(page.locator(f"#inside-{name}")).to_be_enabled()
    expect(page.locator(f"#inside-{name}-stop")).to_be_disabled()


def run(page: Page, section: str) -> Locator:
    """Press a section's button, and wait for the end of what it starts; returns the view."""
    kind, name, _ = SECTIONS[section]
    page.locator(f"#inside-{name}").click()
    view = page.locator(f"#inside-{kind}")
    expect(view.locator("img").first).to_be_visible()
    over(page, name)
    return view


def reading(view: Locator, chart: str) -> Locator:
    """The numbers that a chart shows."""
    return view.locator(f'[data-chart="{chart}"] .value:visible')


def test_the_noise_lab_follows_its_slider(inside: Page):
    lab, numbers = inside.locator("#inside-noise"), curves(inside, "noise")
    expect(lab.locator(".pictures img")).to_have_count(4)
    expect(numbers.locator(".facts")).to_contain_text("400")
    before = lab.locator(".pictures img").first.get_attribute("src")
    set_number(inside, "inside-t", 900)
    expect(numbers.locator(".facts dd").first).to_have_text("900")
    assert lab.locator(".pictures img").first.get_attribute("src") != before
    expect(reading(numbers, "snr").first).to_have_text("900")


def test_at_the_last_timestep_nothing_of_the_photo_is_left_and_box_and_chart_say_so(inside: Page):
    numbers = curves(inside, "noise")
    set_number(inside, "inside-t", 999)
    expect(numbers.locator(".facts")).to_contain_text("0: nothing is left")
    expect(reading(numbers, "snr")).to_have_text(["999", "0"])


def test_the_curves_can_be_read_at_the_pointer(inside: Page):
    lab = curves(inside, "noise")
    field = lab.locator('[data-chart="alphas"] .hit').last
    field.hover()
    expect(reading(lab, "alphas").first).to_have_text("999")
    expect(reading(lab, "alphas")).to_have_count(4)
    inside.mouse.move(5, 5)
    expect(reading(lab, "alphas").first).to_have_text("400")


def test_a_word_shows_where_it_went_at_every_step(inside: Page):
    view = look_inside(inside, "a cat next to a pizza", steps=4)
    chips, told = view.locator(".chips label"), view.locator(".told")
    expect(chips).to_have_text(["a", "cat", "next", "to", "a", "pizza"])
    expect(told).to_contain_text("“cat” gets")
    chips.nth(5).hover()
    expect(told).to_contain_text("“pizza” gets")
    of_all, heat = told.inner_text(), view.locator(".heat").get_attribute("src")
    view.get_by_label("Glow").select_option("this step")
    expect(told).not_to_have_text(of_all)
    expect(view.locator(".heat")).not_to_have_attribute("src", heat or "")
    view.get_by_label("Glow").press("Shift+Tab")  # the words are one tab stop, and arrows go from one to the next
    inside.keyboard.press("ArrowLeft")
    expect(told).to_contain_text("“a” gets")
    painted = """img => {
        const pen = new OffscreenCanvas(img.naturalWidth, img.naturalHeight).getContext('2d');
        pen.drawImage(img, 0, 0);
        return new Set(pen.getImageData(0, 0, img.naturalWidth, img.naturalHeight).data).size;
    }"""
    assert view.locator(".heat").evaluate(painted) > 10
    view.get_by_label("Glow").select_option("none")
    expect(view.locator(".heat")).to_be_hidden()


def test_a_word_shows_where_it_went_in_each_layer_and_head(inside: Page):
    view = look_inside(inside, "a cat next to a pizza", steps=3)
    layer, head, told = view.get_by_label("Layer"), view.get_by_label("Head"), view.locator(".told")
    expect(layer.locator("option")).to_have_text(["all", *(re.compile(rf"{i}: \d+ × \d+") for i in range(1, 8))])
    expect(head).to_be_disabled()
    heat = view.locator(".heat")
    seen = {heat.get_attribute("src")}
    for one in ("0", "6"):
        layer.select_option(one)
        expect(told).to_contain_text(f"of layer {int(one) + 1}, over all steps")
        expect(view.locator(".chips img").first).to_have_attribute("src", re.compile("^data:image/png"))
        seen.add(heat.get_attribute("src"))
    head.select_option("2")
    expect(told).to_contain_text("of head 2 in layer 7")
    seen.add(heat.get_attribute("src"))
    assert len(seen) == 4
    layer.select_option("all")
    expect(told).not_to_contain_text("layer")
    expect(head).to_be_disabled()


def test_a_run_shows_its_noise_and_its_guesses_and_the_slider_goes_back(inside: Page):
    view = look_inside(inside, "a red apple", steps=4)
    pictures = view.locator("[data-picture]")
    expect(pictures).to_have_count(4)
    last = [picture.get_attribute("src") for picture in pictures.all()]
    assert len(set(last)) == 4
    view.locator("[type=range]").fill("1")
    expect(view.locator("output")).to_contain_text("Step 1 of 4")
    assert not set(last) & {picture.get_attribute("src") for picture in pictures.all()}
    view.get_by_text("Curves").click()
    expect(reading(view, "pull").first).to_have_text("1")


def test_a_recorded_run_is_played_once_from_its_noise_on(inside: Page):
    opened(inside, "Run")
    set_number(inside, "inside-steps", 5)
    inside.evaluate("""() => {
        const output = document.querySelector("#inside-run output");
        window.steps = [];
        new MutationObserver(() => steps.push(output.innerText)).observe(output, {childList: true});
    }""")
    inside.locator("#inside-look").click()
    # The last step is seen when it was played alone: as the run tells it, the first one takes its place at once.
    inside.wait_for_function("steps.at(-1)?.startsWith('Step 5 of 5')")
    expect(inside.locator("#inside-run .play")).to_have_text("▶")
    steps = [int(re.findall(r"Step (\d)", text)[0]) for text in inside.evaluate("steps")]
    assert steps[-5:] == [1, 2, 3, 4, 5]
    inside.locator("#inside-run .play").click()
    expect(inside.locator("#inside-run output")).to_contain_text("Step 1 of 5")


def test_who_wants_no_motion_finds_the_first_step(visit: Callable[..., Page]):
    page = opened(visit(reduced_motion="reduce"), "Run")
    set_number(page, "inside-steps", 3)
    page.locator("#inside-look").click()
    over(page, "look")
    expect(page.locator("#inside-run output")).to_contain_text("Step 1 of 3")
    expect(page.locator("#inside-run .play")).to_have_text("▶")


def test_without_guidance_there_is_no_guess_without_words(inside: Page):
    view = look_inside(inside, "a red apple", steps=2, guidance=1)
    expect(view.locator("[data-picture]:visible")).to_have_count(3)
    expect(view.get_by_text("Not guided")).to_be_visible()
    expect(view.locator('[data-chart="pull"]')).to_have_count(0)


def test_the_match_of_picture_and_prompt_can_be_read_at_every_step(inside: Page):
    view = look_inside(inside, "a red apple", steps=3)
    expect(view.locator('[data-chart="match"] figcaption')).to_contain_text("cosine")
    view.get_by_text("Curves").click()
    expect(reading(view, "match")).to_have_text(["3", re.compile(r"^-?0\.\d")])
    view.locator("[type=range]").fill("1")
    expect(reading(view, "match").first).to_have_text("1")


def test_words_are_never_read_as_html_nor_as_a_template(inside: Page):
    html = "<img src=x onerror=document.title='bad'> & <b>cat</b> ${document.title='bad'} {{run}}"
    view = look_inside(inside, html, steps=1)
    expect(view.locator(".chips")).to_contain_text("onerror")
    assert view.locator(".chips b, .chips [onerror]").count() == 0
    assert inside.title() != "bad"


@pytest.mark.parametrize("section", SECTIONS)
def test_two_visitors_look_at_once_and_stop_ends_only_ones_own(visit: Callable[..., Page], section: str):
    first, page = opened(visit(), "Run"), opened(visit(), section)
    kind, name, steps = SECTIONS[section]
    for one, button in ((first, "look"), (page, name)):
        expect(one.locator(f"#inside-{button}-stop")).to_be_disabled()
    set_number(first, "inside-steps", 150)
    first.locator("#inside-look").click()
    expect(first.locator("#inside-run .pictures img").first).to_be_visible()
    expect(first.locator("#inside-look")).to_be_disabled()
    set_number(page, steps, 50)
    page.locator(f"#inside-{name}").click()
    expect(page.locator(f"#inside-{kind} img").first).to_be_visible()  # while the first goes on
    page.locator(f"#inside-{name}-stop").click()
    over(page, name)
    expect(first.locator("#inside-look")).to_be_disabled()
    first.locator("#inside-look-stop").click()
    over(first, "look")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_keys_start_and_stop_the_section_in_view(inside: Page, section: str):
    kind, name, steps = SECTIONS[section]
    opened(inside, section)
    set_number(inside, steps, 50)
    inside.keyboard.press("Control+Enter")
    expect(inside.locator(f"#inside-{kind} img").first).to_be_visible()
    expect(inside.locator(f"#inside-{name}-stop")).to_be_enabled()
    inside.keyboard.press("Escape")
    over(inside, name)


def test_samplers_stand_side_by_side_at_equal_cost(inside: Page):
    opened(inside, "Samplers")
    set_number(inside, "inside-compare-evaluations", 3)
    view = run(inside, "Samplers")
    told = [
        re.compile(f"{label}{steps} steps, 3 evaluations") for label, steps in (("DDPM", 3), ("DDIM", 3), ("Heun", 2))
    ]
    expect(view.locator(".strip .name")).to_have_text(told)
    for strip in view.locator(".strip").all():
        expect(strip.locator("img")).to_have_count(3)
    numbers = curves(inside, "samplers")
    for label in ("DDPM", "DDIM", "Heun"):
        expect(numbers.locator('[data-chart="guess"] svg')).to_contain_text(label)
    for label in ("The model's own", "Karras", "Exponential", "Beta", "Uniform"):
        expect(numbers.locator('[data-chart="levels"] svg')).to_contain_text(label)
    expect(numbers.locator('[data-chart="levels"] polyline')).to_have_count(5)
    expect(reading(numbers, "levels")).to_have_count(6)


def test_no_guess_of_a_sampler_is_out_of_sight(visit: Callable[..., Page]):
    page = opened(visit(viewport={"width": 390, "height": 844}), "Samplers")
    set_number(page, "inside-compare-evaluations", 12)
    frames = run(page, "Samplers").locator(".film img")
    expect(frames).to_have_count(12 + 12 + 11)
    assert frames.evaluate_all("images => images.every(image => image.getBoundingClientRect().right <= innerWidth)")


def test_two_seeds_stand_beside_the_training_drawings_nearest_to_them(inside: Page):
    opened(inside, "Memory")
    view = run(inside, "Memory")
    expect(view.locator(".memory")).to_have_count(2)
    for memory in view.locator(".memory").all():
        expect(memory.locator("img")).to_have_count(4)
        distances = [float(text) for text in memory.locator("figure:not(.own) b").all_inner_texts()]
        assert distances == sorted(distances)
    expect(view.locator(".bars dd")).to_have_text([re.compile(r"0\.\d\d")] * 4)
    expect(view.locator(".remark")).to_contain_text("rocket")


def test_the_versions_of_the_network_are_played_once_and_can_be_moved_through(inside: Page):
    opened(inside, "Learning")
    view = inside.locator("#inside-learning")
    expect(view.locator(".which")).to_have_text("1,684,200 examples seen")  # at the end
    expect(view.locator(".play")).to_have_text("▶")
    place = "tile => getComputedStyle(tile).backgroundPosition"
    tile = view.locator(".tile").first
    last = tile.evaluate(place)
    view.get_by_label("Version of the network").press("Home")
    expect(view.locator(".remark")).to_contain_text("Version 1 of 6")
    first = tile.evaluate(place)
    view.get_by_label("Guess at step").press("Home")
    expect(view.locator(".at")).to_have_text("1 of 16")
    assert len({last, first, tile.evaluate(place)}) == 3
    loaded = "tile => fetch(getComputedStyle(tile).backgroundImage.slice(5, -2)).then(answer => answer.ok)"
    assert tile.evaluate(loaded)


def test_an_empty_choice_of_samplers_is_refused_in_words(inside: Page):
    opened(inside, "Samplers")
    for label in ("DDPM", "DDIM", "Heun"):
        inside.locator("#inside-samplers-chosen").get_by_label(label, exact=True).uncheck()
    inside.locator("#inside-compare").click()
    expect(inside.get_by_text("samplers must name at least one")).to_be_visible()
    over(inside, "compare")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_in_the_way_of_anybody(visit: Callable[..., Page], scheme: str):
    page = opened(visit(color_scheme=scheme, reduced_motion="no-preference"))
    page.add_style_tag(content="* { transition: none !important; }")  # colours halfway are nobody's choice
    expect(page.locator("#inside-noise .pictures img")).to_have_count(4)
    assert serious(page) == []
    curves(page, "noise")
    opened(page, "Run")
    assert serious(page) == []
    look_inside(page, "a cat next to a pizza", steps=2)
    assert serious(page) == []
    for section in ("Samplers", "Memory"):
        opened(page, section)
        set_number(page, SECTIONS[section][2], 2)
        run(page, section)
        assert serious(page) == []
    opened(page, "Learning")
    expect(page.locator("#inside-learning .play")).to_have_text("▶")
    assert serious(page) == []


def test_it_fits_a_phone(visit: Callable[..., Page]):
    page = opened(visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True))
    expect(page.locator("#inside-noise .pictures img")).to_have_count(4)
    for section in TABS[1:]:
        opened(page, section)  # none is behind three dots
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for box in page.locator("#inside-tabs input[type=number]:visible").all():  # whole, with a number to read
            assert box.evaluate("box => box.parentElement.clientHeight >= box.clientHeight")
            assert box.evaluate("box => parseFloat(getComputedStyle(box).fontSize)") >= 16


@pytest.mark.parametrize(("width", "height"), [(1366, 768), (390, 844)])
def test_no_view_is_longer_than_one_screen_and_a_half(visit: Callable[..., Page], width: int, height: int):
    page = opened(visit(viewport={"width": width, "height": height}))
    expect(page.locator("#inside-noise .pictures img")).to_have_count(4)
    for section in TABS:
        if section != "Noise":
            opened(page, section)
        if section in SECTIONS:
            run(page, section)
        tall = page.locator("#inside-tabs").evaluate("tabs => tabs.getBoundingClientRect().height")
        assert tall <= 1.5 * height, section
