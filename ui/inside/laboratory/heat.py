"""Heat as pictures: glowing maps of words, and one sheet of those of every layer and head."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image

from .view import Value

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stable_diffusion.inspect.heat_maps import Layer

MAP_SIDE, SHADES = 32, 64
"""Heat maps are sent with at most so many rows, columns and shades; the page enlarges them smoothly."""
TILE_SIDE = 16
"""Rows and columns of a map on the sheet of all heads."""
GLOW = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def heat_maps(maps: Tensor) -> list[dict[str, str]]:
    """Return heat maps (W, h, w) as small pictures, each scaled from its least heat to its most.

    Over a picture they glow where the attention is high and darken the rest.
    """
    from torch.nn import functional as F

    height, width = (min(side, MAP_SIDE) for side in maps.shape[1:])
    shades, low, high = shaded(F.adaptive_avg_pool2d(maps, (height, width)))
    return [
        {"src": glowing(one), "low": least, "high": most} for one, least, most in zip(shades, low, high, strict=True)
    ]


def mean_heat(layers: Sequence[Layer], heat: Tensor) -> Tensor:
    """Return the mean (W, h, w) of the heat of all heads (H, W, h, w): each layer counts alike."""
    import torch

    return torch.stack([heads.mean(dim=0) for heads in by_layer(layers, heat)]).mean(dim=0)


def by_layer(layers: Sequence[Layer], heat: Tensor) -> Sequence[Tensor]:
    """Return the heat of each layer's heads, (heads, W, h, w)."""
    return heat.split([layer.heads for layer in layers])


def head_sheet(layers: Sequence[Layer], heat: Tensor) -> Value:
    """Return the heat of words in every head of all layers, (H, W, h, w), as a picture with all maps and their numbers.

    A row of the picture has a map for each word: first the mean over a layer's heads, then head after head. `first` is
    a layer's first row.
    """
    import torch
    from torch.nn import functional as F

    rows, told, first = list["Tensor"](), list[Value](), 0
    for layer, heads in zip(layers, by_layer(layers, heat), strict=True):
        maps = torch.cat([heads.mean(dim=0, keepdim=True), heads])
        count, words = maps.shape[:2]
        small = F.interpolate(maps, (TILE_SIDE, TILE_SIDE), mode="bilinear", antialias=True)
        shades, low, high = shaded(small.flatten(0, 1))
        rows.append(torch.from_numpy(shades).unflatten(0, (count, words)))
        told.append(
            {
                "size": f"{layer.height} × {layer.width}",
                "first": first,
                "low": [low[i : i + words] for i in range(0, len(low), words)],
                "high": [high[i : i + words] for i in range(0, len(high), words)],
            }
        )
        first += count
    sheet = torch.cat(rows).transpose(1, 2).flatten(2).flatten(0, 1)  # (rows, words, h, w) -> (rows h, words w)
    return {"sheet": glowing(sheet.numpy()), "side": TILE_SIDE, "layers": told}


def shaded(maps: Tensor) -> tuple[np.ndarray, list[str], list[str]]:
    """Return maps (N, h, w) as shades, each from its least heat to its most, and these two in per cent."""
    import torch

    maps = maps.cpu()
    low, high = maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))
    scaled = (maps - low[:, None, None]) / (high - low).clamp(min=1e-8)[:, None, None]
    shades = (scaled * (SHADES - 1)).round().to(torch.uint8).numpy()
    least, most = ([f"{100 * heat:.3g}" for heat in ends.tolist()] for ends in (low, high))
    return shades, least, most


def glowing(shades: np.ndarray) -> str:
    """Return shades (h, w) as a PNG with the colours of heat, as the source of an img element."""
    image = Image.fromarray(shades).convert("P")
    colours, alphas = palette()
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=alphas)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=1)
def palette() -> tuple[bytes, bytes]:
    """Return the colours of heat from least to most, as RGB, and their opacities."""
    shares = [shade / (SHADES - 1) for shade in range(SHADES)]
    colours, alphas = bytearray(), bytes(round(255 * (0.45 + 0.3 * share)) for share in shares)
    for share in shares:
        place = min(share, 0.9999) * (len(GLOW) - 1)
        below, above = GLOW[int(place)], GLOW[int(place) + 1]
        colours += bytes(round(a + (b - a) * (place % 1)) for a, b in zip(below, above, strict=True))
    return bytes(colours), alphas
