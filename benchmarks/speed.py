"""Time the bundled model and the page, with diffusers and a bare Gradio page beside them in the same run.

    python -m benchmarks.speed

Alternates ours and theirs, and prints the median of each: machines are noisy, ratios less so.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch

from stable_diffusion import Pipeline
from stable_diffusion.model_loader import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
PROMPT, STEPS, ROUNDS = "a rocket, noto style, on a blue background", 20, 5
BARE_PAGE = "import gradio as gr\nwith gr.Blocks() as page:\n    gr.Textbox()\npage.launch(server_port={port})"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def page_seconds(command: list[str], port: int) -> float:
    """From starting a process to the page's first answer."""
    started = time.perf_counter()
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    return time.perf_counter() - started
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(f"no answer on port={port} within 120 s")
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def time_pages() -> tuple[list[float], list[float]]:
    """Ours and a bare Gradio page, in turn."""
    ours, bare = [], []
    for _ in range(3):
        port = free_port()
        ours.append(page_seconds([sys.executable, "app.py", "--port", str(port)], port))
        port = free_port()
        bare.append(page_seconds([sys.executable, "-c", BARE_PAGE.format(port=port)], port))
    return ours, bare


def time_runs() -> dict[str, list[float]]:
    """20 guided steps of both implementations, and ours with a VAE preview at each step, or as often as it is cheap."""
    pipe = Pipeline.from_pretrained()
    reference = diffusers.StableDiffusionPipeline.from_pretrained(BUNDLED, safety_checker=None, local_files_only=True)
    reference.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0}

    works: dict[str, Callable[[], object]] = {
        "ours, first preview": lambda: next(pipe.stream(PROMPT, sampler="ddim", seed=1, preview="vae", **options)),
        "ours, 20 steps with VAE previews": lambda: pipe(PROMPT, sampler="ddim", seed=1, preview="vae", **options),
        "ours, 20 steps, automatic previews": lambda: pipe(PROMPT, sampler="ddim", seed=1, preview="auto", **options),
        "ours, 20 steps": lambda: pipe(PROMPT, sampler="ddim", seed=1, **options),
        "diffusers, 20 steps": lambda: reference(PROMPT, generator=torch.Generator().manual_seed(1), **options),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            spent = seconds(work)
            if turn:  # the first turn warms up
                times[name].append(spent)
    return times


def main() -> None:
    for name, times in time_runs().items():
        print(f"{name:36} {statistics.median(times):6.2f} s  (min {min(times):.2f}, max {max(times):.2f})")
    ours, bare = time_pages()
    print(f"{'page served':36} {statistics.median(ours):6.2f} s")
    print(f"{'bare Gradio page served':36} {statistics.median(bare):6.2f} s")
    print(f"{'ratio':36} {statistics.median(ours) / statistics.median(bare):6.2f}")


if __name__ == "__main__":
    main()
