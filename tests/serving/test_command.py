"""`python -m serving`, as somebody types it and a program uses it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from tests.conftest import ROOT
from tests.e2e.conftest import Server, free_port, wait_until_up
from tests.tiny import save_model
from ui.keep.metadata import read_infotext

pytest.importorskip("ray", reason="requirements-serve.txt is not installed")
pytestmark = pytest.mark.serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The page, and a replica of a tiny model behind it; ended as services are."""
    port, ray_files = free_port(), tempfile.mkdtemp(prefix="ray")
    server = Server(f"http://127.0.0.1:{port}", tmp_path / "log.txt", tmp_path / "files")
    model = save_model(tmp_path / "tiny")
    command = [sys.executable, "-m", "serving", "--replicas", "1", "--cpus", "1", "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(server.files), "RAY_TMPDIR": ray_files}
    environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    with server.log.open("w") as log:
        arguments = [*command, "--model", str(model), "--device", "cpu"]
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log, env=environment)
    try:
        wait_until_up(server, process)
        yield server
        for one in listening(process.pid):
            assert one.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), one
        for one in psutil.Process(process.pid).children(recursive=True):
            if "ServeReplica" in one.name():
                one.kill()  # which leaves nothing behind either
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "SIGTERM" not in server.log.read_text()
        assert list((tmp_path / "temporary").rglob("*")) == []
    finally:
        process.kill()
        shutil.rmtree(ray_files, ignore_errors=True)


def listening(pid: int) -> list[Any]:
    """The addresses that a process and its descendants listen on."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return [one.laddr for each in family for one in each.net_connections("tcp") if one.status == psutil.CONN_LISTEN]


def test_a_program_is_drawn_a_picture_over_a_photo(server: Server, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((64, 64)).save(tmp_path / "photo.png")
    client = Client(server.url, verbose=False)
    settings = {"num_inference_steps": 6, "strength": 0.5, "seed": 7, "api_name": "/image2image"}
    answers = list(client.submit(handle_file(tmp_path / "photo.png"), "a red fox", **settings))
    assert (answers[-1][1]["step"], answers[-1][1]["total"]) == (3, 3)
    [picture] = answers[-1][0]
    assert Image.open(picture["image"]).size == (64, 64)
    assert read_infotext(picture["image"])["seed"] == 7
