"""Measure a crowd of visitors who share one network through the engine, beside one visitor alone.

    python -m benchmarks.visitors
    python -m benchmarks.visitors --dtype bfloat16 --model stable-diffusion-v1-5/stable-diffusion-v1-5

All visitors ask at the same moment. Prints medians over the rounds. Machines are noisy: trust the ratios of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from app import parse_arguments, serve
from stable_diffusion import Pipeline
from stable_diffusion.batching.engine import Engine
from stable_diffusion.batching.run_handle import RunHandle
from stable_diffusion.request import Request
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels

PROMPT = "a rocket, noto style, on a blue background"


@dataclass(frozen=True)
class Visit:
    """Seconds from the request to the first step, and to the final pictures."""

    first: float
    done: float


def visit(handle: RunHandle, asked: float) -> Visit:
    """Read a run handle to its end; `asked` is the time of the request."""
    times = [time.perf_counter() for _ in handle]
    return Visit(times[0] - asked, times[-1] - asked)


def crowd(engine: Engine, pipe: Pipeline, requests: Iterable[Request]) -> list[Visit]:
    """Submit all requests at once, and read each run in a thread of its own."""
    requests = list(requests)
    asked = time.perf_counter()
    handles = [engine.submit(partial(pipe.begin, request), i) for i, request in enumerate(requests)]
    with ThreadPoolExecutor(len(handles)) as readers:
        return list(readers.map(lambda handle: visit(handle, asked), handles))


def alone(pipe: Pipeline, request: Request) -> float:
    """Return the seconds that the library takes for a request, with no other run."""
    started = time.perf_counter()
    pipe(request)
    return time.perf_counter() - started


def line(name: str, value: float, unit: str, goal: str = "") -> None:
    """Print a figure with its unit and its goal."""
    print(f"{name:58} {value:8.2f} {unit:2} {goal}".rstrip(), flush=True)


def crowds(engine: Engine, pipe: Pipeline, steps: int, rounds: int, preview: str) -> None:
    """Measure 1, 8 and 30 visitors at once, beside the library alone."""
    goals = {8: ("at most 1 s", "at most 4.5"), 30: ("at most 4 s", "")} if preview == "none" else {}
    requests = [
        Request(PROMPT, num_inference_steps=steps, guidance_scale=4.0, sampler="ddim", seed=i, preview=preview)
        for i in range(30)
    ]
    singles: list[float] = []
    visits: dict[int, list[list[Visit]]] = {count: [] for count in (1, 8, 30)}
    for turn in range(rounds + 1):
        single = alone(pipe, requests[0])
        measured = {count: crowd(engine, pipe, requests[:count]) for count in visits}
        if turn:  # in the first turn the engine warms up and finds its batch size
            singles.append(single)
            for count, found in measured.items():
                visits[count].append(found)

    print(f"\n{steps} steps each, previews: {preview}")
    reference = statistics.median(singles)
    line("one alone, library", reference, "s")
    for count, rounds_of in visits.items():
        first_goal, ratio_goal = goals.get(count, ("", ""))
        all_done = statistics.median(max(visit.done for visit in found) for found in rounds_of)
        last_first = statistics.median(max(visit.first for visit in found) for found in rounds_of)
        line(f"{count} at once: all are done", all_done, "s")
        line(f"{count} at once over one alone", all_done / reference, "x", ratio_goal)
        line(f"{count} at once: the last one's first step", last_first, "s", first_goal)
        line(f"{count} at once: median wait", statistics.median(v.first for found in rounds_of for v in found), "s")
        line(f"{count} at once: median finish", statistics.median(v.done for found in rounds_of for v in found), "s")


def fairness(engine: Engine, pipe: Pipeline, steps: int) -> None:
    """Measure a small run beside a visitor who asks for four pictures of many steps."""
    few = Request(PROMPT, num_inference_steps=steps, guidance_scale=4.0, seed=1, preview="none")
    many = Request(PROMPT, num_inference_steps=150, guidance_scale=4.0, seed=2, num_images=4, preview="none")
    [lone] = crowd(engine, pipe, [few])
    greedy = engine.submit(lambda: pipe.begin(many), "greedy")
    next(iter(greedy))
    [beside] = crowd(engine, pipe, [few])
    greedy.close()
    print("\nfairness: beside a visitor with 4 pictures of 150 steps")
    line(f"{steps} steps take", beside.done, "s")
    line("over fair sharing, twice the time alone", beside.done / (2 * lone.done), "x", "at most 2")


def body_of(steps: int, seed: int, preview: str) -> dict[str, Any]:
    """Return a request as the API takes it."""
    return {"prompt": PROMPT, "num_inference_steps": steps, "guidance_scale": 4.0, "seed": seed, "preview": preview}


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Visit:
    """Draw by HTTP, and read the stream without understanding it."""
    asked, first, end = time.perf_counter(), 0.0, b""
    answer = await http.post("gradio_api/call/v2/text2image", json=body)
    call = answer.raise_for_status().json()["event_id"]
    async with http.stream("GET", f"gradio_api/call/text2image/{call}") as stream:
        async for part in stream.aiter_raw():
            first = first or (time.perf_counter() - asked if b'"step": 1,' in part else 0.0)
            end = (end + part)[-100_000:]
    assert b"event: complete" in end, end
    return Visit(first, time.perf_counter() - asked)


async def ask_all(url: str, count: int, steps: int, preview: str) -> list[Visit]:
    """Draw as so many visitors at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        return await asyncio.gather(*(ask(http, body_of(steps, seed, preview)) for seed in range(count)))


