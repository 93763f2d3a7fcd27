"""Many runs, one network: a thread that evaluates what all of them ask, together and in fair turns."""

from __future__ import annotations

import atexit
import math
import statistics
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from ..guidance import Query
from ..pipeline import Run, Step
from ..preview import Preview
from .batch_size import BatchLimit
from .preview_worker import Painter, finish, stream
from .run_handle import Ticket

Begin = Callable[[], Run]
"""Reads words and photo and gives the run: `lambda: pipeline.begin(request)`."""


class LineFull(ValueError):
    """As many wait as may."""


class Engine:
    """Draws for many visitors at once: every turn is one evaluation of the network, for whoever was served least.

    In a turn those who left are dropped, at most one newcomer gets its place, and the questions of others that have the
    same network, latent size and context length ride along; a run's sampler, steps, guidance and seed are its own
    matter. Everything that computes happens on the engine's thread, but for the painter's where it has one. An error
    ends the run that it belongs to and no other. One whose visitor left stays as it is: it may be submitted again.

    Served is what a visitor's pictures took: rows of the batch times their pixels. The picture that a turn is for
    counts in full, and those that ride along count half, for they cost about half. Nobody rides along who is further
    ahead of the least served than one picture's price. So while a visitor is served n rows nobody else gets more than
    2 n, but for a picture's rounding. A newcomer starts at the count of the least served who is there.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        painter: Painter | None = None,
        max_running: int = 32,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """device is where the networks are. max_running visitors are drawn for at once, and max_waiting may wait."""
        for name, value, least in (("max_running", max_running, 1), ("max_waiting", max_waiting, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.device, self.max_running, self.max_waiting = torch.device(device), max_running, max_waiting
        self._clock = clock
        self._painter = Painter(device, clock=clock) if painter is None else painter
        self._waiting: list[tuple[Ticket, Begin]] = []
        self._seats: list[_Seat] = []
        self._served: dict[Hashable, float] = {}
        self._limits: dict[Hashable, BatchLimit] = {}
        self._turns = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # an interpreter that goes while a thread is inside torch ends in an abort

    def submit(self, begin: Begin, owner: Hashable) -> Ticket:
        """Get in line. begin is called on the engine's thread when there is a place; what it raises ends the ticket.

        owner is whose run it is: the runs of one visitor share what one gets. Raises LineFull, a ValueError, where
        max_waiting wait already, and RuntimeError after `close`.
        """
        ticket = Ticket(owner, self)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed: submit the run to a new one")
            self._waiting = [waiting for waiting in self._waiting if not waiting[0].over]
            if len(self._waiting) >= self.max_waiting:
                raise LineFull(f"{self.max_waiting} are waiting already, the most there may be: try again in a minute")
            self._waiting.append((ticket, begin))
            self._changed.notify()
        return ticket

    @property
    def running(self) -> int:
        """How many runs have a place."""
        return len(self._seats)

    @property
    def closed(self) -> bool:
        """Whether it draws no more: after `close`, or by a fault of its own."""
        return self._closed

    def position(self, ticket: Ticket) -> int:
        """A ticket's place among those who wait, from 1; 0 if it does not."""
        with self._changed:
            line = [waiting for waiting, _ in self._waiting if not waiting.over]
        return line.index(ticket) + 1 if ticket in line else 0

    def expected_wait(self, ticket: Ticket) -> float:
        """Seconds until a place gets free for a ticket, if all runs go on as they do: see `Ticket.expected_wait`."""
        position, seats = self.position(ticket), list(self._seats)
        ahead = position - 1 - (self.max_running - len(seats))
        if position == 0 or ahead < 0:
            return 0.0
        if not seats:
            return math.inf
        now = self._clock()
        left = sorted(seat.seconds_left(now) for seat in seats)
        rounds, rest = divmod(ahead, len(left))
        return left[rest] + (rounds * statistics.fmean(seat.seconds(now) for seat in seats) if rounds else 0.0)

    def close(self) -> None:
        """End the thread after its turn, and with a RuntimeError all runs that are not over."""
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
        except Exception as fault:  # a mistake of the engine's own: better said to all than kept from them
            error = fault
            raise
        finally:
            with self._changed:
                self._closed = True
                tickets = [seat.ticket for seat in self._seats] + [ticket for ticket, _ in self._waiting]
                self._seats, self._waiting = [], []
            for ticket in tickets:
                ticket.fail(error)
            self._painter.close(error)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the engine was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._seats)
            return not self._closed

    def _turn(self) -> None:
        for seat in self._seats:
            if seat.ticket.over:
                self._leave(seat)
        more_come = self._admit()
        if not self._seats:
            return
        self._turns += 1
        alone = len(self._seats) == 1 and not more_come
        started = self._clock()
        steps = self._evaluate(self._choose(more_come))
        self._painter.earn(self._clock() - started, alone=alone)
        for seat, step in steps:
            if seat.wants_picture(step):
                self._painter.add(seat.ticket, step, seat.preview(self._clock))
        self._painter.work()
        for seat, step in steps:
            if step.final is None:  # the last one is told by the painter, with its pictures
                seat.ticket.publish(step)

    def _admit(self) -> bool:
        """Give the first in line a place if there is one; whether the next could have one too."""
        with self._changed:
            self._waiting = [waiting for waiting in self._waiting if not waiting[0].over]
            if not self._waiting or len(self._seats) >= self.max_running:
                return False
            ticket, begin = self._waiting.pop(0)
        if self.device.type == "cuda":  # another thread may have changed the model on the stream that all others use
            torch.cuda.default_stream(self.device).synchronize()
        try:
            seat = _Seat(ticket, begin(), self._clock())
        except Exception as error:
            ticket.fail(error)
        else:
            self._served.setdefault(ticket.owner, min(self._served.values(), default=0.0))
            self._seats = [*self._seats, seat]
        return bool(self._waiting) and len(self._seats) < self.max_running

    def _leave(self, seat: _Seat, error: Exception | None = None) -> None:
        """Free a run's place: it is over, was left, or failed."""
        self._seats = [other for other in self._seats if other is not seat]
        if all(other.ticket.owner != seat.ticket.owner for other in self._seats):
            del self._served[seat.ticket.owner]
        if error is not None:
            seat.ticket.fail(error)
        if seat.ticket.over:
            self._painter.drop(seat.ticket)

    def _limit(self, seat: _Seat) -> BatchLimit:
        return self._limits.setdefault(seat.kind[1:], BatchLimit())

    def _choose(self, more_come: bool) -> list[tuple[_Seat, Query]]:
        """The next picture of the least served, and picture by picture what rides along, as one query for each run.

        While newcomers stand at the door, each of whom takes a turn to be let in, turns are kept short.
        """
        served = self._served

        def order(seat: _Seat) -> tuple[float, int]:
            return served[seat.ticket.owner], seat.last_turn

        leader = min(self._seats, key=order)
        limit = self._limit(leader).rows // (4 if more_come else 1)
        fitting = [seat for seat in self._seats if seat.kind == leader.kind]
        pictures: dict[_Seat, int] = {}
        rows = 0
        while fitting:
            seat = min(fitting, key=order)
            price = seat.rows * seat.pixels * (0.5 if rows else 1.0)
            ahead = served[seat.ticket.owner] - min(served.values())
            if rows and (rows + seat.rows > limit or ahead > price):
                break
            rows += seat.rows
            served[seat.ticket.owner] += price
            pictures[seat] = pictures.get(seat, 0) + 1
            seat.last_turn = self._turns
            if pictures[seat] == seat.unanswered:
                fitting.remove(seat)
        return [(seat, seat.question(count)) for seat, count in pictures.items()]

    def _evaluate(self, batch: list[tuple[_Seat, Query]]) -> list[tuple[_Seat, Step]]:
        """Ask the network, and give the runs their answers; the steps that were completed by them.

        Where memory runs out nothing is answered: the same will be asked again, in smaller batches. After any other
        error each run's part is evaluated alone, and ends the run if it fails again.
        """
        seats, queries = zip(*batch, strict=True)
        rows = sum(query.rows for query in queries)
        limit = self._limit(seats[0])
        started = self._clock()
        try:
            answers = seats[0].run.denoise(queries)
            finish(self.device)
        except Exception as error:
            if _out_of_memory(error) and sum(len(query.x) for query in queries) > 1:
                limit.too_large(rows)
                return []
            if len(batch) == 1:
                self._leave(seats[0], error)
                return []
        else:
            limit.measured(rows, self._clock() - started)
            steps = [(seat, self._answer(seat, answer)) for seat, answer in zip(seats, answers, strict=True)]
            finish(self.device)
            return [(seat, step) for seat, step in steps if step is not None]
        return [step for part in batch for step in self._evaluate([part])]

    def _answer(self, seat: _Seat, x_0: Tensor) -> Step | None:
        """Hand a run the x_0 of its pictures; its step, once all of them are answered."""
        try:
            step = seat.answer(x_0)
        except Exception as error:
            self._leave(seat, error)
            return None
        if seat.run.query is None:
            self._leave(seat)
        return step


