"""What a visitor does on the page, in the words of a person."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

Folded = Literal["button", "tab"]

RECORD = """(selector) => {
  const root = document.querySelector(selector);
  window.seen = [];
  new MutationObserver(() => {
    const [state, picture] = [root.querySelector('.live').dataset.state, root.querySelector('.x0 img').src];
    if (picture && picture !== window.seen.at(-1)?.picture) window.seen.push({state, picture});
  }).observe(root, {subtree: true, attributes: true, childList: true});
}"""


PIXELS = """async (image) => {
  const blob = await (await fetch(image.src)).blob();
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1]);
    reader.readAsDataURL(blob);
  });
}"""


FORM = ("prompt textarea", "steps input", "seed textarea", "sketch input", "generate", "live .live")
"""What a visitor has before their eyes. Gradio fetches the script of each kind of component by itself, and the parts of
a page come in any order."""


class Visitor:
    """A person at one tab of a page, all of which has come; `kind` is t2i or i2i."""

    def __init__(self, page: Page, kind: str = "t2i"):
        self.page, self.kind = page, kind
        self.view = page.locator(f"#{kind}-live")
        if kind == "i2i":
            unfold(page, "tab", "Image2Image", self.at("generate"))
        for part in FORM:
            page.locator(self.at(part)).first.wait_for()

    def at(self, name: str) -> str:
        """The selector of the tab's part of that name."""
        return f"#{self.kind}-{name}"

    def ask(self, prompt: str, *, steps: int, seed: str = "") -> None:
        """Fill in the form, of which nothing is sketched on the way: the page may yet set that switch by itself."""
        switch = self.page.locator(self.at("sketch")).get_by_role("checkbox")
        expect(switch).to_be_enabled()
        switch.uncheck()
        self.page.fill(self.at("prompt") + " textarea", prompt)
        self.set_number("steps", steps)
        self.page.fill(self.at("seed") + " input, " + self.at("seed") + " textarea", seed)

    def set_number(self, name: str, value: float) -> None:
        """Type into the number box of a slider."""
        box = self.page.locator(self.at(name) + " input[type=number]")
        box.fill(str(value))
        box.press("Tab")

    def open_settings(self) -> None:
        """Unfold "More settings"."""
        unfold(self.page, "button", "More settings", self.at("count"))

    def choose_photo(self, path: Path | str) -> None:
        """Upload a photo, in place of the one that is there."""
        remove = self.page.locator(self.at("photo")).get_by_label("Remove Image")
        if remove.is_visible():
            remove.click()
        self.page.set_input_files(self.at("photo") + " input[type=file]", str(path))
        self.page.locator(self.at("photo")).get_by_label("Remove Image").wait_for()

    def paint(self) -> None:
        """Paint a stroke across the middle of the photo, as wide as the brush."""
        sheet = self.page.locator(self.at("mask") + " canvas")
        self.page.get_by_label("Change only a part").check()
        self.page.wait_for_function("document.querySelector('#i2i-mask img').naturalWidth > 0")
        sheet.scroll_into_view_if_needed()
        box = sheet.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + box["width"] * 0.3, middle)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + box["width"] * 0.7, middle, steps=5)
        self.page.mouse.up()

    def record(self) -> None:
        """Begin to note every picture that the live view shows."""
        self.page.evaluate(RECORD, self.at("live"))

    def seen(self, state: str) -> list[str]:
        """The pictures that were shown in that state since `record`."""
        return [entry["picture"] for entry in self.page.evaluate("window.seen") if entry["state"] == state]

    def generate(self) -> None:
        """Press Generate."""
        self.page.click(self.at("generate"))

    def stop(self) -> None:
        """Press Stop."""
        self.page.click(self.at("stop"))

    def wait_until(self, state: str) -> None:
        """Wait for a state of the live view: step, finished, stopped or failed."""
        self.page.locator(f"{self.at('live')} .live[data-state={state}]").wait_for()

    def status(self) -> str:
        """The sentence under the live view."""
        return self.view.locator(".status").inner_text()

    def expect_result(self) -> None:
        """A picture to keep is there, and the next run can begin."""
        expect(self.page.locator(self.at("link"))).to_be_visible()
        expect(self.page.locator(self.at("generate"))).to_have_attribute("aria-busy", "false")

    def pixels(self, selector: str = ".x0 img") -> np.ndarray:
        """The first picture there in the live view, as the browser has it."""
        return decoded(base64.b64decode(self.view.locator(selector).first.evaluate(PIXELS)))

    def file(self) -> bytes:
        """The picture, as Download gives it."""
        with self.page.expect_download() as download:
            self.page.click(self.at("download"))
        return download.value.path().read_bytes()

    def expect_error(self, text: str) -> None:
        """A message says so, in one sentence."""
        expect(self.page.locator(".toast-body").filter(has_text=text).first).to_be_visible()


def unfold(page: Page, role: Folded, name: str, shown: str) -> None:
    """Press what shows more of the page, and wait until it stands, the selector `shown` with it.

    Gradio 6.31 puts the first values in once more, a frame after it has shown them: what is typed before is lost.
    """
    page.get_by_role(role, name=re.compile(rf"^{name}\W*$")).first.click()  # an accordion's name ends in an arrow
    page.locator(shown).first.wait_for()
    page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def decoded(file: bytes) -> np.ndarray:
    """The pixels of a picture file."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
