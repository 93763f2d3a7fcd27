"""What befalls a server: killed in mid-run, no room on the disk, no memory, a download cut off, a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, expect

from app import parse_arguments, serve
from stable_diffusion import Pipeline
from tests.conftest import ROOT, awaited
from tests.e2e.conftest import PATIENCE, free_port
from tests.e2e.visitor import Visitor
from tests.faults.caller import TIMEOUT, Caller
from tests.hub_server import serve as serve_hub
from ui.keep.files import DAY
from ui.resume import GONE
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.errors import is_out_of_memory
from ui.runs.models import LoadedModels

from .server import Call, Message, Process, Program, calling, connection, running
from .test_load import LONG, call, expect_drawn, request

NO_ROOM = "The server can't keep a file (File too large): try again later."
"""What the system says under a limit on files; of a full disk it says: No space left on device."""
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a running process are Linux' own")


@contextmanager
def limited(server: Process, resource: int, soft: int) -> Iterator[None]:
    """A server with less of something than it had."""
    process = psutil.Process(server.process.pid)
    before = process.rlimit(resource)
    process.rlimit(resource, (soft, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource, before)


def told(caller: Caller, asked: Call) -> list[Message]:
    """All that a call is told, to its end."""

    async def ask() -> list[Message]:
        async with connection(str(caller.http.base_url)) as http:
            program = Program(caller, http)
            await program.join(asked)
            return [message async for message in program.listen() if message["msg"] == "log" or "output" in message]

    return awaited(ask())


def drawn(caller: Caller, asked: Call) -> list[bytes]:
    """The files of a run's pictures."""

    async def ask() -> list[bytes]:
        async with connection(str(caller.http.base_url)) as http:
            program = Program(caller, http)
            return await program.files(await program.ask(asked))

    return awaited(ask())


@LINUX
def test_a_full_disk_is_a_sentence_and_no_picture_is_lost(server: Process, pipe: Pipeline):
    asked = request(1)
    with calling(server.url) as caller:
        expect_drawn(pipe, asked, drawn(caller, call(caller, asked)))
        before = server.usage()
        with limited(server, psutil.RLIMIT_FSIZE, 100):
            *steps, ended = told(caller, call(caller, asked))
            assert ended["output"]["error"] == NO_ROOM
            assert "data:image/webp" in str(steps[-1])
            assert "finished" in str(steps[-1])
            on_the_page = told(caller, caller.private("t2i-generate", "click", Prompt="a", Steps=2))
            assert "Finished in 2 steps." in str(on_the_page)
            assert "Not kept" in str(on_the_page)
            assert on_the_page[-1]["success"]
            upload = caller.http.post("gradio_api/upload", files={"files": ("x.png", bytes(10_000))})
            assert (upload.status_code, upload.text) == (507, NO_ROOM)
        server.wait_for_log(NO_ROOM, count=2)
        half = list(server.files.glob("tmp*"))  # an upload's, for ui/keep/files.py to sweep in an hour
        assert server.usage().files == before.files + len(half)
        assert server.usage().folders == before.folders
        expect_drawn(pipe, asked, drawn(caller, call(caller, asked)))
    assert "Traceback" not in server.log.read_text()


@LINUX
def test_where_memory_runs_out_a_sentence_says_so_and_others_draw(server: Process, pipe: Pipeline, tmp_path: Path):
    asked = request(1)
    with calling(server.url) as caller:
        expect_drawn(pipe, asked, drawn(caller, call(caller, asked)))
        Image.new("RGB", (6000, 6000)).save(tmp_path / "photo.png")
        path = caller.upload("photo.png", (tmp_path / "photo.png").read_bytes())
        photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
        large = caller.public("image2image", image=photo, prompt="a", num_inference_steps=1)
        room = server.process.memory_info().vms + 50_000_000  # of which the photo wants 108 at least
        with limited(server, psutil.RLIMIT_AS, room):
            sentence = "image 'photo.png' of 6000x6000 needs more memory than there is: use a smaller picture"
            assert told(caller, large)[-1]["output"]["error"] == sentence
            expect_drawn(pipe, asked, drawn(caller, call(caller, asked)))
        assert len(drawn(caller, large)) == 1


