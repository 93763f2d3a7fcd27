"""What holds for a crowd: everybody's own picture, fair turns, errors and departures that concern nobody else."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stable_diffusion.batching.batch_size import BatchSize
from stable_diffusion.batching.engine import Engine, QueueFull
from stable_diffusion.batching.preview_worker import PreviewWorker
from stable_diffusion.batching.run_handle import KEPT_STEPS, RunHandle
from stable_diffusion.guidance import Query
from stable_diffusion.levels import Plan
from stable_diffusion.loading.config import ModelError
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Pictures, Preview
from stable_diffusion.request import Request
from stable_diffusion.run import Run, Step
from tests.tiny import save_model

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8))
LEFT = Image.new("L", PHOTO.size)
LEFT.paste(255, (0, 0, 45, 70))
Denoise = Callable[[Sequence[Query]], list[Tensor]]

CROWD = [
    Request("a red fox", num_inference_steps=5, seed=1, preview="none"),
    Request("a cat", num_inference_steps=3, seed=2, sampler="heun", guidance_scale=3.0),
    Request("the moon", num_inference_steps=6, seed=3, sampler="euler_a", guidance_scale=1.0, preview="linear"),
    Request("the sun", num_inference_steps=4, seed=4, sampler="dpmpp_2m_sde", num_images=3, preview="vae"),
    Request("a photo of the fox", num_inference_steps=8, seed=5, sampler="unipc", image=PHOTO, strength=0.5),
    Request("a blue cat", num_inference_steps=4, seed=6, sampler="dpmpp_2m", width=32, height=48, preview_every=2),
    Request("a cat", num_inference_steps=7, seed=7, sampler="ddim", num_images=2, negative_prompt="blue"),
    Request("the sun", num_inference_steps=2, seed=8, sampler="lcm", width=32, height=48),
    Request(
        "a red sun", num_inference_steps=5, seed=9, sampler="euler", image=PHOTO, num_images=2, width=64, height=64
    ),
    Request("a fox", num_inference_steps=1, seed=10),
    Request(
        "a cat", num_inference_steps=5, seed=11, sampler="ddpm", image=PHOTO, mask=LEFT, num_images=2, preview="vae"
    ),
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def exact(pipe: Pipeline) -> Pipeline:
    """The same networks in float64, where the kernels of another batch size make no difference to speak of."""
    parts = {part: deepcopy(getattr(pipe.models, part)).double() for part in ("text_encoder", "unet", "vae")}
    return Pipeline(replace(pipe.models, **parts))


@pytest.fixture(scope="module")
def alone(exact: Pipeline) -> dict[int, Tensor]:
    """The latents that each of the crowd, by its seed, ends with when it runs by itself."""
    return {request.seed: exact(replace(request, preview="none")).latents for request in CROWD}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


class Watched:
    """A denoiser that notes every batch, and may be held up or made to fail: what an engine is watched through."""

    def __init__(self, denoise: Denoise, before: Callable[[Sequence[Query]], None] = lambda queries: None):
        self.denoise, self.before = denoise, before
        self.batches: list[list[Query]] = []
        self.now = 0.0

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        self.before(queries)
        self.batches.append(list(queries))
        self.now += 0.01 + 0.001 * self.rows[-1]
        return self.denoise(queries)

    def clock(self) -> float:
        """The time on a machine where large batches pay."""
        return self.now

    @property
    def rows(self) -> list[int]:
        return [sum(query.rows for query in batch) for batch in self.batches]


def watched(pipe: Pipeline, before: Callable[[Sequence[Query]], None] = lambda queries: None) -> Watched:
    return Watched(pipe.condition(Request()).denoise, before)


def beginning(pipe: Pipeline, request: Request, denoise: Denoise | None = None) -> Callable[[], Run]:
    def begin() -> Run:
        run = pipe.begin(request)
        if denoise is not None:
            # One object for all runs: only those of the same network share a batch.
            run.conditioning = replace(run.conditioning, denoise=denoise)
        return run

    return begin


class Gate:
    """Holds the engine at the network until it is opened, so that everybody is in line before the first turn."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, queries: Sequence[Query]) -> None:
        self.reached.set()
        assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()


