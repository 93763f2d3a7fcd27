"""Paint in the latents, the numbers that a run works on: the decoder shows what a channel means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..request import RequestError


class Stroke(NamedTuple):
    """A soft round stroke. x, y: its centre, in latents from the top left corner; radius: in latents.

    value: the number at its centre, in standard deviations of latents, which are scaled to about one.
    """

    x: float
    y: float
    radius: float
    value: float


def painted(latents: Tensor, channel: int, strokes: Sequence[Stroke]) -> Tensor:
    """Return scaled latents (N, C, h, w) with strokes in one channel, counted from 0; later ones cover earlier ones.

    A stroke covers its centre wholly and fades to nothing at its radius. Raises `RequestError` for a channel that the
    latents lack, and for a radius of 0 or less.
    """
    channels, height, width = latents.shape[1:]
    if not 0 <= channel < channels:
        raise RequestError(f"channel must be in [0, {channels - 1}], got {channel}")
    rows = torch.arange(height, device=latents.device)[:, None] + 0.5
    columns = torch.arange(width, device=latents.device) + 0.5
    changed = latents.clone()
    for x, y, radius, value in strokes:
        if not radius > 0:
            raise RequestError(f"radius must be above 0, got {radius}")
        distance = ((columns - x).square() + (rows - y).square()) / radius**2
        cover = (1 - distance).clamp(min=0).square()
        changed[:, channel] += cover * (value - changed[:, channel])
    return changed
