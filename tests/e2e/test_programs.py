"""What the README says to programs, as it stands there, and the tools for language models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from mcp.types import CallToolResult
from PIL import Image

from stable_diffusion.request import SAMPLER_LABELS
from tests.conftest import ROOT, awaited

from .conftest import Server


def readme_code(start: str) -> str:
    """The README's Python block that begins so."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    [code] = [block for block in blocks if block.startswith(start)]
    return code


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which has the project's assets but keeps what the code writes to itself."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_library_runs_as_the_readme_says(clone: Path):
    exec(readme_code("from stable_diffusion import Pipeline"), {})
    assert [Image.open(clone / name).size for name in ("rocket.png", "cat.png")] == [(256, 256), (256, 256)]


def test_a_client_runs_as_the_readme_says(clone: Path, server: Server):
    names: dict[str, Any] = {}
    exec(readme_code("from gradio_client import").replace("http://127.0.0.1:7860", server.url), names)
    assert names["step"]["finished"]
    assert [Image.open(picture["image"]).size for picture in names["pictures"]] == [(256, 256)] * 2


def test_a_language_model_finds_and_calls_the_tools(server: Server):
    photo = {"files": (ROOT / "assets" / "examples" / "cat.jpg").open("rb")}
    [path] = httpx.post(f"{server.url}/gradio_api/upload", files=photo).raise_for_status().json()
    image = f"{server.url}/gradio_api/file={path}"  # as Gradio's tool for uploads names it

    async def use() -> tuple[dict[str, Any], list[CallToolResult]]:
        address = server.url + "/gradio_api/mcp/"
        async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [
                await session.call_tool("text2image", {"prompt": "a red apple", "num_inference_steps": 2}),
                await session.call_tool("image2image", {"image": image, "prompt": "a", "num_inference_steps": 1}),
                await session.call_tool("image2image", {"image": "http://192.0.2.1/x.png", "prompt": "a"}),
                await session.call_tool("text2image", {"prompt": " "}),
            ]

    # In a thread of its own: the browser's driver has a loop running in this one.
    tools, (words, own, foreign, empty) = awaited(use())
    assert list(tools) == ["text2image", "image2image"]
    for tool in tools.values():
        arguments = tool.inputSchema["properties"]
        assert all(len(one["description"]) > 10 for one in arguments.values())
        assert arguments["sampler"]["enum"] == list(SAMPLER_LABELS)
        assert arguments["model"]["enum"][0] == "emoji"
        steps = {"type": "integer", "minimum": 1, "maximum": 1000}
        assert steps.items() <= arguments["num_inference_steps"].items()
    assert re.search(re.escape(server.url) + r"/gradio_api/file=\S+a-red-apple-\d+\.png", words.content[0].text)
    assert [answer.isError for answer in (words, own, foreign, empty)] == [False, False, True, True]
    assert "/gradio_api/upload" in foreign.content[0].text
    assert empty.content[0].text.startswith("prompt must not be empty")