def last(handle: RunHandle) -> Step:
    *_, step = handle
    return step


def check(handle: RunHandle, request: Request, alone: dict[int, Tensor]) -> None:
    step = last(handle)
    assert step.index == step.total
    assert step.result is not None
    assert step.result.seed == step.seed == request.seed
    assert len(step.result.images) == request.num_images
    assert step.images == step.result.images
    torch.testing.assert_close(step.result.latents, alone[request.seed], rtol=0, atol=1e-9)


def settle(engine: Engine) -> None:
    """Wait until nobody has a place any more."""
    until = time.monotonic() + 30
    while engine.running:
        assert time.monotonic() < until, f"{engine.running} runs still have a place"
        time.sleep(0.002)


@pytest.mark.parametrize("own_thread", [False, True])
def test_everybody_gets_the_picture_of_the_run_alone(
    exact: Pipeline, alone: dict[int, Tensor], own_thread: bool
) -> None:
    gate = Gate()
    network = watched(exact, gate)
    engine = Engine(preview_worker=PreviewWorker(own_thread=own_thread), clock=network.clock)
    handles = [engine.submit(beginning(exact, request, network), owner=i) for i, request in enumerate(CROWD)]
    gate.open()
    for handle, request in zip(handles, CROWD, strict=True):
        check(handle, request, alone)
    assert max(len(batch) for batch in network.batches) >= 3  # they did share
    engine.close()


def test_a_run_alone_takes_the_steps_of_a_stream(exact: Pipeline, engine: Engine) -> None:
    request = Request("a fox", num_inference_steps=6, seed=1, preview="linear", preview_every=3)
    expected = list(exact.stream(request))
    seen: dict[int, Step] = {}
    turn = threading.Semaphore(1)

    def wait(queries: Sequence[Query]) -> None:
        assert turn.acquire(timeout=30)  # the reader keeps up, so that it misses none

    for step in engine.submit(beginning(exact, request, watched(exact, wait)), "me"):
        seen[step.index] = step
        turn.release()
    assert sorted(seen) == [step.index for step in expected]
    for step in expected:
        assert torch.equal(seen[step.index].denoised, step.denoised)
        assert step.images is None or seen[step.index].images == step.images


def test_first_come_first_drawn(pipe: Pipeline) -> None:
    engine, gate, begun = Engine(max_running=2), Gate(), []
    network = watched(pipe, gate)

    def submit(name: int) -> RunHandle:
        def begin() -> Run:
            begun.append(name)
            return beginning(pipe, Request("a fox", num_inference_steps=3, seed=name), network)()

        return engine.submit(begin, owner=name)

    first = submit(0)
    assert gate.reached.wait(30)
    others = [submit(name) for name in range(1, 6)]
    assert [handle.position for handle in [first, *others]] == [0, 1, 2, 3, 4, 5]
    assert others[0].expected_wait == 0  # there is a place for it
    assert others[1].expected_wait > 0
    others[1].close()
    assert [handle.position for handle in others] == [1, 0, 2, 3, 4]
    gate.open()
    for handle in others:
        list(handle)
    assert begun == [0, 1, 3, 4, 5]
    assert all(handle.position == 0 and handle.expected_wait == 0 for handle in others)
    engine.close()


def test_the_wait_is_told_by_how_fast_the_others_are(pipe: Pipeline) -> None:
    now, told, gate = [0.0], [], Gate()

    def look(queries: Sequence[Query]) -> None:
        gate(queries)
        if queries[0].guidance_scale == 5.0:
            told.append([handle.expected_wait for handle in waiting])
            now[0] += 2.0

    engine = Engine(max_running=1, clock=lambda: now[0])
    network = watched(pipe, look)
    request = Request("a", num_inference_steps=6, guidance_scale=5.0, preview="none")
    first = engine.submit(beginning(pipe, request, network), 0)
    assert gate.reached.wait(30)
    begin = beginning(pipe, Request("a", num_inference_steps=1), network)
    waiting = [engine.submit(begin, i) for i in (1, 2)]
    gate.open()
    list(first)
    # After n steps of 2 s, 6 - n remain, and whoever is second in line also waits for another run like this one.
    assert told[1:] == [[2.0 * (6 - n), 2.0 * (6 - n) + 12.0] for n in range(1, 6)]
    engine.close()


