"""Every network gives the answer that diffusers or transformers gives from the same weights, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stable_diffusion.attention import attention_map
from stable_diffusion.diffusion import timestep_embedding
from tests.parity.pairs import (
    BOUND,
    difference,
    gaussian,
    text_tower,
    tiny_vae_decoder,
    tiny_vae_encoder,
    unet,
    unets,
    vae_decoder,
    vae_encoder,
)
from tests.tiny import SMALL

DOUBLE_BOUND = 1e-12
"""What two orders of the same sums may differ by in float64."""
THREE_LEVELS = {
    "block_out_channels": [8, 16, 24],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def test_text_tower(kind: str) -> None:
    assert difference(text_tower(kind)) <= BOUND


def test_vae() -> None:
    """Also without attention, with a picture whose sides 8 does not divide, two blocks a level, and three levels."""
    for attention in (True, False):
        assert difference(vae_encoder(mid_block_add_attention=attention)) <= BOUND
        assert difference(vae_decoder(mid_block_add_attention=attention)) <= BOUND
    assert difference(vae_encoder(size=(43, 61))) <= BOUND
    assert difference(vae_encoder(layers_per_block=2)) <= BOUND
    levels = {
        "block_out_channels": [8, 12, 20],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 2,
    }
    assert difference(vae_decoder(layers_per_block=2, **levels)) <= BOUND


@pytest.mark.parametrize(
    "options", [{}, {"scaling_factor": 0.18215}, {"num_encoder_blocks": [2, 1, 1, 3], "latent_magnitude": 7}], ids=str
)
def test_tiny_vae(options: dict[str, Any]) -> None:
    """Latents well beyond the 3 to which the decoder clamps softly; a picture whose sides 8 does not divide."""
    assert difference(tiny_vae_encoder(**options)) <= BOUND
    assert difference(tiny_vae_decoder(**options)) <= BOUND


def test_unet(kind: str) -> None:
    """Odd sizes are rounded up on the way down and cut on the way up."""
    for size in ((8, 8), (7, 9), (5, 11)):
        assert difference(unet(kind, size)) <= BOUND, size


@pytest.mark.parametrize(
    "options",
    [
        {"upcast_attention": True},
        {"time_cond_proj_dim": 16},
        {"layers_per_block": 1},
        {"use_linear_projection": True, "attention_head_dim": 1},
        {"use_linear_projection": False},
        {**THREE_LEVELS, "attention_head_dim": [1, 2, 3]},
        {"norm_eps": 1e-3},
        {"mid_block_type": None},
        {**SMALL["bk_small"], "attention_head_dim": 8},
        {**SMALL["bk_tiny"], "attention_head_dim": [1, 2, 3]},
        {**SMALL["sdxs"], "attention_head_dim": 4},
    ],
    ids=lambda options: "-".join(map(str, next(reversed(options.items())))),
)
def test_unet_with_other_settings(kind: str, options: dict[str, Any]) -> None:
    assert difference(unet(kind, (6, 10), **options)) <= BOUND


@pytest.mark.parametrize("timesteps", [[0.0, 1.0, 999.0], [0.5, 487.25, 998.9]])
def test_timestep_embedding(timesteps: list[float]) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    expected = get_timestep_embedding(torch.tensor(timesteps), 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(torch.tensor(timesteps), 32), expected, rtol=1e-4, atol=1e-6)


def test_recorded_attention_is_the_softmax_that_diffusers_computes(kind: str) -> None:
    expected: list[Tensor] = []

    class Record:
        """Attention written out, as diffusers does without scaled_dot_product_attention."""

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
        ) -> Tensor:
            assert attention_mask is None
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key, value = (
                attn.head_to_batch_dim(project(states))
                for project, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
            )
            weights = attn.get_attention_scores(query, key)
            if encoder_hidden_states is not None:
                expected.append(weights.unflatten(0, (-1, attn.heads)))  # (B * heads, L, S) -> (B, heads, L, S)
            return attn.to_out[0](attn.batch_to_head_dim(weights @ value))

    # In float64: what the kernels of a processor round differently, softmax makes larger.
    ours, theirs = (network.double() for network in unets(kind))
    theirs.set_attn_processor(Record())
    latents = gaussian(2, 4, 8, 8).double()
    context = gaussian(2, 77, ours.config.cross_attention_dim, seed=1).double()
    timesteps = torch.tensor([3.0, 981.0])
    maps: list[Tensor] = []
    recorded = ours(latents, timesteps, ours.read(context), maps=maps)
    assert difference((recorded, theirs(latents, timesteps, context).sample)) <= DOUBLE_BOUND
    assert recorded.equal(ours(latents, timesteps, ours.read(context)))
    assert len(maps) == len(expected) == 6
    for actual, wanted in zip(maps, expected, strict=True):
        assert actual.dtype == torch.float64
        assert difference((actual, wanted)) <= DOUBLE_BOUND
        torch.testing.assert_close(actual.sum(-1), torch.ones(actual.shape[:-1], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recorded_attention_of_half_precision_is_raised(dtype: torch.dtype) -> None:
    query, key = gaussian(2, 6, 8).to(dtype), gaussian(2, 77, 8, seed=1).to(dtype)
    torch.testing.assert_close(attention_map(query, key, 2), attention_map(query.float(), key.float(), 2))
