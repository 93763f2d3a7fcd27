"""Compare our code with diffusers and transformers, part by part, on tiny random models in float32.

    python -m benchmarks.parity

Prints, for each network, each sampler over 50 steps and whole requests, the largest difference and the largest number
in the reference. The bound holds for their ratio, or for the difference if all numbers are below one. Exits with 1 if
a row is over the bound.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
import transformers

from stable_diffusion.request import SAMPLER_LABELS
from tests.parity import pairs, test_samplers
from tests.parity.pairs import BOUND, Pair, Pipelines, difference
from tests.tiny import KINDS, save_model

STEPS, STRENGTH = 20, 0.6
Row = tuple[str, str, list[Pair]]
"""Group, name, and pairs of outputs to compare; the worst pair counts."""


def module_rows() -> Iterator[Row]:
    """Yield a row for each network, in the shapes of Stable Diffusion 1.x and 2.x."""
    for kind, activation in zip(KINDS, ("quick_gelu", "gelu"), strict=True):
        yield "network", f"CLIP text tower, {kind}: {activation}", [pairs.text_tower(kind)]
    for activation in ("quick_gelu", "gelu"):
        yield "network", f"CLIP image tower, {activation}", [pairs.image_tower(activation)]
    yield "network", "VAE encoder", [pairs.vae_encoder(), pairs.vae_encoder(mid_block_add_attention=False)]
    yield "network", "VAE decoder", [pairs.vae_decoder(), pairs.vae_decoder(mid_block_add_attention=False)]
    for kind in KINDS:
        yield "network", f"U-Net, {kind}", [pairs.unet(kind), pairs.unet(kind, (7, 9))]
    yield "network", "U-Net with embedded guidance", [pairs.unet("sd1", time_cond_proj_dim=16)]


def sampler_rows() -> Iterator[Row]:
    """Yield rows for each sampler over 50 steps, from noise and from a picture.

    Each row covers epsilon and v prediction and every spacing of timesteps.
    """

    def runs(name: str, strength: float | None) -> list[Pair]:
        made = []
        for prediction in ("epsilon", "v_prediction"):
            for spacing in test_samplers.SPACINGS:
                config = test_samplers.stable_diffusion(prediction_type=prediction, timestep_spacing=spacing)
                arguments = (name, config, 50, strength, torch.float32)
                made.append((test_samplers.run_ours(*arguments), test_samplers.run_diffusers(*arguments)))
        return made

    for name, label in SAMPLER_LABELS.items():
        yield "sampler", f"{label}, 50 steps", runs(name, None)
        yield "sampler", f"{label}, 50 steps, strength {STRENGTH}", runs(name, STRENGTH)


def request_rows(folder: Path) -> Iterator[Row]:
    """Yield rows for whole guided requests, from prompt to latents, by each sampler."""
    both = [Pipelines(save_model(folder / kind, kind)) for kind in KINDS]
    for name, label in SAMPLER_LABELS.items():
        for kind, strength in (("text to image", None), ("image to image", STRENGTH)):
            yield (
                "request",
                f"{kind}, {label}, {STEPS} steps",
                [pipes.latents(name, STEPS, strength) for pipes in both],
            )
        yield (
            "request",
            f"inpainting, {label}, {STEPS} steps",
            [pipes.inpainted(name, STEPS, STRENGTH) for pipes in both],
        )


@torch.no_grad()
def main() -> int:
    """Print all rows; return 1 if one is over the bound, else 0."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':56}  {'difference':>10}  {'largest':>7}  {'ratio':>7}  {'bound':>5}")
        for rows in (module_rows(), sampler_rows(), request_rows(Path(folder))):
            for group, name, found in rows:
                apart = max((ours - theirs).abs().max().item() for ours, theirs in found)
                largest = max(theirs.abs().max().item() for _, theirs in found)
                ratio = max(difference(pair) for pair in found)
                worst = max(worst, ratio)
                verdict = "" if ratio <= BOUND else "  OVER"
                print(
                    f"{group:8}  {name:46}  {apart:10.1e}  {largest:7.2f}  {ratio:7.1e}  {BOUND:5.0e}{verdict}",
                    flush=True,
                )
    print(f"{'worst':75}  {worst:9.1e}  {BOUND:5.0e}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
