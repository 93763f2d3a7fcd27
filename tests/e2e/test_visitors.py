"""Many at once, and pages that come back: the line, what a reload finds, and what closing a tab frees."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from itertools import combinations
from typing import ClassVar

import pytest
from playwright.sync_api import Browser, Page, expect

from stable_diffusion import Pipeline
from stable_diffusion.request import Request
from stable_diffusion.run import Run
from ui import sketch
from ui.page import build_page
from ui.resume import GONE
from ui.runs import cost, visitors
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import News
from ui.runs.models import LoadedModels
from ui.theme import look

from .conftest import PATIENCE, Server, Visits, free_port
from .visitor import Visitor


class Paced(Pipeline):
    """A pipeline whose runs with a prompt that ends in "waits" take their second step when they are let."""

    let = threading.Event()

    def begin(self, request: object, **settings: object) -> Run:
        run = super().begin(request, **settings)  # type: ignore[arg-type]
        answer = run.answer

        def paced(x_0: object) -> object:
            if run.request.prompt.endswith("waits") and run._progress.index == 1:
                assert self.let.wait(PATIENCE)
            return answer(x_0)  # type: ignore[arg-type]

        run.answer = paced  # type: ignore[method-assign, assignment]
        return run


class Late(Local):
    """Takes up a run with a prompt that ends in "late" once somebody has pressed Stop."""

    pressed = threading.Event()
    asked: ClassVar[list[str]] = []

    def stop(self, run_id: str, *, pictures: bool = True) -> None:
        super().stop(run_id, pictures=pictures)
        if run_id:
            self.pressed.set()

    async def stream(self, run_id: str, request: Request, owner: visitors.Visitor) -> AsyncGenerator[News]:
        self.asked.append(request.prompt)
        if request.prompt.endswith("late"):
            await asyncio.to_thread(self.pressed.wait, PATIENCE)
        async with aclosing(super().stream(run_id, request, owner)) as told:
            async for news in told:
                yield news


@pytest.fixture(scope="module")
def narrow() -> Iterator[str]:
    """Yield the address of a page that draws for one at a time, and sketches on the slowest machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "QUICK", math.inf)
        holder = LoadedModels(Catalogue(), load=lambda *_: Paced(Pipeline.from_pretrained(device="cpu").models))
        holder.pipeline()
        page = build_page(holder, Late(holder, max_running=1))
        _, address, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **look())
        yield address
        page.close()


@pytest.fixture
def come(narrow: str, visits: Visits) -> Iterator[Callable[[], Visitor]]:
    """Yield a function that lets one more visitor come to that page."""
    Paced.let.clear()
    Late.pressed.clear()
    Late.asked.clear()
    yield lambda: Visitor(visits.open(narrow))
    Paced.let.set()


def test_who_waits_is_told_the_place_and_who_stops_or_goes_frees_it(come: Callable[[], Visitor]):
    first, second, third = (come() for _ in range(3))
    first.ask("one that waits", steps=4)
    first.generate()
    first.wait_until("step")
    for visitor, place in ((second, "1st in line"), (third, "2nd in line")):
        visitor.ask("a cat", steps=2)
        visitor.generate()
        expect(visitor.view).to_contain_text(place)
    second.stop()
    second.wait_until("idle")
    expect(second.page.locator("#t2i-generate")).to_be_enabled()
    expect(third.view).to_contain_text("1st in line")
    first.page.close()
    Paced.let.set()
    third.wait_until("finished")


def test_stop_counts_before_the_run_is_taken_up(come: Callable[[], Visitor]):
    visitor = come()
    visitor.ask("one that is late", steps=150)
    visitor.generate()
    visitor.stop()
    visitor.wait_until("stopped")
    assert "step 1 of 150" in visitor.status()


def test_the_form_is_drawn_while_it_changes_and_nothing_is_kept_of_it(come: Callable[[], Visitor]):
    visitor = come()
    page, prompt = visitor.page, visitor.page.locator("#t2i-prompt textarea")
    expect(page.locator("#t2i-sketch").get_by_role("checkbox")).to_be_checked()
    prompt.fill("a red apple")
    visitor.wait_until("sketch")
    red = visitor.pixels()
    expect(page.locator("#t2i-generate")).to_be_enabled()
    expect(page.locator("#t2i-stop")).to_be_disabled()
    expect(page.locator("#t2i-link")).to_be_hidden()
    source = visitor.view.locator(".x0 img").get_attribute("src")
    assert source is not None
    prompt.fill("a green apple")
    expect(visitor.view.locator(".x0 img")).not_to_have_attribute("src", source)
    assert (visitor.pixels() != red).any()
    assert page.evaluate("sessionStorage.getItem('t2i-live')") is None  # a reload has nothing to go on with
    prompt.press("Shift+Enter")
    expect(prompt).to_have_value("a green apple\n")
    prompt.press("Backspace")
    prompt.press("Enter")
    visitor.wait_until("finished")
    visitor.expect_result()
    expect(visitor.view.locator("[data-fact=seed]")).to_have_text("0")  # the sketch's, drawn in full
    expect(page.locator("#history button.thumbnail-item")).to_have_count(1)
    expect(prompt).to_have_value("a green apple")