class _Seat:
    """A run that has a place: its question, and the answers to it so far."""

    def __init__(self, ticket: Ticket, run: Run, now: float):
        query = run.query
        assert query is not None, "a run that begins has a question"
        self.ticket, self.run = ticket, run
        self.rows, self.pixels = query.rows // len(query.x), query.x.shape[-2:].numel()
        self.kind = run.denoise, query.x.shape[1:], query.context.shape[1:]
        self.last_turn = 0
        self._answers: list[Tensor] = []
        self._preview: Preview | None = None
        self._began, self._index, self._total = now, 0, 0

    @property
    def unanswered(self) -> int:
        """How many pictures of the question wait for their answer."""
        assert self.run.query is not None
        return len(self.run.query.x) - sum(map(len, self._answers))

    def question(self, count: int) -> Query:
        """The question about the next `count` pictures."""
        query = self.run.query
        assert query is not None
        if count == len(query.x):
            return query
        start = len(query.x) - self.unanswered
        part = slice(start, start + count)
        negative = None if query.negative is None else query.negative[part]
        return replace(query, x=query.x[part], context=query.context[part], negative=negative)

    def answer(self, x_0: Tensor) -> Step | None:
        """Take the x_0 of the next pictures; the run's step, if they were the last of the question."""
        self._answers.append(x_0)
        if self.unanswered:
            return None
        answers, self._answers = self._answers, []
        step = self.run.answer(answers[0] if len(answers) == 1 else torch.cat(answers))
        self._index, self._total = step.index, step.total
        return step

    def wants_picture(self, step: Step) -> bool:
        """Whether a step is one that is painted; the last always is."""
        request = self.run.request
        return step.final is not None or (request.preview != "none" and step.index % request.preview_every == 0)

    def preview(self, clock: Callable[[], float]) -> Preview:
        """The run's decoder, which knows what its previews took so far."""
        if self._preview is None:
            self._preview = Preview(self.run.decoder, self.run.request.preview, clock, finish)
        return self._preview

    def seconds(self, now: float) -> float:
        """How long the run will have taken in all, if it goes on as it does; infinite before its first step."""
        return (now - self._began) * self._total / self._index if self._index else math.inf

    def seconds_left(self, now: float) -> float:
        """What remains of that."""
        return self.seconds(now) - (now - self._began)


def _out_of_memory(error: Exception) -> bool:
    """Whether it says so: processors and Apple's GPU have no error of their own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in phrases)
