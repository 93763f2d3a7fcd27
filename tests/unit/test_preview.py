"""Previews show the latents, never change them, and keep to their share of the time."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_diffusion.batching.engine import Engine
from stable_diffusion.batching.preview_worker import PreviewWorker
from stable_diffusion.images import to_images
from stable_diffusion.loading.config import ModelError
from stable_diffusion.model_loader import Models, load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Preview, Renderer, latent_to_rgb, linear_preview, wait_for
from stable_diffusion.request import PREVIEW_LABELS, Request
from stable_diffusion.tiny_vae import TinyVAE
from stable_diffusion.vae import VAE, Autoencoder
from tests.tiny import save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return load(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def vae(models: Models) -> Autoencoder:
    return models.vae


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def decoders_used(models: Models, name: str, step_seconds: float, decode_seconds: float, steps: int) -> list[str]:
    """Which decoder made the preview of each step, when a step and a decoding take that long."""
    clock, used, vae = Clock(), [], models.vae
    original = vae.decode_finite

    def slow_decode(latents: torch.Tensor) -> torch.Tensor:
        whole = latents.shape[-1] == 2
        clock.now += decode_seconds if whole else decode_seconds / 4
        used.extend(["vae"] * whole)  # a corner is decoded to judge the cost
        return original(latents)

    vae.decode_finite = slow_decode  # type: ignore[method-assign]
    try:
        preview = Preview(Renderer(models), name, clock)
        for step in range(steps):
            clock.now += step_seconds
            preview(torch.zeros(1, 4, 2, 2))
            if len(used) == step:
                used.append("linear")
    finally:
        del vae.decode_finite
    return used


def test_auto_stays_within_its_share(models: Models) -> None:
    linear_preview(models.vae, torch.zeros(1, 4, 2, 2))  # the matrix is fitted once, before the clock matters
    used = decoders_used(models, "auto", step_seconds=1.0, decode_seconds=0.5, steps=60)
    assert used[0] == "linear"
    assert 4 <= used.count("vae") <= 60 * 0.05 / 0.5
    assert decoders_used(models, "auto", step_seconds=1.0, decode_seconds=3.0, steps=20) == ["linear"] * 20
    assert decoders_used(models, "auto", step_seconds=1.0, decode_seconds=0.01, steps=9) == ["vae"] * 9
    assert decoders_used(models, "vae", step_seconds=1.0, decode_seconds=9.0, steps=4) == ["vae"] * 4


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
def test_latents_are_left_alone(models: Models, name: str) -> None:
    latents = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    pictures = Preview(Renderer(models), name)(latents)
    assert torch.equal(latents, before)
    assert pictures is not None
    assert pictures.images[0].size == (24, 16)


@pytest.mark.parametrize("name", ["auto", "vae", "linear"])
def test_previews_by_a_tiny_autoencoder_in_half_precision(name: str, tmp_path: Path) -> None:
    models = load(save_model(tmp_path, "sdxs"), dtype=torch.float16)
    pictures = Preview(Renderer(models), name)(torch.randn(2, 4, 2, 3))
    assert pictures is not None
    assert [picture.size for picture in pictures.images] == [(24, 16)] * 2


@pytest.fixture
def with_tiny(tmp_path: Path) -> Path:
    """A model's directory with a tiny VAE of its latents."""
    folder = save_model(tmp_path / "model")
    shutil.copytree(save_model(tmp_path / "sdxs", "sdxs", seed=1) / "vae", folder / "vae_tiny")
    return folder


def test_tiny_previews_are_the_tiny_vaes_and_the_last_picture_is_the_vaes(with_tiny: Path) -> None:
    """Bit by bit: alone, and where the engine paints."""
    pipe = Pipeline.from_pretrained(with_tiny, device="cpu")
    request = Request("a fox", num_inference_steps=3, seed=1, preview="tiny")
    *steps, last = pipe.stream(request)
    tiny = pipe.models.tiny_vae
    assert isinstance(tiny, TinyVAE)
    for step in steps:
        assert step.images == to_images(tiny.decode_finite(step.answer.conditional))
        assert step.images != step.decoded().images
    assert last.result.images == to_images(pipe.models.vae.decode_finite(last.final))
    engine = Engine(preview_worker=PreviewWorker(share=0.9))
    try:
        shown = [step.images for step in engine.submit(lambda: pipe.begin(request), "me") if step.images is not None]
    finally:
        engine.close()
    assert shown[-1] == last.images
    assert all(images in [step.images for step in steps] for images in shown[:-1])


def test_auto_prefers_a_tiny_vae_that_is_there(with_tiny: Path, vae: VAE) -> None:
    models = load(with_tiny, device="cpu")
    named = {name: models.decoder_for(name) for name in PREVIEW_LABELS}
    assert named == dict.fromkeys(PREVIEW_LABELS, models.vae) | dict.fromkeys(("tiny", "auto"), models.tiny_vae)
    plain = replace(models, tiny_vae=None)
    assert plain.decoder_for("auto") is models.vae
    whole = replace(plain, vae=models.tiny_vae)  # as in SDXS
    assert whole.decoder_for("tiny") is whole.vae


