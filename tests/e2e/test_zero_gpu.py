"""The page on a Space with ZeroGPU, as far as that goes without its GPU: see lender.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image

from stable_diffusion.pipeline import Pipeline
from tests.e2e.conftest import Server, free_port, started


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python app.py` where the included model is too slow for the processor."""
    folder, port = tmp_path_factory.mktemp("space"), free_port()
    server = Server(f"http://127.0.0.1:{port}", folder / "log.txt", folder / "files")
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(server.files), "PYTHONUNBUFFERED": "1"}
    with started(server, "tests.e2e.lender", "app.py", *options, environment=environment):
        yield server


def test_every_run_borrows_a_gpu_and_gives_it_back(space: Server):
    client = Client(space.url, verbose=False)
    pipeline = Pipeline.from_pretrained(device="cpu")
    [expected] = pipeline("a red fox", num_inference_steps=4, seed=7).images
    for count in (1, 2):
        [picture], step = client.predict("a red fox", num_inference_steps=4, seed=7, api_name="/text2image")
        assert step["finished"]
        with Image.open(Path(picture["image"])) as image:
            difference = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
        assert difference.max() <= 1  # another number of threads sums in another order
        space.wait_for_log("given back", count)
    assert space.count("computes in") == 2, "once here, once in the process that both runs had"


def test_a_visitor_who_leaves_gives_the_gpu_back(space: Server):
    given = space.count("given back")
    run = Client(space.url, verbose=False).submit("a cat", num_inference_steps=500, api_name="/text2image")
    next(answer for answer in run if answer[1]["step"])
    run.cancel()
    space.wait_for_log("given back", given + 1)
