"""The autoencoder that joins encoder and decoder (arXiv:2112.10752, section 3.1; VAE: arXiv:1312.6114)."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

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
    """Latents or a picture have infinite or NaN values, so that the picture would be black."""


def unet_not_finite(dtype: torch.dtype) -> NotFinite:
    """Return the error for a U-Net whose output overflowed while it computed in `dtype`."""
    remedy = (
        "load the model with dtype bfloat16 or float32"
        if dtype == torch.float16
        else "lower guidance_scale and the weights of LoRAs and words, or use another file of the model"
    )
    name = str(dtype).removeprefix("torch.")
    return NotFinite(f"the U-Net's output overflowed in {name}, and the picture would be black: {remedy}")


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z | x): an independent normal distribution for each latent; mean and logvar are (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise: the reparameterisation of section 2.4, arXiv:1312.6114."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """Return KL(q || N(0, 1)) of each latent, (B, C, h, w), in nats (Appendix B, arXiv:1312.6114)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class Autoencoder(nn.Module, ABC):
    """Pictures <-> latents, which are multiplied by `scaling_factor` to have about unit variance."""

    config: VAEConfig | TinyVAEConfig

    @abstractmethod
    def encode(self, pictures: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
        """Encode pictures (B, 3, H, W) in [-1, 1]; returns scaled latents (B, C, H/f, W/f).

        For an autoencoder with a distribution of latents these are its mean, or samples with `noise`, a function that
        draws (N, C, H/f, W/f) standard normal numbers: N samples of a single picture, or one of each.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w); returns pictures (B, 3, f*h, f*w), about in [-1, 1]."""

    @torch.no_grad()
    def decode_finite(self, latents: Tensor) -> Tensor:
        """Decode latents, and again in float32 if half precision overflowed, as the full-size VAE does.

        float32 takes a copy of the decoder, 200 MB at full size, because other threads use the VAE itself; it is kept.
        Raises `NotFinite` if latents or the float32 picture have infinite or NaN values.
        """
        dtype = next(self.parameters()).dtype
        pictures = for_inference(self).decode(latents.to(dtype))
        if pictures.isfinite().all():
            return pictures
        if not latents.isfinite().all():
            raise unet_not_finite(dtype)
        if dtype != torch.float32:
            pictures = self._decoder_in_float32(dtype).decode(latents.float())
            if pictures.isfinite().all():
                return pictures
        raise NotFinite("the VAE's output overflowed in float32, and the picture would be black: use another VAE")

    def _decoder_in_float32(self, dtype: torch.dtype) -> Autoencoder:
        """Return a copy that decodes in float32, made and told of in the log when it is first needed."""
        copied = _in_float32.get(self)
        if copied is None:
            name = str(dtype).removeprefix("torch.")
            log.warning("the VAE's output overflowed in %s: such pictures are decoded again in float32", name)
            used = ("decoder.", "post_quant_conv.")
            weights = {name: weight.float() for name, weight in self.named_parameters() if name.startswith(used)}
            copied = _in_float32[self] = with_weights(self, weights)
        return copied


_in_float32: WeakKeyDictionary[Autoencoder, Autoencoder] = WeakKeyDictionary()


class VAE(Autoencoder):
    """The autoencoder of Stable Diffusion, which encodes a picture as a distribution of latents."""

    config: VAEConfig

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def posterior(self, pictures: Tensor) -> DiagonalGaussian:
        """Return q(z | x), unscaled, of pictures (B, 3, H, W) in [-1, 1]."""
        mean, logvar = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))

    def encode(self, pictures: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
        """See `Autoencoder.encode`; a sample has the dtype of the noise."""
        posterior = self.posterior(pictures)
        if noise is None:
            latents = posterior.mean
        else:
            draws = noise()
            latents = posterior.sample(draws.to(posterior.mean)).to(draws.dtype)
        return latents * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))
