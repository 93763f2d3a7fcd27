"""Previews show the latents, never change them, and keep to their share of the time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stable_diffusion.model_loader import load
from stable_diffusion.preview import Preview, linear_preview
from stable_diffusion.vae import VAE
from tests.tiny import save_model


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> VAE:
    return load(save_model(tmp_path_factory.mktemp("model"))).vae


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def decoders_used(vae: VAE, name: str, step_seconds: float, decode_seconds: float, steps: int) -> list[str]:
    """Which decoder made the preview of each step, when a step and a decoding take that long."""
    clock, used = Clock(), []
    original = vae.decode_finite

    def slow_decode(latents: torch.Tensor) -> torch.Tensor:
        whole = latents.shape[-1] == 2
        clock.now += decode_seconds if whole else decode_seconds / 4
        used.extend(["vae"] * whole)  # a corner is decoded to judge the cost
        return original(latents)

    vae.decode_finite = slow_decode  # type: ignore[method-assign]
    try:
        preview = Preview(vae, name, clock)
        for step in range(steps):
            clock.now += step_seconds
            preview(torch.zeros(1, 4, 2, 2))
            if len(used) == step:
                used.append("linear")
    finally:
        del vae.decode_finite
    return used


def test_auto_stays_within_its_share(vae: VAE) -> None:
    linear_preview(vae, torch.zeros(1, 4, 2, 2))  # the matrix is fitted once, before the clock matters
    used = decoders_used(vae, "auto", step_seconds=1.0, decode_seconds=0.5, steps=60)
    assert used[0] == "linear"
    assert 4 <= used.count("vae") <= 60 * 0.05 / 0.5
    assert decoders_used(vae, "auto", step_seconds=1.0, decode_seconds=3.0, steps=20) == ["linear"] * 20
    assert decoders_used(vae, "auto", step_seconds=1.0, decode_seconds=0.01, steps=9) == ["vae"] * 9
    assert decoders_used(vae, "vae", step_seconds=1.0, decode_seconds=9.0, steps=4) == ["vae"] * 4


def test_linear_preview_is_the_best_matrix(vae: VAE) -> None:
    """It resembles the VAE's picture, blurred to one colour a latent, more than that picture's mean does."""
    coarse = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    latents = torch.nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear")
    rough = linear_preview(vae, latents)
    assert rough.shape == (2, 3, 96, 96)
    blurred = torch.nn.functional.avg_pool2d(vae.decode(latents).clamp(-1, 1), 8)
    error = (torch.nn.functional.avg_pool2d(rough, 8) - blurred).square().mean()
    assert error < (blurred - blurred.mean((2, 3), keepdim=True)).square().mean()


@pytest.mark.parametrize("name", ["auto", "vae", "linear"])
def test_latents_are_left_alone(vae: VAE, name: str) -> None:
    latents = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    pictures = Preview(vae, name)(latents)
    assert torch.equal(latents, before)
    assert pictures is not None
    assert pictures[0].size == (24, 16)


def test_none_shows_nothing_and_a_wrong_name_is_named(vae: VAE) -> None:
    assert Preview(vae, "none")(torch.zeros(1, 4, 2, 2)) is None
    with pytest.raises(ValueError, match="preview must be one of auto, vae, linear, none, got 'fast'"):
        Preview(vae, "fast")


def test_half_precision_overflow_is_decoded_again(tmp_path: Path) -> None:
    vae = load(save_model(tmp_path), dtype=torch.float16).vae
    with torch.no_grad():
        vae.decoder.conv_norm_out.weight.fill_(6e4)
        vae.decoder.conv_norm_out.bias.fill_(6e4)
        latents = torch.ones(1, 4, 2, 2)
        assert not vae.decode(latents.half()).isfinite().all()
        assert vae.decode_finite(latents).isfinite().all()
    assert vae.post_quant_conv.weight.dtype == torch.float16
    assert np.isfinite(np.asarray(Preview(vae, "vae")(latents)[0])).all()
