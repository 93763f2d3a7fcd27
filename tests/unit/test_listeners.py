"""What is read of Gradio's line of events, some of it private: where a newer Gradio keeps it elsewhere, this fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.queueing import AsyncQueue, Queue
from gradio.routes import App
from gradio.server_messages import EstimationMessage, EventMessage, ProcessGeneratingMessage, ProcessStartsMessage

from tests.conftest import awaited
from ui.web import listeners
from ui.web.listeners import Listeners, first_unread, queue_of, repeat

REMEDY = "Gradio keeps its line of events elsewhere: see its queueing.py and routes.py, and mend ui/web/listeners.py"


@pytest.fixture
def line() -> Queue:
    """The line of a page with one event, which nobody serves."""
    with gr.Blocks() as page:
        gr.Button().click(lambda: None)
    return queue_of(App.create_app(page))


def message(rank: int) -> EstimationMessage:
    """Something to say to a listener."""
    return EstimationMessage(rank=rank, queue_size=1)


def test_the_line_of_a_server_is_found(line: Queue) -> None:
    assert isinstance(line, Queue), REMEDY
    for name in ("pending_messages_per_session", "pending_event_ids_session", "active_jobs", "clean_events"):
        assert hasattr(line, name), f"{name}: {REMEDY}"


def test_the_first_unread_message_is_seen_and_stays() -> None:
    messages: AsyncQueue = AsyncQueue()
    assert first_unread(messages) is None
    first, second = message(1), message(2)
    for one in (first, second):
        messages.put_nowait(one)
    assert first_unread(messages) is first, REMEDY
    assert messages.get_nowait() is first
    assert first_unread(messages) is second


def test_unread_messages_are_forgotten_and_those_that_are_read_are_not(line: Queue) -> None:
    """A reader that is as slow as the run keeps its messages, however many there are."""

    async def visit() -> tuple[set[str], set[str]]:
        sessions = line.pending_messages_per_session
        for name in ("left", "slow"):
            sessions[name] = AsyncQueue()
            for rank in range(5):
                sessions[name].put_nowait(message(rank))
        watch = Listeners(line, 0.3)
        watching = asyncio.create_task(repeat(watch.check, watch.every))
        for rank in range(20):
            await asyncio.sleep(0.05)
            if "slow" in sessions:
                sessions["slow"].get_nowait()
                sessions["slow"].put_nowait(message(rank))
        watching.cancel()
        return {"left", "slow"}, set(dict(sessions.items()))

    before, after = awaited(visit())
    assert before - after == {"left"}


def test_a_run_that_never_had_a_listener_ends_sooner(line: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(listeners, "time", SimpleNamespace(monotonic=lambda: now))
    starts, step = ProcessStartsMessage(), ProcessGeneratingMessage(output={}, success=True)
    first: dict[str, EventMessage] = {"never": starts, "waits": message(1), "heard": step}
    for session, one in first.items():
        line.pending_messages_per_session[session] = AsyncQueue()
        line.pending_messages_per_session[session].put_nowait(one)
    watch = Listeners(line, 60)
    left: dict[float, list[str]] = {}
    for now in (1000.0, 1009.0, 1011.0, 1059.0, 1061.0):
        awaited(watch.check())
        left[now] = sorted(line.pending_messages_per_session)
    assert left == {
        1000.0: ["heard", "never", "waits"],
        1009.0: ["heard", "never", "waits"],
        1011.0: ["heard"],
        1059.0: ["heard"],
        1061.0: [],
    }


def test_a_failing_check_is_logged_and_comes_again(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[None] = []

    async def check() -> None:
        tried.append(None)
        if len(tried) == 3:
            raise asyncio.CancelledError
        raise LookupError("a newer Gradio")

    with pytest.raises(asyncio.CancelledError):
        awaited(repeat(check, 0.01))
    assert len(tried) == 3
    assert caplog.text.count("LookupError: a newer Gradio") == 2
