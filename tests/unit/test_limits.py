"""The limits on one request and one visitor are the deployer's choice."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Defaults, Request, RequestError
from tests.conftest import awaited
from tests.tiny import save_model
from ui.runs import prepare as preparing
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import Event, News, Started
from ui.runs.limits import LOCAL_LIMITS, Limits
from ui.runs.models import LoadedModels
from ui.runs.prepare import check, prepare, prepare_all
from ui.runs.visitors import Visitor


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_images": 3}, "num_images must be at most 2 here, got 3: choose a smaller number"),
        ({"num_inference_steps": 31}, "num_inference_steps must be at most 30 here, got 31"),
        ({"width": 272}, "width must be at most 256 here, got 272"),
        ({"height": 272}, "height must be at most 256 here, got 272"),
        ({"seed": 2**32}, "seed must be at most 4,294,967,295 here, got 4294967296"),
        ({"guidance_scale": 31}, "guidance_scale must be at most 30 here, got 31"),
    ],
)
def test_a_number_above_its_limit_is_refused(settings: dict[str, Any], sentence: str):
    with pytest.raises(RequestError, match=sentence):
        Limits(max_images=2, max_steps=30, max_side=256).check(Request(**settings))


def test_a_side_above_the_models_largest_is_refused():
    models = LoadedModels(Catalogue(), device="cpu")
    side = models.defaults().max_side
    with pytest.raises(RequestError, match=f"width must be at most {side} with this model, got {side + 64}"):
        check(models, Request(width=side + 64))


def test_a_size_that_a_refusal_names_is_taken():
    models = LoadedModels(Catalogue(), device="cpu", limits=Limits(max_side=300))
    models.pipeline()
    for width in (7, 248, 250, 299, 300):
        sentences = set()
        for door in (check, prepare):
            with pytest.raises(RequestError, match="width must be a multiple of 16 with this model") as refused:
                door(models, Request(width=width))
            sentences.add(str(refused.value))
        [sentence] = sentences
        named = int(sentence.rpartition("try ")[2])
        check(models, Request(width=named))
        assert prepare(models, Request(width=named))[1].width == named
    with pytest.raises(RequestError, match="width must be at most 300 here, got 530"):
        prepare(models, Request(width=530))


def test_the_usual_limits_allow_an_empty_request():
    LOCAL_LIMITS.check(Request())


@pytest.mark.parametrize("loaded", [False, True])
def test_the_models_own_settings_are_reduced_to_the_limits(loaded: bool):
    models = LoadedModels(Catalogue(), device="cpu", limits=Limits(max_steps=5, max_side=200))
    if loaded:
        models.pipeline()
    request = models.defaults().complete(Request("a"))
    assert (request.width, request.height, request.num_inference_steps) == (192, 192, 5)


def test_a_request_of_too_many_seconds_is_refused_but_the_models_own_never():
    models = LoadedModels(Catalogue(), device="cpu", limits=Limits(max_seconds=0.001))
    models.pipeline()
    prepare(models, Request())
    with pytest.raises(RequestError, match=r"take about .* here, and one request may take .*: choose fewer steps"):
        prepare(models, Request(num_images=2))
    with pytest.raises(RequestError, match="choose fewer steps"):
        check(models, Request(num_images=2))


def test_a_visitor_has_a_bounded_number_of_runs():
    models = LoadedModels(Catalogue(), device="cpu", limits=Limits(max_visitor_runs=2))
    models.pipeline()  # nothing is left loading when the test is over
    backend = Local(models)
    request = Request("a", num_inference_steps=50)

    async def ask() -> None:
        runs = [backend.stream(str(i), request, Visitor("one")) for i in range(2)]
        for run in runs:
            await anext(run)
        with pytest.raises(RequestError, match="2 of your runs are under way already: wait for one to end, or stop it"):
            await anext(backend.stream("third", request, Visitor("one")))
        await anext(other := backend.stream("other", request, Visitor("another")))
        await runs[0].aclose()
        await anext(third := backend.stream("third", request, Visitor("one")))
        for run in (runs[1], other, third):
            await run.aclose()

    awaited(ask())


def test_of_parked_runs_the_newest_go_on_and_the_oldest_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The number of parked runs is bounded; a listener who returns gets the next step, or the first."""
    monkeypatch.setattr("ui.runs.backend.PARKED_RUNS", 2)
    backend = Local(LoadedModels(Catalogue(str(save_model(tmp_path))), "cpu"))
    request = Request("a", num_inference_steps=50, seed=1, preview="none")

    async def leave_after_a_step(run_id: str) -> None:
        run = backend.stream(run_id, request, Visitor("somebody"))
        while not isinstance(await anext(run), Event):
            pass
        await run.aclose()

    async def ask() -> None:
        for i in range(3):
            await leave_after_a_step(str(i))
        for run_id, begins_again in (("1", False), ("0", True)):
            run = backend.stream(run_id, request, Visitor("somebody"))
            news = [await anext(run)]
            assert any(isinstance(one, Started) for one in news) == begins_again
            await run.aclose()

    awaited(ask())


def test_slow_downloads_delay_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    released, many = threading.Event(), (os.cpu_count() or 1) + 4  # the threads of asyncio's default executor
    backend = Local(LoadedModels(Catalogue(str(save_model(tmp_path))), "cpu"))

    def slow(models: LoadedModels, request: Request) -> tuple[Pipeline, Request]:
        if request.prompt == "slow":
            assert released.wait(60)
        return prepare(models, request)

    monkeypatch.setattr("ui.runs.backend.prepare", slow)

    async def last(run_id: str, prompt: str) -> News:
        stream = backend.stream(run_id, Request(prompt, num_inference_steps=2), Visitor(run_id))
        return [news async for news in stream][-1]

    async def ask() -> None:
        others = [asyncio.create_task(last(str(i), "slow")) for i in range(many)]
        assert (await asyncio.wait_for(last("quick", "a fox"), 30)).images
        released.set()
        assert all(event.images for event in await asyncio.gather(*others))

    awaited(ask())


def test_a_photo_of_several_equal_requests_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes half a second."""
    path, read = tmp_path / "photo.png", list[Request]()
    Image.new("RGB", (64, 64), "red").save(path)
    fit = preparing.read_pictures

    def noted(request: Request, defaults: Defaults) -> Request:
        read.append(request)
        return fit(request, defaults)

    monkeypatch.setattr(preparing, "read_pictures", noted)
    models = LoadedModels(Catalogue(), device="cpu")
    request = Request("a cat", image=path, num_inference_steps=1)
    _, prepared = prepare_all(models, [request] * 3, models.limits)
    assert len(read) == 1
    assert len({one.seed for one in prepared}) == 3, "each has a seed of its own"
