"""DDPM against first principles: Bayes' rule, a closed-form bound, and the identities of the loss."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from stable_diffusion.ddpm import DDPMSampler, Posterior, q_sample, training_loss, variational_bound
from stable_diffusion.loading.config import SchedulerConfig
from stable_diffusion.schedule import NoiseSchedule, predict_x_0


def make_schedule(**settings: object) -> NoiseSchedule:
    return NoiseSchedule(SchedulerConfig(**settings))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("now", "before"), [(0.3, 0.35), (0.005, 0.9), (0.0, 0.2)])
def test_posterior_is_bayes_rule(now: float, before: float) -> None:
    """Given x_0, x_t and x_prev are jointly Gaussian: condition one on the other."""
    alpha = now / before
    mean_prev, mean_now = math.sqrt(before), math.sqrt(now)  # per unit of x_0
    variance_prev, variance_now = 1 - before, 1 - now
    gain = math.sqrt(alpha) * variance_prev / variance_now  # covariance over variance

    posterior = Posterior.between(now, before)
    assert posterior.x_t_weight == pytest.approx(gain)
    assert posterior.x_0_weight == pytest.approx(mean_prev - gain * mean_now)
    assert posterior.variance == pytest.approx(variance_prev - gain**2 * variance_now)
    assert Posterior.between(0.7, 1.0) == Posterior(x_0_weight=1.0, x_t_weight=0.0, variance=0.0)


def test_forward_process_reaches_unit_variance_noise() -> None:
    schedule = make_schedule(rescale_betas_zero_snr=True)
    noise = torch.randn(2, 4, generator=generator())
    assert torch.equal(q_sample(schedule, torch.full((2, 4), 7.0), torch.tensor([999, 999]), noise), noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sampling_with_an_oracle_recovers_x_0(prediction_type: str) -> None:
    schedule = make_schedule(prediction_type=prediction_type)
    x_0 = torch.randn(2, 4, 3, 3, generator=generator(1))
    sampler = DDPMSampler(schedule, generator())
    sampler.set_timesteps(20)
    x = torch.randn(x_0.shape, generator=generator(2))
    for t in sampler.timesteps:
        level = schedule.level(t)
        eps = (x - level.alpha * x_0) / level.sigma
        x = sampler.step(eps if prediction_type == "epsilon" else level.alpha * eps - level.sigma * x_0, t, x)
    torch.testing.assert_close(x, x_0, rtol=1e-4, atol=1e-4)


def test_ancestral_steps_keep_the_marginal() -> None:
    """Noising to t and drawing from the posterior is noising to t_prev: the mean and variance add up."""
    schedule = make_schedule()
    sampler = DDPMSampler(schedule, generator())
    sampler.set_timesteps(10)
    t, t_prev = sampler.timesteps[3:5]
    x_0 = torch.full((20_000, 1), 1.5)
    x_t = sampler.add_noise(x_0, t)
    eps = (x_t - schedule.level(t).alpha * x_0) / schedule.level(t).sigma
    x_prev = sampler.step(eps, t, x_t)
    level = schedule.level(t_prev)
    assert x_prev.mean().item() == pytest.approx(1.5 * level.alpha, abs=0.03)
    assert x_prev.std().item() == pytest.approx(level.sigma, rel=0.03)


def test_strength_does_not_compound() -> None:
    sampler = DDPMSampler(make_schedule())
    sampler.set_timesteps(50)
    whole = sampler.timesteps
    sampler.set_strength(0.58)
    assert sampler.timesteps == whole[22:]
    sampler.set_strength(0.58)
    assert sampler.timesteps == whole[22:]
    sampler.set_strength(0.001)
    assert sampler.timesteps == whole[-1:]
    sampler.set_strength(1.0)
    assert sampler.timesteps == whole


def test_sampling_changes_no_input_and_no_global_state() -> None:
    state = torch.random.get_rng_state()
    sampler = DDPMSampler(make_schedule(), generator())
    sampler.set_timesteps(5)
    x, prediction = torch.randn(2, 1, 4, generator=generator()).unbind()
    before = x.clone(), prediction.clone()
    sampler.step(prediction, sampler.timesteps[0], x)
    assert torch.equal(x, before[0])
    assert torch.equal(prediction, before[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_loss_of_a_perfect_model_is_zero() -> None:
    x_0 = torch.randn(6, 4, generator=generator(1))
    noise = torch.randn(6, 4, generator=generator(2))
    t = torch.tensor([0, 1, 400, 700, 998, 999])
    schedule = make_schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    targets = {"epsilon": noise, "v_prediction": schedule.velocity(x_0, noise, t), "sample": x_0}
    for prediction_type, target in targets.items():
        loss = training_loss(
            lambda x, t, target=target: target, x_0, schedule, t=t, noise=noise, prediction_type=prediction_type
        )
        assert loss.item() == 0
    # and by default it is the configuration's own quantity that the model has to predict
    assert training_loss(lambda x, t: targets["v_prediction"], x_0, schedule, t=t, noise=noise).item() == 0
    assert training_loss(lambda x, t: targets["epsilon"], x_0, schedule, t=t, noise=noise).item() > 0


def test_the_model_sees_noised_latents_and_their_timesteps() -> None:
    schedule = make_schedule()
    x_0 = torch.randn(3, 4, generator=generator(1))
    noise = torch.randn(3, 4, generator=generator(2))
    t = torch.tensor([3, 500, 900])

    def model(x_t: Tensor, seen: Tensor) -> Tensor:
        assert torch.equal(seen, t)
        torch.testing.assert_close(x_t, schedule.add_noise(x_0, noise, t))
        return torch.zeros_like(x_t)

    assert training_loss(model, x_0, schedule, t=t, noise=noise).item() == pytest.approx(noise.square().mean().item())


def test_the_loss_draws_from_its_generator_only() -> None:
    schedule = make_schedule()
    x_0 = torch.randn(8, 4, generator=generator(1))
    seen = []

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x_t

    state = torch.random.get_rng_state()
    losses = [training_loss(model, x_0, schedule, generator=generator(seed)).item() for seed in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.cat(seen).min() >= 0
    assert torch.cat(seen).max() < 1000
    assert len(set(torch.cat(seen).tolist())) > 8


def test_min_snr_weighting_means_the_same_for_every_prediction_type() -> None:
    """For every prediction type the weighted loss is min(SNR, gamma) times the error of the implied x_0."""
    schedule = make_schedule()
    x_0 = torch.randn(5, 8, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(5, 8, generator=generator(2), dtype=torch.float64)
    t = torch.tensor([10, 200, 400, 700, 999])
    x_t = schedule.add_noise(x_0, noise, t)
    wrong = torch.randn(5, 8, generator=generator(3), dtype=torch.float64)
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        alpha, sigma = schedule.alpha_sigma(t, x_0)
        error = predict_x_0(wrong, x_t, alpha, sigma, prediction_type) - x_0
        expected = (schedule.snr(t).clamp(max=5.0)[:, None] * error.square()).mean().item()
        loss = training_loss(
            lambda x, t: wrong, x_0, schedule, t=t, noise=noise, prediction_type=prediction_type, snr_gamma=5.0
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_zero_terminal_snr_leaves_the_loss_finite() -> None:
    schedule, t = make_schedule(rescale_betas_zero_snr=True), torch.full((3,), 999)
    for kind, gamma in product(("epsilon", "v_prediction", "sample"), (None, 5.0)):
        options = {"generator": generator(), "prediction_type": kind, "snr_gamma": gamma}
        assert training_loss(lambda x, t: x * 0.5, torch.ones(3, 4), schedule, t=t, **options).isfinite()


def gaussian_denoiser(schedule: NoiseSchedule, variance: float):
    """Return the best eps for data N(0, variance): E[x_0 | x_t] is linear in x_t."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t, x_t)
        x_0 = alpha * variance / (alpha**2 * variance + sigma**2) * x_t
        return (x_t - alpha * x_0) / sigma

    return model