def test_a_sketch_is_drawn_to_its_end_and_the_newest_change_is_next(come: Callable[[], Visitor]):
    visitor = come()
    prompt, switch = (visitor.page.locator(f"#t2i-{name}") for name in ("prompt textarea", "sketch input"))
    expect(switch).to_be_checked()
    visitor.record()
    prompt.fill("one that waits")
    visitor.wait_until("sketch")  # its first step
    for change in ("a red apple", "a blue apple", "a green apple"):
        prompt.fill(change)
    Paced.let.set()
    expect(visitor.view.locator(".live")).to_have_attribute("data-link", "prompt=a+green+apple")
    assert Late.asked == ["one that waits", "a green apple"]
    assert len(visitor.seen("sketch")) > 2
    assert not Late.pressed.is_set()
    Paced.let.clear()
    prompt.fill("a cat that waits")
    expect(visitor.view.locator(".live")).to_have_attribute("data-link", "prompt=a+cat+that+waits")
    switch.uncheck()
    assert Late.pressed.wait(PATIENCE)


def test_the_form_is_drawn_while_the_strength_moves(come: Callable[[], Visitor]):
    visitor = come()
    photos = Visitor(visitor.page, "i2i")
    expect(visitor.page.locator("#i2i-sketch").get_by_role("checkbox")).to_be_checked()
    visitor.page.locator("#i2i-strength input[type=range]").press("ArrowLeft")
    photos.wait_until("sketch")


def test_in_a_crowd_nothing_is_drawn_while_one_types(come: Callable[[], Visitor]):
    first, second = come(), come()
    first.ask("one that waits", steps=4)
    first.generate()
    first.wait_until("step")
    second.page.locator("#t2i-prompt textarea").fill("a cat")
    expect(second.page.locator("#t2i-sketch")).to_contain_text(sketch.CROWDED)
    second.wait_until("idle")
    Paced.let.set()
    first.wait_until("finished")
    second.wait_until("idle")


def step(visitor: Visitor) -> int:
    """The step that the live view tells."""
    return int(visitor.view.locator('[data-fact="step"]').inner_text().split()[0])


def test_a_page_that_is_loaded_again_goes_on_with_its_run(visit: Callable[..., Page], server: Server):
    visitor = Visitor(visit())
    visitor.ask("a red fox face", steps=150, seed="5")
    visitor.generate()
    visitor.wait_until("step")
    expect(visitor.view.locator(".film button").nth(4)).to_be_attached()
    before = step(visitor)
    visitor.page.reload()
    visitor.wait_until("step")
    assert step(visitor) >= before
    expect(visitor.view.locator('.film button[data-index="1"]')).to_be_attached()
    visitor.wait_until("finished")
    visitor.expect_result()
    visitor.page.reload()
    visitor.wait_until("finished")
    visitor.expect_result()
    assert step(visitor) == 150
    straight = Visitor(visit())
    straight.ask("a red fox face", steps=150, seed="5")
    straight.generate()
    straight.wait_until("finished")
    assert (straight.pixels() == visitor.pixels()).all()


class Line:
    """A line to a server that can be cut, as a phone's is that sleeps."""

    def __init__(self, port: int):
        self.port, self.open = port, True
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._connect, "127.0.0.1", 0), self._loop)
        self.here = starting.result().sockets[0].getsockname()[1]

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {writer, back}
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await reader.read(65536):
                writer.write(content)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """End all connections, and take no more until `open` is set again."""
        self.open = False
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in self._writers])


def test_a_phone_that_slept_finds_its_run(server: Server, browser: Browser):
    line = Line(int(server.url.rsplit(":")[-1]))
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://127.0.0.1:{line.here}")
    page.locator("#t2i-generate").wait_for()
    visitor, left = Visitor(page), server.count("stopped at step")
    visitor.ask("a red fox face", steps=150, seed="5")
    visitor.generate()
    visitor.wait_until("step")
    line.cut()
    server.wait_for_log("stopped at step", left + 1)
    line.open = True
    expect(page.locator(".toast-body")).to_have_count(0)
    visitor.wait_until("finished")
    visitor.expect_result()
    assert step(visitor) == 150
    context.close()


def test_a_run_of_a_server_that_is_gone_can_be_drawn_again(visit: Callable[..., Page]):
    page = visit()
    visitor = Visitor(page)
    note = {"run": "0" * 32, "link": "prompt=a+red+fox&seed=7&num_inference_steps=3"}
    page.evaluate("note => sessionStorage.setItem('t2i-live', note)", json.dumps(note))
    page.reload()
    expect(visitor.view).to_contain_text(GONE)
    expect(page.locator("#t2i-prompt textarea")).to_have_value("a red fox")
    visitor.generate()
    visitor.wait_until("finished")
    expect(visitor.view.locator('[data-fact="seed"]')).to_have_text("7")


def test_three_visitors_see_their_own_steps_alone(visit: Callable[..., Page]):
    crowd = [Visitor(visit()) for _ in range(3)]
    for seed, visitor in enumerate(crowd, 11):
        visitor.ask("a cat", steps=12, seed=str(seed))
        visitor.record()
        visitor.generate()
    for seed, visitor in enumerate(crowd, 11):
        visitor.wait_until("finished")
        expect(visitor.view.locator('[data-fact="seed"]')).to_have_text(str(seed))
    seen = [set(visitor.seen("step")) for visitor in crowd]
    assert all(pictures for pictures in seen)
    assert all(one.isdisjoint(other) for one, other in combinations(seen, 2))
