"""Previews show the latents, never change them, and keep to their share of the time."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from stable_diffusion.model_loader import load
from stable_diffusion.preview import Preview, latent_to_rgb, linear_preview, wait_for
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


@pytest.mark.parametrize("name", ["auto", "vae", "linear"])
def test_previews_by_a_tiny_autoencoder_in_half_precision(name: str, tmp_path: Path) -> None:
    vae = load(save_model(tmp_path, "sdxs"), dtype=torch.float16).vae
    pictures = Preview(vae, name)(torch.randn(2, 4, 2, 3))
    assert pictures is not None
    assert [picture.size for picture in pictures] == [(24, 16)] * 2


def test_none_shows_nothing_and_a_wrong_name_is_named(vae: VAE) -> None:
    assert Preview(vae, "none")(torch.zeros(1, 4, 2, 2)) is None
    with pytest.raises(ValueError, match="preview must be one of auto, vae, linear, none, got 'fast'"):
        Preview(vae, "fast")


def test_a_device_is_waited_for_before_the_clock_is_read(vae: VAE) -> None:
    """Work on an accelerator goes on behind the program's back: without waiting, a step's time would be a preview's."""
    events = []

    def wait(device: torch.device) -> None:
        assert device == vae.post_quant_conv.weight.device
        events.append("wait")

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    preview = Preview(vae, "auto", clock, wait)
    for _ in range(3):
        preview(torch.zeros(1, 4, 2, 2))
    assert len(events) > 12
    assert events == ["wait", "clock"] * (len(events) // 2)


def test_on_the_processor_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.accelerator, "synchronize", asked.append)
    wait_for(torch.device("cpu"))
    assert asked == []
    wait_for(torch.device("cuda", 1))
    assert asked == [torch.device("cuda", 1)]


def test_the_matrix_goes_with_its_vae(tmp_path: Path) -> None:
    """Threads find the same one, it is fitted once, and nothing of it hangs on the shared network."""
    vae = load(save_model(tmp_path)).vae
    attributes = set(vars(vae))
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(latent_to_rgb, [vae] * 4)
    assert all(other is first for other in others)
    assert set(vars(vae)) == attributes


@pytest.fixture
def overflowing(tmp_path: Path) -> VAE:
    """A VAE in half precision that overflows where a latent is above zero."""
    vae = load(save_model(tmp_path), dtype=torch.float16).vae
    vae.decoder.conv_norm_out.weight.data.fill_(6e4)
    vae.decoder.conv_norm_out.bias.data.fill_(6e4)
    return vae


def test_half_precision_overflow_is_decoded_again(overflowing: VAE) -> None:
    latents = torch.ones(1, 4, 2, 2)
    with torch.no_grad():
        assert not overflowing.decode(latents.half()).isfinite().all()
    wide = overflowing.decode_finite(latents)
    assert wide.dtype == torch.float32
    assert wide.isfinite().all()
    assert np.isfinite(np.asarray(Preview(overflowing, "vae")(latents)[0])).all()
    torch.testing.assert_close(wide, copy.deepcopy(overflowing).float().decode(latents), rtol=0, atol=0)


def test_decoding_again_leaves_the_shared_vae_alone(overflowing: VAE) -> None:
    """Another thread decodes with it in half precision at the same time."""
    latents = torch.ones(1, 4, 2, 2)
    before = dict(overflowing.named_parameters())

    def again() -> None:
        for _ in range(20):
            overflowing.decode_finite(latents)

    with ThreadPoolExecutor(1) as threads, torch.no_grad():
        decoding = threads.submit(again)
        while not decoding.done():
            assert overflowing.decode(latents.half()).dtype == torch.float16
            for name, parameter in overflowing.named_parameters():
                assert parameter is before[name]
                assert parameter.dtype == torch.float16
        decoding.result()
