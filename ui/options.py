"""What a request may ask for: names, limits and defaults. Free of torch, so that the page is up before torch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SAMPLERS: dict[str, str] = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
"""Names and labels of the library's samplers, in its order; a test holds the two lists equal."""

PREVIEWS: dict[str, str] = {
    "auto": "Automatic",
    "vae": "Sharp (VAE)",
    "linear": "Rough, fast (matrix)",
    "none": "None",
}
FITS: dict[str, str] = {"crop": "Crop", "pad": "Pad", "stretch": "Stretch"}

MAX_STEPS = 1000
MAX_IMAGES = 4
MAX_SEED = 2**32 - 1
MAX_GUIDANCE = 30.0
MAX_PROMPT = 20_000
SIZE_UNIT = 8
QUEUE_SIZE = 20


@dataclass(frozen=True)
class Defaults:
    """What the controls show at first for a model, and the sizes that it can draw."""

    side: int
    """The side of the square pictures that the model was trained on, in pixels."""
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    strength: float = 0.7
    preview: str = "auto"

    @property
    def min_side(self) -> int:
        """The smallest side on offer."""
        return self.side // 2

    @property
    def max_side(self) -> int:
        """The largest side on offer: beyond twice the trained one, pictures repeat themselves."""
        return self.side * 2

    @property
    def side_step(self) -> int:
        """The sliders' step: an eighth of the trained side, and always a multiple of 8."""
        return max(SIZE_UNIT, self.side // 8 // SIZE_UNIT * SIZE_UNIT)


DISTILLED: dict[str, dict[str, Any]] = {
    "lcm": {"num_inference_steps": 4, "guidance_scale": 8.0, "sampler": "lcm"},
    "turbo": {"num_inference_steps": 2, "guidance_scale": 0.0, "sampler": "euler"},
}
"""What models that were distilled to few steps want: latent consistency (arXiv:2310.04378), and adversarial diffusion
distillation (arXiv:2311.17042), which has its guidance inside."""


def defaults_for(side: int, distilled: str | None = None) -> Defaults:
    """Defaults by the trained side, and for a distilled model, `distilled` one of `DISTILLED`, its few steps.

    A small model is fast enough for a sharp preview of every step.
    """
    if distilled:
        return Defaults(side, **DISTILLED[distilled])
    if side <= 256:
        return Defaults(side, num_inference_steps=20, guidance_scale=4.0, preview="vae")
    return Defaults(side)
