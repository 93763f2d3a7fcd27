"""Nobody gets what is not theirs: files of the server, what it could fetch, other models, another visitor's runs."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, expect

from stable_diffusion.loading.config import BUNDLED
from tests.conftest import ROOT
from tests.e2e.conftest import PATIENCE

from .caller import Caller, served

SECRET = "a secret prompt"
TAG = "<img src=x onerror='window.hacked=1'>"


@pytest.fixture(scope="module")
def page() -> Iterator[gr.Blocks]:
    """`python app.py`, in this process."""
    with served() as page:
        yield page


@pytest.fixture(scope="module")
def caller(page: gr.Blocks) -> Caller:
    """Somebody who speaks HTTP to it."""
    return Caller(page.local_url)


# Files of the server.

FILES = (
    *("/etc/passwd", "/proc/self/environ", "/proc/self/cwd/app.py", str(ROOT / "app.py"), str(ROOT / "README.md")),
    *(str(BUNDLED / "unet" / "config.json"), "app.py", "ui/page.py", "", "."),
)
FORMS = (
    "{}",
    "file://{}",
    "file:{}",
    "//{}",
    "{}%00.png",
    "{}/../{}",
    "{}%2f..%2f{}",
    "uploads/{}",
    "~/{}",
    "\\\\x\\{}",
)


ROUTES = ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "svelte/")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_no_route_gives_a_file_of_the_servers(caller: Caller, route: str, step: int) -> None:
    """Every day each file and each form, in the soak all of them together."""
    inside = Path(get_upload_folder())
    inside.mkdir(parents=True, exist_ok=True)
    paths = [form.format(path, path.lstrip("/")) for path in FILES for form in FORMS][::step]
    paths += [str(inside), f"{inside}/", f"{inside}/..", f"{inside}/kept", str(inside.parent)]
    for folder in (inside, ROOT / "assets"):
        ups = "/".join([".."] * len(folder.parts))
        paths += [f"{folder}/{ups}/etc/passwd", quote(f"{folder}/{ups}/etc/passwd", safe=""), f"{ups}/etc/passwd"]
    for path in paths:
        answer = caller.http.get(route + path)
        assert answer.status_code < 500, path
        own = answer.text.startswith("<!doctype html>")  # where a path leads up to the page itself
        assert answer.status_code >= 300 or own, f"{path}: {answer.text[:300]}"


@pytest.mark.parametrize(
    "name",
    [
        *("../../evil.html", "/etc/evil.html", "evil.svg", "evil.js", f"{TAG}.html", "..", ".", "a\0b.html", "x" * 300),
        *(".htaccess", "con.html", "evil.png.html", "~root.html", "ünï.html", "a/b/c.html", "\\..\\evil.html"),
    ],
)
def test_an_upload_stays_where_it_belongs_and_is_no_page(caller: Caller, name: str) -> None:
    answer = caller.http.post("gradio_api/upload", files={"files": (name, b"<svg onload='alert(1)'>")})
    if answer.status_code == 400:
        return
    [path] = answer.raise_for_status().json()
    folder = Path(get_upload_folder()).resolve()
    assert Path(path).resolve().parent.parent == folder, path
    served = caller.http.get(f"gradio_api/file={quote(path)}").raise_for_status()
    assert served.headers["content-disposition"].startswith("attachment")
    assert served.headers["content-type"] == "application/octet-stream"
    assert served.headers["X-Content-Type-Options"] == "nosniff"


# What it could fetch.


@pytest.fixture
def fetched() -> Iterator[tuple[str, list[str]]]:
    """A server of this machine, whose every answer leads to another of its pages, and what it was asked for."""
    asked: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/secret.png")
            self.end_headers()

        do_HEAD = do_POST = do_GET

    server = HTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_nothing_is_fetched_for_anybody(caller: Caller, fetched: tuple[str, list[str]]) -> None:
    host, asked = fetched
    number, _ = caller.private("restore", "upload")
    port = host.rsplit(":")[-1]
    names = (host, f"localhost:{port}", f"2130706433:{port}", f"[::ffff:127.0.0.1]:{port}", f"0:{port}")
    addresses = [f"http://{name}/x.png" for name in names] + [f"{way}//{host}/x.png" for way in ("", "HTTP:", "ftp:")]
    for address in addresses:
        for file in (
            {"path": address},
            {"path": address, "meta": {"_type": "gradio.FileData"}},
            {"path": None, "url": address, "meta": {"_type": "gradio.FileData"}},
        ):
            assert caller.ask(caller.public("image2image", image=file, prompt="a", num_inference_steps=1))["error"]
            assert caller.ask((number, [file, None]))["error"]
        for call in (
            caller.public("text2image", prompt=f"<lora:{address}:1>", num_inference_steps=1),
            caller.public("text2image", prompt="a", model=address),
        ):
            assert caller.ask(call)["error"]
        for route in ("gradio_api/file=", "gradio_api/file/", "gradio_api/proxy="):
            assert caller.http.get(route + address).status_code in (400, 403, 404)
    assert asked == []


@pytest.mark.parametrize(("route", "scheme"), [("file=", "http"), ("file/", "https"), ("proxy=", "HTTP")])
def test_nor_is_anything_of_another_host(caller: Caller, route: str, scheme: str) -> None:
    answer = caller.http.get(f"gradio_api/{route}{scheme}://192.0.2.1/x.png")
    assert (answer.status_code, answer.text) == (403, "This page has no use for that.")


@pytest.mark.parametrize(
    "route", ["deep_link?session_hash=x", "dev/reload", "stream/a/b/1/playlist.m3u8", "vibe-code/"]
)
def test_routes_that_the_page_does_not_use_are_closed(caller: Caller, route: str) -> None:
    assert caller.http.get(f"gradio_api/{route}").status_code == 403
    assert caller.post("component_server", {}).status_code == caller.post("process_recording", {}).status_code == 403


# Models.


@pytest.mark.parametrize(
    "name",
    [
        *(str(BUNDLED), "../emoji", "file:///etc/passwd", "EMOJI (BUNDLED)"),
        *("stable-diffusion-v1-5/stable-diffusion-v1-5", "http://192.0.2.1/x.safetensors", "\0"),
    ],
)
def test_only_models_of_the_list_are_drawn_with(caller: Caller, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ui")
    for call in (
        caller.public("text2image", prompt="a", num_inference_steps=1, model=name),
        caller.private("t2i-generate", "click", Model=name),
        caller.private("model", "blur", Model=name),
    ):
        assert re.match("model must be one of|Model can't be", caller.ask(call)["error"])
    assert "computes in" not in caplog.text, "it was loaded"


# Another visitor's.


class Run:
    """A visitor's run, followed as the page does."""

    def __init__(self, caller: Caller, **values: Any):
        self.caller, self.session = caller, uuid.uuid4().hex
        self.call = caller.private("t2i-generate", "click", Prompt=SECRET, **values)
        self.known, self.run_id, self.said = threading.Event(), "", ""

    def follow(self) -> str:
        """All that the server says of it."""
        self.caller.join(self.call, self.session).raise_for_status()
        listen = {"session_hash": self.session}
        with self.caller.http.stream("GET", "gradio_api/queue/data", params=listen) as stream:
            for line in stream.iter_lines():
                self.said += line
                if found := re.search(r'"run":\s*"(\w{32})"', line):
                    self.run_id = found[1]
                    self.known.set()
        return self.said


