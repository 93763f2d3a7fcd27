"""Define two-dimensional data and a small network, for diffusion that trains in seconds and can be plotted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stable_diffusion.diffusion import timestep_embedding


def spiral(n: int, generator: torch.Generator) -> Tensor:
    """Draw n points on a spiral, (n, 2), of about unit variance."""
    turn = 1 + 3 * torch.pi * torch.rand(n, 1, generator=generator).sqrt()
    points = torch.cat([turn.cos(), turn.sin()], dim=1) * turn / 5
    return points + 0.08 * torch.randn(n, 2, generator=generator)


def blobs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw n points in three overlapping clouds, (n, 2), and return them with the number of their cloud, (n,)."""
    labels = torch.randint(3, (n,), generator=generator)
    angles = labels * (2 * torch.pi / 3) + torch.pi / 2
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + 0.55 * torch.randn(n, 2, generator=generator), labels


class TinyDenoiser(nn.Module):
    """x_t (B, dims), timesteps (B,) and optional classes (B,) -> a prediction (B, dims). Class -1 is "no class"."""

    def __init__(self, dims: int = 2, classes: int = 0, width: int = 96):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dims + 32, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, dims)
        self.labels = nn.Embedding(classes + 1, width)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        hidden = torch.cat([x, timestep_embedding(t, 32)], dim=1)
        scale = self.labels(torch.zeros(len(x), dtype=torch.long) if label is None else label + 1)
        for layer in self.layers:
            hidden = F.silu(layer(hidden)) * (1 + scale)
        return self.out(hidden)
