"""The noise schedule against its papers' formulas: betas, terminal SNR, grids, strength, conversions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from stable_diffusion.loading.config import SchedulerConfig
from stable_diffusion.request import steps_for_strength
from stable_diffusion.schedule import (
    CLEAN,
    Level,
    NoiseSchedule,
    beta_quantiles,
    predict_x_0,
    rescale_zero_terminal_snr,
)


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule(SchedulerConfig(steps_offset=1))


def test_stable_diffusions_schedule_in_numbers(schedule: NoiseSchedule) -> None:
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([0.00085, 0.012])
    assert schedule.sigmas[[0, -1]].tolist() == pytest.approx([0.029167, 14.614647], rel=1e-5)


def test_trained_betas_are_taken_as_they_are() -> None:
    betas = tuple(0.01 * n for n in range(1, 11))
    schedule = NoiseSchedule(SchedulerConfig(num_train_timesteps=10, trained_betas=betas))
    assert schedule.alphas_cumprod.tolist() == pytest.approx(np.cumprod(1 - np.array(betas)).tolist())


def test_cosine_schedule_caps_its_last_beta() -> None:
    schedule = NoiseSchedule(SchedulerConfig(beta_schedule="squaredcos_cap_v2"))
    assert schedule.betas.max().item() == 0.999
    # 500 / 1000 is the middle of the cosine, but for its offset of 0.008
    assert schedule.alphas_cumprod[499].item() == pytest.approx(np.cos(0.508 / 1.008 * np.pi / 2) ** 2, rel=1e-3)


def test_zero_terminal_snr() -> None:
    plain = NoiseSchedule(SchedulerConfig())
    schedule = NoiseSchedule(SchedulerConfig(rescale_betas_zero_snr=True))
    assert schedule.alphas_cumprod[-1].item() == 0
    assert schedule.betas[-1].item() == 1
    assert schedule.alphas_cumprod[0].item() == pytest.approx(plain.alphas_cumprod[0].item())
    torch.testing.assert_close(torch.cumprod(1 - schedule.betas, 0), schedule.alphas_cumprod)
    assert schedule.sigmas[-1].item() == pytest.approx(4096, rel=1e-6)
    assert schedule.level(999) == Level(0.0, 1.0, 999.0)
    assert schedule.level(999).noise_to_signal == float("inf")


def test_rescaling_does_not_change_its_argument() -> None:
    betas = torch.linspace(0.001, 0.02, 10, dtype=torch.float64)
    before = betas.clone()
    rescale_zero_terminal_snr(betas)
    assert torch.equal(betas, before)


def test_grids(schedule: NoiseSchedule) -> None:
    """Table 2 of arXiv:2305.08891, with Stable Diffusion's offset of 1 for leading."""
    assert schedule.timesteps(5, "leading").tolist() == [801, 601, 401, 201, 1]
    assert schedule.timesteps(5, "linspace").tolist() == [999, 749.25, 499.5, 249.75, 0]
    assert schedule.timesteps(5, "trailing").tolist() == [999, 799, 599, 399, 199]
    # A spare point lies below the grid.
    assert schedule.timesteps(4, "leading", spare=1).tolist() == [801, 601, 401, 201]
    assert schedule.timesteps(4, "linspace", spare=1).tolist() == [999, 749.25, 499.5, 249.75]
    assert schedule.timesteps(4, "trailing", spare=1).tolist() == [999, 749, 499, 249]


def test_wrong_arguments_are_named(schedule: NoiseSchedule) -> None:
    for n in (0, -1, 1001):
        with pytest.raises(ValueError, match=rf"num_inference_steps must be between 1 and 1000, got {n}"):
            schedule.timesteps(n, "linspace")
    with pytest.raises(ValueError, match=r"timestep_spacing must be .* got 'uniform'"):
        schedule.timesteps(5, "uniform")
    for strength in (0, -0.5, 1.4, float("nan")):
        with pytest.raises(ValueError, match=rf"strength must be in \(0, 1\], got {strength}"):
            steps_for_strength(50, strength)
    with pytest.raises(ValueError, match=r"prediction_type must be .* got 'flow'"):
        predict_x_0(torch.zeros(1), torch.zeros(1), 1.0, 1.0, "flow")


