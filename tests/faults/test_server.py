"""The server on the open internet: nobody reads its files, passes the line, holds everybody up, or fills its memory."""

from __future__ import annotations

import base64
import gc
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser

from app import guards, parse_arguments
from tests.conftest import ROOT
from tests.e2e.conftest import PATIENCE
from tests.e2e.visitor import Visitor
from tests.unit.test_hostile_images import png
from ui.runs import cost
from ui.runs.limits import LOCAL_LIMITS
from ui.stage.live import data_uri
from ui.web.bodies import MAX_BODY
from ui.web.headers import SecurityHeaders
from ui.web.hosts import THIS_MACHINE, HostCheck
from ui.web.listeners import release_memory

from .caller import Caller, sentence_of, served

CAT = ROOT / "assets" / "examples" / "cat.jpg"
UNHEARD = 1.0
"""Seconds; as short as a busy machine can keep apart from none."""


@pytest.fixture(scope="module")
def page() -> Iterator[gr.Blocks]:
    """`python app.py`, in this process."""
    with served("--unheard", str(UNHEARD)) as page:
        yield page


@pytest.fixture(scope="module")
def caller(page: gr.Blocks) -> Caller:
    """Somebody who speaks HTTP to it."""
    return Caller(page.local_url)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the server's that nobody uploaded."""
    path = tmp_path_factory.mktemp("secret") / "secret.png"
    path.write_bytes((ROOT / "assets" / "contact_sheet.png").read_bytes())
    return path


def photo_calls(caller: Caller, photo: dict[str, Any]) -> dict[str, tuple[int, list[Any]]]:
    """Every way to hand the page a photo."""
    return {
        "image2image": caller.public("image2image", image=photo, prompt="a", num_inference_steps=1),
        "generate": caller.private("i2i-generate", "click", Photo=photo),
        "mask": caller.public("image2image", image=cat(caller), mask=photo, prompt="a", num_inference_steps=1),
        "backdrop": caller.private("i2i-photo", "change", Photo=photo),
        "start": caller.private("i2i-fit", "change", Photo=photo),
        "noise lab": caller.private("inside-photo", "change", Photo=photo),
    }


WAYS = ("image2image", "generate", "mask", "backdrop", "start", "noise lab")


