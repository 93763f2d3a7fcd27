"""Runs that are shown, left, taken over and refused: nobody loses a run or its Stop to somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest
from starlette.datastructures import Address
from starlette.requests import Request as HTTPRequest
from uvicorn import Config

import app
from stable_diffusion.loading.config import ModelError
from stable_diffusion.request import Request, RequestError
from tests.conftest import awaited
from tests.tiny import save_model
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import Event, News, Started
from ui.runs.limits import MAX_FILM, REMEMBERED_RUNS, Limits
from ui.runs.message_rate import MessageRate
from ui.runs.models import LoadedModels
from ui.runs.registry import PageRun, Registry
from ui.runs.visitors import ACCOUNTS, Visitor, Visitors, network, visitor_of
from ui.tab import Services, Tab, follow
from ui.web.proxies import ProxyAddress

REQUEST = Request("a", num_inference_steps=500, seed=1, preview="none")


def test_a_run_that_is_taken_over_goes_on_and_can_be_stopped(tmp_path: Path):
    """A duplicated tab, or a phone that slept, asks for a run while the earlier stream has not ended."""
    backend = Local(LoadedModels(Catalogue(str(save_model(tmp_path))), "cpu", limits=Limits(max_visitor_runs=1)))

    async def event_of(stream: AsyncGenerator[News]) -> Event:
        while not isinstance(news := await anext(stream), Event):
            pass
        return news

    async def ask() -> None:
        early = backend.stream("run", REQUEST, Visitor("phone"))
        while (reached := (await event_of(early)).index) < 3:
            pass
        late = backend.stream("run", REQUEST, Visitor("phone"))
        first = await anext(late)
        assert isinstance(first, Event)  # neither Waiting nor Started: the run goes on
        assert first.index >= reached - 4  # the newest steps are kept for late readers
        await early.aclose()
        assert (await event_of(late)).index < REQUEST.num_inference_steps
        backend.stop("run")
        rest = [news async for news in late]
        assert rest[-1].stopped
        assert rest[-1].images
        await anext(again := backend.stream("run", REQUEST, Visitor("phone")))  # the first was counted once
        await again.aclose()

    awaited(ask())


def test_a_run_that_is_taken_over_while_it_is_prepared_is_drawn_once(tmp_path: Path):
    backend = Local(LoadedModels(Catalogue(str(save_model(tmp_path))), "cpu"))

    async def ask() -> None:
        early = backend.stream("run", REQUEST, Visitor("one"))
        while not isinstance(await anext(early), Started):
            pass
        late = backend.stream("run", REQUEST, Visitor("one"))
        await anext(late)
        assert [news async for news in early] == []  # its consumer did not notice
        await late.aclose()
        assert list(backend._parked) == ["run"]

    awaited(ask())


def test_a_run_that_nobody_wants_any_more_leaves_its_place_at_once(tmp_path: Path):
    """Without a picture of its last step: Generate was pressed again."""
    limits = Limits(max_visitor_runs=1)
    backend = Local(LoadedModels(Catalogue(str(save_model(tmp_path))), "cpu", limits=limits))

    async def ask() -> None:
        first = backend.stream("first", REQUEST, Visitor("one"))
        while not isinstance(await anext(first), Event):
            pass
        await asyncio.sleep(0.3)  # the newest steps wait for their reader
        backend.stop("first", pictures=False)
        late = [news async for news in first]
        assert all(news.images is None for news in late if isinstance(news, Event))
        second = backend.stream("second", replace(REQUEST, num_inference_steps=1), Visitor("one"))
        assert [news async for news in second][-1].images
        assert not backend._parked

    awaited(ask())


def test_a_parked_run_outlives_a_page_that_leaves_before_it_goes_on(tmp_path: Path):
    backend = Local(LoadedModels(Catalogue(str(save_model(tmp_path))), "cpu"))

    async def ask() -> None:
        stream = backend.stream("run", REQUEST, Visitor("one"))
        while not isinstance(await anext(stream), Event):
            pass
        await stream.aclose()
        again = asyncio.ensure_future(anext(backend.stream("run", REQUEST, Visitor("one"))))
        await asyncio.sleep(0)  # it is under way
        again.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again
        assert list(backend._parked) == ["run"]

    awaited(ask())


def test_a_page_that_leaves_at_once_shows_no_run_for_ever():
    registry = Registry()
    services = Services(cast(Any, None), cast(Any, Refusing()), registry, MessageRate())

    async def leave() -> PageRun:
        run = PageRun("t2i", REQUEST, "one")
        updates = follow(tab(), services, run, Visitor("a", "one"))
        await anext(updates)
        await updates.aclose()
        return run

    assert awaited(leave()).page is None


def tab() -> Tab:
    names = ("live", "generate", "stop", "run_id", "results", "last", "after", "download", "files")
    view = SimpleNamespace(**{name: name for name in names})
    return cast(Tab, SimpleNamespace(kind="t2i", view=view, controls={}))


class Refusing:
    """A backend that refuses all runs."""

    async def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        raise RequestError("too many")
        yield


def shown(registry: Registry, address: str, page: object = None) -> PageRun:
    run = PageRun("t2i", REQUEST, address)
    registry.show(run, page)
    return run


def test_refused_clicks_make_nobody_lose_a_run():
    registry = Registry()
    drawn, left = shown(registry, "one", page=object()), shown(registry, "one")
    services = Services(cast(Any, None), cast(Any, Refusing()), registry, MessageRate())

    async def click() -> None:
        run = PageRun("t2i", REQUEST, "another")
        with pytest.raises(gr.Error):
            async for _ in follow(tab(), services, run, Visitor("a", "another")):
                pass

    async def click_often() -> None:
        for _ in range(REMEMBERED_RUNS + 10):
            await click()

    awaited(click_often())
    assert registry.get(drawn.run_id) is drawn
    assert registry.get(left.run_id) is left


class Damaged:
    """A backend whose model has a damaged file."""

    async def stream(self, run_id: str, request: Request, owner: Visitor) -> AsyncGenerator[News]:
        raise ModelError("/srv/models/loras/ink.safetensors is damaged: choose another")
        yield


def test_a_failed_run_names_no_folder_of_the_server_on_the_stage():
    services = Services(cast(Any, None), cast(Any, Damaged()), Registry(), MessageRate())

    async def last_text() -> str:
        updates = follow(tab(), services, PageRun("t2i", REQUEST), Visitor("a"))
        await anext(updates)
        return (await anext(updates))[cast(Any, "live")]["text"]

    assert awaited(last_text()) == "ink.safetensors is damaged: choose another"


def test_a_flood_of_runs_displaces_those_of_its_own_address():
    registry = Registry()
    drawn, left = shown(registry, "one", page=object()), shown(registry, "one")
    flood = [shown(registry, "another") for _ in range(2 * REMEMBERED_RUNS)]
    assert registry.get(drawn.run_id) is drawn
    assert registry.get(left.run_id) is left
    assert [registry.get(run.run_id) is run for run in flood].count(True) == REMEMBERED_RUNS - 1
    assert registry.get(flood[-1].run_id) is flood[-1]


def step(index: int, size: int, total: int = 1000) -> Event:
    return Event(index, total, 0.0, 1.0, 1, 0.1, *[bytes(size // 4)] * 4)


def test_the_film_of_a_long_run_is_bounded_in_bytes_and_covers_all_of_it():
    run, size = PageRun("t2i", REQUEST), MAX_FILM // 50
    for index in range(1000):
        run.add(step(index, size))
        assert run.film[-1].index == index
    indices = [event.index for event in run.film]
    assert len(run.film) * size <= MAX_FILM
    assert (indices[0], indices[-1]) == (0, 999)
    assert 25 <= len(indices) <= 50
    assert max(after - before for before, after in pairwise(indices)) == run.stride
    short = PageRun("t2i", REQUEST)
    for index in (0, 1, 3, 2):  # a preview may come late
        short.add(step(index, size))
    assert [event.index for event in short.film] == [0, 1, 2, 3]


def test_films_of_runs_that_no_page_shows_are_bounded_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.runs.registry.MAX_LEFT_BYTES", 2000)
    registry = Registry()
    runs = [PageRun("t2i", REQUEST) for _ in range(4)]
    for run in runs:
        registry.show(run, object())
        run.add(step(1, 1000))
    for run in runs[:3]:
        run.page = None
    registry.show(PageRun("t2i", REQUEST), object())
    assert [len(run.film) for run in runs] == [0, 1, 1, 1]


def test_a_flood_of_films_displaces_those_of_its_own_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ui.runs.registry.MAX_LEFT_BYTES", 3000)
    registry = Registry()
    runs = [PageRun("t2i", REQUEST, address) for address in ("victim", *["flood"] * 6)]
    for run in runs:
        registry.show(run, object())
        run.add(step(1, 1000))
        registry.show(run, None)
    assert [len(run.film) for run in runs] == [1, 0, 0, 0, 0, 1, 1]


def test_runs_are_counted_by_visit_and_by_address():
    visitors = Visitors(Limits(max_visitor_runs=2, max_address_runs=20))
    many = [Visitor(f"visit {i}", "192.0.2.1") for i in range(20)]
    accounts = [visitors.enter(one) for one in many]
    assert len(set(accounts[:ACCOUNTS])) == ACCOUNTS  # apart while there are few of them
    assert len(set(accounts)) == ACCOUNTS
    with pytest.raises(RequestError, match="20 runs from your network address are under way already: wait for one"):
        visitors.enter(Visitor("one more", "192.0.2.1"))
    other = Visitor("visit 0", "192.0.2.2")
    assert visitors.enter(other) not in accounts
    visitors.enter(other)
    with pytest.raises(RequestError, match="2 of your runs are under way already"):
        visitors.enter(other)
    visitors.leave(many[0])
    visitors.enter(Visitor("one more", "192.0.2.1"))


@pytest.mark.parametrize(
    ("address", "counts"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:3::4]:80", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
    ],
)
def test_the_part_of_an_address_counts_that_its_user_cannot_choose(address: str, counts: str):
    assert network(address) == counts


def address_of(header: str | None, sent: list[str]) -> str:
    """The address by which a visitor is counted who comes from 192.0.2.1 and sends these X-Forwarded-For headers."""
    found: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        found.append(visitor_of(gr.Request(HTTPRequest(scope))).address)

    headers = [(b"x-forwarded-for", one.encode()) for one in sent]
    scope = {"type": "http", "headers": headers, "client": Address("192.0.2.1", 1)}
    awaited((page if header is None else ProxyAddress(page, header))(scope, cast(Any, None), cast(Any, None)))
    return found[0]


def test_a_proxys_header_is_believed_where_the_deployer_names_it():
    assert address_of(None, ["198.51.100.7"]) == "192.0.2.1"
    assert address_of("X-Real-IP", ["198.51.100.7"]) == "192.0.2.1"
    assert address_of("X-Forwarded-For", []) == "192.0.2.1"
    assert address_of("X-Forwarded-For", ["10.0.0.1, 203.0.113.9", "198.51.100.7"]) == "198.51.100.7"
    assert all(one.cls is not ProxyAddress for one in app.guards(app.parse_arguments([])))
    named = app.guards(app.parse_arguments(["--address-header", "X-Real-IP"]))
    assert [one.kwargs for one in named if one.cls is ProxyAddress] == [{"header": "X-Real-IP"}]
    assert Config("app").forwarded_allow_ips == ""  # uvicorn would believe what comes through this machine
