"""The training loop of every network; a model, its loss, its batches, rate and budget are its arguments.

`accelerate` finds the device, runs the loss in bfloat16 where that is computed and not emulated, and joins several
processes that `accelerate launch` started: each draws batches of its own, and all take the same step.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .optimizer import MuonAdamW

MAX_GRADIENT_NORM = 1.0
EMA_EVERY = 4  # steps; averaging costs less than at every one, and is as smooth
SAVE_MINUTES, LOOK_MINUTES = 4.0, 10.0
LOG_EVERY = 50  # steps

Model = TypeVar("Model", bound=nn.Module)
Draw = Callable[[torch.Generator], tuple[Tensor, ...]]
"""A batch of B examples, every tensor (B, ...) on the CPU, with all the chance that the loss needs."""
Loss = Callable[..., Tensor]
"""(model, *batch) -> a scalar."""
Look = Callable[[int, Model], None]
"""(step, averaged model): called now and then, to show or measure it."""


def fit(
    model: Model,
    loss: Loss,
    draw: Draw,
    out: Path,
    *,
    rate: float,
    schedule: Callable[[float], float],
    warmup: int,
    ema_decay: float,
    steps: int | None = None,
    minutes: float | None = None,
    stage: str = "all",
    look: Look[Model] | None = None,
    mixed_precision: str | None = None,
    word_share: float | None = None,
    by_noise: LossByNoise | None = None,
) -> None:
    """Train `model` in the folder `out`, going on from the checkpoint there, until its budget is used up.

    A step's batch depends on its number alone, so that a run that was killed goes on with the same batches.

    rate: the highest learning rate; it rises over `warmup` steps and is multiplied by `schedule` of the share of the
        budget that is used, in [0, 1).
    ema_decay: of the averaged weights, a step.
    steps, minutes: the budget; whichever ends first. `minutes` are those of `stage`, over all restarts.
    mixed_precision: accelerate's name for it, "no" or "bf16"; None leaves it to `precision`.
    word_share: see `MuonAdamW`.
    by_noise: told of by `loss`, and logged with it.
    """
    clock = Clock(stage, steps=steps, minutes=minutes)
    # Without `cpu=True`, processes on a machine without a GPU would not be joined: each would train for itself
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision or precision())
    device, chief = accelerator.device, accelerator.is_main_process
    objective = accelerator.prepare(Objective(model, loss))  # moves the weights, which optimizer and average then hold
    ema, optimizer = EMA(model, ema_decay), MuonAdamW(model, rate, word_share)
    checkpoint = Checkpoint(out, {"model": model, "ema": ema.model, "optimizer": optimizer, "clock": clock})
    step, samples = checkpoint.load()
    log = Log(out / "log.jsonl", device, samples, clock.progress(step), by_noise)
    save_due, look_due = Every(SAVE_MINUTES), Every(LOOK_MINUTES)
    generator = torch.Generator()
    clock.start()
    with plain_attention(device):
        while (progress := _agreed(accelerator, clock.progress(step))) < 1:
            optimizer.set_rate(rate * min(1.0, (step + 1) / warmup) * schedule(progress))
            with log.part("data"):
                generator.manual_seed(step * accelerator.num_processes + accelerator.process_index)
                batch = [tensor.to(device) for tensor in draw(generator)]
            with log.part("network"):
                value = objective(*batch)
                optimizer.zero_grad()
                accelerator.backward(value)
            with log.part("optimizer"):
                accelerator.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
                optimizer.step()
                ema.update(model, step)
            step, samples = step + 1, samples + len(batch[0]) * accelerator.num_processes
            clock.tick()
            if chief:
                log.record(step, samples, value.detach(), clock.progress(step))
                if save_due():
                    checkpoint.save(step, samples)
                if look and look_due():
                    look(step, ema.model)
        if chief:
            checkpoint.save(step, samples)
            if look:
                look(step, ema.model)
    accelerator.wait_for_everyone()  # until the checkpoint is there


def precision() -> str:
    """Return accelerate's name for the precision to train in: bfloat16 where the processor computes it natively."""
    if torch.cuda.is_available():
        computed = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        computed = torch.cpu._is_avx512_bf16_supported()
    return "bf16" if computed else "no"


@contextmanager
def plain_attention(device: torch.device) -> Iterator[None]:
    """Avoid the fused attention kernel on CPUs: its backward pass took a third of a U-Net's step."""
    if device.type != "cpu":
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # in spite of its name for CPUs too: no float32 copies
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def _agreed(accelerator: Accelerator, progress: float) -> float:
    """Return the main process's progress, so that all processes stop at the same step."""
    if accelerator.num_processes == 1:
        return progress
    return broadcast(torch.tensor(progress, device=accelerator.device)).item()


class Objective(nn.Module):
    """A model with its loss. Processes share the gradients of a module's forward pass, so that this has to be one."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        """Tensors (B, ...) -> the loss, a scalar."""
        return self.loss(self.model, *batch)


class EMA(Generic[Model]):
    """Exponential moving average of a model's weights, which draws better than the last step's (arXiv:2006.11239)."""

    def __init__(self, model: Model, decay: float):
        """decay: a step."""
        self.decay = decay**EMA_EVERY
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Move towards `model`, at every `EMA_EVERY`th step; the window grows, so that the start is soon forgotten."""
        if step % EMA_EVERY:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