def test_a_line_has_an_end(pipe: Pipeline) -> None:
    engine, gate = Engine(max_running=1, max_waiting=2), Gate()
    begin = beginning(pipe, Request("a fox", num_inference_steps=1), watched(pipe, gate))
    engine.submit(begin, 0)
    assert gate.reached.wait(30)
    waiting = [engine.submit(begin, 0) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 are waiting already, the most there may be: try again"):
        engine.submit(begin, 0)
    waiting[0].close()
    handle = engine.submit(begin, 0)  # whose place in line is free again
    gate.open()
    assert last(handle).result is not None
    engine.close()


def test_departures_leave_the_others_as_they_are(exact: Pipeline, alone: dict[int, Tensor], engine: Engine) -> None:
    chance = random.Random(0)
    for _ in range(5):
        staying = [(engine.submit(beginning(exact, request), "stays"), request) for request in CROWD[:4]]
        leaving = [engine.submit(beginning(exact, CROWD[i % len(CROWD)]), i) for i in range(20)]
        chance.shuffle(leaving)
        for handle in leaving:  # from this thread, while the engine's is at work
            if chance.random() < 0.5:
                next(iter(handle), None)
            handle.close()
            handle.close()
        for handle, request in staying:
            check(handle, request, alone)
        assert all(handle.ended for handle in leaving)
    settle(engine)


def test_whoever_left_is_evaluated_no_more(pipe: Pipeline, engine: Engine) -> None:
    gate = Gate()
    network = watched(pipe, gate)
    handle = engine.submit(beginning(pipe, Request("a fox", num_inference_steps=500), network), 0)
    assert gate.reached.wait(30)
    reader = threading.Thread(target=lambda: list(handle))
    reader.start()
    handle.close()
    reader.join(30)  # it need not wait for the turn
    assert not reader.is_alive()
    gate.open()
    settle(engine)
    assert len(network.batches) == 1


class BrokenSampler(Pipeline):
    """A pipeline whose sampler gives up at its second answer."""

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)

        def function(x: Tensor, steps: object, noise: object, **options: object) -> Iterator[object]:
            yield x, plan.steps[0][0]
            yield x, plan.steps[1][0]
            raise ArithmeticError("this sampler is broken")

        return replace(plan, sampler=replace(plan.sampler, function=function))  # type: ignore[arg-type]


def test_an_error_ends_its_own_run(exact: Pipeline, alone: dict[int, Tensor], engine: Engine) -> None:
    def fail(queries: Sequence[Query]) -> None:
        if any(query.guidance_scale == 66.0 for query in queries):
            raise ZeroDivisionError("this question is broken")

    gate = Gate()
    network = watched(exact, lambda queries: (gate(queries), fail(queries))[1])
    well = CROWD[:4] + CROWD[6:7]
    handles = [engine.submit(beginning(exact, request, network), i) for i, request in enumerate(well)]
    broken = {
        "photo": engine.submit(beginning(exact, Request("a cat", image=Path("missing.png"))), 11),
        "sampler": engine.submit(beginning(BrokenSampler(exact.models), Request("a cat", seed=1), network), 12),
        "question": engine.submit(
            beginning(exact, Request("a cat", guidance_scale=66.0, num_images=2, seed=1), network), 13
        ),
    }
    gate.open()
    with pytest.raises((OSError, ValueError), match="missing"):
        list(broken["photo"])
    with pytest.raises(ArithmeticError, match="this sampler is broken"):
        list(broken["sampler"])
    with pytest.raises(ZeroDivisionError, match="this question is broken"):
        list(broken["question"])
    for handle, request in zip(handles, well, strict=True):
        check(handle, request, alone)
    settle(engine)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"),
    ],
    ids=["accelerator", "python", "processor"],
)
def test_out_of_memory_makes_batches_smaller(
    exact: Pipeline, alone: dict[int, Tensor], engine: Engine, error: Exception
) -> None:
    refused = []

    def run_out(queries: Sequence[Query]) -> None:
        if sum(query.rows for query in queries) > 3:
            refused.append(queries)
            raise error

    network = watched(exact, run_out)
    crowd = [request for request in CROWD if request.width != 32] * 2
    handles = [engine.submit(beginning(exact, request, network), i) for i, request in enumerate(crowd)]
    for handle, request in zip(handles, crowd, strict=True):
        check(handle, request, alone)
    assert refused
    assert max(network.rows) <= 3
    assert len(refused) < len(network.batches) / 10  # it is learnt, not found out every time