def crowd_by_http(url: str, count: int, steps: int, preview: str) -> list[Visit]:
    """Draw as so many visitors at once, from a process of its own, as visitors do."""
    command = [sys.executable, "-m", "benchmarks.visitors", "--ask", url, str(count), preview, "--steps", str(steps)]
    return [Visit(*times) for times in json.loads(subprocess.run(command, check=True, capture_output=True).stdout)]  # noqa: S603


def served(pipe: Pipeline, steps: int, rounds: int, preview: str) -> None:
    """Measure 1, 8 and 30 visitors of the API, beside the same run in the library."""
    models = LoadedModels(Catalogue(), load=lambda *_: pipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = serve(parse_arguments(["--port", str(port)]), models, Local(models))
    url = f"http://127.0.0.1:{port}"
    request = Request(PROMPT, num_inference_steps=steps, guidance_scale=4.0, seed=1, preview=preview)
    singles, visits = list[float](), {count: list[list[Visit]]() for count in (1, 8, 30)}
    for turn in range(rounds + 1):
        single = alone(pipe, request)
        measured = {count: crowd_by_http(url, count, steps, preview) for count in visits}
        if turn:  # in the first turn the engine warms up and finds its batch size
            singles.append(single)
            for count, found in measured.items():
                visits[count].append(found)
    page.close()
    library = statistics.median(singles)
    one = statistics.median(max(visit.done for visit in found) for found in visits[1])
    print(f"\n{steps} steps by HTTP, previews: {preview}")
    line("one alone, library", library, "s")
    line("one alone, API over library", one / library, "x", "at most 1.15")
    for count, goal, first_goal in ((8, "at most 4.5", ""), (30, "at most 12", "at most 4 s")):
        done = statistics.median(max(visit.done for visit in found) for found in visits[count])
        line(f"{count} at once over one alone", done / one, "x", goal)
        first = statistics.median(max(visit.first for visit in found) for found in visits[count])
        line(f"{count} at once: the last one's first step", first, "s", first_goal)


def leftovers(engine: Engine, pipe: Pipeline, runs: int) -> None:
    """Measure the growth of memory and threads over many runs."""

    def memory() -> float:
        gc.collect()
        return next(
            int(row.split()[1]) / 1024
            for row in Path("/proc/self/status").read_text().splitlines()
            if row.startswith("VmRSS")
        )

    def some(count: int) -> None:
        for start in range(0, count, 25):
            crowd(engine, pipe, [Request(PROMPT, num_inference_steps=1, seed=start + i) for i in range(25)])

    some(100)  # fills the caches of the libraries
    before, threads = memory(), threading.active_count()
    some(runs)
    print(f"\n{runs} runs of one step")
    line("memory, more than before", memory() - before, "MB", "none")
    line("threads, more than before", threading.active_count() - threads, "", "none")


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory, file or hub id; default: the bundled model")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="precision; default: the usual one of the device"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1000, help="number of runs for memory and threads")
    parser.add_argument("--ask", nargs=3, metavar=("URL", "COUNT", "PREVIEW"), help="only be visitors of a page")
    arguments = parser.parse_args()
    if arguments.ask:
        url, count, preview = arguments.ask
        visits = asyncio.run(ask_all(url, int(count), arguments.steps, preview))
        print(json.dumps([(visit.first, visit.done) for visit in visits]))
        return
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    pipe = Pipeline.from_pretrained(arguments.model, dtype=dtype)
    engine = Engine(pipe.models.unet.conv_in.weight.device)
    for preview in ("none", pipe.defaults.preview):
        crowds(engine, pipe, arguments.steps, arguments.rounds, preview)
    fairness(engine, pipe, arguments.steps)
    engine.close()
    for preview in ("none", pipe.defaults.preview):
        served(pipe, arguments.steps, arguments.rounds, preview)
    engine = Engine(pipe.models.unet.conv_in.weight.device)
    leftovers(engine, pipe, arguments.runs)
    engine.close()


if __name__ == "__main__":
    main()
