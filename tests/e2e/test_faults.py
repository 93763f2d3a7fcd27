"""Whatever goes wrong in the middle of a run, it ends in a sentence, and the next run can begin."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Page, expect

from stable_diffusion.pipeline import Pipeline, Step
from ui.errors import NO_MEMORY, UNEXPECTED
from ui.models import ModelHolder
from ui.page import build_page, look

from .conftest import PATIENCE, free_port
from .visitor import Visitor

FAULTS = {"memory": RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "bug": KeyError("conv_in")}
SENTENCES = {"memory": NO_MEMORY, "bug": UNEXPECTED}


class FaultyPipeline(Pipeline):
    """A pipeline that fails at its second step where the prompt names a fault, and otherwise works."""

    def stream(self, request: Any, **settings: object) -> Iterator[Step]:
        for step in super().stream(request, **settings):
            if step.index == 2 and request.prompt in FAULTS:
                raise FAULTS[request.prompt]
            yield step


@pytest.fixture(scope="module")
def faulty() -> Iterator[str]:
    """The address of a page whose only fault is its pipeline."""

    def load(*arguments: object) -> Pipeline:
        return FaultyPipeline(Pipeline.from_pretrained(device="cpu").models)

    page = build_page(ModelHolder(load=load))
    _, address, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **look())
    yield address
    page.close()


@pytest.fixture
def visitor(faulty: str, browser: Browser) -> Iterator[Visitor]:
    """A visitor of that page."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page: Page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(faulty)
    page.locator("#t2i-generate").wait_for()
    yield Visitor(page)
    context.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_fails_ends_in_a_sentence(visitor: Visitor, fault: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ui"):
        visitor.ask(fault, steps=4)
        visitor.generate()
        visitor.wait_until("failed")
        visitor.expect_error(SENTENCES[fault])
        expect(visitor.view).to_contain_text(SENTENCES[fault])
    assert "Traceback" in caplog.text
    expect(visitor.page.locator("#t2i-stop")).to_be_disabled()
    visitor.ask("a cat", steps=2)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()


def test_a_comparison_that_fails_ends_in_a_sentence(visitor: Visitor):
    page = visitor.page
    page.get_by_role("tab", name="Inside", exact=True).click()
    page.get_by_role("tab", name="Samplers side by side").click()
    page.locator("#inside-compare-prompt textarea, #inside-compare-prompt input").first.fill("memory")
    page.locator("#inside-compare").click()
    visitor.expect_error(NO_MEMORY)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_gets_the_sentence_too(faulty: str, fault: str):
    with pytest.raises(AppError, match=SENTENCES[fault]):
        Client(faulty, verbose=False).predict(fault, api_name="/text2image")