def test_a_picture_that_has_no_room_alone_ends_its_run(
    exact: Pipeline, alone: dict[int, Tensor], engine: Engine
) -> None:
    def run_out(queries: Sequence[Query]) -> None:
        if any(query.guidance_scale == 66.0 for query in queries):
            raise torch.OutOfMemoryError("out of memory")

    network = watched(exact, run_out)
    large = engine.submit(beginning(exact, Request("a fox", guidance_scale=66.0, num_images=4), network), "large")
    handle = engine.submit(beginning(exact, CROWD[0], network), "small")
    check(handle, CROWD[0], alone)
    with pytest.raises(torch.OutOfMemoryError):
        list(large)


def test_visitors_see_their_own_steps_alone(pipe: Pipeline, engine: Engine) -> None:
    handles = {seed: engine.submit(beginning(pipe, Request("a", seed=seed)), seed % 4) for seed in range(12)}
    seeds: dict[int, set[int]] = {}
    readers = [
        threading.Thread(target=lambda seed=seed, handle=handle: seeds.update({seed: {step.seed for step in handle}}))
        for seed, handle in handles.items()
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert seeds == {seed: {seed} for seed in handles}


@pytest.mark.parametrize("overhead", [8, 0], ids=["batching pays", "does not"])
@pytest.mark.parametrize("greedy", [{"num_images": 4}, {"width": 128, "height": 128}], ids=["pictures", "size"])
def test_the_greedy_leave_others_their_share(pipe: Pipeline, greedy: dict[str, int], overhead: int) -> None:
    """A visitor with 4 pictures of 150 steps beside one with 20 steps, counted in rows times pixels."""
    now = [0.0]
    work: Counter[float] = Counter()
    poor_work = 20 * 2 * 64  # 20 steps of a guided picture, 8 x 8 latents
    totals: list[float] = []

    def count(queries: Sequence[Query]) -> None:
        gate(queries)
        size = queries[0].x.shape[-2:].numel() / 64
        now[0] += 1e-4 * (overhead + sum(query.rows for query in queries)) * size
        for query in queries:
            work[query.guidance_scale] += query.rows * query.x.shape[-2:].numel()
        if work[4.0] == poor_work and not totals:
            totals.append(work.total())

    gate, engine = Gate(), Engine(clock=lambda: now[0])
    network = watched(pipe, count)
    many = Request("a", num_inference_steps=150, guidance_scale=5.0, preview="none", **greedy)
    few = Request("a", num_inference_steps=20, guidance_scale=4.0, preview="none")
    rich = engine.submit(beginning(pipe, many, network), "rich")
    assert gate.reached.wait(30)
    poor = engine.submit(beginning(pipe, few, network), "poor")
    gate.open()
    assert last(poor).result is not None
    fair = 2 * poor_work  # half of what is done is theirs
    assert totals[0] <= 2 * fair
    assert not rich.ended
    engine.close()


def test_a_newcomer_does_not_starve_those_who_were_there(pipe: Pipeline) -> None:
    turns: list[float] = []
    newcomers: list[RunHandle] = []

    def come(queries: Sequence[Query]) -> None:
        turns.append(queries[0].guidance_scale)
        if len(turns) == 40:  # another size, so that nobody rides along
            request = Request("a", num_inference_steps=20, width=72, guidance_scale=4.0, preview="none")
            newcomers.append(engine.submit(beginning(pipe, request, network), "new"))

    network = watched(pipe, come)
    engine = Engine(clock=network.clock)
    request = Request("a", num_inference_steps=200, guidance_scale=5.0, preview="none")
    assert last(engine.submit(beginning(pipe, request, network), "old")).result is not None
    assert last(newcomers[0]).result is not None
    first = turns.index(4.0)
    assert 9 <= turns[first : first + 20].count(5.0) <= 11
    engine.close()


def test_nobody_waits_for_a_crowd_of_another_size(pipe: Pipeline, engine: Engine) -> None:
    gate = Gate()
    network = watched(pipe, gate)
    request = Request("a", num_inference_steps=12, preview="none")
    crowd = [engine.submit(beginning(pipe, request, network), i) for i in range(8)]
    odd = engine.submit(beginning(pipe, replace(request, width=56, guidance_scale=4.0), network), "odd")
    gate.open()
    for handle in [odd, *crowd]:
        assert last(handle).result is not None
    turns = [{query.guidance_scale for query in batch} for batch in network.batches]
    assert all(len(scales) == 1 for scales in turns)  # sizes do not mix
    gaps = np.diff([i for i, scales in enumerate(turns) if scales == {4.0}])
    assert gaps.max() <= 9  # not even if everybody else took a turn


def test_turns_are_short_while_newcomers_wait_to_be_admitted(pipe: Pipeline) -> None:
    """Each turn admits one run. Until the last is in, a batch has at most a quarter of the rows that it may have."""
    came: list[int] = []

    def come(queries: Sequence[Query]) -> None:
        gate(queries)
        if len(queries) == 16 and not came:  # the limit is 32 rows from then on, twice as many as pay
            came.append(len(network.batches))
            for i in range(6):
                engine.submit(beginning(pipe, request, network), 16 + i)

    gate, network = Gate(), watched(pipe, come)
    engine = Engine(clock=network.clock)
    request = Request("a", num_inference_steps=40, guidance_scale=1.0, preview="none")
    crowd = [engine.submit(beginning(pipe, request, network), i) for i in range(16)]
    gate.open()
    for run in crowd:
        assert last(run).result is not None
    [full] = came
    assert max(network.rows[full + 1 : full + 6]) <= 8
    assert max(network.rows[full + 6 :]) >= 16
    engine.close()


def test_who_shares_a_batch_pays_less_than_who_fills_one_alone(pipe: Pipeline) -> None:
    """Two runs in one batch cost three quarters each where the batch takes half as long again as one run alone.

    So a third run, of another size with as many pixels, gets three turns for four turns of the two.
    """
    now, alone = [0.0], []

    def take_time(queries: Sequence[Query]) -> None:
        gate(queries)
        now[0] += 0.01 * (1 + len(queries))
        alone.append(queries[0].x.shape[-1] == 16)

    gate, engine = Gate(), Engine(clock=lambda: now[0])
    network = watched(pipe, take_time)
    request = Request("a", num_inference_steps=90, guidance_scale=1.0, preview="none")
    pair = [engine.submit(beginning(pipe, request, network), i) for i in range(2)]
    third = engine.submit(beginning(pipe, replace(request, width=128, height=32), network), "third")
    gate.open()
    for run in [*pair, third]:
        assert last(run).result is not None
    assert sum(alone[:140]) == pytest.approx(60, abs=3)
    engine.close()


class NoLine:
    """Where nobody waits."""

    def position(self, handle: RunHandle) -> int:
        return 0

    def expected_wait(self, handle: RunHandle) -> float:
        return 0.0


def test_pictures_that_come_late_replace_no_newer_step(pipe: Pipeline) -> None:
    handle = RunHandle("me", NoLine())
    one, two, three, final = pipe.stream("a fox", num_inference_steps=4, seed=1, preview="none")
    painted = replace(one, images=one.decoded().images)
    reader = handle.steps(every=1.0)  # None instead of waiting for ever, should a step be missing
    for step in (one, two, painted):
        handle.publish(step)
    assert [next(reader), next(reader)] == [two, painted]
    handle.publish(three)
    late = handle.steps(every=1.0)
    assert [next(late), next(late), next(late)] == [two, painted, three]
    handle.publish(replace(three, images=three.decoded().images))
    handle.publish(three)  # known by its pictures already
    assert next(late).images is not None
    handle.publish(final)
    handle.publish(one)
    assert list(late) == list(reader)[-1:] == list(handle)[-1:] == [final]


def test_a_ticket_keeps_the_newest_steps_and_the_last_for_ever(pipe: Pipeline, engine: Engine) -> None:
    steps: list[weakref.ref[Tensor]] = []
    network = watched(pipe, lambda queries: steps.append(weakref.ref(queries[0].x)))
    handle = engine.submit(beginning(pipe, Request("a fox", num_inference_steps=6, seed=1), network), 0)
    settle(engine)
    while not handle.ended:
        time.sleep(0.002)
    network.batches.clear()
    gc.collect()
    assert [step() is None for step in steps] == [True] * 2 + [False] * KEPT_STEPS
    for _ in range(2):  # whoever comes late gets what is left, again and again
        left = list(handle)
        assert [step.index for step in left] == [3, 4, 5, 6]
        assert left[-1].result is not None
    handle.close()
    assert last(handle).result is not None


def test_two_readers_of_one_ticket_both_see_it_end(pipe: Pipeline, engine: Engine) -> None:
    handle = engine.submit(beginning(pipe, Request("a fox", num_inference_steps=4)), 0)
    assert last(handle).result is last(handle).result


def test_a_reader_may_ask_to_be_woken(pipe: Pipeline, engine: Engine) -> None:
    gate = Gate()
    engine.submit(beginning(pipe, Request("a fox", num_inference_steps=1), watched(pipe, gate)), 0)
    assert gate.reached.wait(30)
    handle = engine.submit(beginning(pipe, Request("a fox", num_inference_steps=2)), 1)
    steps = handle.steps(every=0.001)
    assert next(steps) is None
    assert handle.position == 1
    gate.open()
    told = [step for step in steps if step is not None]
    assert told[-1].result is not None


def test_closing_the_engine_ends_every_run(pipe: Pipeline) -> None:
    engine, gate = Engine(max_running=1), Gate()
    begin = beginning(pipe, Request("a fox", num_inference_steps=500), watched(pipe, gate))
    handles = [engine.submit(begin, i) for i in range(3)]
    assert gate.reached.wait(30)
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.open()
    closing.join(30)
    for handle in handles:
        with pytest.raises(RuntimeError, match="the engine was closed before the run was over"):
            list(handle)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit(begin, 0)


def test_nothing_is_left_of_two_hundred_runs(pipe: Pipeline) -> None:
    threads = threading.active_count()
    engine = Engine(preview_worker=PreviewWorker(own_thread=True))
    left: list[weakref.ref[object]] = []

    def submit(i: int) -> RunHandle:
        def begin() -> Run:
            run = pipe.begin(Request("a", seed=i, num_inference_steps=1 + i % 3, preview="linear"))
            assert run.query is not None
            left.extend((weakref.ref(run), weakref.ref(run.query.x), weakref.ref(run.query.context)))
            if i % 10 == 3:
                raise ValueError("not this one")
            return run

        return engine.submit(begin, i % 7)

    for start in range(0, 200, 40):
        handles = [submit(i) for i in range(start, start + 40)]
        for i, handle in enumerate(handles, start):
            if i % 10 == 4:
                handle.close()
            try:
                list(handle)
            except ValueError:
                assert i % 10 == 3
    settle(engine)
    del handles, handle
    gc.collect()
    assert len(left) > 3 * 160
    assert not [object for ref in left if (object := ref()) is not None]
    engine.close()
    assert threading.active_count() == threads


def test_grad_mode_is_off_in_the_engine_alone(pipe: Pipeline, engine: Engine) -> None:
    modes = []
    network = watched(pipe, lambda queries: modes.append(torch.is_grad_enabled()))
    last(engine.submit(beginning(pipe, Request("a", num_inference_steps=1), network), 0))
    assert modes == [False]
    assert torch.is_grad_enabled()


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="max_running must be at least 1, got 0"):
        Engine(max_running=0)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\), got 1"):
        PreviewWorker(share=1.0)


