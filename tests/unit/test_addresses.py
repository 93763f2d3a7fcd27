"""A call that names a file by an address on the network is refused before anybody fetches it."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from gradio import processing_utils

from tests.conftest import awaited
from ui.page import Page


@pytest.mark.parametrize(
    "value",
    [
        {"path": "http://pictures.example/cat.png"},
        {"path": "HTTPS://pictures.example/cat.png", "url": None, "orig_name": "cat.png"},
        {"background": None, "layers": [{"path": "https://pictures.example/cat.png"}]},
    ],
)
def test_the_server_fetches_nothing(value: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        fetched.append(url)
        return "nowhere.png"

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    for one in [value, *value.get("layers", [])]:
        if "path" in one:
            one["meta"] = {"_type": "gradio.FileData"}
    with Page() as page:
        picture = gr.Image(visible=False)
        gr.Button().click(lambda picture: None, picture)
    [event] = page.fns.values()
    with pytest.raises(gr.Error, match="A file must be uploaded here, or be one of the examples"):
        awaited(page.preprocess_data(event, [value], None))
    assert fetched == []
