"""Two replicas on this machine, and the front that tells what they draw."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stable_diffusion.request import Request, RequestError
from tests.tiny import save_model
from ui.runs.backend import Backend, Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import Event, News, Started
from ui.runs.limits import Limits
from ui.runs.models import LoadedModels
from ui.runs.visitors import Visitor

ray = pytest.importorskip("ray", reason="requirements-serve.txt is not installed")
pytestmark = pytest.mark.serving

from serving.backend import Remote  # noqa: E402
from serving.deploy import deploy  # noqa: E402

from .mortal import Mortal  # noqa: E402

REQUEST = Request("a red fox", seed=7, num_inference_steps=4, sampler="euler_a", preview="none")
LIMITS = Limits(max_seconds=1e9)
LONG = replace(REQUEST, num_inference_steps=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model; another one lies where the page looks for them."""
    folder = tmp_path_factory.mktemp("served")
    save_model(folder / "others" / "other", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SD_MODELS", str(folder / "others"))
        yield save_model(folder / "first")


@pytest.fixture(scope="module")
def handle(model: Path) -> Iterator[Any]:
    """Two replicas in a cluster that nobody else can talk to, of the size of a test."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: the paths of its sockets have a limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=folder)
        size = {"replicas": 2, "max_replicas": 3, "line": 4, "cpus": 1}
        yield deploy(Catalogue(str(model)), kind=Mortal, device="cpu", limits=LIMITS, **size)
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def remote(handle: Any, model: Path) -> Remote:
    """The front, with both replicas there."""
    wait_until(lambda: len(pids(handle)) == 2)
    return Remote(handle, LoadedModels(Catalogue(str(model)), limits=LIMITS))


@pytest.fixture(scope="module")
def local(model: Path) -> Local:
    """An engine in this process, alone with its one run."""
    return Local(LoadedModels(Catalogue(str(model)), "cpu"))


def pids(handle: Any) -> set[int]:
    return set(handle.broadcast("pid").results(timeout_s=30))


async def home(handle: Any, run_id: str) -> int:
    """The process that has a run."""
    return await handle.options(session_id=run_id).pid.remote()


def wait_until(holds: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def news(backend: Backend, run_id: str, request: Request) -> aclosing[AsyncGenerator[News]]:
    return aclosing(backend.stream(run_id, request, owner=Visitor("visitor")))


def run(backend: Backend, run_id: str, request: Request) -> list[News]:
    async def listen() -> list[News]:
        async with news(backend, run_id, request) as told:
            return [one async for one in told]

    return asyncio.run(listen())


def picture(told: list[News]) -> np.ndarray:
    """The picture at the end of a run."""
    last = told[-1]
    assert isinstance(last, Event)
    assert last.images is not None
    return np.asarray(Image.open(io.BytesIO(last.images[0]))).astype(int)


def steps(told: list[News]) -> list[int]:
    return [one.index for one in told if isinstance(one, Event)]


def assert_same(told: list[News], alone: list[News]) -> None:
    """Processes have their own numbers of threads, and sums their own order: a rounding in 256 may go the other way."""
    assert np.abs(picture(told) - picture(alone)).max() <= 1


def test_a_replica_draws_what_this_process_would(remote: Remote, local: Local) -> None:
    told = run(remote, "one", REQUEST)
    assert isinstance(told[0], Started)
    assert steps(told)[-1] == 4
    assert_same(told, run(local, "one", REQUEST))


def test_a_photo_crosses_as_a_picture(
    remote: Remote, handle: Any, local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the replicas are not
    Image.linear_gradient("L").resize((64, 64)).save("photo.png")
    request = replace(REQUEST, image="photo.png", strength=0.5)
    told = run(remote, "photo", request)
    assert isinstance(told[0], Started)
    assert isinstance(told[0].request.image, Image.Image)
    assert_same(told, run(local, "photo", request))
    with pytest.raises(RequestError, match="is not a readable file"):
        run(remote, "gone", replace(request, image="gone.png"))


def test_runs_share_the_replicas(remote: Remote, handle: Any) -> None:
    async def both() -> set[int]:
        async with news(remote, "a", LONG) as one, news(remote, "b", LONG) as other:
            await anext(one)
            await anext(other)
            return {await home(handle, "a"), await home(handle, "b")}

    assert asyncio.run(both()) == pids(handle)


def test_what_is_refused_is_said_in_the_same_words(remote: Remote, local: Local) -> None:
    request = replace(REQUEST, prompt="a <lora:none:1>")
    with pytest.raises(RequestError, match="which is not here") as here:
        run(local, "wrong", request)
    with pytest.raises(RequestError, match="which is not here") as there:
        run(remote, "wrong", request)
    assert str(there.value) == str(here.value)


def test_stop_finds_the_run_and_keeps_its_picture(remote: Remote, handle: Any) -> None:
    async def stopped() -> list[News]:
        told = []
        async with news(remote, "stopped", LONG) as stream:
            async for one in stream:
                told.append(one)
                if isinstance(one, Event) and one.index >= 3:
                    remote.stop("stopped")
        return told

    last = asyncio.run(stopped())[-1]
    assert isinstance(last, Event)
    assert last.stopped
    assert last.index < last.total
    assert last.images
    asked = {pid for pid, stops in handle.broadcast("stops").results() if "stopped" in stops}
    assert asked == {asyncio.run(home(handle, "stopped"))}


def test_a_closed_page_frees_the_place_and_finds_its_run_again(remote: Remote, handle: Any) -> None:
    """On whichever replica it was: the two runs are on both."""

    async def few_steps(run_id: str) -> int:
        async with news(remote, run_id, LONG) as told:
            async for one in told:
                if isinstance(one, Event) and one.index >= 3:
                    return one.index
        raise AssertionError

    async def first_event(run_id: str) -> News:
        async with news(remote, run_id, LONG) as told:
            return await anext(told)

    async def leave() -> list[int]:
        return await asyncio.gather(few_steps("left"), few_steps("left too"))

    async def come_back() -> list[News]:
        other = await first_event("left too")  # the other way round, or the routine of routing would find them
        return [await first_event("left"), other]

    left_at = asyncio.run(leave())
    wait_until(lambda: handle.broadcast("at_work").results() == [0, 0])
    for index, found in zip(left_at, asyncio.run(come_back()), strict=True):
        assert isinstance(found, Event)
        assert found.index > index


def test_who_wants_a_model_is_sent_where_it_is(remote: Remote, handle: Any, local: Local) -> None:
    request = replace(REQUEST, model="other")
    assert_same(run(remote, "other", request), run(local, "other", request))
    first = asyncio.run(home(handle, "other"))
    time.sleep(3)  # Ray Serve notes what is loaded once a second
    for i in range(4):
        run(remote, f"other {i}", request)
        assert asyncio.run(home(handle, f"other {i}")) == first


def test_a_run_goes_on_where_its_replica_is_killed(remote: Remote, handle: Any) -> None:
    """With a seed that nobody named. What was told is not told again, and the picture is the one of that seed."""
    request = replace(LONG, seed=None)

    async def kill() -> tuple[list[News], int]:
        told: list[News] = []
        killed = 0
        async with news(remote, "killed", request) as stream:
            async for one in stream:
                told.append(one)
                if not killed and isinstance(one, Event) and one.index >= 10:
                    killed = await home(handle, "killed")
                    os.kill(killed, signal.SIGKILL)
                    at = one.index
            assert await home(handle, "killed") != killed
            return told, at

    told, at = asyncio.run(kill())
    assert at < 200
    assert steps(told) == sorted(set(steps(told)))
    assert [type(one) for one in told].count(Started) == 1
    assert isinstance(told[0], Started)
    seed = told[0].request.seed
    assert {one.seed for one in told if isinstance(one, Event)} == {seed}
    alone = run(remote, "alone", replace(request, seed=seed))
    assert np.array_equal(picture(told), picture(alone))


def test_a_replica_without_its_engine_is_replaced(remote: Remote, handle: Any) -> None:
    run(remote, "before", REQUEST)
    ill = asyncio.run(home(handle, "before"))

    async def lose() -> None:
        await handle.options(session_id="before").lose_engine.remote()

    asyncio.run(lose())
    wait_until(lambda: ill not in pids(handle))
    assert run(remote, "after", REQUEST)


def test_a_long_line_brings_another_replica(remote: Remote, handle: Any) -> None:
    """The last test: there are three from here on."""
    request = replace(LONG, num_inference_steps=1000, num_images=4)

    async def wait_in_line(run_id: str, there: asyncio.Event) -> None:
        async with news(remote, run_id, request) as told:
            async for _ in told:
                if there.is_set():
                    return

    async def look(there: asyncio.Event) -> None:
        await asyncio.to_thread(wait_until, lambda: len(pids(handle)) == 3)
        there.set()

    async def crowd() -> None:
        there = asyncio.Event()
        await asyncio.gather(look(there), *(wait_in_line(f"crowd {i}", there) for i in range(16)))

    asyncio.run(crowd())
