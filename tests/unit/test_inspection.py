"""Views that ask an engine: one account with the runs, the same limits, and the values that they have alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stable_diffusion.batching.engine import Engine
from stable_diffusion.guidance import Answer, Query
from stable_diffusion.inspect.look_inside import InsideStep, Observer, look_inside, next_inside
from stable_diffusion.inspection import Inquiry, Inspection, Question, conduct, next_step, rendered
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Renderer
from stable_diffusion.request import Request, RequestError
from stable_diffusion.run import Run
from tests.conftest import awaited
from tests.tiny import save_model
from ui.runs import cost
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.events import Waiting
from ui.runs.limits import LOCAL_LIMITS
from ui.runs.models import LoadedModels
from ui.runs.visitors import Visitor

ONE = Visitor("one", "192.0.2.1")
REQUEST = Request("a red fox", seed=1, num_inference_steps=3, preview="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def inside(run: Run, found: list[InsideStep]) -> Inquiry[None]:
    observer, none = Observer(run.denoise), run.preview()
    while run.query is not None:
        found.append((yield from next_inside(run, none, observer)))


def test_an_engine_gives_the_answers_that_an_inquiry_gets_alone(pipe: Pipeline, engine: Engine) -> None:
    """Beside runs of others, and with several images, whose rows an engine may ask one after the other."""
    request = replace(REQUEST, num_images=5, guidance_scale=4.0)
    expected = list(look_inside(pipe, request))
    others = [engine.submit(lambda i=i: pipe.begin(replace(REQUEST, seed=i)), i) for i in range(3)]
    found: list[InsideStep] = []
    list(engine.submit(lambda: Inspection(inside(pipe.begin(request), found), 3), "me"))
    for handle in others:
        assert list(handle)[-1].result is not None
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.heat, other.heat, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.conditional, other.conditional, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.unconditional, other.unconditional, rtol=1e-3, atol=1e-3)
    assert [len(one.step.images or []) for one in found] == [0, 0, 5]


def test_an_inquiry_takes_the_steps_of_a_stream(pipe: Pipeline) -> None:
    request = replace(REQUEST, preview="linear", preview_every=2, num_images=2)

    def steps() -> Inquiry[list[object]]:
        run = pipe.begin(request, conditioning=pipe.condition(request))
        preview, taken = run.preview(), []
        while run.query is not None:
            step = yield from next_step(run, preview)
            taken.append((step.index, step.images))
        return taken

    assert conduct(steps()) == [(step.index, step.images) for step in pipe.stream(request)]


def test_the_work_between_questions_and_each_decoding_are_charged(pipe: Pipeline) -> None:
    """By a clock that only this test moves: a view takes six seconds a question, a step of a run takes one."""
    now, turns = [0.0], list[str]()
    begun, engine = threading.Event(), Engine(clock=lambda: now[0])
    latents = torch.zeros(1, 4, 8, 8)

    def run() -> Run:
        run = pipe.begin(replace(REQUEST, num_inference_steps=30))
        denoise = run.denoise

        def answer(queries: Sequence[Query]) -> list[Answer]:
            assert not turns or begun.wait(30)  # from the second turn on
            turns.append("run")
            now[0] += 1
            return denoise(queries)

        return run.conditioned(replace(run.conditioning, denoise=answer))

    def view() -> Inquiry[None]:
        for _ in range(4):
            turns.append("view")
            begun.set()
            now[0] += 5  # work between two questions
            yield from rendered(SlowRenderer(pipe.models), latents)

    class SlowRenderer(Renderer):
        def __call__(self, latents: Tensor, decode: Callable[[Tensor], Tensor] | None = None) -> None:
            now[0] += 1

    handle = engine.submit(run, "one")
    list(engine.submit(lambda: Inspection(view(), 4), "another"))
    assert list(handle)[-1].result is not None
    between = "".join("v" if turn == "view" else "r" for turn in turns).split("v")[1:-1]
    assert len(between) == 3
    assert all(5 <= len(steps) <= 7 for steps in between[1:]), turns
    engine.close()


def backend(folder: Path, **limits: float) -> Local:
    models = LoadedModels(Catalogue(str(folder)), "cpu", limits=replace(LOCAL_LIMITS, **limits))
    models.pipeline()
    return Local(models)


def ask_often(pipeline: Pipeline, requests: Sequence[Request], show: Callable[[int], None]) -> Inquiry[None]:
    """Ask the same for ever, and show the number of answers."""
    run, count = pipeline.begin(requests[0]), 0
    while True:
        yield Question(run.query, run.denoise)
        count += 1
        show(count)


def fail(pipeline: Pipeline, requests: Sequence[Request], show: Callable[[int], None]) -> Inquiry[None]:
    show(1)
    run = pipeline.begin(requests[0])
    yield Question(run.query, run.denoise)
    raise RequestError("t must be smaller")


def test_a_closed_view_leaves_the_engine_and_a_fault_reaches_its_reader(folder: Path) -> None:
    local = backend(folder, max_visitor_runs=1)

    async def ask() -> None:
        async with aclosing(local.inspect(ask_often, [REQUEST], ONE)) as values:
            async for value in values:
                if not isinstance(value, Waiting) and value >= 3:
                    break
            with pytest.raises(RequestError, match="1 of your runs are under way already"):
                await anext(local.inspect(ask_often, [REQUEST], ONE))
            with pytest.raises(RequestError, match="1 of your runs are under way already"):
                await anext(local.stream("run", REQUEST, ONE))
        failing = local.inspect(fail, [REQUEST], ONE)
        assert await anext(failing) == 1
        with pytest.raises(RequestError, match="t must be smaller"):
            await anext(failing)
        while local._engine is None or local._engine.running:
            await asyncio.sleep(0.01)

    awaited(asyncio.wait_for(ask(), 60))


def test_a_view_is_limited_as_a_run_and_by_the_seconds_of_all_its_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = backend(folder, max_steps=50, max_seconds=100)
    pipeline = local.models.pipeline()
    monkeypatch.setitem(cost._paces, pipeline, cost.Pace(pipeline.default_size, 0, 0, 1, 0))

    def refusal(*requests: Request) -> str:
        with pytest.raises(RequestError) as refused:
            awaited(anext(local.inspect(ask_often, requests, ONE)))
        return str(refused.value)

    request = replace(REQUEST, num_inference_steps=40)
    assert "num_inference_steps must be at most 50 here" in refusal(replace(request, num_inference_steps=60))
    samplers = [replace(request, sampler=name) for name in ("ddim", "euler", "dpmpp_2m")]
    assert refusal(*samplers).startswith("40 ddim + 40 euler + 40 dpmpp_2m steps x 1 of 64x64 take about 2 min here")

    async def first() -> object:
        async with aclosing(local.inspect(ask_often, samplers[:2], ONE)) as values:
            return await anext(values)

    assert awaited(first()) == 1
