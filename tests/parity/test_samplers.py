"""Each sampler gives the run that diffusers' scheduler class of its name gives, from the same noise and network."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator

import diffusers
import pytest
import torch
from torch import Tensor, nn

from stable_diffusion.levels import SAMPLERS, SPACED_SIGMAS, Sampler, plan
from stable_diffusion.loading.config import SchedulerConfig
from stable_diffusion.loading.scheduler_settings import NO_EFFECT, RULES, Rule
from stable_diffusion.request import SCHEDULE_LABELS, SPACED_SAMPLERS
from stable_diffusion.schedule import NoiseSchedule, predict_x_0

diffusers.utils.logging.set_verbosity_error()

SHAPE = (2, 4, 6, 5)
SILENT = "silent"
SPACINGS = ["leading", "linspace", "trailing", None]  # None: the configuration names none


def stable_diffusion(**settings: object) -> SchedulerConfig:
    """The scheduler of Stable Diffusion, but for `settings`; those that are `SILENT` are in no file."""
    usual = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return SchedulerConfig.from_dict({name: value for name, value in (usual | settings).items() if value != SILENT})


def zero_terminal_snr(spacing: str | None) -> SchedulerConfig:
    return stable_diffusion(prediction_type="v_prediction", timestep_spacing=spacing, rescale_betas_zero_snr=True)


def make_network() -> nn.Conv2d:
    """A fixed little convolution, which `evaluate` makes a smooth function of latents and timestep."""
    network = nn.Conv2d(4, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return network.requires_grad_(False)


NETWORK = make_network()


def evaluate(x: Tensor, timestep: float | Tensor) -> Tensor:
    t = torch.as_tensor(timestep, dtype=torch.float32) / 1000
    hidden = torch.nn.functional.conv2d(x, NETWORK.weight.to(x), NETWORK.bias.to(x), padding=1)
    return 0.6 * t.sqrt() * x + torch.tanh(hidden) * (1.1 - t) + 0.1 * torch.sin(7 * t)


def gaussian(seed: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Draws of float32, which are the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(SHAPE, generator=generator).to(dtype)


def run_ours(name: str, config: SchedulerConfig, n: int, strength: float | None, dtype: torch.dtype) -> Tensor:
    draws = gaussian(1, dtype)
    image = next(gaussian(2, dtype)) if strength is not None else None
    run = plan(name, NoiseSchedule(config), n, strength)
    sampler = run.run(run.start(next(draws), image), lambda: next(draws))
    x, level = next(sampler)
    for evaluations in range(1, 1000):
        prediction = evaluate(x / level.scale, level.timestep)
        x_0 = predict_x_0(prediction, x, level.alpha, level.sigma, config.prediction_type)
        try:
            x, level = sampler.send(x_0)
        except StopIteration as stop:
            assert evaluations == run.evaluations
            return stop.value
    raise AssertionError("the sampler does not end")


def make_scheduler(name: str, config: SchedulerConfig) -> diffusers.SchedulerMixin:
    settings = dataclasses.asdict(config)
    del settings["class_name"]
    settings = {key: value for key, value in settings.items() if value is not None} | settings.pop("others")
    if name.startswith("dpmpp_2m"):
        settings["algorithm_type"] = "sde-dpmsolver++" if name == "dpmpp_2m_sde" else "dpmsolver++"
    return getattr(diffusers, SAMPLERS[name].scheduler).from_config(settings)


def run_diffusers(name: str, config: SchedulerConfig, n: int, strength: float | None, dtype: torch.dtype) -> Tensor:
    """What StableDiffusionPipeline and StableDiffusionImg2ImgPipeline do around a scheduler."""
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(n)
    if name == "euler_a" and config.rescale_betas_zero_snr:
        # Below sigma 4096 its float32 `(sigma_to**2 - sigma_up**2) ** 0.5` is all rounding error: compare in float64.
        scheduler.sigmas = scheduler.sigmas.double()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(SHAPE, generator=generator).to(dtype)
    timesteps = scheduler.timesteps
    if strength is None:
        x = noise * scheduler.init_noise_sigma
    else:
        first = (n - min(int(n * strength), n)) * scheduler.order
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        image = next(gaussian(2, dtype))
        x = scheduler.add_noise(image, noise, timesteps[:1].repeat(len(image)))
    takes_generator = {"generator": generator} if SAMPLERS[name].draws_noise else {}
    for t in timesteps:
        prediction = evaluate(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x, **takes_generator).prev_sample
    return x


def assert_same(name: str, config: SchedulerConfig, n: int, strength: float | None = None, atol: float = 1e-5) -> None:
    # Two Heun steps from sigma 14.6 to 0.03 multiply the rounding of x_0 by 14.6 / 0.03 / 2, in diffusers as here: only
    # float64 shows that the two agree.
    dtype = torch.float64 if name == "heun" and n == 2 else torch.float32
    expected = run_diffusers(name, config, n, strength, dtype)
    actual = run_ours(name, config, n, strength, dtype)
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_text_to_image(name: str, prediction: str, spacing: str | None) -> None:
    config = stable_diffusion(prediction_type=prediction, timestep_spacing=spacing)
    for n in (1, 2, 7, 50):
        assert_same(name, config, n)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("strength", [0.3, 0.58, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image(name: str, strength: float, spacing: str | None) -> None:
    for n in (7, 30):
        assert_same(name, stable_diffusion(timestep_spacing=spacing), n, strength)


NUMBERS = {"clip_sample_range": [0.7], "original_inference_steps": [100, 25], "timestep_scaling": [1.0]}
EACH_SETTING = [
    (name, setting, value)
    for name, rules in RULES.items()
    for setting, rule in rules.items()
    if rule is not NO_EFFECT
    for value in [SILENT, *NUMBERS.get(setting, rule.values)]
]


@pytest.mark.parametrize(("name", "setting", "value"), EACH_SETTING)
def test_each_setting(name: str, setting: str, value: object) -> None:
    """What a file says about it, and what its silence means to the class in use."""
    switched_on = {"clip_sample": True} if setting == "clip_sample_range" else {}
    config = stable_diffusion(**switched_on | {setting: value})
    # diffusers' float32 sigmas are off by 1e-5 at the low end, and two or three steps of Heun multiply that.
    for n in (1, 7, 20) if name == "heun" else (1, 2, 3, 7, 20):
        assert_same(name, config, n)
    assert_same(name, config, 20, strength=0.58)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("setting", SPACED_SIGMAS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_spaced_sigmas(name: str, setting: str, prediction: str, spacing: str | None) -> None:
    """Classes without a setting ignore it, and so do our samplers of their names."""
    config = stable_diffusion(prediction_type=prediction, timestep_spacing=spacing, **{setting: True})
    for n in (1, 2, 7, 20):
        assert_same(name, config, n)
    assert_same(name, config, 7, strength=0.58)


@pytest.mark.parametrize("setting", sorted(set(SPACED_SIGMAS) - {"use_lu_lambdas"}))  # its first hangs on a rounding
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_spaced_sigmas_on_a_cosine_schedule(name: str, setting: str) -> None:
    """There fractions of timesteps are cut off that are rounded elsewhere, but not by every class."""
    config = stable_diffusion(beta_schedule="squaredcos_cap_v2", **{setting: True})
    scheduler = make_scheduler(name, config)
    for n in (2, 7, 20):
        scheduler.set_timesteps(n)
        levels = [here for here, _ in plan(name, NoiseSchedule(config), n).steps]
        assert [level.timestep for level in levels] == scheduler.timesteps.tolist()
        sigmas = torch.tensor([level.noise_to_signal for level in levels])
        torch.testing.assert_close(sigmas, scheduler.sigmas[:-1], rtol=1e-4, atol=0)


ORDERS = [(name, order) for name, rules in RULES.items() for order in rules.get("solver_order", Rule(None, ())).values]


@pytest.mark.parametrize("spaced", [*SPACED_SIGMAS, None])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_a_run_that_ends_in_noise(name: str, order: int, solver_type: str, spaced: str | None) -> None:
    """There the order of the last step shows, which runs of 15 and more steps do not lower unless told to."""
    settings = {"final_sigmas_type": "sigma_min", "solver_order": order, "solver_type": solver_type}
    settings |= {} if spaced is None else {spaced: True}
    runs = [(2, {}), (7, {}), (20, {"euler_at_final": True})]
    # Spaced sigmas end where the run ends: the last step has no length, of which diffusers' higher orders make 0 / 0.
    if spaced is None or order == 1 or name == "unipc" or (order == 2 and solver_type == "midpoint"):
        runs += [(20, {})] + ([] if name == "unipc" else [(7, {"lower_order_final": False})])
    for n, more in runs:
        if name != "unipc" or "euler_at_final" not in more:
            assert_same(name, stable_diffusion(**settings, **more), n)
            assert_same(name, stable_diffusion(**settings, **more), n, strength=0.58)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_every_setting_of_diffusers_is_known(sampler: Sampler) -> None:
    """Each parameter of the class is the noise schedule's, honoured, refused or without effect; its default is ours."""
    parameters = inspect.signature(getattr(diffusers, sampler.scheduler).__init__).parameters.values()
    rules = RULES[sampler.name]
    schedules_own = {field.name for field in dataclasses.fields(SchedulerConfig)}
    assert {parameter.name for parameter in parameters} - {"self"} <= schedules_own | set(rules)
    for parameter in parameters:
        rule = rules.get(parameter.name, NO_EFFECT)
        if rule is not NO_EFFECT:
            assert parameter.default == rule.default, parameter.name


