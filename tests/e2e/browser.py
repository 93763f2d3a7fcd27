"""A browser for the tests of the page.

`python -m tests.e2e.browser` fails where none starts; with `--install` it installs one there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

ON_THE_PATH = ("chromium", "chromium-browser", "google-chrome")
# A quiet browser that draws without a GPU, in a container too.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"]
FLAGS += ["--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage"]
FLAGS += ["--use-fake-device-for-media-stream"]  # a camera for the machines that have none

APT = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
DEBIANS = [[*APT, "update"], [*APT, "install", "--yes", "--no-install-recommends", "chromium"]]
PLAYWRIGHTS = [sys.executable, "-m", "playwright", "install", "chromium"]
REMEDY = """\
no browser starts, and the tests of the page need one. Any of these installs it:
    make browser                                           tries the next two
    apt-get install chromium                               as root, on Debian
    python -m playwright install chromium                  into your own cache; add --with-deps as root
    Chromium or Google Chrome from its maker, on the PATH"""


def launch(playwright: Playwright) -> Browser:
    """Start the first browser that does, of those on the PATH and Playwright's own; RuntimeError with the remedies."""
    tried = []
    for path in [*filter(None, map(shutil.which, ON_THE_PATH)), None]:
        try:
            return playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error as error:
            tried.append(f"{path or 'Playwright'}: {error.message.strip().splitlines()[0]}")
    raise RuntimeError("\n".join([REMEDY, "Tried:", *tried]))


def starts() -> bool:
    """Whether any browser starts."""
    with sync_playwright() as playwright:
        try:
            launch(playwright).close()
        except RuntimeError:
            return False
        return True


def install() -> None:
    """Install a browser unless one starts: Debian's package where apt and the rights are there, else Playwright's."""
    if starts():
        return
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root and shutil.which("apt-get"):
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        if all(subprocess.run(command).returncode == 0 for command in DEBIANS) and starts():
            return
        subprocess.run([*PLAYWRIGHTS, "--with-deps"])
    else:
        subprocess.run(PLAYWRIGHTS)
    with sync_playwright() as playwright:
        launch(playwright).close()


if __name__ == "__main__":
    try:
        if "--install" in sys.argv:
            install()
        elif not starts():
            sys.exit("no browser starts, and the tests of the page need one: `make browser` installs Chromium")
    except RuntimeError as error:
        sys.exit(str(error))