@pytest.mark.parametrize("timesteps", [None, [39, 30, 12, 5]])
def test_the_bound_of_gaussian_data_in_closed_form(timesteps: list[int] | None) -> None:
    variance, dimensions = 2.5, 16
    schedule = make_schedule(num_train_timesteps=40, beta_schedule="linear", beta_start=0.01, beta_end=0.3)
    x_0 = torch.randn(2000, dimensions, generator=generator()) * variance**0.5
    bound = variational_bound(
        gaussian_denoiser(schedule, variance), x_0, schedule, generator=generator(1), timesteps=timesteps
    )

    chain = timesteps if timesteps is not None else list(range(39, -1, -1))
    ab = schedule.alphas_cumprod

    def error(t: int) -> float:
        """Return the expected squared error of E[x_0 | x_t] for each dimension."""
        return (variance * (1 - ab[t]) / (ab[t] * variance + 1 - ab[t])).item()

    last, first = chain[-1], chain[0]
    prior = 0.5 * (ab[first] * (variance - 1) - torch.log(1 - ab[first])).item()
    reconstruction = 0.5 * (math.log(2 * math.pi * (1 - ab[last])) + error(last) / (1 - ab[last]).item())
    kl = []
    for t, s in pairwise(chain):
        beta = 1 - ab[t] / ab[s]
        gain = (ab[s].sqrt() * beta / (1 - ab[t])).item()
        kl.append(gain**2 * error(t) / (2 * beta * (1 - ab[s]) / (1 - ab[t])).item())

    assert bound.prior.mean().item() / dimensions == pytest.approx(prior, rel=0.03, abs=1e-4)
    assert bound.reconstruction.mean().item() / dimensions == pytest.approx(reconstruction, rel=0.03)
    assert (bound.kl.mean(dim=0) / dimensions).tolist() == pytest.approx(kl, rel=0.05)
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    assert prior + sum(kl) + reconstruction > entropy
    assert bound.total.mean().item() / dimensions == pytest.approx(prior + sum(kl) + reconstruction, rel=0.02)
    assert bound.bits_per_dim.mean().item() == pytest.approx(bound.total.mean().item() / dimensions / math.log(2))


@pytest.mark.parametrize("zero_snr", [False, True])
def test_divergences_are_never_negative_and_an_oracle_has_none(zero_snr: bool) -> None:
    schedule = make_schedule(
        num_train_timesteps=50, rescale_betas_zero_snr=zero_snr, prediction_type="sample", beta_end=0.2
    )
    x_0 = torch.randn(3, 4, 2, generator=generator())
    poor = variational_bound(lambda x, t: 3 * x, x_0, schedule, generator=generator(1))
    assert poor.kl.shape == (3, 49)
    assert (poor.kl > 0).all()
    # one example's squared norm may be below the dimension, but its divergence from N(0, 1) is not below zero
    assert (poor.prior >= 0).all()
    assert (poor.prior == 0).all() == zero_snr
    oracle = variational_bound(lambda x, t: x_0, x_0, schedule, generator=generator(1))
    assert (oracle.kl == 0).all()
    assert (oracle.total < poor.total).all()


@pytest.mark.parametrize("timesteps", [[], [1, 2], [5, 5, 1]])
def test_a_chain_must_descend(timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match="timesteps must be strictly descending"):
        variational_bound(lambda x, t: x, torch.zeros(1, 2), make_schedule(), timesteps=timesteps)
