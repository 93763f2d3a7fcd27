"""Strokes in latents: they land where they are told, in one channel, and fade."""

from __future__ import annotations

import pytest
import torch

from stable_diffusion.inspect.painting import Stroke, painted
from stable_diffusion.request import RequestError


def test_a_stroke_lands_where_it_is_told_and_fades() -> None:
    latents = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    found = painted(latents, 2, [Stroke(15.5, 3.5, 3, 2.0)])
    assert torch.equal(latents, before)
    changed = (found != latents).nonzero()
    assert set(changed[:, 1].tolist()) == {2}
    assert {(y.item(), x.item()) for _, _, y, x in changed} == {
        (y, x) for y in range(12) for x in range(20) if (x - 15) ** 2 + (y - 3) ** 2 < 9
    }
    assert found[:, 2, 3, 15].tolist() == [2.0, 2.0]
    halfway = (found - latents)[:, 2, 3, 13:18] / (2.0 - latents[:, 2, 3, 13:18])
    torch.testing.assert_close(halfway, torch.tensor([25, 64, 81, 64, 25]).expand(2, 5) / 81)


def test_later_strokes_cover_earlier_ones_and_may_leave_the_edge() -> None:
    latents = torch.zeros(1, 1, 4, 4)
    found = painted(latents, 0, [Stroke(0, 0, 9, 1.0), Stroke(0.5, 0.5, 1, -2.0)])
    assert found[0, 0, 0, 0] == -2
    assert found[0, 0, 3, 3] == pytest.approx((1 - 2 * 3.5**2 / 81) ** 2)
    assert torch.equal(painted(latents, 0, []), latents)


@pytest.mark.parametrize(
    ("channel", "radius", "message"),
    [(4, 1, r"channel must be in \[0, 3\], got 4"), (-1, 1, "got -1"), (0, 0, "radius must be above 0, got 0")],
)
def test_strokes_that_can_not_be(channel: int, radius: float, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        painted(torch.zeros(1, 4, 8, 8), channel, [Stroke(1, 1, radius, 1)])
