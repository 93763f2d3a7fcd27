"""Multi-head attention (arXiv:1706.03762, Eq. 1) from pixels to pixels and to the tokens of a context."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import duplicate_guided


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V over `heads` heads (Eq. 1, arXiv:1706.03762).

    query is (B, L, C); key and value are (B, S, C); the result is (B, L, C). On the CPU and on CUDA the scores are
    float32 in half precision too, as Stable Diffusion 2.x requests by `upcast_attention`. Apple's GPU rounds them to
    half precision, so `load` uses float32 there.
    """
    query, key, value = (_split_heads(tensor, heads) for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return out.transpose(1, 2).flatten(2)  # (B, heads, L, d) -> (B, L, C)


def attention_map(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return the attention weights softmax(Q K^T / sqrt(d)), (B, heads, L, S), in float32 at least.

    query is (B, L, C) and key (B, S, C).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = (_split_heads(tensor, heads).to(dtype) for tensor in (query, key))
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, L, C) -> (B, heads, L, d)


class Attention(nn.Module):
    """Self-attention, or cross-attention to a context of width `context_channels`, under diffusers' key names."""

    def __init__(self, channels: int, context_channels: int | None = None, heads: int = 1, *, bias: bool = False):
        super().__init__()
        context_channels = channels if context_channels is None else context_channels
        self.heads, self.channels = heads, channels
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def read(self, context: Tensor) -> Tensor:
        """Return the keys and values of a context (B, S, C'), side by side: (B, S, 2C)."""
        return torch.cat([self.to_k(context), self.to_v(context)], dim=2)

    def forward(self, x: Tensor, keys_values: Tensor | None = None, maps: list[Tensor] | None = None) -> Tensor:
        """Let x (B, L, C) attend to the `keys_values` of a context, or to itself; returns (B, L, C).

        The attention weights (B, heads, L, S) are appended to `maps`, if given.
        """
        query = self.to_q(x)
        key, value = (self.to_k(x), self.to_v(x)) if keys_values is None else keys_values.chunk(2, dim=2)
        if maps is not None:
            maps.append(attention_map(query, key, self.heads))
        return self.to_out[0](attend(query, key, value, self.heads))


class SpatialSelfAttention(Attention):
    """Self-attention over the pixels of the VAE's deepest feature map, with its normalisation and residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # it has no context
        """(B, C, H, W) -> (B, C, H, W)."""
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        out = super().forward(pixels)
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, HW, C) -> (B, C, H, W)


class GEGLU(nn.Module):
    """Gated linear unit with GELU (arXiv:2002.05202): x W_1 * gelu(x W_2)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, hidden * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, hidden)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The two-layer network after attention, four times as wide inside."""

    def __init__(self, channels: int):
        super().__init__()
        # The middle entry stands for the original's dropout, so that the key names agree.
        self.net = nn.ModuleList([GEGLU(channels, channels * 4), nn.Identity(), nn.Linear(channels * 4, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context and a feed-forward network, each with a residual."""

    def __init__(self, channels: int, context_channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads=heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_channels, heads=heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, keys_values: Iterator[Tensor], maps: list[Tensor] | None = None) -> Tensor:
        """x (B, L, C) -> (B', L, C), with the next of `keys_values`, (B', S, 2C); see `duplicate_guided`."""
        x = x + self.attn1(self.norm1(x))
        own = next(keys_values)
        x = duplicate_guided(x, len(own))
        x = x + self.attn2(self.norm2(x), own, maps)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map (arXiv:2112.10752, section 3.3).

    Stable Diffusion 1.x projects in and out with 1x1 convolutions, 2.x with linear layers: the same operation under
    the same names, stored in another shape.
    """

    def __init__(self, channels: int, context_channels: int, heads: int, groups: int, *, linear: bool):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_channels, heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, keys_values: Iterator[Tensor], maps: list[Tensor] | None = None) -> Tensor:
        """x (B, C, H, W) -> (B', C, H, W), with the next of `keys_values`, (B', S, 2C); see `duplicate_guided`."""
        height, width = x.shape[2:]
        hidden = self.norm(x)
        if not self.linear:
            hidden = self.proj_in(hidden)
        hidden = hidden.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        if self.linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, keys_values, maps)
        if self.linear:
            hidden = self.proj_out(hidden)
        hidden = hidden.transpose(1, 2).unflatten(2, (height, width))  # (B, HW, C) -> (B, C, H, W)
        if not self.linear:
            hidden = self.proj_out(hidden)
        return duplicate_guided(x, len(hidden)) + hidden