def test_schedules_are_diffusers_settings() -> None:
    """A request's schedule gives the levels of the setting of its name, whatever the model's own is."""
    own = NoiseSchedule(stable_diffusion(use_exponential_sigmas=True))
    for name in SAMPLERS:
        assert ("use_karras_sigmas" in RULES[name]) == (name in SPACED_SAMPLERS)
        for schedule in set(SCHEDULE_LABELS) - {"model"} if name in SPACED_SAMPLERS else ("uniform",):
            settings = {} if schedule == "uniform" else {f"use_{schedule}_sigmas": True}
            expected = plan(name, NoiseSchedule(stable_diffusion(**settings)), 10)
            assert plan(name, own, 10, schedule=schedule).steps == expected.steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr(name: str, spacing: str | None) -> None:
    config = zero_terminal_snr(spacing)
    for n, strength in itertools.product((1, 2, 7, 20), (None, 1.0)):
        assert_same(name, config, n, strength, atol=1e-5 + euler_rounding(name, config, n))


def euler_rounding(name: str, config: SchedulerConfig, n: int) -> float:
    """How far from their own formula float32 may lead diffusers' two Euler classes.

    They take x + (x - x_0) / sigma * (sigma_next - sigma), in float32 whatever they are given. Both differences, the
    quotient and the product err by eps / 2 of their size, and what they make is as large as the latents at sigma_max:
    2 eps sigma_max |noise| together. The steps below sigma_max shrink it.
    """
    if name not in ("euler", "euler_a"):
        return 0.0
    sigma_max = plan(name, NoiseSchedule(config), n).steps[0][0].sigma
    return 2 * torch.finfo(torch.float32).eps * sigma_max * next(gaussian(1, torch.float32)).abs().max().item()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"heun"}))
