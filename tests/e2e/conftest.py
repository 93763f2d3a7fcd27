"""A server of the real page in a process of its own, a client for its API, and a real browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from gradio_client import Client, handle_file
from playwright.sync_api import Browser, BrowserContext, Page, expect
from safetensors.torch import save_file

from stable_diffusion.loading.config import BUNDLED
from stable_diffusion.loading.files import read_json
from tests.conftest import ROOT
from tests.e2e.alone import DENIED
from tests.hub_server import Hub, serve

PATIENCE = 120_000
"""How many milliseconds a slow machine may take; nothing waits this long on purpose."""
expect.set_options(timeout=PATIENCE)


@dataclass
class Server:
    """A running server: where it is, what it has said so far, and where it keeps files."""

    url: str
    log: Path
    files: Path

    def wait_for_log(self, text: str, count: int = 1) -> str:
        """The last line that holds `text`, once it has been logged `count` times."""
        for _ in range(PATIENCE // 100):
            lines = [line for line in self.log.read_text().splitlines() if text in line]
            if len(lines) >= count:
                return lines[-1]
            time.sleep(0.1)
        raise AssertionError(f"{text!r} was not logged {count} times:\n{self.log.read_text()}")

    def count(self, text: str) -> int:
        """How many lines of the log hold `text`."""
        return sum(text in line for line in self.log.read_text().splitlines())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def hub(bundled_model: Path) -> Iterator[Hub]:
    """A hub on loopback, slow enough to watch, that has one model under the name of a large one."""
    with serve({"stable-diffusion-v1-5/stable-diffusion-v1-5": bundled_model}) as hub:
        hub.pace = 0.4
        yield hub


@pytest.fixture(scope="session")
def server(bundled_model: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python app.py` with the bundled model, without a network, ended when the tests are over."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", folder / "log.txt", folder / "files")
    options = ["--port", str(port), "--model", str(bundled_model), "--device", "cpu", "--mcp"]
    (folder / "models" / "broken").mkdir(parents=True)
    (folder / "models" / "broken" / "model_index.json").write_text("{}")
    (folder / "models" / "another").symlink_to(bundled_model.absolute())
    save_extras(folder / "models")
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(server.files), "PYTHONUNBUFFERED": "1"}
    environment |= {"SD_MODELS": str(folder / "models"), "HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hub")}
    with started(server, "tests.e2e.alone", "app.py", *options, environment=environment):
        yield server


def save_extras(folder: Path) -> None:
    """A LoRA file and an embedding for the bundled model."""
    unet, words = (read_json(BUNDLED / part / "config.json") for part in ("unet", "text_encoder"))
    layer, width = "lora_unet_conv_in", unet["block_out_channels"][0]
    down = torch.ones(1, unet["in_channels"], 3, 3)
    for kind, name, state in (
        ("loras", "ink", {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": torch.ones(width, 1, 1, 1)}),
        ("embeddings", "zub", {"a": torch.ones(2, words["hidden_size"])}),
    ):
        (folder / kind).mkdir()
        save_file(state, folder / kind / f"{name}.safetensors")


@contextmanager
def started(server: Server, *module: str, environment: dict[str, str]) -> Iterator[None]:
    """`python -m` with a module and its arguments, as long as the block takes. What it forks ends with it."""
    with server.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_until_up(server, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert not server.count(DENIED), server.log.read_text()


def wait_until_up(server: Server, process: subprocess.Popen) -> None:
    """Until the page answers; AssertionError with the log where the process ends instead."""
    for _ in range(600):
        if process.poll() is not None:
            raise AssertionError(f"the server ended:\n{server.log.read_text()}")
        try:
            urllib.request.urlopen(server.url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the server did not answer:\n{server.log.read_text()}")


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    """A program that uses the API."""
    return Client(server.url, verbose=False)


@pytest.fixture(scope="session")
def photo() -> dict:
    """An example photo, as a program sends it."""
    return handle_file(str(ROOT / "assets" / "examples" / "cat.jpg"))


class Visits:
    """Pages of one visitor each, in browser contexts that later tests use again.

    Of earlier visitors a context keeps the compiled scripts alone: with them a page loads in two thirds of the time.
    """

    def __init__(self, browser: Browser):
        self._browser = browser
        self._idle: list[BrowserContext] = []
        self._used: list[BrowserContext] = []
        self._special: list[BrowserContext] = []

    def open(self, url: str, **options: object) -> Page:
        """Open a page as one more visitor; with options of a browser context, in one of its own."""
        # With less motion the stage shows each step as it comes, and does not hold the first ones.
        usual = {"viewport": {"width": 1280, "height": 1000}, "reduced_motion": "reduce"}
        if options:
            self._special.append(context := self._browser.new_context(**usual | options))
        else:
            self._used.append(context := self._idle.pop() if self._idle else self._browser.new_context(**usual))
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        context.clear_cookies()
        storage = {"origin": "{0.scheme}://{0.netloc}".format(urlsplit(url)), "storageTypes": "local_storage,indexeddb"}
        context.new_cdp_session(page).send("Storage.clearDataForOrigin", storage)
        page.goto(url)
        page.locator("#t2i-generate:visible, #inside-tour:visible").first.wait_for()  # an address may lead inside
        return page

    def close(self) -> None:
        """Close the pages of all visitors."""
        for context in self._special:
            context.close()
        for context in self._used:
            for page in context.pages:
                page.close()
        self._idle += self._used
        self._used, self._special = [], []


@pytest.fixture(scope="session")
def all_visits(browser: Browser) -> Visits:
    """Return the browser contexts of all tests."""
    return Visits(browser)


@pytest.fixture
def visits(all_visits: Visits) -> Iterator[Visits]:
    """Yield them, and close the pages of the test."""
    yield all_visits
    all_visits.close()


@pytest.fixture
def visit(server: Server, visits: Visits) -> Callable[..., Page]:
    """Return a function that opens the page as one more visitor; its options are those of a browser context."""

    def open_page(query: str = "", **options: object) -> Page:
        return visits.open(f"{server.url}/{query}", **options)

    return open_page


@pytest.fixture
def page(visit: Callable[..., Page]) -> Page:
    """The page, as a visitor at a desk sees it."""
    return visit()
