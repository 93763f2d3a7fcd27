"""Over thousands of runs, refused and senseless calls: memory, threads, files and folders stay as they were."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import awaited
from tests.faults import test_requests
from tests.faults.caller import Caller

from .server import Call, Process, Program, Usage, all_of, calling, connection

RUNS, REFUSED, SENSELESS = 3000, 10_000, 3000
WARM_UP = 300
"""Calls after which what is bounded is full: 200 sessions, 256 runs that are remembered (ui/runs/limits.py)."""
AT_ONCE = 8
QUIET = 8.0
"""Seconds in which the server looks four times at its line, forgets those who went, and gives memory back."""
MORE = 40.0
"""Megabytes: 13 kB a run, two thirds of what a bare Gradio page keeps of each. What the page kept once was 550 kB."""
THREADS = 16
"""As many as serve what is asked at once, twice over: idle ones end when others are asked."""


def runs(caller: Caller, count: int) -> list[Call]:
    """Short runs, in turn a program's and a page's."""
    program = caller.public("text2image", prompt="a red fox", num_inference_steps=1, preview="vae")
    page = caller.private("t2i-generate", "click", Prompt="a red fox", Steps=1)
    return [(program, page)[number % 2] for number in range(count)]


def refused(caller: Caller, count: int) -> list[Call]:
    """Calls that are refused, each kind in its turn."""
    kinds = [
        caller.public("text2image", prompt="a", num_inference_steps=0),
        caller.public("text2image", prompt="a", sampler="none"),
        caller.public("text2image", prompt="a" * 20_001),
        caller.public("image2image", image={"path": "/etc/passwd"}, prompt="a"),
        caller.private("t2i-generate", "click", Seed="x"),
        caller.private("t2i-generate", "click", Steps=10**9),
    ]
    return [kinds[number % len(kinds)] for number in range(count)]


def ask(server: Process, caller: Caller, calls: list[Call]) -> int:
    """Have all calls answered, each in a session of its own; how many were refused."""

    async def one(http: httpx.AsyncClient, asked: Call) -> bool:
        return "error" in await Program(caller, http).ask(asked)

    async def together() -> list[bool]:
        async with connection(server.url) as http:
            return await all_of([one(http, asked) for asked in calls], AT_ONCE)

    return sum(awaited(together()))


def measured(server: Process, calls: list[Call], caller: Caller) -> tuple[int, Usage, Usage]:
    """How many of the calls after the warm-up were refused, and what the server took before and after, at rest."""
    usages, errors = [], 0
    for part in (calls[:WARM_UP], calls[WARM_UP:]):
        errors = ask(server, caller, part)
        time.sleep(QUIET)
        usages.append(server.usage())
    print(f"\n{len(calls) - WARM_UP} calls: {usages[0]} -> {usages[1]}")  # for docs/soak.md
    return errors, *usages


def expect_flat(before: Usage, after: Usage) -> None:
    assert after.memory - before.memory < MORE
    assert after.threads - before.threads <= THREADS
    assert after.descriptors - before.descriptors <= THREADS


@pytest.mark.soak
def test_thousands_of_runs_leave_their_pictures_and_nothing_else(server: Process, much: float):
    count = 2 * round(RUNS * much / 2)
    with calling(server.url) as caller:
        errors, before, after = measured(server, runs(caller, WARM_UP + count), caller)
    assert errors == 0
    expect_flat(before, after)
    kept = count // 2 * (1 + 2)  # a program's picture; a page's, and its film
    assert (after.files - before.files, after.folders - before.folders) == (kept, kept)


@pytest.mark.soak
def test_thousands_of_refused_calls_leave_nothing(server: Process, much: float):
    count = round(REFUSED * much)
    with calling(server.url) as caller:
        errors, before, after = measured(server, refused(caller, WARM_UP + count), caller)
    assert errors == count
    expect_flat(before, after)
    assert (after.files, after.folders) == (before.files, before.folders)


def ask_whatever(caller: Caller, count: int) -> None:
    """Generated calls, as tests/faults/test_requests.py sends them and looks at their answers."""

    @settings(
        max_examples=count // AT_ONCE,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(test_requests.calls(caller), min_size=AT_ONCE, max_size=AT_ONCE))
    def asked(calls: list[test_requests.Call]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(partial(test_requests.answer, caller), calls))

    asked()


@pytest.mark.soak
def test_thousands_of_senseless_calls_leave_nothing(server: Process, much: float):
    with calling(server.url) as caller:
        ask_whatever(caller, 4 * WARM_UP)  # each visit is remembered, with prompts of a megabyte
        time.sleep(QUIET)
        before = server.usage()
        ask_whatever(caller, round(SENSELESS * much))
        time.sleep(QUIET)
        after = server.usage()
    print(f"\n{round(SENSELESS * much)} calls: {before} -> {after}")  # for docs/soak.md
    expect_flat(before, after)


@pytest.mark.parametrize("route", ["queue/join", "run/predict", "call/text2image", "upload"])
def test_a_body_of_a_hundred_megabytes_is_refused_and_not_kept(server: Process, route: str):
    before = server.usage()
    body = b"a" * 100_000_000
    if route == "upload":
        answer = httpx.post(f"{server.url}/gradio_api/{route}", files={"files": ("a.png", body)})
    else:
        json = {"Content-Type": "application/json"}
        answer = httpx.post(f"{server.url}/gradio_api/{route}", content=b'"' + body + b'"', headers=json)
    assert answer.status_code == 413, answer.text
    time.sleep(1)
    after = server.usage()
    assert after.memory - before.memory < MORE
    assert (after.files, after.folders) == (before.files, before.folders)
