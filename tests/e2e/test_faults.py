"""What goes wrong in the middle of a run ends in a sentence, and who waits for a slow model keeps nobody waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect
from torch import Tensor

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.run import Run, Step
from ui.page import build_page
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.errors import NO_MEMORY, UNEXPECTED
from ui.runs.models import LoadedModels, OnProgress
from ui.theme import look

from .conftest import PATIENCE, Visits, free_port
from .visitor import Visitor, unfold

# Words that the model has no picture of, so that the page takes them as they were typed.
FAULTS = {"memory": RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "defect": KeyError("conv_in")}
SENTENCES = {"memory": NO_MEMORY, "defect": UNEXPECTED}


class FaultyPipeline(Pipeline):
    """A pipeline that fails at its second step where the prompt names a fault, and otherwise works."""

    def begin(self, request: Any, **settings: object) -> Run:
        run = super().begin(request, **settings)
        answer = run.answer

        def faulty(x_0: Tensor) -> Step:
            step = answer(x_0)
            if step.index == 2 and run.request.prompt in FAULTS:
                raise FAULTS[run.request.prompt]
            return step

        run.answer = faulty  # type: ignore[method-assign]
        return run


@pytest.fixture(scope="module")
def faulty() -> Iterator[str]:
    """The address of a page whose pipeline has faults, and whose model from the hub is not there before the end."""
    released = threading.Event()

    def load(source: str | None, vae: None, device: None, dtype: None, tell: OnProgress) -> Pipeline:
        if source is not None:
            tell("Downloading for ever", 0.5)
            assert released.wait(PATIENCE)
        return FaultyPipeline(Pipeline.from_pretrained(device="cpu").models)

    holder = LoadedModels(Catalogue(), load=load)
    page = build_page(holder, Local(holder))
    _, address, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **look())
    yield address
    released.set()
    page.close()


@pytest.fixture
def visit(faulty: str, visits: Visits) -> Callable[[], Page]:
    """Return a function that opens that page as one more visitor."""
    return lambda: visits.open(faulty)


@pytest.fixture
def visitor(visit: Callable[[], Page]) -> Visitor:
    """A visitor of that page."""
    return Visitor(visit())


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
    unfold(page, "tab", "Inside", "#laboratory")
    unfold(page, "button", "Laboratory: all numbers", "#inside-tabs")
    unfold(page, "tab", "Samplers", "#inside-compare")
    page.locator("#inside-compare-prompt textarea, #inside-compare-prompt input").first.fill("memory")
    page.locator("#inside-compare").click()
    visitor.expect_error(NO_MEMORY)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_gets_the_sentence_too(faulty: str, fault: str):
    with pytest.raises(AppError, match=SENTENCES[fault]):
        Client(faulty, verbose=False).predict(fault, api_name="/text2image")


def test_while_one_waits_for_a_model_others_draw_and_who_stops_is_free(visit: Callable[[], Page]):
    first, second = Visitor(visit()), Visitor(visit())
    first.page.locator("#model input").click()
    first.page.get_by_role("option", name="Stable Diffusion 1.5").click()
    first.ask("a cat", steps=2)
    first.generate()
    expect(first.view).to_contain_text("Downloading for ever")
    third = visit()
    third.locator("#model input").click()
    third.get_by_role("option", name="Stable Diffusion 1.5").click()
    third.get_by_role("tab", name="Inside", exact=True).click()
    second.ask("a dog", steps=2)
    second.generate()
    second.wait_until("finished")
    second.page.get_by_role("tab", name="Inside", exact=True).click()
    second.page.locator("#inside-tour .dots").get_by_label("Stop 3:").click()
    second.page.get_by_role("button", name="a pizza").click()
    expect(second.page.locator("#inside-tour .stop:visible [type=text]")).to_have_value("a pizza")
    expect(second.page.locator("#inside-tour .stop:visible")).to_have_attribute("aria-busy", "false")
    first.stop()
    first.wait_until("idle")
    expect(first.page.locator("#t2i-generate")).to_be_enabled()
    first.page.locator("#model input").click()
    first.page.get_by_role("option", name="emoji").click()
    first.generate()
    first.wait_until("finished")
