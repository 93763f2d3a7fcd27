"""Properties of the samplers: identities between them, exact denoisers, orders of accuracy, and no side effects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from stable_diffusion import samplers
from stable_diffusion.ddpm import DDPMSampler
from stable_diffusion.levels import SAMPLERS, Plan, plan
from stable_diffusion.loading.config import ConfigError, SchedulerConfig
from stable_diffusion.request import MAX_STEPS, SPACED_SAMPLERS, Request
from stable_diffusion.samplers import Sampling
from stable_diffusion.schedule import CLEAN, Level, NoiseSchedule, karras_sigmas
from tests.cases import in_pairs

SPACINGS = ["leading", "linspace", "trailing", None]
SHAPE = (2, 4, 3, 3)
Denoiser = Callable[[Tensor, Level], Tensor]


def make_schedule(**settings: object) -> NoiseSchedule:
    others = {name: settings.pop(name) for name in set(settings) - {f.name for f in fields(SchedulerConfig)}}
    return NoiseSchedule(SchedulerConfig(**{"steps_offset": 1} | settings, others={"clip_sample": False} | others))


class Draws:
    """A noise function that counts its calls."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.shape, self.dtype, self.calls = shape, dtype, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.randn(self.shape, generator=self.generator, dtype=self.dtype)


def drive(run: Sampling, denoiser: Denoiser) -> tuple[Tensor, list[tuple[Tensor, Level]]]:
    """Answer a sampler to its end; return its result, and the latents and levels that it asked about."""
    asked = [next(run)]
    while True:
        try:
            asked.append(run.send(denoiser(*asked[-1])))
        except StopIteration as stop:
            return stop.value, asked


def smooth_denoiser(x: Tensor, level: Level) -> Tensor:
    """Return an x_0 that depends on the latents and the noise level, but not on the form of the latents."""
    return torch.tanh(x / level.scale + math.atan(level.noise_to_signal))


def oracle(x_0: Tensor) -> Denoiser:
    """Return a denoiser that knows the clean image."""
    return lambda x, level: x_0


