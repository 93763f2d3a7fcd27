"""How often a stream sends a message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from ui.runs.message_rate import MESSAGES, MessageRate


@pytest.mark.parametrize("streams", [2, 30])
def test_all_streams_together_keep_to_the_rate(streams: int):
    now = 0.0
    rate = MessageRate(lambda: now)
    with ExitStack() as all_streams:
        due: list[Callable[[], bool]] = [all_streams.enter_context(rate.stream()) for _ in range(streams)]
        assert [one() for one in due] == [True] * streams  # the first message is due at once
        sent = 0
        for tick in range(1, 10_001):
            now = tick / 1000
            sent += sum(one() for one in due)
    assert sent == pytest.approx(10 * MESSAGES * streams / (streams - 1), rel=0.1)


def test_a_stream_alone_sends_every_message_unless_it_has_a_pace_of_its_own():
    now = 0.0
    rate = MessageRate(lambda: now)
    with rate.stream(), rate.stream():
        pass  # streams that have ended count no more
    with rate.stream() as every:
        assert every()
        assert every()
    with rate.stream(0.1) as paced:
        assert paced()
        now = 0.05
        assert not paced()
        now = 0.11
        assert paced()
