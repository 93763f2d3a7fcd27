"""Classifier-free guidance: a run's query to the network, and the x_0 that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from .compute.packed import for_inference
from .diffusion import UNet, timestep_embedding
from .schedule import Level, predict_x_0


@dataclass(frozen=True)
class Query:
    """A run's question to the network: the x_0 in the latents x = alpha x_0 + sigma eps, (N, C, h, w), float32.

    context and negative are (N, S, K), prompt and negative prompt as `UNet.read` gives them; negative is None for a run
    without guidance. guidance_scale is Stable Diffusion's w in uncond + w (cond - uncond): the paper's plus one.
    """

    x: Tensor
    level: Level
    context: Tensor
    negative: Tensor | None
    guidance_scale: float

    @property
    def rows(self) -> int:
        """Number of rows of the network's batch that the query takes."""
        return len(self.x) if self.negative is None else 2 * len(self.x)

    def guide(self, unconditional: Tensor | None, conditional: Tensor) -> Tensor:
        """Return the guided prediction (Eq. 6, arXiv:2207.12598)."""
        if unconditional is None:
            return conditional
        return unconditional + self.guidance_scale * (conditional - unconditional)


class Answer(NamedTuple):
    """The network's x_0 for a query, each (N, C, h, w): guided, by the prompt alone, and by the negative prompt alone.

    Without guidance the first two are one tensor, and the last is None.
    """

    x_0: Tensor
    conditional: Tensor
    unconditional: Tensor | None

    @staticmethod
    def cat(parts: Sequence[Answer]) -> Answer:
        """Return the answers to parts of a query as one."""
        x_0, conditional, unconditional = zip(*parts, strict=True)
        return Answer(
            torch.cat(x_0), torch.cat(conditional), None if None in unconditional else torch.cat(unconditional)
        )


Predictions = tuple["Tensor | None", Tensor]
"""The network's predictions for the negative prompt (None without guidance) and for the prompt, in the dtype of x."""


@dataclass(frozen=True)
class Denoiser:
    """D(x, level) = x_0: answers the queries of any number of runs in one evaluation of the network."""

    unet: UNet
    prediction_type: str

    @torch.no_grad()
    def __call__(self, queries: Sequence[Query]) -> list[Answer]:
        """Return the x_0 of each query, in the shape and dtype of its x.

        The queries may differ in everything but the size of latents and context. A row's answer does not depend on the
        others, up to rounding: the processor's kernels differ with the batch.
        """
        predictions = self.predict(queries)
        return [self.answer(query, *both) for query, both in zip(queries, predictions, strict=True)]

    def answer(self, query: Query, unconditional: Tensor | None, conditional: Tensor) -> Answer:
        """Return the x_0 that the predictions for a query imply, with and without guidance."""
        words = self.x_0(query, conditional)
        if unconditional is None:
            return Answer(words, words, None)
        guided = self.x_0(query, query.guide(unconditional, conditional))
        return Answer(guided, words, self.x_0(query, unconditional))

    def x_0(self, query: Query, prediction: Tensor) -> Tensor:
        """Return the x_0 that a prediction for a query implies.

        Computed in the precision of x: sigma may reach 4096, too much for half precision.
        """
        return predict_x_0(prediction, query.x, query.level.alpha, query.level.sigma, self.prediction_type)

    def predict(self, queries: Sequence[Query], maps: list[Tensor] | None = None) -> list[Predictions]:
        """Return the network's predictions for each query, before guidance.

        maps, if given, receives the cross-attention weights (rows, heads, pixels, S) of each layer, the rows of all
        negative prompts before those of the prompts.
        """
        order = sorted(range(len(queries)), key=lambda i: queries[i].negative is None)  # guided queries come first
        negatives = [query.negative for query in queries if query.negative is not None]
        asked = [queries[i] for i in order]
        prediction = for_inference(self.unet, queries[0].context.dtype)(
            torch.cat([self._inputs(query) for query in asked]),
            torch.cat([torch.full((len(query.x),), query.level.timestep, device=query.x.device) for query in asked]),
            torch.cat([*negatives, *(query.context for query in asked)]),
            guidance=self._guidance_embeddings(asked),
            maps=maps,
        )
        prediction = prediction.to(queries[0].x.dtype, memory_format=torch.contiguous_format)
        parts = prediction.split([len(one) for one in negatives] + [len(query.x) for query in asked])
        unconditional, conditional = parts[: len(negatives)], parts[len(negatives) :]
        predictions = dict(zip(order, zip_longest(unconditional, conditional), strict=True))
        return [predictions[i] for i in range(len(queries))]

    def _inputs(self, query: Query) -> Tensor:
        """Return the network's input: latents of unit variance, in its own precision."""
        return (query.x / query.level.scale).to(query.context.dtype)

    def _guidance_embeddings(self, queries: Sequence[Query]) -> Tensor | None:
        """Return the embedding of w - 1, in thousandths, for a distilled model (arXiv:2310.04378, section 4.3)."""
        channels = self.unet.config.time_cond_proj_dim
        if channels is None:
            return None
        scales = [(query.guidance_scale - 1.0) * 1000.0 for query in queries for _ in range(len(query.x))]
        first = queries[0]
        return timestep_embedding(torch.tensor(scales, device=first.x.device), channels).to(first.context.dtype)