def found_limit(seconds: Callable[[int], float], batches: int = 100) -> int:
    """What a limit comes to when batches are always as large as it allows."""
    limit = BatchSize()
    for _ in range(batches):
        limit.measured(limit.rows, seconds(limit.rows))
    return limit.rows


def test_batches_grow_while_that_makes_rows_cheaper() -> None:
    assert found_limit(lambda rows: 0.001 * rows) == 2
    assert found_limit(lambda rows: 0.010 + 0.001 * rows) == 128  # from there on a doubling gains less than 5 %
    assert found_limit(lambda rows: 0.001 * max(rows, 16)) == 16
    assert found_limit(lambda rows: 0.1 * (10 + rows)) == 1  # a turn would take too long
    assert found_limit(lambda rows: 0.02 * (10 + rows)) == 32


def test_a_batch_grows_on_a_machine_that_has_become_slow():
    """A larger batch is compared with the last small ones, and not with the best of a quieter time."""
    limit = BatchSize()
    for _ in range(50):
        limit.measured(2, 2 * 0.01)
    for _ in range(6):
        limit.measured(2, 2 * 0.05)
    assert limit.rows == 4
    limit.measured(4, 4 * 0.03)
    assert limit.rows == 8


def test_a_limit_is_not_raised_by_batches_that_do_not_fill_it() -> None:
    limit = BatchSize(16)
    for _ in range(100):
        limit.measured(8, 0.001)
    assert limit.rows == 16


