"""Four evaluations: the segments, the step of DDIM and its inverse, and an adapter that begins as nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stable_diffusion.diffusion import UNet
from stable_diffusion.schedule import NoiseSchedule
from training.networks.low_rank import LowRankAdapter
from training.networks.train_turbo import CLEAN, consistency_loss, ddim, draw_grid, implied_x_0, segment_ends
from training.networks.train_unet import SCHEDULER

from .test_train_text_encoder import CAPTIONS, UNET, caption_tokens, teacher  # noqa: F401

SCHEDULE = NoiseSchedule(SCHEDULER)


def test_segments_end_where_four_trailing_steps_do() -> None:
    steps = SCHEDULE.timesteps(4, "trailing").tolist()
    assert segment_ends(torch.tensor(steps)).tolist() == [*steps[1:], CLEAN]
    assert segment_ends(torch.tensor([949, 799, 49])).tolist() == [749, 749, CLEAN]


def test_timesteps_lie_on_the_teachers_grid_and_often_at_a_segments_start() -> None:
    t = draw_grid(4000, torch.Generator().manual_seed(0))
    assert set(t.tolist()) == set(range(49, 1000, 50))
    assert 0.45 < torch.isin(t, torch.tensor([999, 749, 499, 249])).float().mean() < 0.6


@pytest.mark.parametrize(("t", "end"), [(999, 749), (749, 499), (299, 249), (249, CLEAN)])
def test_the_implied_x_0_is_the_one_that_the_step_was_made_with(t: int, end: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, velocity = torch.randn((2, 3, 4, 2, 2), generator=generator)
    now, then = torch.full((3,), t), torch.full((3,), end)
    alpha, sigma = SCHEDULE.alpha_sigma(now, x_t)
    x_end = ddim(SCHEDULE, x_t, velocity, now, then)
    expected = alpha * x_t - sigma * velocity
    torch.testing.assert_close(implied_x_0(SCHEDULE, x_t, x_end, now, then), expected, rtol=1e-3, atol=1e-3)


def test_an_adapter_begins_as_nothing_and_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet(UNET).requires_grad_(False)
    adapter = LowRankAdapter(unet, rank=4)
    words = torch.randn(2, 5, unet.read(torch.randn(1, 1, 32)).shape[2])
    x_t, t = torch.randn(2, 4, 4, 4), torch.tensor([999.0, 49.0])
    torch.testing.assert_close(adapter.predict(x_t, t, words), unet(x_t, t, words))
    with torch.no_grad():
        for up in adapter.ups:
            up += 0.05 * torch.randn_like(up)
    changed = adapter.predict(x_t, t, words)
    assert (changed - unet(x_t, t, words)).abs().max() > 1e-3
    assert not any("attn2.to_k" in name or "attn2.to_v" in name for name in adapter.names)
    adapter.save(tmp_path / "lora.safetensors")
    again = LowRankAdapter(unet, rank=4)
    again.load(tmp_path / "lora.safetensors")
    torch.testing.assert_close(again.predict(x_t, t, words), changed, rtol=0.02, atol=0.02)


def test_the_loss_trains_the_adapter_alone(teacher) -> None:  # noqa: F811
    adapter = LowRankAdapter(teacher.unet, rank=4)
    tokens = caption_tokens(teacher.tokenizer, ["", *CAPTIONS]).long()
    latents, noise = torch.randn((2, len(CAPTIONS), 4, 4, 4), generator=torch.Generator().manual_seed(1))
    loss = consistency_loss(teacher)(adapter, tokens, latents, torch.tensor([999, 949, 249, 49]), noise)
    loss.backward()
    assert loss.item() > 0
    assert all(up.grad is not None and up.grad.abs().sum() > 0 for up in adapter.ups)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_file_of_a_higher_rank_keeps_its_largest_singular_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet(UNET).requires_grad_(False)
    large, small = LowRankAdapter(unet, rank=4), LowRankAdapter(unet, rank=2)
    with torch.no_grad():
        for up in large.ups:
            up += torch.randn_like(up)
    large.save(tmp_path / "lora.safetensors")
    small.load(tmp_path / "lora.safetensors")
    for up, down, less_up, less_down in zip(large.ups, large.downs, small.ups, small.downs, strict=True):
        values = torch.linalg.svdvals(up @ down)
        error = torch.linalg.matrix_norm(up @ down - less_up @ less_down)
        torch.testing.assert_close(error, values[2:].norm(), rtol=0.02, atol=0.01)