def cat(caller: Caller) -> dict[str, Any]:
    """An upload."""
    return {"path": caller.upload("cat.jpg", CAT.read_bytes()), "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("way", WAYS)
def test_a_path_of_the_servers_opens_nothing_and_tells_nothing(caller: Caller, secret: Path, way: str):
    link = Path(get_upload_folder()) / "link.png"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    paths = [
        secret,
        secret.with_name("none.png"),
        Path("/etc/passwd"),
        link,
        Path(get_upload_folder()) / ".." / secret.relative_to(Path(get_upload_folder()).parent.anchor),
        Path(get_upload_folder()),
        "a\0b.png",
        "x" * 5000,
        "",
    ]
    answers = {str(caller.ask(photo_calls(caller, {"path": str(path)})[way]).get("error")) for path in paths}
    [sentence] = answers
    assert sentence.startswith(f"{'mask' if way == 'mask' else 'image'} must be uploaded here")
    address = photo_calls(caller, {"path": "http://127.0.0.1:9/x.png"})[way]
    assert str(caller.ask(address).get("error")).startswith("A file must be uploaded here")


PATHS = ("/etc/passwd", "/etc/none", "../../etc/passwd")
DAILY = [*zip(WAYS, 2 * PATHS, strict=True)]
"""Each way and each path at least once."""
REST = [(way, path) for way in WAYS for path in PATHS if (way, path) not in DAILY]


@pytest.mark.parametrize(("way", "path"), [*DAILY, *(pytest.param(*one, marks=pytest.mark.soak) for one in REST)])
def test_a_path_that_gradio_refuses_is_one_sentence_and_one_line(
    caller: Caller, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, way: str, path: str
):
    """As clients send files: with the mark by which Gradio looks at the path before we do."""
    caplog.set_level(logging.INFO, "ui")
    output = caller.ask(photo_calls(caller, {"path": path, "meta": {"_type": "gradio.FileData"}})[way])
    assert re.match("(A file|image|mask) must be uploaded here", str(output["error"])), output
    expect_one_line(capfd, caplog)


@pytest.mark.parametrize("photo", [{"path": [1]}, "text", {"path": {}, "meta": {"_type": "gradio.FileData"}}])
def test_a_value_that_is_not_a_photo_is_one_sentence_and_one_line(
    caller: Caller, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, photo: Any
):
    caplog.set_level(logging.INFO, "ui")
    output = caller.ask(photo_calls(caller, photo)["image2image"])
    assert output["error"], output
    expect_one_line(capfd, caplog)


def expect_one_line(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line about the refusal, and no traceback."""
    assert "Traceback" not in capfd.readouterr().err
    assert len([record for record in caplog.records if "refused" in record.message]) == 1


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_is_opened(caller: Caller, way: str):
    assert "error" not in caller.ask(photo_calls(caller, cat(caller))[way])


def test_a_camera_s_picture_comes_as_text_and_is_opened(caller: Caller):
    photo = {"url": data_uri(Image.new("RGB", (64, 64), "red"))}
    assert "error" not in caller.ask(photo_calls(caller, photo)["start"])


def as_mask(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ({"path": "/etc/passwd"}, "mask must be a PNG of at most 750 kB"),
        ("/etc/passwd", "mask must be a PNG of at most 750 kB"),
        ("data:text/html;base64,eA==", "mask must be a PNG of at most 750 kB"),
        (as_mask(bytes(1_000_000)), "mask must be a PNG of at most 750 kB"),
        (as_mask(b"abc")[:-1], "mask is damaged on its way"),
        (as_mask(b"abc"), "Mask 'mask' is not a picture that can be read"),
        (as_mask(png(65_000, 65_000)), "Mask 'mask' is 65000x65000: use at most"),
    ],
)
def test_what_is_no_mask_is_refused_in_a_sentence(caller: Caller, mask: Any, sentence: str):
    answer = caller.ask(caller.private("i2i-generate", "click", Photo=cat(caller), Mask=mask))
    assert sentence_of(answer).startswith(sentence)


@pytest.mark.parametrize("extra", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_only_uploads_are_restored(caller: Caller, secret: Path, extra: dict[str, Any]):
    number, _ = caller.private("restore", "upload")
    assert "error" in caller.ask((number, [{"path": str(secret), **extra}]))


def test_what_a_program_uploads_and_what_the_page_made_are_opened(caller: Caller, page: gr.Blocks):
    client = Client(page.local_url, verbose=False)
    made, _ = client.predict(handle_file(str(CAT)), "a", num_inference_steps=1, api_name="/image2image")
    again = caller.ask(caller.public("text2image", prompt="a", num_inference_steps=1))["data"][0][0]["image"]
    assert made
    assert "error" not in caller.ask(photo_calls(caller, {"path": again["path"]})["image2image"])


@pytest.mark.parametrize("way", ["run", "api"])
def test_no_way_leads_round_the_line(caller: Caller, way: str):
    answer = caller.http.post(f"gradio_api/{way}/text2image", json={"data": caller.public("text2image", prompt="a")[1]})
    assert answer.status_code == 404
    assert "queue" in answer.text
    number, data = caller.private("t2i-generate", "click")
    answer = caller.http.post(f"gradio_api/{way}/predict", json={"fn_index": number, "data": data})
    assert answer.status_code == 404


def test_a_run_that_nobody_listens_to_ends_and_is_forgotten(
    caller: Caller, page: gr.Blocks, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "ui"):
        _, data = caller.public("text2image", prompt="a", num_inference_steps=150, num_images=4)
        body = {"data": data}
        ids = [caller.http.post("gradio_api/call/text2image", json=body).json()["event_id"] for _ in range(4)]
        wait_until(lambda: page._queue.event_ids_to_events)
        wait_until(lambda: not page._queue.event_ids_to_events, 5 * UNHEARD)
    assert "stopped at step" in caplog.text
    assert not set(ids) & {*page._queue.pending_messages_per_session, *page._queue.pending_event_ids_session}


def test_who_listens_is_heard_out(caller: Caller):
    call = caller.public("text2image", prompt="a", num_inference_steps=40)
    begun = time.monotonic()
    assert caller.ask(call)["data"][1]["finished"]
    assert time.monotonic() - begun > UNHEARD, "the run was too quick to show anything: ask for more steps"


def test_a_session_that_is_over_leaves_nothing_in_the_line(caller: Caller, page: gr.Blocks):
    caller.ask(caller.public("text2image", prompt="a", num_inference_steps=1))
    wait_until(lambda: not page._queue.pending_messages_per_session and not page._queue.pending_event_ids_session)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes six seconds for an evaluation: 600 of them are the longest request."""
    monkeypatch.setattr(cost, "pace_of", lambda pipeline: cost.Pace(pipeline.default_size, 0, 0, 6, 0))


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 601), ("heun", 301), ("heun", 1000)])
def test_a_program_can_not_take_all_the_time(caller: Caller, slow: None, sampler: str, steps: int):
    call = caller.public("text2image", prompt="a", num_inference_steps=steps, sampler=sampler)
    sentence = rf"{steps} {sampler} steps x 1 of 256x256 take about .* min here, and one request may take 60 min"
    assert re.search(sentence, caller.ask(call)["error"])


