"""What one request and one visitor may ask for is the deployer's to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import awaited
from tests.tiny import save_model
from ui.runs.backend import Local
from ui.runs.events import Event, Started
from ui.runs.limits import Limits, check_work
from ui.runs.models import ModelHolder


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_images": 3}, "num_images must be at most 2 here, got 3: choose a smaller number"),
        ({"num_inference_steps": 31}, "num_inference_steps must be at most 30 here, got 31"),
        ({"width": 272}, "width must be at most 256 here, got 272"),
        ({"height": 272}, "height must be at most 256 here, got 272"),
    ],
)
def test_a_deployer_can_allow_less(settings: dict[str, Any], sentence: str):
    holder = ModelHolder(device="cpu", limits=Limits(max_images=2, max_steps=30, max_side=256))
    with pytest.raises(ValueError, match=sentence):
        check_work(holder, settings)


@pytest.mark.parametrize("loaded", [False, True])
def test_where_less_is_allowed_than_suits_the_model_that_is_the_default(loaded: bool):
    holder = ModelHolder(device="cpu", limits=Limits(max_steps=5, max_side=200))
    if loaded:
        holder.pipeline()
    request = check_work(holder, {"prompt": "a"})
    assert (request.width, request.height, request.num_inference_steps) == (192, 192, 5)


def test_one_visitor_can_t_take_every_place():
    holder = ModelHolder(device="cpu", limits=Limits(max_visitor_runs=2))
    holder.pipeline()  # nothing is left loading when the test is over
    backend = Local(holder)
    settings = {"prompt": "a", "num_inference_steps": 50}

    async def ask() -> None:
        runs = [backend.stream(str(i), settings, "one") for i in range(2)]
        for run in runs:
            await anext(run)
        with pytest.raises(ValueError, match="2 of your runs are under way already: wait for one to end, or stop it"):
            await anext(backend.stream("third", settings, "one"))
        await anext(other := backend.stream("other", settings, "another"))
        await runs[0].aclose()
        await anext(third := backend.stream("third", settings, "one"))
        for run in (runs[1], other, third):
            await run.aclose()

    awaited(ask())


def test_of_the_runs_that_were_left_the_newest_go_on_and_the_oldest_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A server parks a number of them and no more; a listener who comes back hears the next step, or the first."""
    monkeypatch.setattr("ui.runs.backend.PARKED_RUNS", 2)
    backend = Local(ModelHolder(str(save_model(tmp_path)), "cpu"))
    settings = {"prompt": "a", "num_inference_steps": 50, "seed": 1, "preview": "none"}

    async def leave_after_a_step(run_id: str) -> None:
        run = backend.stream(run_id, settings, "somebody")
        while not isinstance(await anext(run), Event):
            pass
        await run.aclose()

    async def ask() -> None:
        for i in range(3):
            await leave_after_a_step(str(i))
        for run_id, begins_again in (("1", False), ("0", True)):
            run = backend.stream(run_id, settings, "somebody")
            news = [await anext(run)]
            assert any(isinstance(one, Started) for one in news) == begins_again
            await run.aclose()

    awaited(ask())
