"""What deployers ask a real server: whether it can draw, and how its runs went."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import gradio as gr
import pytest
from gradio_client import Client
from prometheus_client.parser import text_string_to_metric_families

import app
from stable_diffusion.request import RequestError
from tests.e2e.conftest import PATIENCE, free_port
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels


@pytest.fixture
def holder() -> LoadedModels:
    return LoadedModels(Catalogue(), device="cpu", dtype="float32")


@pytest.fixture
def page(holder: LoadedModels) -> Iterator[gr.Blocks]:
    """A server whose model nobody has asked for yet."""
    served = app.serve(app.parse_arguments(["--port", str(free_port()), "--metrics"]), holder, Local(holder))
    yield served
    served.close(verbose=False)


def answer(page: gr.Blocks, path: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(page.local_url + path, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def counted(page: gr.Blocks) -> dict[str, float]:
    """How many runs ended, by how."""
    families = text_string_to_metric_families(answer(page, "metrics")[1])
    samples = (sample for family in families for sample in family.samples)
    return {sample.labels["end"]: sample.value for sample in samples if sample.name == "sd_runs_total"}


def test_health_says_whether_the_model_is_there(page: gr.Blocks, holder: LoadedModels) -> None:
    for begin in (lambda: None, holder.start):  # a page that has only just come up has yet to ask for it
        begin()
        status, text = answer(page, "health")
        assert (status, json.loads(text)["status"]) == (503, "loading")
    holder.pipeline()
    status, text = answer(page, "health")
    assert (status, json.loads(text)) == (200, {"status": "ready", "model": holder.catalogue.first})


def test_health_says_that_the_model_could_not_be_loaded(page: gr.Blocks, holder: LoadedModels) -> None:
    holder.catalogue.sources[holder.catalogue.first] = "/nowhere"
    with pytest.raises(RequestError, match="could not be loaded"):
        holder.pipeline()
    status, text = answer(page, "health")
    assert (status, json.loads(text)["status"]) == (503, "failed")


def test_runs_are_counted_by_how_they_end(page: gr.Blocks) -> None:
    client = Client(page.local_url, verbose=False)
    client.predict("a cat", num_inference_steps=2, api_name="/text2image")
    assert counted(page) == {"finished": 1}
    with pytest.raises(Exception, match="model must be one of"):
        client.predict("a cat", model="none", api_name="/text2image")
    assert counted(page) == {"finished": 1, "refused": 1}
    left = client.submit("a cat", num_inference_steps=500, api_name="/text2image")
    next(iter(left))
    left.cancel()
    for _ in range(100):
        if "left" in counted(page):
            break
    assert counted(page) == {"finished": 1, "refused": 1, "left": 1}


def test_a_version_of_mcp_that_gradio_can_not_use_is_told(
    holder: LoadedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("gradio.mcp.GradioMCPServer.Server")  # as beside mcp 2, whose names differ
    with pytest.raises(SystemExit, match=r"--mcp needs another version of .*: pip install 'gradio\[mcp\]'"):
        app.open_page(app.parse_arguments(["--port", str(free_port()), "--mcp"]), holder, Local(holder))
