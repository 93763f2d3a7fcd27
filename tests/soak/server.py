"""A server in a process of its own: what it takes of the machine, how its runs went, and a crowd of programs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.e2e.conftest import Server, wait_until_up
from tests.faults.caller import TIMEOUT, Caller

Call = tuple[int, list[Any]]
Message = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """What a process takes: memory in megabytes, threads, open files, and what lies in its folder."""

    memory: float
    threads: int
    descriptors: int
    files: int
    folders: int


class Process(Server):
    """A running `python app.py` that may be killed, given limits, and asked what it takes."""

    def __init__(self, folder: Path, port: int, *options: str):
        super().__init__(f"http://127.0.0.1:{port}", folder / "log.txt", folder / "files")
        command = [sys.executable, "app.py", "--port", str(port), "--device", "cpu", "--dtype", "float32", "--metrics"]
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(self.files), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        self.files.mkdir(exist_ok=True)
        with self.log.open("a") as log:
            # Through a pipe, which no limit on the server's files concerns.
            self._writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
        self.process = psutil.Popen(
            [*command, *options], cwd=ROOT, stdout=self._writer.stdin, stderr=subprocess.STDOUT, env=environment
        )
        assert self._writer.stdin is not None
        self._writer.stdin.close()
        wait_until_up(self, self.process)
        self.wait_until(lambda: self._get("health").status_code == 200)

    def kill(self) -> None:
        """As `kill -9` does, where it has not been done yet."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._writer.wait()

    def usage(self) -> Usage:
        """What it takes now."""
        process = psutil.Process(self.process.pid)
        paths = list(self.files.rglob("*"))
        with process.oneshot():
            return Usage(
                process.memory_info().rss / 1e6,
                process.num_threads(),
                process.num_fds(),
                sum(path.is_file() for path in paths),
                sum(path.is_dir() for path in paths),
            )

    def ends(self) -> Counter[str]:
        """How many runs ended so far, by how."""
        return Counter({labels["end"]: int(value) for labels, value in self._counted("sd_runs_total")})

    def going(self) -> int:
        """How many runs wait or are drawn."""
        [(_, value)] = self._counted("sd_runs_going")
        return int(value)

    def waiting(self) -> int:
        """How many events wait in the page's line."""
        return self._get("gradio_api/queue/status").json()["queue_size"]

    def computes(self, seconds: float = 2.0) -> float:
        """The share of a core that it takes."""
        before = sum(self.process.cpu_times()[:2])
        time.sleep(seconds)
        return (sum(self.process.cpu_times()[:2]) - before) / seconds

    def wait_until(self, there: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        """Wait for something to be true; AssertionError with the log where it is not in time."""
        end = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < end, f"it did not come:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def _counted(self, name: str) -> list[tuple[dict[str, str], float]]:
        families = text_string_to_metric_families(self._get("metrics").text)
        return [(one.labels, one.value) for family in families for one in family.samples if one.name == name]

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}/{path}", timeout=TIMEOUT)


@contextmanager
def running(folder: Path, port: int, *options: str) -> Iterator[Process]:
    """A server that is killed in the end, if it still runs."""
    process = Process(folder, port, *options)
    try:
        yield process
    finally:
        process.kill()


class Program:
    """Somebody's session with a server, over a connection pool that many share."""

    def __init__(self, caller: Caller, http: httpx.AsyncClient):
        self.caller, self.http, self.session = caller, http, uuid.uuid4().hex

    async def join(self, call: Call) -> str:
        """Put a call into the line; returns its name."""
        number, data = call
        body = {"fn_index": number, "data": data, "session_hash": self.session}
        answer = await self.http.post("gradio_api/queue/join", json=body)
        return answer.raise_for_status().json()["event_id"]

    async def listen(self) -> AsyncIterator[Message]:
        """What the session is told, until nothing is left to tell; leaving the loop early hangs up."""
        async with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            async for line in stream.aiter_lines():
                if line:
                    yield json.loads(line.removeprefix("data:"))

    async def ask(self, call: Call) -> Message:
        """What a call ends with: its `data`, or its `error`."""
        await self.join(call)
        ended: Message = {}
        async for message in self.listen():
            if message["msg"] == "process_completed":
                ended = message["output"]
        return ended

    async def files(self, answer: Message) -> list[bytes]:
        """The pictures of a run's answer, fetched."""
        urls = [f"gradio_api/file={one['image']['path']}" for one in answer["data"][0]]
        return [(await self.http.get(url)).raise_for_status().content for url in urls]


def connection(url: str) -> httpx.AsyncClient:
    """What many sessions share. A line that rests is closed before the server does so, after 5 s: both at once err."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0)
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits)


@contextmanager
def calling(url: str) -> Iterator[Caller]:
    """A `Caller`, closed in the end."""
    caller = Caller(url)
    yield caller
    caller.http.close()


async def all_of(coroutines: list[Any], at_once: int) -> list[Any]:
    """The results of coroutines, in order, of which at most so many run at once."""
    places = asyncio.Semaphore(at_once)

    async def one(coroutine: Any) -> Any:
        async with places:
            return await coroutine

    return await asyncio.gather(*map(one, coroutines))