def test_a_limit_outlives_a_bad_moment() -> None:
    limit = BatchSize()
    limit.too_large(12)
    assert limit.rows == 4  # half of it, in powers of two
    for _ in range(1000):
        limit.measured(limit.rows, 0.001 * max(limit.rows, 16))
    assert limit.rows in (16, 32)  # 32 while it is tried again


class Frames:
    """A handle's place in a worker's tests: notes what is published."""

    ended = False

    def __init__(self, name: str, log: list[str]):
        self.name, self.owner, self.log = name, name, log

    def publish(self, step: Step) -> None:
        self.log.append(f"{self.name}{step.index}")

    def fail(self, error: Exception) -> None:
        raise error


class SlowPreview(Preview):
    """Takes a second of a clock that only this moves, or four by the VAE."""

    def __init__(self, step: Step, name: str, now: list[float]):
        super().__init__(step.render, name, clock=lambda: now[0])
        self.now = now

    def __call__(self, latents: Tensor) -> Pictures | None:
        self.now[0] += 4.0 if self.name == "vae" else 1.0
        return super().__call__(latents)


def test_previews_thin_out_and_the_longest_wait_ends_first(pipe: Pipeline) -> None:
    now, log = [0.0], []
    worker = PreviewWorker(share=1 / 3, own_thread=False, clock=lambda: now[0])
    steps = list(pipe.stream("a", num_inference_steps=12, preview="none", seed=1))
    visitors = [Frames(name, log) for name in "abc"]
    for step in steps[:-1]:
        for visitor in visitors:
            worker.add(visitor, step, SlowPreview(step, "linear", now))  # type: ignore[arg-type]
        worker.earn(2.0)  # of which previews may add one second
        worker.work()
    assert log == [f"{'abc'[i % 3]}{i + 1}" for i in range(11)]


