"""Show pictures, points and curves in rows, with small outputs: the notebooks are committed with them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image
from torch import Tensor

SIDE = 128


def small_outputs() -> None:
    """Render figures as small JPEG files."""
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})
    plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def grid(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    *,
    inches: float = 1.15,
) -> None:
    """Show rows of pictures, with `titles` over the columns and `labels` at the left of the rows."""
    columns = max(len(row) for row in rows)
    size = (columns * inches + (1.2 if labels else 0), len(rows) * inches + (0.3 if titles else 0))
    _, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for at, row in zip(axes, rows, strict=True):
        for axis, picture in zip(at, row, strict=False):
            picture = picture.copy()
            picture.thumbnail((SIDE, SIDE))
            axis.imshow(np.asarray(picture.convert("RGB")))
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8)
    for at, label in zip(axes, labels, strict=False):
        at[0].text(-0.08, 0.5, label, transform=at[0].transAxes, ha="right", va="center", fontsize=8)
    plt.show()


def channels(latents: Tensor) -> list[Image.Image]:
    """Return the channels of latents (1, C, h, w) as grey pictures; -3 is black, 3 is white."""
    grey = ((latents[0].float().cpu() / 6 + 0.5).clamp(0, 1) * 255).byte().numpy()
    return [Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.NEAREST) for channel in grey]


def plots(count: int, *, width: float = 3.2, height: float = 2.6) -> Sequence[Axes]:
    """Return `count` empty plots in a row."""
    _, axes = plt.subplots(1, count, figsize=(count * width, height), squeeze=False, layout="constrained")
    return list(axes[0])


def cloud(axis: Axes, points: Tensor, title: str = "", **style: object) -> None:
    """Plot points (n, 2) in a square window."""
    axis.scatter(*points.T, **{"s": 2, "alpha": 0.5, **style})
    axis.set(title=title, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