def test_a_person_can_not_take_all_the_time(caller: Caller, slow: None):
    call = caller.private("t2i-generate", "click", Steps=150, Pictures=4, Width=288)
    assert "and one request may take 60 min" in caller.ask(call)["error"]


def test_what_one_may_ask_for_is_a_setting_and_less_where_anybody_may_come(monkeypatch: pytest.MonkeyPatch):
    assert parse_arguments([]).limits == LOCAL_LIMITS
    usual = replace(LOCAL_LIMITS, max_upload=20, max_address_runs=128)
    for public in (["--host", "0.0.0.0"], ["--share"]):
        assert parse_arguments(public).limits == replace(usual, max_seconds=60)
    monkeypatch.setenv("SD_MAX_SECONDS", "77")
    monkeypatch.setenv("SD_SESSIONS", "3")
    assert parse_arguments(["--share"]).limits == replace(usual, max_seconds=77, sessions=3)
    assert parse_arguments(["--share", "--max-seconds", "88"]).limits.max_seconds == 88


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--max-seconds", "0", "--max-seconds must be above 0, got 0.0"),
        ("--unheard", "nan", "--unheard must be above 0, got nan"),
        ("--preview-share", "1", "--preview-share must be at least 0 and below 1, got 1.0"),
        ("--max-images", "many", "argument --max-images: invalid int value: 'many'"),
    ],
)
def test_a_limit_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], flag: str, value: str, sentence: str):
    with pytest.raises(SystemExit):
        parse_arguments([flag, value])
    assert sentence in capsys.readouterr().err


LONG = "x" * 1_000_000
NUMBERS = ("num_inference_steps", "guidance_scale", "height", "width", "seed", "num_images", "preview_every")
TEXTS = ("sampler", "preview", "model")
NOT_NUMBERS = (10**400, -(10**400), math.nan, math.inf, [], {}, LONG)
NOT_TEXTS = ([LONG], {"a": 1}, 7, LONG, "\0")
BOXES = ("Model", "Sampler", "Live preview", "Steps", "Guidance", "Width", "Height", "Pictures")
NOT_IN_BOXES = (10**400, math.nan, [], {}, [LONG], LONG)
MALFORMED = [
    *(("text2image", name, value) for name in NUMBERS for value in NOT_NUMBERS),
    *(("text2image", name, value) for name in TEXTS for value in NOT_TEXTS),
    *(("t2i-generate", label, value) for label in BOXES for value in NOT_IN_BOXES),
    *(("t2i-generate", "Seed", value) for value in ([], LONG, "9" * 4000, "9" * 4400)),
    *(("t2i-generate", "Prompt", value) for value in (LONG, [LONG])),
]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_programs_and_page_refuse_malformed_values_in_a_short_sentence(
    caller: Caller, step: int, caplog: pytest.LogCaptureFixture
):
    """Every day each name with one value or two, in the soak with all."""
    with caplog.at_level(logging.INFO, "ui"):
        for way, name, value in MALFORMED[::step]:
            if way == "text2image":
                call = caller.public(way, **{"prompt": "a", "num_inference_steps": 1, name: value})
            else:
                call = caller.private(way, "click", **{name: value})
            expect_sentence(sentence_of(caller.ask(call)), caplog)