def test_cheaper_decoders_first_and_the_share_is_kept(pipe: Pipeline) -> None:
    now, log = [0.0], []
    worker = PreviewWorker(share=1 / 3, own_thread=False, clock=lambda: now[0])
    steps = list(pipe.stream("a", num_inference_steps=41, preview="none", seed=1))
    sharp, rough = Frames("sharp", log), Frames("rough", log)
    for step in steps[:-1]:
        worker.add(sharp, step, SlowPreview(step, "vae", now))  # type: ignore[arg-type]
        worker.add(rough, step, SlowPreview(step, "linear", now))  # type: ignore[arg-type]
        worker.earn(4.0)
        worker.work()
    painted = Counter(name[:5] for name in log)
    assert log[0] == "rough1"
    assert painted["sharp"] >= 5
    assert painted["rough"] >= 15
    assert now[0] <= 40 * 2 + 4  # half of the network's time, and a debt of one picture


def test_credit_for_previews_does_not_outlive_the_turn(pipe: Pipeline) -> None:
    """After an hour without previews, those of five visitors still come one at a time."""
    now, log = [0.0], []
    worker = PreviewWorker(share=1 / 3, own_thread=False, clock=lambda: now[0])
    step = next(pipe.stream("a", num_inference_steps=2, preview="none", seed=1))
    worker.earn(3600.0)
    worker.work()
    for name in "abcde":
        worker.add(Frames(name, log), step, SlowPreview(step, "linear", now))  # type: ignore[arg-type]
    worker.earn(2.0)  # of which previews may add one second
    worker.work()
    assert log == ["a1"]


