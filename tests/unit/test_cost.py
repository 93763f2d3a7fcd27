"""The pace of a model is measured once, and the cost of a request follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from stable_diffusion.guidance import Denoiser, Query
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request
from tests import tiny
from tests.conftest import awaited
from ui.runs import cost
from ui.runs.catalogue import HUB, Catalogue
from ui.runs.models import LoadedModels


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(tiny.save_model(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("long", [0.0, 1e9], ids=["slow", "fast"])
def test_a_model_is_measured_once_with_few_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: float):
    pipeline = Pipeline.from_pretrained(tiny.save_model(tmp_path))
    asked: list[Query] = []
    answer = Denoiser.__call__

    def count(self: Denoiser, queries: Sequence[Query]) -> list[Tensor]:
        asked.extend(queries)
        return answer(self, queries)

    monkeypatch.setattr(Denoiser, "__call__", count)
    monkeypatch.setattr(cost, "LONG", long)
    pace = cost.pace_of(pipeline)
    assert cost.pace_of(pipeline) is pace
    assert min(pace.text, pace.evaluation, pace.decoding) > 0
    assert len(asked) == (1 if long == 0 else cost.EVALUATIONS)
    assert asked[0].negative is not None  # guided, as the model's pictures are by default


def test_a_model_of_thousands_of_pixels_is_measured_at_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A `sample_size` of 512, in pixels by mistake, means pictures of 4,096 pixels."""
    pipeline = Pipeline.from_pretrained(tiny.save_model(tmp_path))
    widths: list[int] = []
    answer = Denoiser.__call__

    def note(self: Denoiser, queries: Sequence[Query]) -> list[Tensor]:
        widths.extend(query.x.shape[-1] for query in queries)
        return answer(self, queries)

    monkeypatch.setattr(Denoiser, "__call__", note)
    monkeypatch.setattr(cost, "LARGEST_SIDE", pipeline.default_size // 2)
    monkeypatch.setattr(cost, "_seconds", lambda function, tries=2: (function(), 1.0)[1])
    pace = cost.pace_of(pipeline)
    assert set(widths) == {pipeline.default_size // 2 // pipeline.defaults.size_unit}
    assert (pace.side, pace.evaluation) == (pipeline.default_size, 4.0)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 2 * 1 + 10 * 100 + 1000),
        ({"num_images": 3}, 2 * 1 + 3 * (10 * 100 + 1000)),
        ({"guidance_scale": 1.0}, 2 * 1 + 10 * 50 + 1000),
        ({"sampler": "heun"}, 2 * 1 + 20 * 100 + 1000),
        ({"prompt": "cat " * 100, "prompt_syntax": "weighted"}, 4 * 1 + 10 * 100 + 1000),
        ({"image": Image.new("RGB", (8, 8)), "strength": 0.5}, 2 * 1 + 10 + 5 * 100 + 1000),
    ],
)
def test_the_parts_of_a_run_add_up(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], seconds: float
):
    side = pipeline.default_size
    monkeypatch.setitem(cost._paces, pipeline, cost.Pace(side, 1, 10, 100, 1000))
    own = {"width": side, "height": side, "num_inference_steps": 10, "guidance_scale": 4.0, "sampler": "ddim"}
    request = Request(**{**own, **settings})
    assert cost.estimate(pipeline, request) == pytest.approx(seconds)
    wide = replace(request, width=2 * side)
    text = (4 if "prompt" in settings else 2) * 1
    assert cost.estimate(pipeline, wide) - text == pytest.approx(2 * (seconds - text))


def test_a_model_that_can_not_be_measured_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = LoadedModels(Catalogue(str(tiny.save_model(tmp_path))), device="cpu")
    monkeypatch.setattr(cost, "_measure", lambda pipeline: 1 / 0)
    pipeline = models.pipeline()
    assert cost.describe(pipeline) == ""
    assert not cost.is_quick(pipeline)
    cost.check_seconds(pipeline, pipeline.defaults.complete(Request()), pipeline.defaults, models.limits)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0412, "0.04 s"), (0.97, "1 s"), (2.34, "2.3 s"), (11.6, "12 s"), (89, "89 s"), (250, "4 min")],
)
def test_durations_as_people_say_them(seconds: float, text: str):
    assert cost.duration(seconds) == text


def test_a_download_tells_its_size():
    choices = {name: label for label, name in Catalogue().choices}
    assert choices["emoji (bundled)"] == "emoji (bundled)"
    assert all(choices[name] == f"{name}, {size} GB" for name, (_, size) in HUB.items())


def test_only_a_model_that_is_being_loaded_is_waited_for():
    models = LoadedModels(Catalogue(), device="cpu")
    assert awaited(models.wait_if_loading()) is None
    models.start()
    assert awaited(models.wait_if_loading()) is models.loaded() is not None