def test_tiny_is_refused_where_there_is_none(bundled_model: Path, tmp_path: Path) -> None:
    """Before the first step, with what to do about it."""
    folder = shutil.copytree(bundled_model, tmp_path / "emoji", ignore=shutil.ignore_patterns("vae_tiny", "clip"))
    steps = Pipeline.from_pretrained(folder, device="cpu").stream("a fox", preview="tiny")
    with pytest.raises(ModelError, match=r"preview='tiny' needs a tiny VAE, and emoji has none: .* folder vae_tiny"):
        next(steps)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_decoder_blocks": [2, 1, 2]}, "vae_tiny does not fit the model's vae: downscale is 4, not 8"),
        ({"latent_channels": 8}, "vae_tiny does not fit the model's vae: latent_channels is 8, not 4"),
        ({}, "vae_tiny is not an AutoencoderTiny"),
    ],
)
def test_a_tiny_vae_that_does_not_fit_is_named(with_tiny: Path, changed: dict[str, Any], message: str) -> None:
    config = with_tiny / "vae_tiny" / "config.json"
    values = json.loads(config.read_text()) | changed
    for half in ("encoder", "decoder"):  # both of as many levels
        values[f"num_{half}_blocks"] = values["num_decoder_blocks"]
        values[f"{half}_block_out_channels"] = [8] * len(values["num_decoder_blocks"])
    config.write_text(json.dumps(values) if changed else (with_tiny / "vae" / "config.json").read_text())
    with pytest.raises(ModelError, match=message):
        load(with_tiny, device="cpu")


def test_none_shows_nothing_and_a_wrong_name_is_named(models: Models) -> None:
    assert Preview(Renderer(models), "none")(torch.zeros(1, 4, 2, 2)) is None
    with pytest.raises(ValueError, match="preview must be one of auto, vae, tiny, linear, none, got 'fast'"):
        Preview(Renderer(models), "fast")


def test_a_device_is_waited_for_before_the_clock_is_read(models: Models) -> None:
    """Work on an accelerator goes on behind the program's back: without waiting, a step's time would be a preview's."""
    events = []

    def wait(device: torch.device) -> None:
        assert device == models.vae.post_quant_conv.weight.device
        events.append("wait")

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    preview = Preview(Renderer(models), "auto", clock, wait)
    for _ in range(3):
        preview(torch.zeros(1, 4, 2, 2))
    assert len(events) > 12
    assert events == ["wait", "clock"] * (len(events) // 2)


def test_on_the_processor_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.accelerator, "synchronize", asked.append)
    wait_for(torch.device("cpu"))
    assert asked == []
    wait_for(torch.device("mps"))
    assert asked == [torch.device("mps")]


def test_the_matrix_goes_with_its_vae(tmp_path: Path) -> None:
    """Threads find the same one, it is fitted once, and nothing of it hangs on the shared network."""
    vae = load(save_model(tmp_path)).vae
    attributes = set(vars(vae))
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(latent_to_rgb, [vae] * 4)
    assert all(other is first for other in others)
    assert set(vars(vae)) == attributes


@pytest.fixture
def overflowing_models(tmp_path: Path) -> Models:
    """Models in half precision whose VAE overflows where a latent is above zero."""
    models = load(save_model(tmp_path), dtype=torch.float16)
    vae = models.vae
    vae.decoder.conv_norm_out.weight.data.fill_(6e4)
    vae.decoder.conv_norm_out.bias.data.fill_(6e4)
    return models


@pytest.fixture
def overflowing(overflowing_models: Models) -> Autoencoder:
    return overflowing_models.vae


def test_half_precision_overflow_is_decoded_again(
    overflowing_models: Models, overflowing: VAE, caplog: pytest.LogCaptureFixture
) -> None:
    latents = torch.ones(1, 4, 2, 2)
    with torch.no_grad():
        assert not overflowing.decode(latents.half()).isfinite().all()
    wide = overflowing.decode_finite(latents)
    assert "the VAE's output overflowed in float16: such pictures are decoded again in float32" in caplog.text
    assert wide.dtype == torch.float32
    assert wide.isfinite().all()
    assert np.isfinite(np.asarray(Preview(Renderer(overflowing_models), "vae")(latents).images[0])).all()
    torch.testing.assert_close(wide, copy.deepcopy(overflowing).float().decode(latents), rtol=0, atol=0)
    assert len(caplog.records) == 1  # once, and so is the copy in float32


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


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_memory_that_runs_out_costs_a_preview_but_no_image(models: Models, error: Exception) -> None:
    """Finished images are decoded one by one; a preview that finds no room is left out."""
    vae, room = copy.copy(models.vae), 1

    def short_of_memory(latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > room:
            raise error
        return models.vae.decode_finite(latents)

    vae.decode_finite = short_of_memory  # type: ignore[method-assign]
    pipe, request = Pipeline(replace(models, vae=vae)), Request("a fox", num_images=3, num_inference_steps=2, seed=1)
    for image, expected in zip(pipe(request).images, Pipeline(models)(request).images, strict=True):
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1

    preview, latents = Preview(Renderer(pipe.models), "vae"), torch.zeros(2, 4, 8, 8)
    assert preview(latents) is not None
    room = 0
    assert preview(latents) is None
    with pytest.raises(type(error)):
        pipe(request)
