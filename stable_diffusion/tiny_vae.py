"""A small autoencoder without attention or normalisation: TAESD, https://github.com/madebyollin/taesd.

It was distilled from the large one and replaces it. A layer's index in `layers` is its name in the files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import UpsamplingConv2d
from .loading.config import TinyVAEConfig
from .vae import Autoencoder

CLAMP = 3.0
"""The decoder compresses latents to this range by tanh."""


def convolution(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return a 3x3 convolution; a stride of 2 halves height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


class Block(nn.Module):
    """Three convolutions with a residual."""

    def __init__(self, channels: int):
        super().__init__()
        first, second, third = (convolution(channels, channels) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(self.conv(x) + x)


class Encoder(nn.Module):
    """Blocks at each level, with convolutions between that halve height and width."""

    def __init__(self, config: TinyVAEConfig):
        super().__init__()
        channels = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = [convolution(config.in_channels, channels)]
        for level, count in enumerate(config.num_encoder_blocks):
            if level > 0:
                layers.append(convolution(channels, channels, stride=2, bias=False))
            layers += [Block(channels) for _ in range(count)]
        self.layers = nn.Sequential(*layers, convolution(channels, config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Picture (B, 3, H, W) in [-1, 1] -> latents (B, C, H/f, W/f); the layers take it in [0, 1]."""
        return self.layers((x + 1) / 2)


class Decoder(nn.Module):
    """Blocks at each level, with nearest-neighbour upsampling between."""

    def __init__(self, config: TinyVAEConfig):
        super().__init__()
        channels = config.decoder_block_out_channels[0]
        layers: list[nn.Module] = [convolution(config.latent_channels, channels), nn.ReLU()]
        *levels, last = config.num_decoder_blocks
        for count in levels:
            layers += [Block(channels) for _ in range(count)]
            layers += [nn.Identity(), UpsamplingConv2d(channels, bias=False)]  # two indices in the files
        layers += [Block(channels) for _ in range(last)]
        self.layers = nn.Sequential(*layers, convolution(channels, config.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> picture (B, 3, f*h, f*w), about in [-1, 1]; the layers return it in [0, 1]."""
        return 2 * self.layers(CLAMP * torch.tanh(x / CLAMP)) - 1


class TinyVAE(Autoencoder):
    """diffusers' `AutoencoderTiny`: it encodes a picture as latents without a distribution."""

    config: TinyVAEConfig

    def __init__(self, config: TinyVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pictures: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
        """See `Autoencoder.encode`; noise is not used."""
        return self.encoder(pictures) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        return self.decoder(latents / self.config.scaling_factor)
