"""A model whose answers are known: the exact x_0 of data that consists of two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stable_diffusion.guidance import Answer, Query
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request
from stable_diffusion.run import Conditioning


@dataclass(frozen=True)
class ExactDenoiser:
    """The posterior means of x_0: among all `points` (K, C, h, w) without words, among `meant` with any words."""

    points: Tensor
    meant: Tensor

    def __call__(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer as `Denoiser` does, without a network."""
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Answer:
        conditional = posterior_mean(self.meant, query)
        if query.negative is None:
            return Answer(conditional, conditional, None)
        unconditional = posterior_mean(self.points, query)
        return Answer(query.guide(unconditional, conditional), conditional, unconditional)


def posterior_mean(points: Tensor, query: Query) -> Tensor:
    """Return E[x_0 | x = alpha x_0 + sigma eps] (N, C, h, w) for x_0 that is one of K equally likely points."""
    level = query.level
    distances = (query.x[:, None] - level.alpha * points).square().flatten(2).sum(dim=2)  # (N, K)
    return torch.einsum("nk,kchw->nchw", (-distances / (2 * level.sigma**2)).softmax(dim=1), points)


class TwoPoints(Pipeline):
    """A pipeline that draws `points`, two pictures in latents (2, C, h, w); with words, only the first `meant`."""

    meant, scale = 2, 0.4

    @property
    def points(self) -> Tensor:
        """The pictures: each latent of the one is `scale` or its negative, and of the other the opposite."""
        one = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7)).sign()
        return self.scale * torch.stack([one, -one])

    def condition(self, request: Request) -> Conditioning:
        """Return the conditioning of a request with the exact denoiser in place of the network."""
        exact = ExactDenoiser(self.points, self.points[: self.meant])
        return replace(super().condition(request), denoise=exact)