def cosine(progress: float, floor: float = 0.02) -> float:
    """Return the rate at `progress`: half a cosine from 1 down to `floor` (arXiv:1608.03983)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear_end(share: float) -> Callable[[float], float]:
    """Return a schedule: 1, then a line down to 0 over the last `share` of the budget; 0 leaves the line out."""
    return lambda progress: min(1.0, (1 - progress) / share) if share else 1.0


class Clock:
    """The part of its budget that a stage has used. Checkpoints keep the seconds by stage, which survive a kill."""

    def __init__(self, stage: str, *, steps: int | None = None, minutes: float | None = None):
        if steps is None and minutes is None:
            raise ValueError("steps and minutes are both None: give one, or training has no end")
        for name, value in (("steps", steps), ("minutes", minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.stage, self.steps, self.minutes = stage, steps or math.inf, minutes or math.inf
        self.seconds: dict[str, float] = {stage: 0.0}
        self.start()

    def start(self) -> None:
        """Count from now."""
        self._last = time.monotonic()

    def tick(self) -> None:
        """Count up to now."""
        now = time.monotonic()
        self.seconds[self.stage] += now - self._last
        self._last = now

    def progress(self, step: int) -> float:
        """Return the share of the budget that is used after `step` steps, in [0, 1]."""
        return min(1.0, max(step / self.steps, self.seconds[self.stage] / (60 * self.minutes)))

    def state_dict(self) -> dict[str, float]:
        """Return the seconds spent in each stage."""
        return dict(self.seconds)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue with the seconds of a checkpoint."""
        self.seconds = {self.stage: 0.0, **state}


class Every:
    """Whether so many minutes have passed since it last said so."""

    def __init__(self, minutes: float):
        self.seconds, self._last = 60 * minutes, time.monotonic()

    def __call__(self) -> bool:
        """Return whether the time has passed since the last True."""
        due = time.monotonic() - self._last > self.seconds
        if due:
            self._last = time.monotonic()
        return due


class Stateful(Protocol):
    """What can be saved and go on from there: a model, an optimizer, a clock."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Continue with a saved state."""
        ...


class Checkpoint:
    """`checkpoint.pt` in the folder `out`: the state of every part."""

    def __init__(self, out: Path, parts: dict[str, Stateful]):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.parts = out / "checkpoint.pt", parts

    def load(self) -> tuple[int, int]:
        """Give every part its saved state. Returns the steps taken and samples seen; 0 and 0 without a checkpoint."""
        if not self.path.exists():
            return 0, 0
        saved = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        print(f"resumed at step {saved['step']}", flush=True)
        return saved["step"], saved["samples"]

    def save(self, step: int, samples: int) -> None:
        """Write beside the old checkpoint and swap them, so that a kill leaves one of the two whole."""
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        partial = self.path.with_suffix(".partial")
        torch.save(saved | {"step": step, "samples": samples}, partial)
        os.replace(partial, self.path)


class LossByNoise:
    """The mean loss of the examples in each band of timesteps, for the log: one number hides what late steps learn.

    timesteps: of the schedule. bands: of equal width.
    """

    def __init__(self, timesteps: int, bands: int = 5):
        self.width, self._sums, self._counts = timesteps // bands, torch.zeros(bands), torch.zeros(bands)

    def add(self, t: Tensor, losses: Tensor) -> Tensor:
        """Note the losses (B,) of examples at timesteps (B,); returns their mean, which is to be minimised."""
        band = (t // self.width).clamp(max=len(self._sums) - 1).cpu()
        self._sums.index_add_(0, band, losses.detach().float().cpu())
        self._counts.index_add_(0, band, torch.ones(len(band)))
        return losses.mean()

    def take(self) -> dict[str, float]:
        """Return the mean loss of each band that had examples since the last call, by its first and last timestep."""
        bands = {
            f"{band * self.width}-{(band + 1) * self.width - 1}": (total / count).item()
            for band, (total, count) in enumerate(zip(self._sums, self._counts, strict=True))
            if count
        }
        self._sums.zero_()
        self._counts.zero_()
        return bands


class Log:
    """A line every `LOG_EVERY` steps, printed and in a file: loss, samples a second, and where the time goes.

    samples, progress: the examples seen and the share of the budget used when the run starts or goes on.
    """

    def __init__(
        self, path: Path, device: torch.device, samples: int, progress: float, by_noise: LossByNoise | None = None
    ):
        self.path, self.device, self.by_noise = path, device, by_noise
        self._start(samples, progress)

    def _start(self, samples: int, progress: float) -> None:
        self._time, self._samples, self._progress = time.monotonic(), samples, progress
        self._losses: list[Tensor] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of what is inside to this part of a step."""
        started = time.monotonic()
        yield
        if self.device.type != "cpu":  # an accelerator has only queued its work when a call returns
            torch.accelerator.synchronize()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started

    def record(self, step: int, samples: int, loss: Tensor, progress: float) -> None:
        """Note a step: how many have been taken, samples seen, its loss, and what of the budget is used."""
        self._losses.append(loss)
        if step % LOG_EVERY:
            return
        seconds = time.monotonic() - self._time
        shares = {name: part / seconds for name, part in self._seconds.items()}
        entry = {
            "step": step,
            "samples": samples,
            "loss": torch.stack(self._losses).mean().item(),
            "samples_per_second": (samples - self._samples) / seconds,
            "shares": shares,
        }
        bands = self.by_noise.take() if self.by_noise else {}
        entry |= {"loss_by_noise": bands} if bands else {}
        with self.path.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        left = seconds * (1 - progress) / (progress - self._progress)
        parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        print(
            f"step {step}  {entry['samples_per_second']:.1f} samples/s  loss {entry['loss']:.4f}  "
            f"{left / 60:.0f} min left  ({parts})",
            *(f" t {band}: {loss:.4f}" for band, loss in bands.items()),
            flush=True,
        )
        self._start(samples, progress)
