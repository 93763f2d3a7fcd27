"""The training loop learns, ends, averages, and resumes after a kill as if it had run through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.networks import fit as loop
from training.networks.fit import EMA, EMA_EVERY, Checkpoint, Clock, LossByNoise, cosine, fit, linear_end

TARGET, BIAS = torch.tensor([[1.0, -2.0, 0.5]]), 0.25


class Line(nn.Module):
    """A linear map from three numbers to one: a matrix for Muon, a bias for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3) -> (B, 1)."""
        return self.inner(x)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 3, generator=generator)
    return x, x @ TARGET.T + BIAS


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).float() - y).square().mean()


def run(out: Path, steps: int | None = None, **options) -> dict:
    """Fit a line in `out` and return the checkpoint."""
    settings = {"rate": 0.05, "schedule": linear_end(0.5), "warmup": 5, "ema_decay": 0.9, "steps": steps}
    fit(Line(), squared, draw, out, **{**settings, **options})
    return torch.load(out / "checkpoint.pt", weights_only=True)


def test_it_learns_and_so_does_the_average(tmp_path: Path):
    saved = run(tmp_path, 200, rate=0.2)
    for part in ("model", "ema"):
        # bfloat16 rounds a weight near 2 by up to 2^-8 = 0.004; the rest is left for the last steps' noise
        torch.testing.assert_close(saved[part]["inner.weight"], TARGET, atol=0.03, rtol=0)
        assert saved[part]["inner.bias"].item() == pytest.approx(BIAS, abs=0.03)
    assert (saved["step"], saved["samples"]) == (200, 200 * 16)


def test_a_run_that_was_interrupted_ends_where_an_unbroken_one_does(tmp_path: Path):
    constant = {"schedule": linear_end(0), "warmup": 3}
    whole = run(tmp_path / "whole", 12, **constant)
    run(tmp_path / "parts", 7, **constant)
    parts = run(tmp_path / "parts", 12, **constant)
    for part in ("model", "ema"):
        assert torch.equal(whole[part]["inner.weight"], parts[part]["inner.weight"])
    assert (parts["step"], parts["samples"]) == (whole["step"], whole["samples"]) == (12, 192)


def test_a_kill_goes_on_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "SAVE_MINUTES", 0.0)  # after every step
    drawn = 0

    def killed(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        nonlocal drawn
        drawn += 1
        if drawn == 5:
            raise KeyboardInterrupt
        return draw(generator)

    with pytest.raises(KeyboardInterrupt):
        fit(Line(), squared, killed, tmp_path, rate=0.05, schedule=cosine, warmup=1, ema_decay=0.9, steps=9)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4
    assert run(tmp_path, 9)["step"] == 9


def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint, saved = Checkpoint(tmp_path, {"model": Line()}), torch.save
    checkpoint.save(3, 48)

    def half(state: dict, path: Path) -> None:
        saved(state, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(4, 64)
    assert checkpoint.load() == (3, 48)


def test_the_log_tells_speed_and_where_the_time_goes(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path, 100)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in lines] == [(50, 800), (100, 1600)]
    assert lines[1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert line["samples_per_second"] > 0
        assert set(line["shares"]) == {"data", "network", "optimizer"}
        assert all(share > 0 for share in line["shares"].values())
        assert sum(line["shares"].values()) <= 1
    assert "min left" in capsys.readouterr().out


def test_somebody_looks_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looks = []
    run(tmp_path / "rarely", 3, look=lambda step, model: looks.append((step, model.training)))
    assert looks == [(3, False)]
    monkeypatch.setattr(loop, "LOOK_MINUTES", 0.0)
    run(tmp_path / "often", 3, look=lambda step, model: looks.append((step, model.training)))
    assert [step for step, _ in looks[1:]] == [1, 2, 3, 3]


def test_minutes_end_a_run_too(tmp_path: Path):
    saved = run(tmp_path, minutes=0.01)
    assert saved["step"] > 0
    assert saved["clock"]["all"] == pytest.approx(0.6, abs=0.5)
    assert run(tmp_path, minutes=0.01)["step"] == saved["step"]


def test_frozen_weights_stay(tmp_path: Path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    before = [parameter.clone() for parameter in model.parameters()]
    fit(model, squared, draw, tmp_path, rate=0.01, schedule=cosine, warmup=1, ema_decay=0.9, steps=3)
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same == [True, True, False, False]


def test_large_gradients_are_clipped(tmp_path: Path):
    norms = []
    model = Line()

    def steep(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if model.inner.weight.grad is not None:
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        return 1000 * squared(model, x, y)

    fit(model, steep, draw, tmp_path, rate=1e-4, schedule=cosine, warmup=1, ema_decay=0.9, steps=3)
    assert norms == pytest.approx([loop.MAX_GRADIENT_NORM] * 2, rel=1e-4)


def test_the_average_forgets_the_start_and_then_moves_slowly():
    model = Line()
    ema = EMA(model, decay=0.99)
    with torch.no_grad():
        model.inner.weight += 1
    before = ema.model.inner.weight.clone()
    for step in range(1, EMA_EVERY):
        ema.update(model, step)
    assert torch.equal(ema.model.inner.weight, before)
    ema.update(model, 0)
    torch.testing.assert_close(ema.model.inner.weight, before + 0.9)
    ema.update(model, 4 * 10**6)
    torch.testing.assert_close(ema.model.inner.weight, before + 1 - 0.1 * 0.99**4)


def test_rates_end_at_nothing():
    falling = linear_end(0.25)
    assert [falling(progress) for progress in (0, 0.75, 0.875, 1)] == [1, 1, 0.5, 0]
    assert linear_end(0)(1) == 1
    assert [cosine(progress) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.51, 0.02])


class TestClock:
    def test_time_spent_survives_a_restart_by_stage(self) -> None:
        small = Clock("64", minutes=2)
        small.seconds["64"] = 30.0
        again = Clock("64", minutes=2)
        again.load_state_dict(small.state_dict())
        assert again.progress(10) == 0.25
        large = Clock("128", minutes=2)
        large.load_state_dict(small.state_dict())
        assert large.progress(10) == 0
        assert large.state_dict()["64"] == 30

    def test_the_budget_that_ends_first_counts(self) -> None:
        clock = Clock("64", minutes=1, steps=10)
        clock.seconds["64"] = 30.0
        assert [clock.progress(step) for step in (1, 8, 12)] == [0.5, 0.8, 1]

    @pytest.mark.parametrize(
        ("budget", "message"),
        [({}, "steps and minutes are both None"), ({"steps": 0}, "steps must be above 0"), ({"minutes": -1}, "got -1")],
    )
    def test_a_run_needs_an_end(self, budget: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Clock("64", **budget)


def test_the_loss_is_told_by_noise_level_since_the_last_line() -> None:
    by_noise = LossByNoise(1000, bands=4)
    t, losses = torch.tensor([0, 249, 250, 999]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert by_noise.add(t, losses).item() == 4
    assert by_noise.take() == {"0-249": 2, "250-499": 5, "750-999": 7}
    assert by_noise.take() == {}