def test_nobody_stops_reads_or_restores_anothers_run(caller: Caller) -> None:
    """A run's name is its visitor's alone; and even who knows it can't stop it, or hand one in as their own."""
    run, other = Run(caller, Steps=40), uuid.uuid4().hex
    with ThreadPoolExecutor() as pool:
        followed = pool.submit(run.follow)
        assert run.known.wait(60)
        for elem_id, event in (("t2i-stop", "click"), ("i2i-stop", "click")):
            number, data = caller.private(elem_id, event)
            caller.post("run/predict", {"fn_index": number, "data": [run.run_id] * len(data), "session_hash": other})
        for path in ("config", "health", "gradio_api/queue/status", "gradio_api/info", "", "gradio_api/startup-events"):
            text = caller.http.get(path).text
            assert not any(mine in text for mine in (run.run_id, run.session, SECRET)), path
        said = followed.result()
    assert '"finished"' in said
    assert '"stopped"' not in said
    forged_run = {"kind": "t2i", "request": {"prompt": ""}, "files": ["/etc/passwd"], "film": "/etc/passwd"}
    for elem_id in ("t2i-save", "t2i-use", "t2i-inside"):
        number, data = caller.private(elem_id, "click")
        answer = caller.ask((number, [forged_run] * len(data)), other)
        assert answer["error"].startswith("There is no picture yet"), answer
    number, _ = caller.private("history", "select")
    answer = caller.ask((number, [[forged_run]]), other, event_data={"index": 0, "value": None})
    assert answer["error"].startswith("The entry that you clicked is gone"), answer


