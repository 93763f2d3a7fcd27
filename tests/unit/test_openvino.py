"""OpenVINO's U-Net answers as ours at every size, and runs only where it is right and faster."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stable_diffusion.compute import openvino as openvino_backend
from stable_diffusion.compute.openvino import OpenVINOUNet, converted, use_where_faster
from stable_diffusion.compute.packed import for_inference
from stable_diffusion.inspect.look_inside import look_inside
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from tests.parity.pairs import BOUND, difference, gaussian
from tests.tiny import KINDS, save_model

pytest.importorskip("openvino", reason="optional: pip install openvino")


@pytest.fixture(params=KINDS)
def pipe(request: pytest.FixtureRequest, tmp_path: Path) -> Pipeline:
    return Pipeline(load(save_model(tmp_path / "model", request.param), device="cpu"))


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "WORTHWHILE", float("inf"))


def test_a_run_draws_what_ours_draws(pipe: Pipeline, tmp_path: Path, always_faster: None) -> None:
    """Also at other sizes, for more pictures, and with attention recorded, which is ours; kept for the next time."""
    wanted = [
        {"num_inference_steps": 3, "seed": 1, "sampler": "ddim", "num_images": count, "width": width, "height": height}
        for count, width, height in ((1, 64, 64), (3, 64, 64), (1, 96, 40))
    ]
    ours = [pipe("a red fox", **options).latents for options in wanted]
    assert use_where_faster(pipe.models.unet, torch.float32, tmp_path)
    assert isinstance(for_inference(pipe.models.unet), OpenVINOUNet)
    assert not pipe("a red fox", **wanted[0]).latents.equal(ours[0])  # other sums, so OpenVINO's
    for options, expected in zip(wanted, ours, strict=True):
        assert difference((pipe("a red fox", **options).latents, expected)) <= BOUND
        *_, inside = look_inside(pipe, "a red fox", **options)
        assert difference((inside.step.final, expected)) <= BOUND
    [kept] = tmp_path.glob("*.xml")
    assert converted(copy.deepcopy(pipe.models.unet), tmp_path) == kept


def test_other_weights_are_converted_anew(pipe: Pipeline, tmp_path: Path) -> None:
    changed = copy.deepcopy(pipe.models.unet)
    changed.conv_out.bias.data[0] += 1e-3
    assert converted(changed, tmp_path) != converted(pipe.models.unet, tmp_path)


def test_a_slower_or_wrong_network_is_not_taken(
    pipe: Pipeline, tmp_path: Path, always_faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = pipe.models.unet
    ours = for_inference(unet)
    with monkeypatch.context() as patched:
        patched.setattr(openvino_backend, "WORTHWHILE", 0.0)
        assert not use_where_faster(unet, torch.float32, tmp_path)

    def wrong(self: OpenVINOUNet, latents: Tensor, *others: Tensor) -> Tensor:
        return torch.full_like(latents, torch.nan)

    monkeypatch.setattr(OpenVINOUNet, "evaluate", wrong)
    assert not use_where_faster(unet, torch.float32, tmp_path)
    assert for_inference(unet) is ours


@torch.no_grad()
@pytest.mark.parametrize("timestep", [1.0, 501.0, 999.0])
def test_bfloat16_is_no_farther_from_float32_than_ours(pipe: Pipeline, tmp_path: Path, timestep: float) -> None:
    """Both round alike, in another order, give or take half for chance; also at timesteps that it does not hold."""
    half, exact = load(pipe.models.source, device="cpu", dtype=torch.bfloat16).unet, pipe.models.unet
    latents, times = gaussian(2, 4, 8, 8), torch.tensor([timestep, timestep])
    words = exact.read(gaussian(2, 77, half.config.cross_attention_dim))
    true = exact(latents, times, words)
    ours = for_inference(half, torch.bfloat16)
    errors = []
    for network in (OpenVINOUNet(half, ours, torch.bfloat16, tmp_path), ours):
        answer = network(latents.bfloat16(), times, words.bfloat16())
        assert answer.dtype == torch.bfloat16
        errors.append((answer.float() - true).norm())
    assert errors[0] <= 1.5 * errors[1]
