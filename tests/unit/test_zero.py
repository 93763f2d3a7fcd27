"""What borrows a GPU draws what `Local` draws; here the `spaces` package lends none, and calls it in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stable_diffusion.request import Request, RequestError
from tests.conftest import awaited
from ui.inside.laboratory.run import recordings
from ui.runs import cost, zero
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import Event, News, Started
from ui.runs.limits import Limits
from ui.runs.models import LoadedModels
from ui.runs.visitors import Visitor
from ui.runs.zero import LOADING, Zero

REQUEST = Request("a red fox", num_inference_steps=6, seed=7)


def models(**options: Any) -> LoadedModels:
    return LoadedModels(Catalogue(), device="cpu", dtype="float32", **options)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Zero:
    """For one whose processor is too slow for the included model."""
    monkeypatch.setattr(zero, "is_quick", lambda pipeline: False)
    return Zero(models(), models())


def told(backend: Local, request: Request, stop_at: int | None = None) -> list[News]:
    """What a run tells, stopped after that step."""

    async def listen() -> list[News]:
        news = []
        async for one in backend.stream("run", request, Visitor("somebody")):
            news.append(one)
            if isinstance(one, Event) and one.index == stop_at:
                backend.stop("run")
        return news

    return [news for news in awaited(listen()) if isinstance(news, (Started, Event))]


def test_it_tells_what_a_run_on_the_processor_tells(backend: Zero):
    [started, *events] = told(backend, REQUEST)
    [expected, *others] = told(Local(backend.models), REQUEST)
    assert started == expected
    assert [event.index for event in events] == [1, 2, 3, 4, 5, 6]
    assert events[0].start is not None
    assert events[-1].images == others[-1].images
    assert all(event.x_0 for event in events)


def test_a_run_that_is_stopped_ends_with_the_picture_that_it_has(backend: Zero):
    for _ in range(2):  # a stop does not stay for the next run of that name
        events = told(backend, REQUEST, stop_at=2)[1:]
        assert [event.stopped for event in events] == [False, False, True]
        assert events[-1].images


def test_what_the_process_with_the_gpu_refuses_is_told(backend: Zero):
    backend._lent = models(limits=Limits(max_images=1))
    with pytest.raises(RequestError, match="num_images must be at most 1 here, got 2"):
        told(backend, replace(REQUEST, num_images=2))


def test_what_is_quick_here_needs_no_gpu(backend: Zero, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zero, "is_quick", lambda pipeline: True)
    backend._borrow = None
    assert told(backend, REQUEST)[-1].images


def test_a_gpu_is_borrowed_for_the_seconds_of_the_run(backend: Zero, monkeypatch: pytest.MonkeyPatch):
    pipeline = backend.models.pipeline()
    monkeypatch.setitem(cost._paces, pipeline, cost.Pace(pipeline.default_size, 0, 0, 2, 0))
    short, long, longest = (
        backend._seconds("run", pipeline.defaults.complete(Request("a", num_inference_steps=steps)))
        for steps in (10, 150, 1000)
    )
    assert LOADING < short == 17 < long == 45 < longest == 120


def test_a_view_is_drawn_here_and_limited_at_the_pace_of_this_processor(monkeypatch: pytest.MonkeyPatch):
    generous, usual = Limits(max_seconds=1000), Limits(max_seconds=100)
    backend = Zero(models(limits=generous), models(limits=usual))
    pipeline = backend.models.pipeline()
    monkeypatch.setitem(cost._paces, pipeline, cost.Pace(pipeline.default_size, 0, 0, 1, 0))
    with pytest.raises(RequestError, match="take about 8 min here, and one request may take 2 min"):
        awaited(anext(backend.inspect(recordings, [replace(REQUEST, num_inference_steps=500)], Visitor("one"))))
