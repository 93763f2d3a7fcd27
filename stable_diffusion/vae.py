"""The autoencoder that joins encoder and decoder (arXiv:2112.10752, section 3.1; VAE: arXiv:1312.6114)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapters.weights import with_weights
from .compute.packed import for_inference
from .decoder import Decoder
from .encoder import Encoder
from .loading.config import TinyVAEConfig, VAEConfig
from .request import RequestError

log = logging.getLogger(__name__)


class NotFinite(RequestError):
    """What is to be a picture holds numbers that are infinite or none: it would be black."""


def unet_not_finite(dtype: torch.dtype) -> NotFinite:
    """The error of a U-Net that computes in this type."""
    return NotFinite(
        f"the U-Net's numbers left what {str(dtype).removeprefix('torch.')} can hold, and the picture would be black: "
        "load the model with dtype bfloat16 or float32"
    )


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z | x): an independent normal distribution for each latent; mean and logvar are (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise: the reparameterisation of section 2.4, arXiv:1312.6114."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) of each latent, (B, C, h, w), in nats (Appendix B, arXiv:1312.6114)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class Autoencoder(nn.Module, ABC):
    """Picture <-> latents. Latents here carry `scaling_factor`, so that the diffusion sees about unit variance."""

    config: VAEConfig | TinyVAEConfig

    @abstractmethod
    def encode(self, pictures: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, H/f, W/f).

        Where a picture has a distribution of latents, they are its mean, or with `noise`, which draws (N, C, H/f, W/f)
        standard normal numbers, N samples of a single picture or one of each.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, f*h, f*w), about in [-1, 1]."""

    @torch.no_grad()
    def decode_finite(self, latents: Tensor) -> Tensor:
        """Decode, again in float32 where half precision overflowed; the full-size VAE does, and shows black.

        The second time takes a float32 copy of the decoder, for that call alone: 200 MB at full size. The VAE itself,
        which other threads decode with, stays as it is. Raises `NotFinite` where these are no pictures either.
        """
        dtype = next(self.parameters()).dtype
        pictures = for_inference(self).decode(latents.to(dtype))
        if pictures.isfinite().all():
            return pictures
        if not latents.isfinite().all():
            raise unet_not_finite(dtype)
        if dtype != torch.float32:
            log.warning("the VAE's numbers left what %s can hold: decoded again in float32", str(dtype)[6:])
            used = ("decoder.", "post_quant_conv.")
            weights = {name: weight.float() for name, weight in self.named_parameters() if name.startswith(used)}
            pictures = with_weights(self, weights).decode(latents.float())
            if pictures.isfinite().all():
                return pictures
        raise NotFinite("the VAE's numbers left what float32 can hold, and the picture would be black: use another")


class VAE(Autoencoder):
    """The autoencoder of Stable Diffusion, which gives each picture a distribution of latents."""

    config: VAEConfig

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def posterior(self, pictures: Tensor) -> DiagonalGaussian:
        """q(z | x), unscaled, of pictures (B, 3, H, W) in [-1, 1]."""
        mean, logvar = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def encode(self, pictures: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
        """As `Autoencoder.encode`: a sample, or the mean without noise; no less precise than the noise is."""
        posterior = self.posterior(pictures)
        if noise is None:
            latents = posterior.mean
        else:
            draws = noise()
            latents = posterior.sample(draws.to(posterior.mean)).to(draws.dtype)
        return latents * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """As `Autoencoder.decode`."""
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))
