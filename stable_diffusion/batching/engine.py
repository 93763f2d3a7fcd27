"""Continuous batching: one thread evaluates the network for all runs, together and in turns that are fair in time."""

from __future__ import annotations

import atexit
import math
import statistics
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from ..compute.memory import is_out_of_memory
from ..guidance import Answer, Query
from ..inspection import Inspection
from ..preview import Preview, wait_for
from ..request import RequestError
from ..run import Run, Step
from .batch_size import BatchSize
from .preview_worker import PreviewWorker, stream
from .run_handle import RunHandle

Begin = Callable[[], Run | Inspection]
"""Encodes text and photo and returns the run: `lambda: pipeline.begin(request)`."""


class QueueFull(RequestError):
    """The queue has reached its limit."""


class Engine:
    """Draws for many owners at once: every turn is one evaluation of the network, led by the least served owner.

    Each turn drops runs whose handle is closed, and gives a slot to at most one run of the queue. Queries of other runs
    with the same network, latent size and context length ride along in the leader's batch; sampler, steps, guidance and
    seed may differ. Runs begin on a second thread, one after the other, so that a long prompt or a large photo holds up
    nobody's steps; pictures are rendered on the engine's thread, unless the preview worker has its own. An error ends
    only its own run. A run whose handle is closed keeps its state and can be submitted again.

    An `Inspection` is a run without steps: its handle tells when it ends. It is evaluated alone, since it also works
    between its questions, and so one turn waits for one inspection at most.

    Owners are served in measured seconds. A batch's seconds are shared among its rows; beginning a run, the work
    between questions and rendering pictures count too. A run joins the batch only if its owner is ahead of the least
    served owner by at most the estimated seconds of one image. A newcomer starts with the account of the least served
    owner in a slot.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        preview_worker: PreviewWorker | None = None,
        max_running: int = 32,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """device: where the networks are. max_running: number of slots. max_waiting: length of the queue."""
        for name, value in (("max_running", max_running), ("max_waiting", max_waiting)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.device, self.max_running, self.max_waiting = torch.device(device), max_running, max_waiting
        self._clock = clock
        self._worker = PreviewWorker(device, clock=clock) if preview_worker is None else preview_worker
        self._queue: list[tuple[RunHandle, Begin]] = []
        self._beginning: tuple[RunHandle, Future[tuple[Run | Inspection, float]]] | None = None
        self._beginner = ThreadPoolExecutor(1, "begin")
        self._slots: list[_Slot] = []
        self._served: dict[Hashable, float] = {}
        """Seconds by owner, of those who have a slot."""
        self._batch_sizes: dict[Hashable, BatchSize] = {}
        self._turns = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # an interpreter that exits while a thread is inside torch aborts

    def submit(self, begin: Begin, owner: Hashable) -> RunHandle:
        """Queue a run. `begin` is called on a thread of the engine when there is a slot; its error ends the run.

        owner: whose run it is; the runs of one owner share one account. Raises `QueueFull`, and RuntimeError after
        `close`.
        """
        handle = RunHandle(owner, self)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed: submit the run to a new one")
            self._queue = [entry for entry in self._queue if not entry[0].ended]
            if len(self._queue) >= self.max_waiting:
                raise QueueFull(f"{self.max_waiting} are waiting already, the most there may be: try again later")
            self._queue.append((handle, begin))
            self._changed.notify()
        return handle

    @property
    def running(self) -> int:
        """Number of runs that have a slot."""
        return len(self._slots)

    @property
    def closed(self) -> bool:
        """Whether the engine has stopped, by `close` or by an error of its own."""
        return self._closed

    def position(self, handle: RunHandle) -> int:
        """Return a run's place in the queue, from 1; 0 for a run that is not in it."""
        with self._changed:
            queue = [waiting for waiting, _ in self._queue if not waiting.ended]
        return queue.index(handle) + 1 if handle in queue else 0

    def expected_wait(self, handle: RunHandle) -> float:
        """Return the seconds until a run gets a slot: see `RunHandle.expected_wait`."""
        position, slots = self.position(handle), list(self._slots)
        ahead = position - 1 - (self.max_running - len(slots))
        if position == 0 or ahead < 0:
            return 0.0
        if not slots:
            return math.inf
        now = self._clock()
        left = sorted(slot.seconds_left(now) for slot in slots)
        rounds, rest = divmod(ahead, len(left))
        return left[rest] + (rounds * statistics.fmean(slot.seconds(now) for slot in slots) if rounds else 0.0)

    def close(self) -> None:
        """End the thread after its turn, and with a RuntimeError all runs that have not ended."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        error: Exception = RuntimeError("the engine was closed before the run was over: submit it to a new one")
        try:
            with torch.no_grad(), stream(self.device, priority=-1):
                while self._wait():
                    self._turn()
        except Exception as fault:  # an error of the engine's own ends every run, so that no reader waits for ever
            error = fault
            raise
        finally:
            with self._changed:
                self._closed = True
                handles = [slot.handle for slot in self._slots] + [handle for handle, _ in self._queue]
                if self._beginning is not None:
                    handles.append(self._beginning[0])
                self._slots, self._queue, self._beginning = [], [], None
            for handle in handles:
                handle.fail(error)
            self._worker.close(error)
            self._beginner.shutdown()

    def _wait(self) -> bool:
        """Sleep until there is something to do; return False when the engine was closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._can_admit() or self._slots or self._worker.has_final_images_to_do
            )
            return not self._closed

    def _can_admit(self) -> bool:
        """Whether a run has begun, or the first of the queue could begin."""
        if self._beginning is not None:
            return self._beginning[1].done()
        return bool(self._queue) and len(self._slots) < self.max_running

    def _turn(self) -> None:
        for slot in self._slots:
            if slot.handle.ended:
                self._leave(slot)
        more_wait = self._admit()
        steps: list[tuple[_Slot, Step]] = []
        if self._slots:
            self._turns += 1
            alone = len(self._slots) == 1 and not more_wait
            started = self._clock()
            steps = self._evaluate(self._choose(more_wait))
            self._worker.earn(self._clock() - started, alone=alone)
        for slot, step in steps:
            if slot.wants_picture(step):
                try:
                    self._worker.add(slot.handle, step, slot.preview(self._clock))
                except Exception as error:  # the next turn drops the run, if it has a slot still
                    slot.handle.fail(error)
        self._worker.work()
        for owner, seconds in self._worker.take_costs().items():
            self._charge(owner, seconds)
        for slot, step in steps:
            if step.final is None:  # the worker publishes the last step, with its images
                slot.handle.publish(step)

    def _admit(self) -> bool:
        """Give the run that has begun a slot, and let the first of the queue begin; return whether more wait."""
        if self._beginning is not None and self._beginning[1].done():
            handle, begun = self._beginning
            self._beginning = None
            try:
                run, seconds = begun.result()
                slot = _Slot(handle, run, self._clock())
            except Exception as error:
                handle.fail(error)
            else:
                if not handle.ended:
                    self._served.setdefault(handle.owner, min(self._served.values(), default=0.0))
                    self._charge(handle.owner, seconds)
                    self._slots = [*self._slots, slot]
        with self._changed:
            self._queue = [entry for entry in self._queue if not entry[0].ended]
            if self._beginning is None and self._can_admit():
                handle, begin = self._queue[0]
                self._beginning = handle, self._beginner.submit(self._begin, begin)
                self._queue.pop(0)
                self._beginning[1].add_done_callback(self._notify)
            return bool(self._queue) and len(self._slots) + (self._beginning is not None) < self.max_running

    def _begin(self, begin: Begin) -> tuple[Run | Inspection, float]:
        """Begin a run, on the second thread; return it with the seconds that this took."""
        started = self._clock()
        run = begin()
        if self.device.type == "cuda":  # the engine's stream reads what this thread computed on the default one
            torch.cuda.default_stream(self.device).synchronize()
        return run, self._clock() - started

    def _notify(self, begun: Future[tuple[Run | Inspection, float]]) -> None:
        with self._changed:
            self._changed.notify()

    def _leave(self, slot: _Slot, error: Exception | None = None) -> None:
        """Free the slot of a run that has ended, was left, or failed."""
        self._slots = [other for other in self._slots if other is not slot]
        if all(other.handle.owner != slot.handle.owner for other in self._slots):
            del self._served[slot.handle.owner]
        if error is not None:
            slot.handle.fail(error)
        if slot.handle.ended:
            self._worker.drop(slot.handle)

    def _charge(self, owner: Hashable, seconds: float) -> None:
        """Add seconds to an owner's account, for as long as the owner has a slot."""
        if owner in self._served:
            self._served[owner] += seconds

    def _batch_size(self, slot: _Slot) -> BatchSize:
        return self._batch_sizes.setdefault(slot.kind[1:], BatchSize())

    def _choose(self, more_wait: bool) -> list[tuple[_Slot, Query]]:
        """Return the next batch, one query for each run: an image of the least served owner, and those that ride along.

        The accounts are planned with the batch size's last seconds per row. While queued runs wait for free slots, the
        batch is cut to a quarter, because each turn admits one run.
        """
        planned = dict(self._served)

        def order(slot: _Slot) -> tuple[float, int]:
            return planned[slot.handle.owner], slot.last_turn

        leader = min(self._slots, key=order)
        size = self._batch_size(leader)
        limit = size.rows // (4 if more_wait else 1)
        fitting = [slot for slot in self._slots if slot.kind == leader.kind]
        images: dict[_Slot, int] = {}
        rows = 0
        while fitting:
            slot = min(fitting, key=order)
            cost = slot.rows * size.row_seconds
            ahead = planned[slot.handle.owner] - min(planned.values())
            if rows and (rows + slot.rows > limit or ahead > cost):
                break
            rows += slot.rows
            planned[slot.handle.owner] += cost
            images[slot] = images.get(slot, 0) + 1
            slot.last_turn = self._turns
            if images[slot] == slot.unanswered:
                fitting.remove(slot)
        return [(slot, slot.question(count)) for slot, count in images.items()]

    def _evaluate(self, batch: list[tuple[_Slot, Query]]) -> list[tuple[_Slot, Step]]:
        """Evaluate the network, hand the runs their answers, and return the steps that these complete.

        If memory runs out nothing is answered: the same queries come again, in smaller batches. After any other error
        each run's part is evaluated alone, and ends the run if it fails again.
        """
        slots, queries = zip(*batch, strict=True)
        rows = sum(query.rows for query in queries)
        size = self._batch_size(slots[0])
        started = self._clock()
        try:
            answers = slots[0].run.denoise(queries)
            wait_for(self.device)
        except Exception as error:
            if is_out_of_memory(error) and sum(len(query.x) for query in queries) > 1:
                size.too_large(rows)
                return []
            if len(batch) == 1:
                self._leave(slots[0], error)
                return []
        else:
            size.measured(rows, self._clock() - started)
            for slot, query in batch:
                self._charge(slot.handle.owner, query.rows * size.row_seconds)
            steps = [(slot, self._answer(slot, answer)) for slot, answer in zip(slots, answers, strict=True)]
            wait_for(self.device)
            return [(slot, step) for slot, step in steps if step is not None]
        return [step for part in batch for step in self._evaluate([part])]

    def _answer(self, slot: _Slot, answer: Answer) -> Step | None:
        """Hand a run the answer for its images; return its step once all of them are answered."""
        started = self._clock()
        try:
            step = slot.answer(answer)
        except Exception as error:
            self._leave(slot, error)
            return None
        self._charge(slot.handle.owner, self._clock() - started)
        if slot.run.query is None:
            self._leave(slot)
            if step is None:  # an inspection; a run ends with its pictures
                slot.handle.close()
        return step