def test_a_name_that_is_no_runs_finds_none(caller: Caller) -> None:
    run = Run(caller, Steps=1)
    run.follow()
    [view] = [one for one, props in caller.components.items() if props.get("elem_id") == "t2i-live"]
    resume = next(one for one in caller.endpoints if one["targets"][0][1] == "load" and view in one["outputs"])
    number, data = caller.filled(resume, {})

    def found(name: str) -> bool:
        data[0] = json.dumps({"run": name, "link": ""})
        answer = caller.ask((number, data))
        assert "error" not in answer
        return "data:image" in json.dumps(answer)

    assert found(run.run_id)
    for name in ("0" * 32, run.run_id[:-1], run.run_id.upper(), "*", "", "../x", "%", "None"):
        assert not found(name)


def test_a_visit_brings_back_only_finished_runs_by_name(caller: Caller, tmp_path: Path) -> None:
    run = Run(caller, Steps=1)
    run.follow()
    [gallery] = [one for one, props in caller.components.items() if props.get("elem_id") == "history"]
    restore = next(one for one in caller.endpoints if one["targets"][0][1] == "load" and gallery in one["outputs"])
    number, data = caller.filled(restore, {})

    def pictures(stored: Any) -> list[str]:
        data[1] = stored
        answer = caller.ask((number, data))
        assert "error" not in answer, answer
        return re.findall(r'"path": "([^"]+)"', json.dumps(answer["data"]))

    [own] = pictures(json.dumps(["0" * 32, run.run_id, run.run_id]))
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    foreign = [
        own,
        str(Path(own).parent),
        str(tmp_path / "mine.png"),
        "/etc/passwd",
        "../x",
        "",
        "*",
        run.run_id.upper(),
    ]
    for stored in (
        json.dumps(foreign),
        json.dumps([{"files": [own]}, [run.run_id], None, 1]),
        json.dumps({"files": [own]}),
        *("", "null", "7", run.run_id, "[" * 10_000, '"\\ud800"'),
    ):
        assert pictures(stored) == [], stored[:80]
    assert pictures(json.dumps(["x"] * 100 + [run.run_id])) == [], "more than a visit remembers"


# What is brought, in a browser.


def test_what_is_brought_is_never_read_as_html(page: gr.Blocks, browser: Browser, tmp_path: Path) -> None:
    plain, told = tmp_path / f"{TAG}.png", tmp_path / "told.png"
    Image.new("RGB", (8, 8)).save(plain)
    chunks = PngInfo()
    line = f"Steps: 4, Seed: 7, Sampler: {TAG}, Model: {TAG}, Note: {TAG}"
    chunks.add_text("parameters", f"{TAG} <lora:{TAG[:-1]}:1>\nNegative prompt: {TAG}\n{line}")
    Image.new("RGB", (8, 8)).save(told, pnginfo=chunks)
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    names = ("prompt", "negative_prompt", "sampler", "schedule", "model", "num_inference_steps", "mask", "fit")
    tab.goto(f"{page.local_url}?{urlencode(dict.fromkeys(names, TAG))}")
    toasts = tab.locator(".toast-body")
    expect(toasts.filter(has_text="Not taken").first).to_contain_text("onerror")
    expect(tab.locator("#t2i-prompt textarea")).to_have_value(TAG)
    tab.set_input_files("#restore input[type=file]", str(told))
    expect(toasts.filter(has_text="Note").first).to_contain_text("onerror")
    tab.set_input_files("#restore input[type=file]", str(plain))
    expect(toasts.filter(has_text="carries no settings").first).to_contain_text("onerror")
    expect(tab.locator("#t2i-words")).to_be_visible()
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("img[src=x]").count() == 0
    tab.close()