def expect_sentence(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """It names what is wrong and the remedy, is short, and is one line of the log."""
    remedy = re.search(r"(must be|can't be).*", text)  # before it the page has the control's label
    assert remedy, text
    assert len(text) < 400
    [line] = [record for record in caplog.records if record.name == "ui.runs.errors"]
    assert line.getMessage().startswith("refused at ")
    assert line.getMessage().endswith(remedy[0])
    assert line.exc_info is None
    caplog.clear()


@pytest.mark.parametrize("body", ["9" * 5000, "{", '{"data": [' + "[" * 100_000, "NaN", '{"data": {"a": 1}}', "null"])
def test_a_body_that_is_no_call_is_the_caller_s_fault(caller: Caller, body: str):
    headers = {"Content-Type": "application/json"}
    answer = caller.http.post("gradio_api/queue/join", content=body.encode(), headers=headers)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 200_000


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_a_hundred_megabytes_is_refused_before_it_is_read(caller: Caller, announced: bool):
    body = json.dumps({"data": ["a" * MAX_BODY]}).encode()
    content = body if announced else iter([body[: MAX_BODY // 2], body[MAX_BODY // 2 :]])
    answer = caller.http.post("gradio_api/queue/join", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert f"more than {MAX_BODY:,} bytes" in answer.text
    assert caller.upload("large.bin", body).endswith("large.bin")


def test_a_busy_port_is_a_sentence(page: gr.Blocks):
    port = page.local_url.rstrip("/").rsplit(":")[-1]
    ended = subprocess.run([sys.executable, "app.py", "--port", port], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith(f"port {port} of 127.0.0.1 is taken")
    assert "Traceback" not in ended.stderr


def test_every_answer_carries_its_headers(caller: Caller, page: gr.Blocks):
    for path in (
        "",
        "config",
        "theme.css",
        "none",
        f"gradio_api/file={CAT}",
        "gradio_api/queue/status",
    ):
        headers = caller.http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == "'self'"
        assert policy["frame-ancestors"] == policy["object-src"] == "'none'"


def test_only_in_a_space_the_page_is_framed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPACE_ID", "somebody/something")
    options = parse_arguments([])
    assert options.public
    headers, *checks = guards(options)
    policy = SecurityHeaders(None, **headers.kwargs).headers["Content-Security-Policy"]
    assert "frame-ancestors 'self' https://huggingface.co " in policy
    assert HostCheck not in [one.cls for one in checks]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[", "x" * 9000])
def test_another_name_for_this_machine_is_refused(caller: Caller, host: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ui"):
        answer = caller.http.get("config", headers={"Host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.text
    assert len(answer.text) < 300
    assert "refused: the host" in caplog.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:7860"])
def test_this_machine_s_own_names_are_answered(caller: Caller, host: str):
    assert caller.http.get("config", headers={"Host": host}).status_code == 200


def test_names_are_allowed_by_a_flag():
    def hosts(*flags: str) -> list[str]:
        """The names that are answered to; none where every name is."""
        return [name for one in guards(parse_arguments([*flags])) for name in one.kwargs.get("hosts", [])]

    assert hosts() == [*THIS_MACHINE]
    assert hosts("--host", "0.0.0.0") == []
    for flags in ([], ["--host", "0.0.0.0"]):
        assert hosts(*flags, "--allow-host", "a.example") == [*THIS_MACHINE, "a.example"]


@pytest.mark.parametrize("path", ["monitoring", "monitoring/summary", "monitoring/x"])
def test_what_visitors_do_is_nobody_s_to_read(caller: Caller, path: str):
    assert caller.http.get(path).status_code == 403


def test_the_page_works_under_its_policy_in_a_browser(browser: Browser):
    tab = browser.new_page()
    said: list[str] = []
    tab.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.set_default_timeout(PATIENCE)
    with served() as page:  # one with the usual patience: a browser may be slow to listen
        tab.goto(page.local_url)
        visitor = Visitor(tab, "i2i")
        visitor.choose_photo(CAT)
        visitor.ask("a cat", steps=2)
        visitor.generate()
        visitor.wait_until("finished")
        visitor.expect_result()
        with tab.expect_download():
            tab.click("#i2i-save")
        tab.get_by_role("tab", name="Inside", exact=True).click()
        tab.get_by_role("button", name="Laboratory: all numbers").click()
        tab.locator("#inside-noise img").first.wait_for()
        tab.close()
    assert said == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have nothing to be told")
def test_freed_memory_is_given_back():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    gc.collect()
    blocks = [bytes(1000) for _ in range(100_000)]
    before, last = resident(), blocks[-1]
    del blocks  # the last block keeps the heap from shrinking by itself
    release_memory()
    assert before - resident() > 50e6
    assert last


def wait_until(there: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something to be true; AssertionError where it is not in time."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
