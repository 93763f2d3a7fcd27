"""How often a stream sends a message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from ui.runs.message_rate import MESSAGES, MessageRate


@pytest.mark.parametrize(("streams", "least"), [(1, 0.0), (1, 0.1), (30, 0.1)])
def test_all_streams_together_keep_to_the_rate_and_each_to_its_own(streams: int, least: float):
    now = 0.0
    rate = MessageRate(lambda: now)
    with ExitStack() as all_streams:
        due: list[Callable[[], bool]] = [all_streams.enter_context(rate.stream(least)) for _ in range(streams)]
        assert [one() for one in due] == [True] * streams  # the first message is due at once
        sent = 0
        for tick in range(1, 10_001):
            now = tick / 1000
            sent += sum(one() for one in due)
    assert sent <= 10 * min(MESSAGES, streams / least if least else MESSAGES)
    assert sent >= 0.9 * 10 * min(MESSAGES, streams / least if least else MESSAGES)
    now = 11.0
    with rate.stream() as alone:  # those that have ended count no more
        assert alone()
        now += 1 / MESSAGES
        assert alone()
