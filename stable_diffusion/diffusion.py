"""The conditional U-Net: from noisy latents, timestep and words to the noise, or velocity, in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, SpatialTransformer
from .blocks import Downsample, ResnetBlock, Upsample, with_doubles
from .loading.config import ATTENTION_DOWN, UNetConfig


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines and sines of the timestep at geometric frequencies (section 3.5, arXiv:1706.03762).

    timesteps (B,), whole or fractional -> (B, channels) float32.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The two-layer network on the timestep's embedding; distilled models also tell it the guidance scale."""

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
    """Residual blocks, each followed by a transformer where the level attends to the words.

    `words` of the levels' forward gives each transformer its keys and values when it is reached, (B, S, 2C).
    """

    def __init__(self, config: UNetConfig, level: int, widths: list[tuple[int, int]], *, attention: bool):
        super().__init__()
        time_channels = 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock(a, b, config.norm_num_groups, config.norm_eps, time_channels) for a, b in widths
        )
        self.attentions = nn.ModuleList(transformer(config, level) for _ in widths if attention)


def transformer(config: UNetConfig, level: int) -> SpatialTransformer:
    """The transformer of one level, as wide as the level."""
    return SpatialTransformer(
        config.block_out_channels[level],
        config.cross_attention_dim,
        config.heads[level],
        config.norm_num_groups,
        linear=config.use_linear_projection,
    )


class DownBlock(UNetLevel):
    """One level on the way down; gives every feature map it makes, for the skip connections."""

    def __init__(self, config: UNetConfig, level: int):
        channels = config.block_out_channels
        widths = pairwise([channels[max(level - 1, 0)]] + [channels[level]] * config.layers_per_block)
        attention = config.down_block_types[level] == ATTENTION_DOWN
        super().__init__(config, level, list(widths), attention=attention)
        last = level == len(channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels[level], symmetric=True)])

    def forward(self, x: Tensor, time: Tensor, words: Iterator[Tensor], maps: list[Tensor] | None) -> list[Tensor]:
        """x (B, C_in, H, W), time (B, T) -> each feature map made on the way.

        One (B, C, H, W) for each residual block and, except at the deepest level, one (B, C, H/2, W/2).
        """
        skips = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[index](x, words, maps)
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

    def forward(self, x: Tensor, time: Tensor, words: Iterator[Tensor], maps: list[Tensor] | None) -> Tensor:
        """x (B, C, H, W), time (B, T) -> (B, C, H, W)."""
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, words, maps)
        return self.resnets[1](x, time)


class UpBlock(UNetLevel):
    """One level on the way up; each residual block also sees the feature map of the same size from the way down."""

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
        self, x: Tensor, skips: list[Tensor], time: Tensor, words: Iterator[Tensor], maps: list[Tensor] | None
    ) -> Tensor:
        """x (B, C_in, H, W), time (B, T) -> (B, C, 2H, 2W), or as large as the next of `skips`."""
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, with_doubles(skips.pop(), len(x))], dim=1), time)
            if self.attentions:
                x = self.attentions[index](x, words, maps)
        for upsample in self.upsamplers:
            # An odd size was rounded up on the way down: the next skip tells the size to come back to.
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

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        guidance: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Noise, or velocity, in latents (B, C, h, w) at timesteps (B,) for a context (B, S, D), (B, C, h, w).

        `read` and `predict` in one; see there for guidance and maps.
        """
        return self.predict(latents, timesteps, self.read(context), guidance=guidance, maps=maps)

    def read(self, context: Tensor) -> Tensor:
        """Words (B, S, K): the keys and values in each cross-attention, side by side, of a context (B, S, D).

        They are the same at every step of a run, which needs them once.
        """
        return torch.cat([attention.read(context) for attention in self._cross_attentions()], dim=2)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        words: Tensor,
        *,
        guidance: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Predict the noise (or velocity) in `latents`.

        latents (B, C, h, w); timesteps (B,), whole or fractional; words (B + G, S, K), what `read` made of a context.
        The first G latents are asked about twice, first with the first G rows of words; then all, with the rest.
        guidance (B, time_cond_proj_dim) is the embedded guidance scale of a distilled model.
        maps, if a list is given, receives the weights (B + G, heads, pixels, S) of each cross-attention in order.
        Returns (B + G, C, h, w).
        """
        return self.predict_at(self.embed(timesteps, latents.dtype, guidance), latents, words, maps)

    def embed(self, timesteps: Tensor, dtype: torch.dtype, guidance: Tensor | None = None) -> Tensor:
        """What the blocks are told of timesteps (B,) and guidance, (B, T).

        Its sines are of angles up to the timestep itself, which bfloat16 would round by 2.
        """
        embedding = timestep_embedding(timesteps, self.config.block_out_channels[0])
        return self.time_embedding(embedding.to(dtype), guidance)

    def predict_at(self, time: Tensor, latents: Tensor, words: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """`predict` at a time that was embedded."""
        widths = [2 * attention.channels for attention in self._cross_attentions()]
        each = iter(words.split(widths, dim=2))
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], time, each, maps)
        x = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], time, each, maps)
        for block in self.up_blocks:
            x = block(x, skips, time, each, maps)
        x = with_doubles(x, len(words))  # of a network that attends to no words, too
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _cross_attentions(self) -> list[Attention]:
        """In the order in which they are evaluated."""
        middle = [] if self.mid_block is None else [self.mid_block]
        levels = (*self.down_blocks, *middle, *self.up_blocks)
        return [block.attn2 for level in levels for one in level.attentions for block in one.transformer_blocks]