def test_final_pictures_wait_for_no_share(pipe: Pipeline) -> None:
    log: list[str] = []
    worker = PreviewWorker(share=0.0, own_thread=False)
    first, *_, final = pipe.stream("a", num_inference_steps=3, preview="none", seed=1)
    worker.earn(100.0)
    worker.add(Frames("preview", log), first, Preview(first.render, "linear"))  # type: ignore[arg-type]
    for name in ("one", "two"):
        worker.add(Frames(name, log), final, Preview(first.render, "none"))  # type: ignore[arg-type]
    worker.work()
    assert log == ["one3", "two3"]


def test_a_run_that_begins_slowly_delays_nobody(pipe: Pipeline, engine: Engine) -> None:
    """A long prompt takes seconds to encode: meanwhile the others go on."""
    go_on = threading.Event()

    def begin_slowly() -> Run:
        assert go_on.wait(30)
        return pipe.begin("a fox", num_inference_steps=1)

    running = engine.submit(beginning(pipe, Request("a", num_inference_steps=40)), "runs")
    next(iter(running))
    slow = engine.submit(begin_slowly, "slow")
    assert last(running).result is not None
    assert not slow.ended
    go_on.set()
    assert last(slow).result is not None


def test_a_run_that_leaves_while_it_begins_takes_no_slot(pipe: Pipeline, engine: Engine) -> None:
    begun, go_on, runs = threading.Event(), threading.Event(), []

    def begin() -> Run:
        begun.set()
        assert go_on.wait(30)
        runs.append(pipe.begin("a fox", num_inference_steps=500))
        return runs[0]

    handle = engine.submit(begin, "leaves")
    assert begun.wait(30)
    handle.close()
    go_on.set()
    settle(engine)
    assert last(engine.submit(beginning(pipe, Request("a", num_inference_steps=1)), "next")).result is not None
    assert runs[0].query is not None  # as it was: it may be submitted again


def test_a_run_that_can_not_begin_or_be_shown_ends_alone(
    exact: Pipeline, alone: dict[int, Tensor], engine: Engine
) -> None:
    """A decoder that is not there, and a run that is over already, are their own runs' errors."""

    def begin_without_decoder() -> Run:
        run = exact.begin("a fox", num_inference_steps=3)
        run.preview = fail  # type: ignore[method-assign]
        return run

    def fail(*timing: object) -> Preview:
        raise ModelError("there is no decoder")

    over = exact.begin("a fox", num_inference_steps=1)
    over.close()
    with pytest.raises(ModelError, match="there is no decoder"):
        list(engine.submit(begin_without_decoder, "no decoder"))
    with pytest.raises(AssertionError):
        list(engine.submit(lambda: over, "over"))
    check(engine.submit(beginning(exact, CROWD[0]), "well"), CROWD[0], alone)
