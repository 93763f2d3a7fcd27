"""The conditional U-Net: it predicts the noise, or velocity, in latents at a timestep, given a context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, SpatialTransformer
from .blocks import Downsample, ResnetBlock, Upsample, duplicate_guided
from .loading.config import ATTENTION_DOWN, UNetConfig


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines and sines of the timestep at geometric frequencies (section 3.5, arXiv:1706.03762).

    timesteps (B,), integers or fractions -> (B, channels) float32.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The two-layer network on the timestep's embedding; in distilled models it also takes the guidance scale."""

    def __init__(self, in_channels: int, channels: int, guidance_channels: int | None):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.cond_proj = None if guidance_channels is None else nn.Linear(guidance_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """x (B, in_channels), guidance (B, guidance_channels) -> (B, channels)."""
        if self.cond_proj is not None and guidance is not None:
            x = x + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(x)))


class UNetLevel(nn.Module):
    """Residual blocks, each followed by a transformer if the level attends to the context.

    `forward` of each level takes an iterator over the keys and values (B, S, 2C) of the transformers in order.
    """

    def __init__(self, config: UNetConfig, level: int, widths: list[tuple[int, int]], *, attention: bool):
        super().__init__()
        time_channels = 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock(a, b, config.norm_num_groups, config.norm_eps, time_channels) for a, b in widths
        )
        self.attentions = nn.ModuleList(transformer(config, level) for _ in widths if attention)


def transformer(config: UNetConfig, level: int) -> SpatialTransformer:
    """Return a new transformer for one level."""
    return SpatialTransformer(
        config.block_out_channels[level],
        config.cross_attention_dim,
        config.heads[level],
        config.norm_num_groups,
        linear=config.use_linear_projection,
    )


class DownBlock(UNetLevel):
    """One level on the way down; returns all its feature maps, for the skip connections."""

    def __init__(self, config: UNetConfig, level: int):
        channels = config.block_out_channels
        widths = pairwise([channels[max(level - 1, 0)]] + [channels[level]] * config.layers_per_block)
        attention = config.down_block_types[level] == ATTENTION_DOWN
        super().__init__(config, level, list(widths), attention=attention)
        last = level == len(channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels[level], symmetric=True)])

    def forward(
        self, x: Tensor, time: Tensor, keys_values: Iterator[Tensor], maps: list[Tensor] | None
    ) -> list[Tensor]:
        """x (B, C_in, H, W), time (B, T) -> all feature maps.

        One (B, C, H, W) for each residual block and, except at the deepest level, one (B, C, H/2, W/2).
        """
        skips = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[index](x, keys_values, maps)
            skips.append(x)
        for downsample in self.downsamplers:
            skips.append(downsample(skips[-1]))
        return skips


class MidBlock(UNetLevel):
    """The deepest level: residual, transformer, residual."""

    def __init__(self, config: UNetConfig):
        level = len(config.block_out_channels) - 1
        channels = config.block_out_channels[level]
        super().__init__(config, level, [(channels, channels)] * 2, attention=False)
        self.attentions = nn.ModuleList([transformer(config, level)])

    def forward(self, x: Tensor, time: Tensor, keys_values: Iterator[Tensor], maps: list[Tensor] | None) -> Tensor:
        """x (B, C, H, W), time (B, T) -> (B, C, H, W)."""
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, keys_values, maps)
        return self.resnets[1](x, time)


class UpBlock(UNetLevel):
    """One level on the way up; each residual block also takes the feature map of its size from the way down."""

    def __init__(self, config: UNetConfig, level: int):
        channels = config.block_out_channels
        last = len(channels) - 1
        inputs = [channels[min(level + 1, last)]] + [channels[level]] * config.layers_per_block
        skips = [channels[level]] * config.layers_per_block + [channels[max(level - 1, 0)]]
        widths = [(a + b, channels[level]) for a, b in zip(inputs, skips, strict=True)]
        attention = config.down_block_types[level] == ATTENTION_DOWN
        super().__init__(config, level, widths, attention=attention)
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(channels[level])])

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, keys_values: Iterator[Tensor], maps: list[Tensor] | None
    ) -> Tensor:
        """x (B, C_in, H, W), time (B, T) -> (B, C, 2H, 2W), or as large as the next of `skips`."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, duplicate_guided(skips.pop(), len(x))], dim=1), time)
            if self.attentions:
                x = self.attentions[index](x, keys_values, maps)
        for upsample in self.upsamplers:
            # An odd size was rounded up on the way down; the next skip has the size before that.
            x = upsample(x, tuple(skips[-1].shape[2:]))
        return x


class UNet(nn.Module):
    """epsilon_theta(z_t, t, c) of latent diffusion (Eq. 3, arXiv:2112.10752)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], 4 * channels[0], config.time_cond_proj_dim)
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in range(len(channels)))
        self.mid_block = MidBlock(config) if config.mid_block_type else None
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(range(len(channels))))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def read(self, context: Tensor) -> Tensor:
        """Return the keys and values of a context (B, S, D) in every cross-attention, side by side: (B, S, K).

        They are the same at every step of a run, so a run needs them once.
        """
        return torch.cat([attention.read(context) for attention in self._cross_attentions()], dim=2)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        keys_values: Tensor,
        *,
        guidance: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Predict the noise, or velocity, in `latents` (B, C, h, w); returns (B + G, C, h, w).

        timesteps (B,) are integers or fractions. keys_values (B + G, S, K) are those that `read` returns. The first G
        latents are evaluated twice: with the first G rows of keys_values, and with all latents for the other rows.
        guidance (B, time_cond_proj_dim) is the embedded guidance scale of a distilled model.
        maps, if given, receives the weights (B + G, heads, pixels, S) of each cross-attention in order.
        """
        return self.evaluate(latents, self.embed(timesteps, latents.dtype, guidance), keys_values, maps)

    def embed(self, timesteps: Tensor, dtype: torch.dtype, guidance: Tensor | None = None) -> Tensor:
        """Return the embedding (B, T) of timesteps (B,) and guidance.

        Its angles are as large as the timestep, which bfloat16 would round by up to 2; so they are float32.
        """
        embedding = timestep_embedding(timesteps, self.config.block_out_channels[0])
        return self.time_embedding(embedding.to(dtype), guidance)

    def evaluate(self, latents: Tensor, time: Tensor, keys_values: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Predict as `forward` does, at an embedded time (B, T)."""
        widths = [2 * attention.channels for attention in self._cross_attentions()]
        each = iter(keys_values.split(widths, dim=2))
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], time, each, maps)
        x = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], time, each, maps)
        for block in self.up_blocks:
            x = block(x, skips, time, each, maps)
        x = duplicate_guided(x, len(keys_values))  # for a network without cross-attention
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _cross_attentions(self) -> list[Attention]:
        """Return all cross-attentions in the order of their evaluation."""
        middle = [] if self.mid_block is None else [self.mid_block]
        levels = (*self.down_blocks, *middle, *self.up_blocks)
        return [block.attn2 for level in levels for one in level.attentions for block in one.transformer_blocks]
