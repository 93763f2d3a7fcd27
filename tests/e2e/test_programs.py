"""What the README says to programs, as it stands there, and the tools for language models."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

from tests.conftest import ROOT

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
    async def use() -> tuple[list[str], str]:
        async with (
            streamablehttp_client(server.url + "/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            answer = await session.call_tool("text2image", {"prompt": "a red apple", "num_inference_steps": 2})
            assert not answer.isError
            return [tool.name for tool in tools], answer.content[0].text

    # In a thread of its own: the browser's driver has a loop running in this one.
    with ThreadPoolExecutor() as pool:
        names, answer = pool.submit(asyncio.run, use()).result()
    assert names == ["text2image", "image2image"]
    assert re.search(re.escape(server.url) + r"/gradio_api/file=\S+a-red-apple-\d+\.png", answer)
