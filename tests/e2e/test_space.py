"""`python app.py` as a Hugging Face Space starts it: with its variables and no others, and here without a network."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator

import pytest
from gradio_client import Client

from tests.e2e.conftest import PATIENCE, Server, free_port, started
from tests.faults.caller import Caller
from tests.parity.test_safety import save_checker
from tests.tiny import save_model


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Space with a model of its own, whose safety checker finds something in every picture."""
    folder, port = tmp_path_factory.mktemp("space"), free_port()
    theirs, _ = save_checker(save_model(folder / "model"))
    theirs.concept_embeds_weights.data.fill_(-1)
    theirs.save_pretrained(folder / "model" / "safety_checker")
    server = Server(f"http://127.0.0.1:{port}", folder / "log.txt", folder / "files")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GRADIO_TEMP_DIR": str(server.files),
        "OMP_NUM_THREADS": "1",
        "SYSTEM": "spaces",
        "SPACE_ID": "somebody/something",
        "SPACE_HOST": "somebody-something.hf.space",
        "SPACE_AUTHOR_NAME": "somebody",
        "SPACE_REPO_NAME": "something",
        "SD_MODEL": str(folder / "model"),
        "SD_MAX_SECONDS": "0.01",
        "SD_MAX_VISITOR_RUNS": "2",
        "SD_MAX_UPLOAD": "1",
        "SD_SESSIONS": "33",
    }
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with started(server, "tests.e2e.alone", "app.py", *address, environment=environment):
        yield server


def test_the_log_says_what_runs_where_and_what_is_allowed(space: Server):
    port = space.url.rpartition(":")[2]
    assert space.wait_for_log("safety checker on") == f"ui: model on port {port}, safety checker on"
    limits = space.wait_for_log("limits: ")
    for limit in ("max_seconds 0.01,", "max_visitor_runs 2,", "sessions 33,", "max_side 4096,", "max_upload 1,"):
        assert limit in limits
    computes = r"ui.runs.models: model computes in (float32|bfloat16) on cpu, threads: 1, and its safety checker .*"
    assert re.fullmatch(computes, space.wait_for_log("computes in"))


def test_it_is_healthy_and_framed_by_the_hub_alone(space: Server):
    http = Caller(space.url).http
    for _ in range(PATIENCE // 100):
        answer = http.get("health")
        if answer.status_code == 200:
            break
        assert answer.json() == {"status": "loading", "model": "model"}
        time.sleep(0.1)
    assert answer.json() == {"status": "ready", "model": "model"}
    assert "frame-ancestors 'self' https://huggingface.co " in answer.headers["Content-Security-Policy"]


def test_more_than_is_allowed_is_a_sentence_at_once(space: Server):
    with pytest.raises(Exception, match=r"and one request may take .*: choose fewer steps"):
        Client(space.url, verbose=False).predict("a", num_inference_steps=78, api_name="/text2image")

    answer = Caller(space.url).http.post("gradio_api/upload", files={"files": ("large.png", bytes(2**20 + 1))})
    assert (answer.status_code, "maximum allowed size" in answer.text) == (413, True), answer.text


def test_what_the_safety_checker_finds_is_blurred_and_explained(space: Server):
    _, step = Client(space.url, verbose=False).predict("a", num_inference_steps=1, api_name="/text2image")
    assert step["blurred"] == 1
    caller = Caller(space.url)
    caller.join(caller.private("t2i-generate", "click", Prompt="a", Steps=1), "visitor").raise_for_status()
    params = {"session_hash": "visitor"}
    with caller.http.stream("GET", "gradio_api/queue/data", params=params) as stream:
        messages = [json.loads(line.removeprefix("data:")) for line in stream.iter_lines() if line]
    [said] = [message["log"] for message in messages if message["msg"] == "log"]
    assert "<b>Blurred.</b> The model's safety checker found something that is not for everybody" in said