def test_strength_truncates_but_leaves_a_step() -> None:
    for n, strength, steps in ((50, 0.58, 28), (50, 1.0, 50), (10, 0.01, 1), (1, 0.5, 1)):
        assert steps_for_strength(n, strength) == steps


def test_beta_quantiles_against_scipy() -> None:
    p = np.concatenate([np.linspace(0, 1, 101), [1e-9, 0.5 - 1e-12, 0.5 + 1e-12, 1 - 1e-9]])
    np.testing.assert_allclose(beta_quantiles(p), scipy.stats.beta.ppf(p, 0.6, 0.6), rtol=1e-12, atol=1e-14)


def test_sigmas_and_timesteps_are_each_others_inverse(schedule: NoiseSchedule) -> None:
    timesteps = np.array([0.0, 1.0, 250.0, 998.0, 999.0])
    np.testing.assert_allclose(schedule.timestep_at(schedule.sigma_at(timesteps)), timesteps, atol=1e-9)
    assert schedule.timestep_at(np.array([1e-6, 1e6])).tolist() == [0, 999]
    # linear in sigma one way, in log sigma the other: the geometric mean lies half-way
    between = schedule.sigmas[500:502].prod().sqrt().item()
    assert schedule.timestep_at(np.array([between])).item() == pytest.approx(500.5)


def test_levels(schedule: NoiseSchedule) -> None:
    level = schedule.level(500)
    assert level.alpha**2 == pytest.approx(schedule.alphas_cumprod[500].item())
    assert level.scale == pytest.approx(1)
    assert level.noise_to_signal == pytest.approx(schedule.sigmas[500].item())
    assert level.half_log_snr == pytest.approx(-np.log(schedule.sigmas[500].item()))
    assert schedule.level(-1) is CLEAN
    assert CLEAN.half_log_snr == float("inf")
    assert Level(1.0, 3.0, 0.0).scale == pytest.approx(10**0.5)


def test_adding_noise_takes_a_timestep_an_example(schedule: NoiseSchedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 4, 5, 5, generator=generator).unbind()
    before = x_0.clone(), noise.clone()
    x_t = schedule.add_noise(x_0, noise, torch.tensor([0, 500, 999]))
    for row, t in enumerate((0, 500, 999)):
        level = schedule.level(t)
        torch.testing.assert_close(x_t[row], level.alpha * x_0[row] + level.sigma * noise[row])
    assert x_t.dtype == torch.float32
    assert torch.equal(x_0, before[0])
    assert torch.equal(noise, before[1])


@pytest.mark.parametrize("zero_snr", [False, True])
def test_velocity_gives_x_0_back_at_every_timestep(zero_snr: bool) -> None:
    schedule = NoiseSchedule(SchedulerConfig(prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr))
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 1, 500, 998, 999])
    x_0, noise = torch.randn(2, len(t), 3, generator=generator).unbind()
    velocity = schedule.velocity(x_0, noise, t)
    torch.testing.assert_close(schedule.predict_x_0(velocity, schedule.add_noise(x_0, noise, t), t), x_0)


@pytest.mark.parametrize("level", [Level(0.6, 0.8, 0.0), Level(1.0, 0.5, 0.0), Level(1.0, 12.0, 0.0)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predictions_of_every_type_and_form_give_x_0(level: Level, prediction_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 4, dtype=torch.float64, generator=generator).unbind()
    x = level.alpha * x_0 + level.sigma * eps
    # the network sees x / scale, and its velocity is that of the variance-preserving latents
    velocity = (level.alpha * eps - level.sigma * x_0) / level.scale
    prediction = {"epsilon": eps, "v_prediction": velocity, "sample": x_0}[prediction_type]
    torch.testing.assert_close(predict_x_0(prediction, x, level.alpha, level.sigma, prediction_type), x_0)