@in_pairs(name=SAMPLERS, n=[1, 2, 13, 50], spacing=SPACINGS, karras=[False, True], zero_snr=[False, True])
def test_noise_only_goes_down_and_an_oracle_recovers_x_0(
    name: str, n: int, spacing: str | None, karras: bool, zero_snr: bool
) -> None:
    """Every level of a run has less noise than the one before; a network that knows x_0 makes the run end there."""
    schedule = make_schedule(timestep_spacing=spacing, use_karras_sigmas=karras, rescale_betas_zero_snr=zero_snr)
    run = plan(name, schedule, n)
    assert len(run.steps) == n
    for here, there in run.steps:
        assert there.noise_to_signal < here.noise_to_signal
        assert 0 <= here.timestep <= 999
    end = run.steps[-1][1]
    assert end in (CLEAN, schedule.level(0))  # ddim's last stride may stop at timestep 0: trailing, n = 13

    noise = Draws(SHAPE)
    x_0 = Draws(SHAPE, seed=1)()
    x, asked = drive(run.run(run.start(noise()), noise), oracle(x_0))
    assert len(asked) == run.evaluations
    if end == CLEAN:  # lcm leaves a trace of x_t, of weight (0.5 / (10 t))^2
        torch.testing.assert_close(x, x_0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_takes_the_last_steps_of_the_whole_run(name: str) -> None:
    """A run of strength 0.35 starts from a partly noised image, whatever its form, and an oracle brings it back."""
    schedule = make_schedule()
    whole, part = plan(name, schedule, 20), plan(name, schedule, 20, strength=0.35)
    assert part.steps == whole.steps[-7:]
    assert (part.num_inference_steps, part.strength) == (20, 0.35)
    assert plan(name, schedule, 20, strength=1.0).steps == whole.steps
    assert plan(name, schedule, 20, strength=0.001).steps == whole.steps[-1:]

    noise = Draws(SHAPE)
    x_0 = Draws(SHAPE, seed=1)()
    start = part.start(noise(), x_0)
    assert (start - x_0).std() < 2
    x, _ = drive(part.run(start, noise), oracle(x_0))
    torch.testing.assert_close(x, x_0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_deterministic_and_changes_nothing_it_is_given(name: str, dtype: torch.dtype) -> None:
    """It keeps the latents' dtype, and it draws noise where the registry says so."""
    run, noise = plan(name, make_schedule(), 6), Draws((1, 4), dtype, seed=3)
    start = run.start(Draws((1, 4), dtype)())
    answers = []

    def denoiser(x: Tensor, level: Level) -> Tensor:
        answers.append(smooth_denoiser(x, level))
        return answers[-1]

    first, asked = drive(run.run(start, noise), denoiser)
    again, _ = drive(run.run(start, Draws((1, 4), dtype, seed=3)), smooth_denoiser)
    assert torch.equal(first, again)
    # torch counts the in-place changes of a tensor
    assert all(tensor._version == 0 for tensor in [start, first, *answers, *(x for x, _ in asked)])
    assert {first.dtype, *(x.dtype for x, _ in asked)} == {dtype}
    assert (noise.calls > 0) == run.sampler.draws_noise


@pytest.mark.parametrize("name", SAMPLERS)
def test_closing_a_run_stops_it_and_leaves_no_trace(name: str) -> None:
    run, noise = plan(name, make_schedule(), 6), Draws((1, 4))
    start = run.start(noise())
    whole, _ = drive(run.run(start, Draws((1, 4), seed=1)), smooth_denoiser)

    closed = run.run(start, noise)
    x, level = next(closed)
    closed.send(smooth_denoiser(x, level))
    calls = noise.calls
    closed.close()
    assert noise.calls == calls
    with pytest.raises(StopIteration):
        next(closed)

    after, _ = drive(run.run(start, Draws((1, 4), seed=1)), smooth_denoiser)
    assert torch.equal(after, whole)


def test_runs_do_not_share_state() -> None:
    """Two interleaved requests of a multistep sampler give what each gives alone."""
    run = plan("unipc", make_schedule(), 5)
    starts = [Draws((1, 4), seed=seed)() for seed in (1, 2)]
    alone = [drive(run.run(start, Draws((1, 4))), smooth_denoiser)[0] for start in starts]
    interleaved = [run.run(start, Draws((1, 4))) for start in starts]
    asked = [next(each) for each in interleaved]
    for _ in range(run.evaluations - 1):
        asked = [each.send(smooth_denoiser(*query)) for each, query in zip(interleaved, asked, strict=True)]
    for each, query, expected in zip(interleaved, asked, alone, strict=True):
        with pytest.raises(StopIteration) as stop:
            each.send(smooth_denoiser(*query))
        assert torch.equal(stop.value.value, expected)


# One method in two forms. The Euler family keeps alpha at 1, and the others keep alpha^2 + sigma^2 at 1.


def in_euler_form(run: Plan) -> list[samplers.Step]:
    return [tuple(Level(1.0, level.noise_to_signal, level.timestep) for level in step) for step in run.steps]


def test_ddpm_is_euler_ancestral() -> None:
    run = plan("ddpm", make_schedule(), 20)
    start = Draws((2, 4))()
    ddpm, _ = drive(samplers.ddpm(start, run.steps, Draws((2, 4), seed=1)), smooth_denoiser)
    alpha = run.steps[0][0].alpha
    euler_a, _ = drive(samplers.euler_a(start / alpha, in_euler_form(run), Draws((2, 4), seed=1)), smooth_denoiser)
    torch.testing.assert_close(ddpm, euler_a, rtol=1e-12, atol=1e-12)


def test_ddim_without_noise_is_euler() -> None:
    run = plan("ddim", make_schedule(), 20)
    start = Draws((2, 4))()
    ddim, _ = drive(samplers.ddim(start, run.steps, Draws((2, 4))), smooth_denoiser)
    alpha = run.steps[0][0].alpha
    euler, _ = drive(samplers.euler(start / alpha, in_euler_form(run), Draws((2, 4))), smooth_denoiser)
    torch.testing.assert_close(ddim, euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim_with_full_noise_is_ddpm(zero_snr: bool) -> None:
    schedule = make_schedule(timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr)
    steps = plan("ddpm", schedule, 20).steps
    start = Draws((2, 4))()
    ddpm, _ = drive(samplers.ddpm(start, steps, Draws((2, 4), seed=1)), smooth_denoiser)
    ddim = partial(samplers.ddim, eta=1.0)
    x, _ = drive(ddim(start, steps, Draws((2, 4), seed=1)), smooth_denoiser)
    torch.testing.assert_close(x, ddpm, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"clip_sample": True}, {"variance_type": "fixed_large"}])
def test_the_readable_ddpm_class_gives_the_samplers_result(settings: dict[str, object]) -> None:
    schedule = make_schedule(prediction_type="sample", **settings)
    start = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    readable = DDPMSampler(schedule, torch.Generator().manual_seed(0))
    readable.set_timesteps(15)
    x = start
    for t in readable.timesteps:
        x = readable.step(smooth_denoiser(x, schedule.level(t)), t, x)
    run = plan("ddpm", schedule, 15)
    expected, _ = drive(run.run(start, Draws((2, 4), torch.float32)), smooth_denoiser)
    torch.testing.assert_close(x, expected)


# Accuracy. For data N(0, variance) the probability flow is known: x / sqrt(variance + sigma^2) does not change.


def flow_error(name: str, n: int, variance: float = 0.25) -> float:
    """Return the relative error of a sampler against the exact flow from sigma 10 to 0.1."""
    sigmas = karras_sigmas(0.1, 10.0, n + 1)
    exploding = name in ("euler", "heun")
    alphas = np.ones_like(sigmas) if exploding else 1 / np.hypot(sigmas, 1)
    levels = [Level(float(alpha), float(alpha * sigma), 1.0) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    steps = list(pairwise(levels))

    def denoiser(x: Tensor, level: Level) -> Tensor:
        return x / level.alpha * variance / (variance + level.noise_to_signal**2)

    start = torch.tensor([levels[0].alpha * 10.0], dtype=torch.float64)
    x, _ = drive(SAMPLERS[name].function(start, steps, Draws((1,))), denoiser)
    exact = levels[-1].alpha * 10.0 * math.sqrt((variance + 0.1**2) / (variance + 10.0**2))
    return abs(x.item() / exact - 1)


@pytest.mark.parametrize(
    ("method", "order", "degree"),
    [("curved", 2, 1), ("curved", 3, 1), ("predictor", 3, 2), ("corrector", 2, 2), ("corrector", 3, 3)],
)
def test_a_multistep_solver_is_exact_for_polynomials(method: str, order: int, degree: int) -> None:
    """The x_0 that it holds constant is the mean of x_0 over the step, weighted by e^lambda."""
    levels = [Level(float(1 / np.hypot(s, 1)), float(s / np.hypot(s, 1)), 1.0) for s in (0.5, 0.9, 2.0, 5.0)]
    there, *asked = levels

    def x_0(half_log_snr: float) -> Tensor:
        return torch.tensor([half_log_snr**degree], dtype=torch.float64)

    past = [(level, x_0(level.half_log_snr)) for level in asked[:order]]
    points = np.linspace(asked[0].half_log_snr, there.half_log_snr, 200_001)
    middles = (points[1:] + points[:-1]) / 2
    if method == "curved":
        actual = samplers._extrapolate(past, there, curved=True)
    else:
        actual = samplers._unify(past, there, x_0(there.half_log_snr) if method == "corrector" else None)
    assert actual.item() == pytest.approx(np.average(middles**degree, weights=np.exp(middles)), rel=1e-8)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 2)])