def test_float32_is_enough_from_a_sigma_of_4096(name: str, spacing: str | None) -> None:
    """Where diffusers rounds, ours is held to itself; Heun's class, and so ours, leaves the betas' SNR as it is."""
    config = zero_terminal_snr(spacing)
    for n, strength in itertools.product((1, 2, 7, 20), (None, 1.0)):
        single, double = (run_ours(name, config, n, strength, dtype) for dtype in (torch.float32, torch.float64))
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_ddim_ends_where_the_configuration_says(set_alpha_to_one: bool) -> None:
    for n in (1, 7, 50):
        assert_same("ddim", stable_diffusion(set_alpha_to_one=set_alpha_to_one), n)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule(beta_schedule: str, zero_snr: bool) -> None:
    config = stable_diffusion(beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    reference = make_scheduler("ddpm", config)
    expected = reference.alphas_cumprod.double()
    torch.testing.assert_close(NoiseSchedule(config).alphas_cumprod, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_told_the_same_timesteps(name: str, spacing: str | None, karras: bool) -> None:
    config = stable_diffusion(timestep_spacing=spacing, use_karras_sigmas=karras)
    scheduler = make_scheduler(name, config)
    for n in (1, 2, 3, 4, 10, 20, 25, 30, 37, 48, 50):
        scheduler.set_timesteps(n)
        told = [level.timestep for step in plan(name, NoiseSchedule(config), n).steps for level in step][:-1]
        if name != "heun":  # which is told the second timestep of a step, too
            told = told[::2]
        expected = scheduler.timesteps.double()
        torch.testing.assert_close(torch.tensor(told, dtype=torch.float64), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_scaled_alike_at_the_start(name: str, spacing: str | None) -> None:
    config = stable_diffusion(timestep_spacing=spacing)
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(10)
    assert plan(name, NoiseSchedule(config), 10).start_scale == pytest.approx(float(scheduler.init_noise_sigma))
