"""Context, U-Net and classifier-free guidance joined to one denoiser: from noisy latents to the x_0 they hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .diffusion import UNet, timestep_embedding
from .schedule import Level, predict_x_0


@dataclass(frozen=True)
class Denoiser:
    """D(x, level) = x_0, with classifier-free guidance (Eq. 6, arXiv:2207.12598).

    context and negative are (N, S, D), the features of prompt and negative prompt. The guidance scale w is that of
    Stable Diffusion, uncond + w (cond - uncond): the paper's plus one. At w <= 1 the negative prompt is not evaluated.
    """

    unet: UNet
    context: Tensor
    negative: Tensor
    guidance_scale: float
    prediction_type: str

    @property
    def guided(self) -> bool:
        """Whether each step takes two evaluations; a distilled model is told its guidance instead."""
        return self.guidance_scale > 1.0 and self.unet.config.time_cond_proj_dim is None

    def __call__(self, x: Tensor, level: Level, maps: list[Tensor] | None = None) -> Tensor:
        """x (N, C, h, w) = alpha x_0 + sigma eps, float32 -> x_0 of the same shape.

        Only the network works in its own precision: sigma may reach 4096, which half precision would not hold well.
        maps, if given, receives the cross-attention weights, of the unconditional half first where guided.
        """
        prediction = self.predict(x, level, maps)
        return predict_x_0(prediction, x, level.alpha, level.sigma, self.prediction_type)

    def predict(self, x: Tensor, level: Level, maps: list[Tensor] | None = None) -> Tensor:
        """The network's guided prediction, epsilon or v, at x; float32."""
        unconditional, conditional = self.predict_both(x, level, maps)
        if unconditional is None:
            return conditional
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def predict_both(self, x: Tensor, level: Level, maps: list[Tensor] | None = None) -> tuple[Tensor | None, Tensor]:
        """What the network predicts for the negative prompt (None where not guided) and for the prompt; float32."""
        model_input = (x / level.scale).to(self.context.dtype)
        if not self.guided:
            return None, self._network(model_input, level, self.context, maps).float()
        both = self._network(torch.cat([model_input] * 2), level, torch.cat([self.negative, self.context]), maps)
        unconditional, conditional = both.float().chunk(2)
        return unconditional, conditional

    def _network(self, x: Tensor, level: Level, context: Tensor, maps: list[Tensor] | None) -> Tensor:
        timesteps = torch.full((len(x),), level.timestep, device=x.device)
        return self.unet(x, timesteps, context, guidance=self._guidance_embedding(x), maps=maps)

    def _guidance_embedding(self, x: Tensor) -> Tensor | None:
        """The embedded w - 1, in thousandths, that a distilled model expects (arXiv:2310.04378, section 4.3)."""
        channels = self.unet.config.time_cond_proj_dim
        if channels is None:
            return None
        scale = torch.full((len(x),), (self.guidance_scale - 1.0) * 1000.0, device=x.device)
        return timestep_embedding(scale, channels).to(x.dtype)