def test_what_torch_says_is_known_as_a_lack_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_programs_and_pages_of_a_server_that_is_killed_are_told_and_go_on(
    tiny: Path, tmp_path: Path, pipe: Pipeline, browser: Browser
):
    port, options = free_port(), ("--model", str(tiny))
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    with running(tmp_path, port, *options) as server, calling(server.url) as caller:
        kept, old = (told(caller, call(caller, request(number)))[-1]["output"]["data"][0] for number in (1, 2))
        tab.goto(server.url)
        visitor = Visitor(tab)
        visitor.ask("a red fox", steps=150, seed="7")
        seen = threading.Event()
        with ThreadPoolExecutor() as pool:
            programs = pool.submit(asyncio.run, cut_off(server, caller, seen))
            visitor.generate()
            visitor.wait_until("step")
            seen.set()
    assert programs.result() == [True] * 8
    expect(tab.locator(".toast-body")).to_contain_text("Connection")
    folder = Path(old[0]["image"]["path"]).parent
    os.utime(folder, (time.time() - DAY,) * 2)
    with running(tmp_path, port, *options) as server, calling(server.url) as caller:
        assert caller.http.get(f"gradio_api/file={kept[0]['image']['path']}").is_success
        assert not folder.exists()
        expect_drawn(pipe, request(1), drawn(caller, call(caller, request(1))))
        expect(visitor.view).to_contain_text(GONE)  # the page comes back by itself
        expect(tab.locator("#t2i-prompt textarea")).to_have_value("a red fox")
        visitor.set_number("steps", 3)
        visitor.generate()
        visitor.wait_until("finished")
        expect(visitor.view.locator('[data-fact="seed"]')).to_have_text("7")
        assert "Traceback" not in server.log.read_text()
    tab.close()


async def cut_off(server: Process, caller: Caller, now: threading.Event) -> list[bool]:
    """Kill a server that draws for eight programs: whether each hears so, and does not wait for ever."""
    long = caller.public("text2image", prompt="a", num_inference_steps=600, preview="vae")
    steps = asyncio.Semaphore(0)

    async def listen() -> bool:
        program = Program(caller, http)
        try:
            await program.join(long)
            async for message in program.listen():
                if message["msg"] == "process_generating":
                    steps.release()
        except httpx.TransportError:
            return True
        return False

    async with connection(server.url) as http:
        listening = asyncio.gather(*(listen() for _ in range(8)))
        await steps.acquire()
        await asyncio.to_thread(now.wait, TIMEOUT)
        await asyncio.to_thread(server.kill)
        return await listening


LOAD = "import sys; from stable_diffusion.model_loader import load; load(sys.argv[1], device='cpu'); print('whole')"


def test_a_download_that_was_killed_goes_on_with_the_next_file(tiny: Path, tmp_path: Path):
    """How one goes on whose line is cut, tests/unit/test_hub.py shows."""
    with serve_hub({"someone/tiny-model": tiny}) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", LOAD, "someone/tiny-model"]
        hub.hold.add("vae/diffusion_pytorch_model.safetensors")
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        assert hub.held.wait(PATIENCE / 1000)
        while not list(tmp_path.rglob("snapshots/*/unet/*.safetensors")):
            time.sleep(0.05)
        process.kill()
        process.wait()
        hub.hold.clear()
        hub.requests.clear()
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert "whole" in ended.stdout, ended.stderr
        weights = [name for name in hub.fetched() if name.endswith("safetensors")]
        assert "vae/diffusion_pytorch_model.safetensors" in weights
        assert "unet/diffusion_pytorch_model.safetensors" not in weights


@pytest.mark.parametrize("years", [10, -10])
def test_a_clock_that_jumps_disturbs_nobody(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, years: int
):
    holder = LoadedModels(Catalogue(str(tiny)), device="cpu")
    holder.pipeline()
    page = serve(parse_arguments(["--port", str(free_port()), "--unheard", "30"]), holder, Local(holder))
    now = time.time

    async def run(caller: Caller) -> Message:
        ended: Message = {}
        async with connection(page.local_url) as http:
            program = Program(caller, http)
            await program.join(caller.public("text2image", prompt="a", num_inference_steps=LONG))
            async for message in program.listen():
                if message["msg"] == "process_generating":
                    monkeypatch.setattr(time, "time", lambda: now() + years * 365 * DAY)
                ended = message.get("output", ended)
        return ended

    with caplog.at_level(logging.INFO, "ui"), calling(page.local_url) as caller:
        assert awaited(run(caller))["data"][1]["finished"]
        assert drawn(caller, call(caller, request(1)))
    page.close()
    assert "finished at step" in caplog.text
    assert "nobody has listened" not in caplog.text
