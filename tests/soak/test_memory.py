"""Over thousands of runs and refused calls: memory, threads, files and folders stay as they were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest

from tests.faults.caller import Caller

from .conftest import SHARE
from .server import Call, Process, Program, all_of, calling, connection

RUNS, REFUSED = 3000, 10_000
WARM_UP = 300
"""Runs, after which what is bounded is full: 200 sessions, 256 runs that are remembered (ui/limits.py)."""
AT_ONCE = 8
QUIET = 8.0
"""Seconds in which the server looks twice at its line, forgets those who went, and gives memory back."""


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
        caller.public("text2image", prompt="a" * 20_000),
        caller.public("image2image", image={"path": "/etc/passwd"}, prompt="a"),
        caller.private("t2i-generate", "click", Seed="x"),
        caller.private("t2i-generate", "click", Steps=10**9),
        caller.private("restore", "upload"),
    ]
    return [kinds[number % len(kinds)] for number in range(count)]


def ask(server: Process, caller: Caller, calls: list[Call]) -> int:
    """Have all calls answered, each in a session of its own; how many ended in an error."""

    async def one(http: httpx.AsyncClient, asked: Call) -> bool:
        return "error" in await Program(caller, http).ask(asked)

    async def together() -> list[bool]:
        async with connection(server.url) as http:
            asked: list[Coroutine[Any, Any, bool]] = [one(http, call) for call in calls]
            return await all_of(asked, AT_ONCE)

    return sum(asyncio.run(together()))


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["runs", "refused calls"])
def test_nothing_grows(server: Process, kind: str):
    """Bounds beside measurements: docs/soak.md."""
    with calling(server.url) as caller:
        warm_up, count = (WARM_UP, round(RUNS * SHARE)) if kind == "runs" else (WARM_UP, round(REFUSED * SHARE))
        calls = runs if kind == "runs" else refused
        ask(server, caller, calls(caller, warm_up))
        time.sleep(QUIET)
        before = server.usage()
        errors = ask(server, caller, calls(caller, count))
        time.sleep(QUIET)
    after = server.usage()
    print(f"\n{count} {kind}: {errors} errors, {before} -> {after}")
