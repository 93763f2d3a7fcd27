"""How large a batch should be, found by measuring."""

from __future__ import annotations

import math
from collections import defaultdict, deque

GAIN = 0.95
"""Largest cost of a row in the larger batch, relative to the smaller one, at which the batch grows."""
TRIES = 6
"""Number of batches of a size that are compared: the first ones include its preparation, and other programs can slow
any. Of the smaller size the newest count, for the same programs slowed them."""
LONGEST_TURN = 1.0  # seconds; a departure, and a newcomer's first step, wait for the turn that is under way
REST = 256


class BatchSize:
    """The number of rows that a batch of one latent size may have: doubled for as long as that makes a row cheaper.

    Batches that fill more than half of the limit test it. If the best of a few tries does not pay, the previous limit
    stays for the next 256 batches; then it is measured anew, because the speed of a shared machine changes.
    """

    rows: int
    row_seconds: float
    """Seconds that a row of the last batch took; 0 before the first."""
    _costs: dict[int, deque[float]]
    """The seconds that a row took in the newest batches, by the batch's number of doublings."""
    _tries: int
    _rest: int

    def __init__(self, rows: int = 2):
        self.row_seconds = 0.0
        self._measure(rows)

    def measured(self, rows: int, seconds: float) -> None:
        """Take the duration of a batch into account."""
        self.row_seconds = seconds / rows
        if self._rest:
            self._rest -= 1
            if not self._rest:
                self._measure(max(1, self.rows // 2))
            return
        doublings = (rows - 1).bit_length()
        self._costs[doublings].append(self.row_seconds)
        if 2 * rows <= self.rows:
            return
        self._tries += 1
        smaller = min((min(costs) for size, costs in self._costs.items() if size < doublings), default=math.inf)
        if min(self._costs[doublings]) <= GAIN * smaller and seconds <= LONGEST_TURN:
            self.rows, self._tries = 2 * self.rows, 0
        elif self._tries == TRIES:
            self._settle(self.rows // 2)

    def too_large(self, rows: int) -> None:
        """Lower the limit after memory did not suffice for that many rows: to half of it, a power of two."""
        self._settle(1 << (rows // 2).bit_length() - 1 if rows > 1 else 1)

    def _measure(self, rows: int) -> None:
        self.rows = rows
        self._costs = defaultdict(lambda: deque(maxlen=TRIES))
        self._tries = self._rest = 0

    def _settle(self, rows: int) -> None:
        self.rows, self._rest = max(1, rows), REST
