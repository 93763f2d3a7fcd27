"""What every training run shares: averaged weights, learning rate, checkpoints that survive a kill, progress lines."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


class EMA:
    """Exponential moving average of a model's weights, which draws better than the last step's (arXiv:2006.11239)."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model`; the window grows with `step` so that the random start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)


def warmup_cosine(step: int, total: int, warmup: int, floor: float = 0.02) -> float:
    """Factor on the learning rate: a linear rise over `warmup` steps, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Run:
    """A resumable training run in the folder `out`.

    `state` maps names to whatever has `state_dict` and `load_state_dict`. The loop is `for step in run.steps():`, which
    resumes where the newest checkpoint stopped, saves every `save_minutes` and at the end, and prints a progress
    line every `log_every` steps. Call `run.record(samples, loss)` once a step.
    """

    def __init__(
        self, out: Path, state: dict[str, object], total: int, *, save_minutes: float = 4.0, log_every: int = 50
    ):
        self.out, self.state, self.total = out, state, total
        self.save_seconds, self.log_every = save_minutes * 60, log_every
        self.step = 0
        self.samples = 0
        self._losses: list[float] = []
        out.mkdir(parents=True, exist_ok=True)
        self.checkpoint = out / "checkpoint.pt"

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True)
        for name, part in self.state.items():
            part.load_state_dict(saved[name])  # type: ignore[attr-defined]
        self.step, self.samples = saved["step"], saved["samples"]
        print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint beside the old one and swap them, so that a kill leaves one of the two whole."""
        saved = {name: part.state_dict() for name, part in self.state.items()}  # type: ignore[attr-defined]
        saved |= {"step": self.step, "samples": self.samples}
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(saved, partial)
        os.replace(partial, self.checkpoint)

    def record(self, samples: int, loss: float) -> None:
        """Note what this step saw."""
        self.samples += samples
        self._losses.append(loss)

    def steps(self) -> Iterator[int]:
        """Count the steps from where the run stands to `total`, logging and saving on the way."""
        saved_at = logged_at = time.monotonic()
        seen_at_log = self.samples
        while self.step < self.total:
            yield self.step
            self.step += 1
            now = time.monotonic()
            if self.step % self.log_every == 0:
                rate = (self.samples - seen_at_log) / (now - logged_at)
                left = (self.total - self.step) * (now - logged_at) / self.log_every
                self._log(rate, left)
                logged_at, seen_at_log = now, self.samples
            if now - saved_at > self.save_seconds or self.step == self.total:
                self.save()
                saved_at = time.monotonic()

    def _log(self, rate: float, left: float) -> None:
        loss = sum(self._losses) / len(self._losses)
        self._losses.clear()
        print(
            f"step {self.step}/{self.total}  {rate:.1f} samples/s  loss {loss:.4f}  {left / 60:.0f} min left",
            flush=True,
        )
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.step, "samples": self.samples, "loss": loss, "rate": rate}) + "\n")
