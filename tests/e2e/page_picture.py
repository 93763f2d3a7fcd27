"""Take the README's picture of the page, `assets/page.webp`: `python -m tests.e2e.page_picture`.

Start the page on a free port, press its first example card in Chromium, and take a screenshot of the finished run.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "assets" / "page.webp"
SIZE = ViewportSize(width=1440, height=900)
PATIENCE = 120
"""Seconds to wait for the page, and then for its run."""


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_page(page: Page, address: str) -> None:
    """Open the page as soon as its server answers."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            page.goto(address)
            return
        except Error:  # the connection is refused while the server starts
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def draw(page: Page) -> None:
    """Press the first example card, and wait until its run is finished."""
    run = page.locator("#t2i-live .live")
    page.locator("#t2i-cards").get_by_role("button").first.click()
    run.and_(page.locator("[data-state=waiting], [data-state=step]")).wait_for()
    run.and_(page.locator("[data-state=finished]")).wait_for(timeout=1000 * PATIENCE)
    page.mouse.move(0, 0)  # off the card, which is drawn paler under the pointer
    page.wait_for_timeout(2000)  # the last pictures of the film


def take_picture(address: str) -> bytes:
    """Return a PNG screenshot of the page at `address` after a run."""
    with sync_playwright() as playwright:
        # Chromium on the path, or else Playwright's own. The sandbox does not start for root in a container.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        open_page(page, address)
        draw(page)
        return page.screenshot()


def main() -> None:
    """Serve the page, take its picture and save it as WebP."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT)
    try:
        picture = take_picture(f"http://127.0.0.1:{port}/")
    finally:
        server.terminate()
        server.wait()
    Image.open(io.BytesIO(picture)).convert("RGB").save(PICTURE, quality=85, method=6)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
