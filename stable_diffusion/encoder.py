"""The encoder of the autoencoder: from a picture to the distribution of its latents."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import SpatialSelfAttention
from .blocks import Downsample, ResnetBlock
from .loading.config import VAEConfig

EPS = 1e-6


class MidBlock(nn.Module):
    """The deepest level: residual, attention over all pixels, residual."""

    def __init__(self, channels: int, groups: int, *, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList([SpatialSelfAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownBlock(nn.Module):
    """One level of the encoder."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, downsample: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups, EPS) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([Downsample(out_channels, symmetric=False)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/2, W/2), or (B, C_out, H, W) at the deepest level."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Levels that each halve the picture, f = `config.downscale` times in all."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.block_out_channels
        groups = config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, config.layers_per_block, groups, downsample=level < len(widths) - 1)
            for level, (a, b) in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = MidBlock(widths[-1], groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Picture (B, 3, H, W) in [-1, 1] -> moments (B, 2 * latent_channels, H/f, W/f)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
