"""The settings that suit a model, read from its JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..request import MAX_CLIP_SKIP, Defaults

Json = Mapping[str, Any]

DISTILLED: dict[str, dict[str, Any]] = {
    "lcm": {"num_inference_steps": 4, "guidance_scale": 8.0, "sampler": "lcm"},
    "turbo": {"num_inference_steps": 2, "guidance_scale": 0.0, "sampler": "euler"},
}
"""Settings of models that were distilled to few steps: latent consistency (arXiv:2310.04378), and adversarial diffusion
distillation (arXiv:2311.17042), which has the guidance built in."""


def defaults_for(
    unet: Json | None,
    vae: Json | None,
    scheduler: Json | None,
    text_encoder: Json | None = None,
    *,
    tiny_vae: bool = False,
    fast: bool = False,
) -> Defaults:
    """Return the defaults for a model with these settings files; the usual ones for a file that can't be read.

    tiny_vae: whether the model has a tiny autoencoder of its own. fast: whether it has an adapter for fast requests.
    """
    defaults = _of_networks(unet or {}, vae or {}, scheduler or {}, "tiny" if tiny_vae else "vae")
    defaults = replace(defaults, fast=fast)
    layers = (text_encoder or {}).get("num_hidden_layers")
    if not isinstance(layers, int) or layers < 1:
        return defaults
    return replace(defaults, max_clip_skip=min(layers - 1, MAX_CLIP_SKIP))


def _of_networks(unet: Json, vae: Json, scheduler: Json, sharp: str) -> Defaults:
    """Return the defaults by size and distillation; `sharp` is the decoder of a small model's previews."""
    size = unet.get("sample_size")
    widths = vae.get("decoder_block_out_channels", vae.get("block_out_channels"))  # the first is an AutoencoderTiny's
    if not isinstance(size, int) or not isinstance(widths, (list, tuple)) or not 0 < len(widths) <= 10:
        return Defaults()  # the loader refuses such files with a message
    unit = 2 ** (len(widths) - 1)
    side = size * unit
    distilled = _distillation(unet, scheduler)
    if distilled is not None:
        return Defaults(side, unit, **DISTILLED[distilled])
    if side <= 256:  # fast enough for a sharp preview of every step
        return Defaults(side, unit, num_inference_steps=20, guidance_scale=4.0, preview=sharp)
    return Defaults(side, unit)


def _distillation(unet: Json, scheduler: Json) -> str | None:
    """Return how a model was distilled to few steps, as far as its JSON tells; None for all others."""
    if unet.get("time_cond_proj_dim") or scheduler.get("_class_name") == "LCMScheduler":
        return "lcm"
    # SD-Turbo has no mark of its own, but no other Stable Diffusion comes with Euler on a trailing grid.
    euler = str(scheduler.get("_class_name")).startswith("Euler")
    zero_snr = scheduler.get("rescale_betas_zero_snr")
    return "turbo" if euler and scheduler.get("timestep_spacing") == "trailing" and not zero_snr else None
