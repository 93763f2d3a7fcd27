"""`upcast_attention` of Stable Diffusion 2.x: scores in float32 where the network is in half precision.

diffusers honours it only where attention is written out; by its default processor, and by ours, the scores are those
of `scaled_dot_product_attention`, which sums and keeps them in float32 itself.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from stable_diffusion.attention import Attention, attend
from tests.parity.pairs import gaussian, share_weights

HEADS, SIZE = 2, 16


def tall(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys that share so much that every product passes 65504, the largest number of float16."""
    shapes = ((2, 12, HEADS, SIZE), (2, 24, HEADS, SIZE), (2, 24, HEADS, SIZE))
    query, key, value = (gaussian(*shape, seed=seed) for seed, shape in enumerate(shapes))
    query[..., 0], key[..., 0] = 512, 256
    return tuple(tensor.flatten(2).to(dtype) for tensor in (query, key, value))


def split(tensor: Tensor) -> Tensor:
    return tensor.double().unflatten(2, (HEADS, SIZE)).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_summed_and_kept_in_float32(dtype: torch.dtype) -> None:
    query, key, value = tall(dtype)
    scores = split(query) @ split(key).mT
    assert scores.min() > 65504
    expected, rounded = (
        ((scores * SIZE**-0.5).to(kind).double().softmax(-1) @ split(value)).transpose(1, 2).flatten(2)
        for kind in (torch.float64, dtype)
    )
    # A score in float32 is off by at most a rounding of each partial sum, and a weight by twice that of itself; weights
    # and answer are rounded to half.
    off = SIZE * torch.finfo(torch.float32).eps / 2 * scores.max() * SIZE**-0.5
    bound = value.abs().max() * (2 * off + 2 * torch.finfo(dtype).eps)
    assert (attend(query, key, value, HEADS) - expected).abs().max() < bound
    assert (rounded - expected).abs().max() > 2 * bound  # scores in half would miss


def test_as_diffusers_where_it_upcasts() -> None:
    theirs = DiffusersAttention(32, 48, heads=2, dim_head=16, upcast_attention=True, processor=AttnProcessor())
    without = DiffusersAttention(32, 48, heads=2, dim_head=16, processor=AttnProcessor())
    ours = Attention(32, 48, heads=2)
    with torch.no_grad():
        share_weights_of(ours, theirs, without)
        x, context = gaussian(2, 16, 32).half(), gaussian(2, 7, 48, seed=1).half()
        ours, theirs, without = (network.half() for network in (ours, theirs, without))
        answers = [answer.float() for answer in (ours(x, ours.read(context)), theirs(x, context), without(x, context))]
    assert not answers[2].isfinite().all()
    # Weights, their sum and the projection are rounded to half, in another order; entries are about 1.
    bound = 8 * torch.finfo(torch.float16).eps * answers[1].abs().max()
    assert (answers[0] - answers[1]).abs().max() < bound


def share_weights_of(ours: Attention, *theirs: DiffusersAttention) -> None:
    """The same random weights for all, queries and keys so large that float16 overflows."""
    share_weights(ours, theirs[0])
    ours.to_q.weight *= 200
    ours.to_k.weight *= 200
    for network in theirs:
        network.load_state_dict(ours.state_dict())
        network.eval().requires_grad_(False)
