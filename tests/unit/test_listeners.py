"""What is read of Gradio's line of events, some of it private: where a newer Gradio keeps it elsewhere, this fails."""

from __future__ import annotations

import asyncio

import gradio as gr
import pytest
from gradio.queueing import AsyncQueue, Queue
from gradio.routes import App
from gradio.server_messages import EstimationMessage

from tests.conftest import awaited
from ui.web.listeners import end_unheard, first_unread, queue_of

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
        watching = asyncio.create_task(end_unheard(line, 0.3))
        for rank in range(20):
            await asyncio.sleep(0.05)
            if "slow" in sessions:
                sessions["slow"].get_nowait()
                sessions["slow"].put_nowait(message(rank))
        watching.cancel()
        return {"left", "slow"}, set(dict(sessions.items()))

    before, after = awaited(visit())
    assert before - after == {"left"}
