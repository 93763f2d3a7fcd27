"""Classifier-free guidance: what a run asks of the network, and the x_0 that it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .diffusion import UNet, timestep_embedding
from .inference import for_inference
from .schedule import Level, predict_x_0


@dataclass(frozen=True)
class Query:
    """What a run wants to know next: the x_0 in its latents x = alpha x_0 + sigma eps, (N, C, h, w), float32.

    context and negative are (N, S, K), prompt and negative prompt as `UNet.read` gives them; negative is None where the
    run is not guided. guidance_scale is Stable Diffusion's w in uncond + w (cond - uncond): the paper's plus one.
    """

    x: Tensor
    level: Level
    context: Tensor
    negative: Tensor | None
    guidance_scale: float

    @property
    def rows(self) -> int:
        """How many pictures the network is shown for it."""
        return len(self.x) if self.negative is None else 2 * len(self.x)

    def guide(self, unconditional: Tensor | None, conditional: Tensor) -> Tensor:
        """The guided prediction (Eq. 6, arXiv:2207.12598)."""
        if unconditional is None:
            return conditional
        return unconditional + self.guidance_scale * (conditional - unconditional)


Predictions = tuple["Tensor | None", Tensor]
"""What the network predicts for the negative prompt (None where not guided) and for the prompt, in the dtype of x."""


@dataclass(frozen=True)
class Denoiser:
    """D(x, level) = x_0 for the queries of any number of runs, in one evaluation of the network."""

    unet: UNet
    prediction_type: str

    @torch.no_grad()
    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        """The x_0 of each query, of the shape and dtype of its x.

        The queries may differ in all but the size of latents and context. A row's answer does not depend on the
        others, up to rounding: the processor's kernels differ with the batch.
        """
        predictions = self.predict(queries)
        return [self.x_0(query, query.guide(*both)) for query, both in zip(queries, predictions, strict=True)]

    def x_0(self, query: Query, prediction: Tensor) -> Tensor:
        """The x_0 that a prediction for a query stands for.

        In the precision of x: sigma may reach 4096, which half precision would not hold well.
        """
        return predict_x_0(prediction, query.x, query.level.alpha, query.level.sigma, self.prediction_type)

    def predict(self, queries: Sequence[Query], maps: list[Tensor] | None = None) -> list[Predictions]:
        """What the network says to each query, before guidance.

        maps, if given, receives the cross-attention weights (rows, heads, pixels, S) of each layer, the rows of a
        query's negative prompt before those of its prompt.
        """
        prediction = for_inference(self.unet, queries[0].context.dtype).predict(
            torch.cat([self._inputs(query) for query in queries]),
            torch.cat([torch.full((query.rows,), query.level.timestep, device=query.x.device) for query in queries]),
            torch.cat([_contexts(query) for query in queries]),
            guidance=self._guidance_embeddings(queries),
            maps=maps,
        )
        prediction = prediction.to(queries[0].x.dtype, memory_format=torch.contiguous_format)
        parts = prediction.split([query.rows for query in queries])
        return [_halves(query, part) for query, part in zip(queries, parts, strict=True)]

    def _inputs(self, query: Query) -> Tensor:
        """What the network is shown: latents of unit variance, in its own precision."""
        shown = (query.x / query.level.scale).to(query.context.dtype)
        return shown if query.negative is None else torch.cat([shown] * 2)

    def _guidance_embeddings(self, queries: Sequence[Query]) -> Tensor | None:
        """The embedded w - 1, in thousandths, that a distilled model expects (arXiv:2310.04378, section 4.3)."""
        channels = self.unet.config.time_cond_proj_dim
        if channels is None:
            return None
        scales = [(query.guidance_scale - 1.0) * 1000.0 for query in queries for _ in range(query.rows)]
        first = queries[0]
        return timestep_embedding(torch.tensor(scales, device=first.x.device), channels).to(first.context.dtype)


def _contexts(query: Query) -> Tensor:
    return query.context if query.negative is None else torch.cat([query.negative, query.context])


def _halves(query: Query, prediction: Tensor) -> Predictions:
    if query.negative is None:
        return None, prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional, conditional
