"""Requests as nobody sends them by mistake: each is answered or refused in a sentence, and the server goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ui.runs.errors import UNEXPECTED

from .caller import Caller, served

STEPS = 4
"""The most steps of a request, of one picture: a request that is accepted by chance is drawn at once."""
AT_ONCE = 10.0
"""Seconds; as long as a busy machine may take for what takes no time."""

TOGETHER = 10
"""How many ask at once: the line of events is slow, and has room for twice as many."""
SOAK = pytest.mark.soak


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    """A caller of a page that refuses every request but a short one."""
    with served("--max-steps", str(STEPS), "--max-seconds", "0.001") as page:
        yield Caller(page.local_url)


numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 1e308, 5e-324, -1, 0, 1, 999])
SENTENCES = (
    *("", "\0", "\r\n\x1b[2J", "\u202eevig", "שלום עולם مرحبا", "\ud800", "e\u0301" * 500, "𒐫" * 5000),
    *("<img src=x onerror=alert(1)>", "${alert(1)}", "{{7*7}}", "![](//127.0.0.1)", "%s%n", "`|~#*_"),
    *("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/", "data:image/png;base64,"),
    *("cat-" * 5000, "((" * 9000, "<lora:" * 3000, "(a:9e9)" * 2000, "BREAK " * 3000, "x" * 1_000_000),
    *("[" * 100_000, "9" * 5000, "NaN", "Infinity", "-1", "1e999", '{"a":1}', '{"run":1,"link":[]}'),
)
texts = st.sampled_from(SENTENCES) | st.text(max_size=40) | st.text("()[]:<>\\'\"`*_{}$& \n", max_size=40)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
files = st.fixed_dictionaries(
    {"path": values},
    optional={"meta": st.just({"_type": "gradio.FileData"}) | values, "url": texts, "orig_name": texts, "size": values},
)
chosen = st.fixed_dictionaries({}, optional={"index": values, "value": values})
# What stands beside the data in a body.
extras = st.fixed_dictionaries({}, optional={"event_data": values | chosen, "trigger_id": st.none() | st.integers()})

Call = tuple[dict[str, Any], list[Any], dict[str, Any]]


@st.composite
def calls(draw: st.DrawFn, caller: Caller) -> Call:
    """An endpoint with its data, mostly what the page itself would send, and what else the body says."""
    endpoint = draw(st.sampled_from(caller.endpoints))
    _, own = caller.filled(endpoint, {})
    data = [draw(st.one_of(st.just(one), st.just(one), values, files)) for one in own]
    if draw(st.integers(0, 9)) == 0:
        data = draw(st.just(data[:-1]) | st.just([*data, None]) | st.lists(values, max_size=3))
    return endpoint, data, draw(extras)


def answer(caller: Caller, call: Call) -> dict[str, Any]:
    """What becomes of a call: `data` or `error`. Small events take none of the line's places, and may go round it."""
    endpoint, data, more = call
    if endpoint["queue"]:
        try:
            return caller.ask((endpoint["id"], data), **more)
        except httpx.HTTPStatusError as refused:
            return refusal(refused.response)
    return caller.post("run/predict", {"fn_index": endpoint["id"], "data": data, **more}).json()


def refusal(response: httpx.Response) -> dict[str, Any]:
    """The answer to what never became an event: the caller's fault, in a sentence."""
    assert response.is_client_error, response.text
    return {"error": response.json()["detail"]}


def expect_sentence(text: Any) -> None:
    """It is one, and says more than that something went wrong."""
    assert isinstance(text, str), text
    assert 10 < len(text) < 600, text[:2000]
    assert text != UNEXPECTED


@pytest.fixture
def unharmed(caller: Caller, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], None]:
    """What must hold after every request: nothing went wrong unforeseen, and the next is answered at once."""
    caplog.set_level(logging.INFO)

    def check() -> None:
        wrong = [one for one in caplog.records if one.exc_info or one.levelno >= logging.ERROR]
        assert not wrong, wrong[0].exc_text or wrong[0].getMessage()
        caplog.clear()
        said = capfd.readouterr().err
        assert "Traceback" not in said, said[-3000:]
        assert caller.http.get("health", timeout=AT_ONCE).status_code == 200

    return check


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=SOAK)])
def test_whatever_is_asked(caller: Caller, unharmed: Callable[[], None], count: int) -> None:
    @settings(max_examples=count // TOGETHER, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(calls(caller), min_size=TOGETHER, max_size=TOGETHER))
    def asked(calls: list[Call]) -> None:
        with ThreadPoolExecutor(TOGETHER) as pool:
            outputs = list(pool.map(partial(answer, caller), calls))
        for output in outputs:
            if "error" in output:
                expect_sentence(output["error"])
        unharmed()

    asked()


ROUTES = ("queue/join", "run/predict", "run/text2image", "call/text2image", "call/v2/text2image", "call/none", "cancel")
ROUTES += ("reset", "component_server", "process_recording", "stream/x", "stream/x/close", "vibe-edit", "upload")
fields = {
    **{"fn_index": st.integers(0, 80) | values, "session_hash": texts | values, "event_id": texts | values},
    **{"event_data": values, "trigger_id": values, "simple_format": values, "batched": values, "oauth_token": values},
    **{"component_id": values, "fn_name": texts},
}
data = st.lists(values, max_size=3)
bodies = values | st.fixed_dictionaries({"data": data}, optional=fields) | st.fixed_dictionaries({}, optional=fields)


@pytest.mark.parametrize("count", [100, pytest.param(2_000, marks=SOAK)])
def test_whatever_is_posted(caller: Caller, unharmed: Callable[[], None], count: int) -> None:
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(ROUTES), bodies)
    @example("queue/join", {"fn_index": 0, "data": [], "session_hash": ""})  # once in the line, it ended all others
    def posted(route: str, body: Any) -> None:
        answer = caller.post(route, body)
        # Small events go round the line, and to these Gradio has one answer for all that can go wrong.
        assert answer.status_code < 500 or (route.startswith("run/") and answer.json()["error"]), answer.text
        unharmed()

    posted()


@pytest.mark.parametrize(
    "path", ["gradio_api/queue/data?session_hash=none", "gradio_api/call/text2image/none", "gradio_api/call/none/x"]
)
def test_who_listens_to_nothing_is_told_so(caller: Caller, unharmed: Callable[[], None], path: str) -> None:
    caller.http.get(path, timeout=AT_ONCE)
    unharmed()