def test_halving_the_steps_shrinks_the_error_as_the_order_says(name: str, order: int) -> None:
    coarse, fine = flow_error(name, 40), flow_error(name, 80)
    assert fine < 0.05
    assert math.log2(coarse / fine) > order - 0.2
    if order == 2:
        assert fine < flow_error("euler", 80) / 10


def test_the_stochastic_solver_keeps_the_marginal() -> None:
    """For data N(0, 0.25) the latents at sigma have variance 0.25 + sigma^2, whatever noise was drawn."""
    variance, sigmas = 0.25, karras_sigmas(0.1, 10.0, 61)
    levels = [Level(float(1 / np.hypot(s, 1)), float(s / np.hypot(s, 1)), 1.0) for s in sigmas]
    start = Draws((20_000,))() * math.sqrt(levels[0].alpha ** 2 * variance + levels[0].sigma ** 2)

    def denoiser(x: Tensor, level: Level) -> Tensor:
        return x * level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)

    steps = list(pairwise(levels))
    x, _ = drive(samplers.dpmpp_2m_sde(start, steps, Draws((20_000,), seed=1)), denoiser)
    expected = math.sqrt(levels[-1].alpha ** 2 * variance + levels[-1].sigma ** 2)
    assert x.std().item() == pytest.approx(expected, rel=0.03)


