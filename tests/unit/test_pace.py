"""What a picture takes here is measured once for a model, and said as people say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from stable_diffusion.guidance import Denoiser, Query
from stable_diffusion.pipeline import Pipeline
from tests import tiny
from tests.conftest import awaited
from ui.runs import pace
from ui.runs.models import HUB, ModelHolder


@pytest.mark.parametrize("long", [0.0, 1e9], ids=["slow", "fast"])
def test_a_model_is_asked_a_few_times_and_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: float):
    pipeline = Pipeline.from_pretrained(tiny.save_model(tmp_path))
    asked: list[Query] = []
    answer = Denoiser.__call__

    def count(self: Denoiser, queries: Sequence[Query]) -> list[Tensor]:
        asked.extend(queries)
        return answer(self, queries)

    monkeypatch.setattr(Denoiser, "__call__", count)
    monkeypatch.setattr(pace, "LONG", long)
    seconds = pace.seconds_per_step(pipeline)
    assert pace.seconds_per_step(pipeline) == seconds > 0
    assert len(asked) == (1 if long == 0 else pace.STEPS)
    assert asked[0].negative is not None  # guided, as the model's pictures are by default


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0412, "0.04 s"), (0.97, "1 s"), (2.34, "2.3 s"), (11.6, "12 s"), (89, "89 s"), (250, "4 min")],
)
def test_durations_as_people_say_them(seconds: float, text: str):
    assert pace.duration(seconds) == text


def test_what_is_fetched_says_how_large_it_is():
    choices = {name: label for label, name in ModelHolder(device="cpu").choices}
    assert choices["emoji (bundled)"] == "emoji (bundled)"
    assert all(choices[name] == f"{name}, {size} GB" for name, (_, size) in HUB.items())


def test_nobody_waits_for_a_model_that_nobody_asked_for():
    holder = ModelHolder(device="cpu")
    assert awaited(holder.here()) is None
    holder.ask()
    assert awaited(holder.here()) is holder.loaded() is not None
