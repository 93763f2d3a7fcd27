"""A press on Generate makes one request and reads its photo once; counted in a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from stable_diffusion import images
from stable_diffusion.request import Request
from tests.faults.caller import Caller, served


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    with served() as page:
        yield Caller(page.local_url)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that are made and checked."""
    made: list[Request] = []
    check = Request.__post_init__

    def count(self: Request) -> None:
        made.append(self)
        check(self)

    monkeypatch.setattr(Request, "__post_init__", count)
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded."""
    opened: list[str] = []
    open_image = images.open_image

    def count(label: str, *arguments: object) -> Image.Image:
        opened.append(label)
        return open_image(label, *arguments)

    monkeypatch.setattr(images, "open_image", count)
    return opened


def test_a_press_on_generate_makes_one_request(caller: Caller, requests: list[Request]):
    ended = caller.ask(caller.private("t2i-generate", "click", Prompt="a fox", Steps=2, Seed="1"))
    assert ended["data"]
    assert [request.prompt for request in requests] == ["a fox"]


def test_a_program_makes_one_request(caller: Caller, requests: list[Request]):
    ended = caller.ask(caller.public("text2image", prompt="a fox", num_inference_steps=2))
    assert ended["data"][1]["finished"]
    assert len(requests) == 1


def test_a_run_decodes_its_photo_once(caller: Caller, requests: list[Request], decoded: list[str]):
    ended = caller.ask(caller.private("i2i-generate", "click", Prompt="a fox", Steps=2, Seed="1"))
    assert ended["data"]
    assert [Path(label).name for label in decoded] == ["image 'flower.jpg'", "image"]  # then its header, for a mark
    assert len(requests) == 1