# Plans.


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
def test_schedules_span_the_same_noise(schedule: str) -> None:
    for name in SPACED_SAMPLERS:
        plain, spaced = plan(name, make_schedule(), 10), plan(name, make_schedule(), 10, schedule=schedule)
        assert plain.steps != spaced.steps
        assert spaced.steps[0][0].noise_to_signal == pytest.approx(plain.steps[0][0].noise_to_signal, rel=1e-5)


def test_a_sampler_without_sigma_schedules_refuses_them() -> None:
    for name in set(SAMPLERS) - set(SPACED_SAMPLERS):
        with pytest.raises(ValueError, match=rf"model or uniform for the sampler {name}, got 'karras'"):
            plan(name, make_schedule(), 10, schedule="karras")
        with pytest.raises(ValueError, match=r"choose one of those, or a sampler of euler, heun"):
            Request("a fox", sampler=name, schedule="beta")
        assert plan(name, make_schedule(), 10, schedule="uniform").steps == plan(name, make_schedule(), 10).steps
    with pytest.raises(ValueError, match=r"schedule must be one of model, .*, got 'normal'"):
        plan("euler", make_schedule(), 10, schedule="normal")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ddim", {"thresholding": True}, r"sampler ddim: .* thresholding=True, and only False .* another sampler"),
        ("euler", {"interpolation_type": "log_linear"}, r"interpolation_type='log_linear', and only 'linear'"),
        ("dpmpp_2m_sde", {"solver_order": 3}, r"solver_order=3, and only 2, 1"),
        ("lcm", {"timestep_scaling": "ten"}, r"timestep_scaling='ten', which must be a valid number"),
        (
            "lcm",
            {"original_inference_steps": 0},
            r"original_inference_steps=0, which must be greater than",
        ),
        ("heun", {"use_karras_sigmas": True, "use_beta_sigmas": True}, r"use_karras_sigmas and use_beta_sigmas"),
    ],
)
def test_a_setting_that_a_sampler_lacks_is_refused_by_that_sampler_alone(
    name: str, settings: dict[str, object], message: str
) -> None:
    schedule = make_schedule(**settings)
    with pytest.raises(ConfigError, match=message):
        plan(name, schedule, 10)
    assert plan("euler_a", schedule, 10)


def test_lcm_visits_timesteps_of_its_distillation() -> None:
    timesteps = [here.timestep for here, _ in plan("lcm", make_schedule(), 4).steps]
    assert timesteps == [999, 759, 499, 259]


def test_impossible_plans_are_refused_with_the_reason() -> None:
    schedule = make_schedule()
    with pytest.raises(ValueError, match=r"sampler must be one of ddpm, ddim, .*, got 'plms'"):
        plan("plms", schedule, 10)
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\], got 1\.4"):
        plan("ddpm", schedule, 10, strength=1.4)
    with pytest.raises(ValueError, match=r"num_inference_steps must be between 1 and 50 for lcm, got 51"):
        plan("lcm", schedule, 51)
    with pytest.raises(ValueError, match=r"num_inference_steps must be between 1 and 1000, got 0"):
        plan("ddpm", schedule, 0)
    with pytest.raises(ValueError, match=r"x_0 must be given for strength 0\.5"):
        plan("ddpm", schedule, 10, strength=0.5).start(torch.zeros(1))


@in_pairs(sampler=sorted(set(SAMPLERS) - {"lcm"}), spacing=["linspace", "trailing"])
def test_a_step_for_every_timestep_is_planned_or_refused_with_the_largest_number(sampler: str, spacing: str) -> None:
    """Multistep samplers need one timestep more than they take steps, so that 999 is their largest number."""
    schedule, most, refusal = make_schedule(timestep_spacing=spacing), MAX_STEPS, ""
    try:
        plan(sampler, schedule, most)
    except ValueError as error:
        most, refusal = MAX_STEPS - 1, str(error)
    assert len(plan(sampler, schedule, most).steps) == most
    assert refusal in ("", "num_inference_steps must be between 1 and 999, got 1000: choose a number in that range")