class _Slot:
    """A run's place in the batch: its query, and the answers to it so far."""

    def __init__(self, handle: RunHandle, run: Run | Inspection, now: float):
        assert run.query is not None, "a run that begins has a query"
        self.handle, self.run = handle, run
        self.last_turn = 0
        self._answers: list[Answer] = []
        self._preview: Preview | None = None
        self._began, self._index, self._total = now, 0, 0

    @property
    def query(self) -> Query:
        """The run's query."""
        assert self.run.query is not None, "a run in a slot has a query"
        return self.run.query

    @property
    def rows(self) -> int:
        """Number of rows of the batch that an image of the query takes."""
        return self.query.rows // len(self.query.x)

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """Equal for runs that may share a batch: their network, or an inspection itself, and the queries' shapes."""
        network = self.run if isinstance(self.run, Inspection) else self.run.denoise
        return network, self.query.x.shape[1:], self.query.context.shape[1:]

    @property
    def unanswered(self) -> int:
        """Number of images of the query that have no answer yet."""
        return len(self.query.x) - sum(len(answer.x_0) for answer in self._answers)

    def question(self, count: int) -> Query:
        """Return the part of the query for the next `count` images."""
        query = self.query
        if count == len(query.x):
            return query
        start = len(query.x) - self.unanswered
        part = slice(start, start + count)
        negative = None if query.negative is None else query.negative[part]
        return replace(query, x=query.x[part], context=query.context[part], negative=negative)

    def answer(self, answer: Answer) -> Step | None:
        """Take the answer for the next images; return the run's step if they were the last of the query."""
        self._answers.append(answer)
        if self.unanswered:
            return None
        answers, self._answers = self._answers, []
        answer = Answer.cat(answers)
        if isinstance(self.run, Inspection):
            self.run.answer(answer)
            self._index, self._total = self.run.index, self.run.total
            return None
        step = self.run.answer(answer)
        self._index, self._total = step.index, step.total
        return step

    def wants_picture(self, step: Step) -> bool:
        """Whether a step is rendered; the last always is."""
        assert isinstance(self.run, Run), "an inspection has no steps"
        request = self.run.request
        return step.final is not None or (request.preview != "none" and step.index % request.preview_every == 0)

    def preview(self, clock: Callable[[], float]) -> Preview:
        """Return the run's preview decoder, which knows the cost of its previews so far."""
        assert isinstance(self.run, Run), "an inspection has no steps"
        if self._preview is None:
            self._preview = self.run.preview(clock)
        return self._preview

    def seconds(self, now: float) -> float:
        """Return the run's whole duration at its pace so far; infinite before its first step."""
        return (now - self._began) * self._total / self._index if self._index else math.inf

    def seconds_left(self, now: float) -> float:
        """Return the rest of that duration."""
        return self.seconds(now) - (now - self._began)
