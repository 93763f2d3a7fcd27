"""Wrong settings of every part are refused by name and value, or their model runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stable_diffusion.loading.clip_config import (
    CLIPConfig,
    CLIPImageConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    TokenizerConfig,
)
from stable_diffusion.loading.config import (
    ConfigError,
    ModelError,
    SchedulerConfig,
    TinyVAEConfig,
    UNetConfig,
    VAEConfig,
)
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import SAMPLER_LABELS
from tests.tiny import TINY_VAE, configs

HUGE = 10**400  # JSON has it; no float has
NAN, INFINITY = math.nan, math.inf
NEVER: list[Any] = [NAN, INFINITY, -INFINITY, HUGE, {}, {"a": 1}, [{}], [[1]], ["x", NAN]]

# What may never stand in the place of a value, by the value's kind.
WRONG: dict[type, list[Any]] = {
    int: [*NEVER, "2", "x", "", 2.5, True, False, [], [1, 2], -1, 0, None, 10**9],
    float: [*NEVER, "0.1", "x", True, False, [], [0.1], -1.0, -1, None, 1e308],
    bool: [*NEVER, 0, 1, 0.0, "true", "", [], [True], None],
    str: [*NEVER, "x", "", 1, 0.5, True, [], ["x"], None],
    list: [*NEVER, "8", 8.5, True, [], [8, "8"], [8, NAN], [8, -8], [8, 0], [8, None], [8] * 1000, [True] * 2],
    type(None): NEVER,
}
# And what may, though other values of that kind may not.
ALLOWED: dict[str, list[Any]] = {
    "eos_token_id": [0],
    "pad_token_id": [0],
    "bos_token_id": [0],
    "steps_offset": [0],
    "resample": [0],
    "model_max_length": [10**9, HUGE],
    "class_name": ["x", ""],
}
OPTIONAL = {
    *(("text encoder", "pad_token_id"), ("clip text_config", "pad_token_id"), ("unet", "time_cond_proj_dim")),
    *(("unet", "mid_block_type"), ("scheduler", "timestep_spacing"), ("scheduler", "trained_betas")),
}

TEXT = {**configs("sd1")["text_encoder"], "pad_token_id": 0}
VISION = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 32, "patch_size": 8, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
}
IMAGES = {
    **{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3},
}
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
TOKENIZER = {"model_max_length": 77, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
UNET = {**configs("sd2")["unet"], "time_cond_proj_dim": 8, "mid_block_type": "UNetMidBlock2DCrossAttn"}
VAE = {**configs("sd1")["vae"], "mid_block_add_attention": True}


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


SCHEDULER = {
    **{name: listed(value) for name, value in dataclasses.asdict(SchedulerConfig()).items()},
    **{"trained_betas": [0.001 + 1e-5 * step for step in range(1000)], "timestep_spacing": "leading"},
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part's name in errors, its class, valid settings of every field, and how they are read."""

    name: str
    kind: type
    valid: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]


PARTS = [
    Part("text encoder", CLIPTextConfig, TEXT, CLIPTextConfig.from_dict),
    Part("clip text_config", CLIPTextConfig, TEXT, lambda text: CLIPConfig.from_dict({**CLIP, "text_config": text})),
    Part(
        "clip vision_config",
        CLIPVisionConfig,
        VISION,
        lambda seen: CLIPConfig.from_dict({**CLIP, "vision_config": seen}),
    ),
    Part("tokenizer", TokenizerConfig, TOKENIZER, TokenizerConfig.from_dict),
    Part("unet", UNetConfig, UNET, UNetConfig.from_dict),
    Part("vae", VAEConfig, VAE, VAEConfig.from_dict),
    Part("vae", TinyVAEConfig, TINY_VAE, TinyVAEConfig.from_dict),
    Part(
        "scheduler",
        SchedulerConfig,
        SCHEDULER,
        lambda values: SchedulerConfig.from_dict({**values, "_class_name": values["class_name"]}),
    ),
]
FIELDS = [
    pytest.param(part, field.name, id=f"{part.name}-{field.name}")
    for part in PARTS
    for field in dataclasses.fields(part.kind)
    if field.name != "others"
]


def assert_refused(read: Callable[[], Any], part: str, setting: str, value: Any) -> None:
    """Assert that `read` raises a short `ConfigError` with part, setting and value."""
    with pytest.raises(ConfigError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"{part}: {setting}={repr(value)[:100] if value != HUGE else '1000'}"), message
    assert len(message) < 400


@pytest.mark.parametrize(("part", "field"), FIELDS)
def test_every_setting_of_every_kind(part: Part, field: str) -> None:
    part.read(part.valid)
    allowed = ALLOWED.get(field, []) + [None] * ((part.name, field) in OPTIONAL)
    for value in allowed:
        part.read({**part.valid, field: value})
    for value in WRONG[type(part.valid[field])]:
        if not any(type(value) is type(one) and value == one for one in allowed):
            assert_refused(lambda value=value: part.read({**part.valid, field: value}), part.name, field, value)


@pytest.mark.parametrize("field", ["image_mean", "image_std", "rescale_factor", "resample"])
def test_settings_of_the_preprocessor(field: str) -> None:
    CLIPImageConfig.from_dict(IMAGES)
    for value in WRONG[type(IMAGES[field])]:
        if value not in ALLOWED.get(field, []) or value is False:
            changed = {**IMAGES, field: value}
            assert_refused(lambda: CLIPImageConfig.from_dict(changed), "clip preprocessor", field, value)  # noqa: B023


def test_sizes_of_the_preprocessor() -> None:
    assert CLIPImageConfig.from_dict({**IMAGES, "size": 48, "crop_size": 40}).crop_size == (40, 40)
    assert CLIPImageConfig.from_dict({**IMAGES, "size": {"height": 40, "width": 48}}).size == (40, 48)
    for value in WRONG[int]:
        for settings in (
            {"crop_size": value},
            {"crop_size": {"height": value, "width": 32}},
            {"size": value},
            {"size": {"shortest_edge": value}},
            {"size": {"height": 32, "width": value}},
        ):
            with pytest.raises(ConfigError, match=r"clip preprocessor: .*(size|shortest_edge)"):
                CLIPImageConfig.from_dict({**IMAGES, **settings})


def test_settings_of_a_whole_clip() -> None:
    for value in WRONG[int]:
        assert_refused(
            lambda value=value: CLIPConfig.from_dict({**CLIP, "projection_dim": value}), "clip", "projection_dim", value
        )
    for value in ("x", 5, [1], True):
        with pytest.raises(ConfigError, match=r"clip: text_config=.* must be a JSON object"):
            CLIPConfig.from_dict({**CLIP, "text_config": value})


def test_numbers_that_other_settings_bound() -> None:
    assert VAEConfig.from_dict({**VAE, "scaling_factor": 1}).scaling_factor == 1
    with pytest.raises(ConfigError, match="text encoder: eos_token_id=999999 must be below vocab_size="):
        CLIPTextConfig.from_dict({**TEXT, "eos_token_id": 999_999})


def test_lists_of_other_lengths_than_their_model() -> None:
    betas = {**SCHEDULER, "trained_betas": [0.01] * 10}
    with pytest.raises(ConfigError, match=r"scheduler: trained_betas has 10 entries and needs one for each of .*=1000"):
        SchedulerConfig.from_dict(betas)
    assert SchedulerConfig.from_dict({**betas, "num_train_timesteps": 10}).trained_betas == (0.01,) * 10
    with pytest.raises(ConfigError, match=r"attention_head_dim=\(1, 2, 4\) needs one entry for each of 2 levels"):
        UNetConfig.from_dict({**UNET, "attention_head_dim": [1, 2, 4]})


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("widths", [[8] * 3, [8, 8, 8, 16]])
def test_halves_of_a_tiny_autoencoder(half: str, widths: list[int]) -> None:
    with pytest.raises(ConfigError, match=rf"vae: {half}_block_out_channels=.* and num_{half}_blocks=.* of 4 levels"):
        TinyVAEConfig.from_dict({**TINY_VAE, f"{half}_block_out_channels": widths})


def test_schedules_that_leave_nothing() -> None:
    plain = {**SCHEDULER, "trained_betas": None}
    for settings in ({"beta_end": 0.5}, {"num_train_timesteps": 100_000}, {"beta_start": 0.9}):
        with pytest.raises(ConfigError, match=r"scheduler: beta_start=.* leave less signal after"):
            SchedulerConfig.from_dict({**plain, **settings})
    for settings in ({"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}, {"beta_end": 0.02}):
        SchedulerConfig.from_dict({**plain, **settings})  # of DDPM, and of many models


def test_pictures_that_the_page_cannot_ask_for(model: Path) -> None:
    path = model / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": 4096}))
    with pytest.raises(ConfigError, match=r"tiny: unet: sample_size=4096 makes pictures of 32768 pixels a side"):
        load(model)


# Tokenizers.


@pytest.mark.parametrize("value", ["x", "77", 0, -1, 2, 2.5, NAN, True, [77], {"a": 1}], ids=repr)
def test_length_limits_of_a_tokenizer(value: Any, model: Path) -> None:
    path = model / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": value}))
    with pytest.raises(ModelError, match=r"tiny/tokenizer.*model_max_length"):
        load(model)


# Many settings at once.

OTHERS: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 8, 64, -1, HUGE, 2**31, 2**63, 0.5, 2.0, 1e-9, 1e300, NAN, INFINITY, -INFINITY),
    *("", "x", "2", "quick_gelu", "linear", "sample", "\0", "ä" * 5000),
    *([], [1, 2], [8, 16], [[]], [None], {}, {"a": 1}),
]


def mutated(value: Any, draw: random.Random) -> Any:
    """Return `value` with something else in its place, or deeper down in it."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.9:
        changed = dict(value) if isinstance(value, dict) else list(value)
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if draw.random() < 0.1:
            del changed[key]
        else:
            changed[key] = mutated(value[key], draw)
        return changed
    return draw.choice(OTHERS)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 25))])
def test_mutated_settings_run_or_are_refused(seed: int, model: Path) -> None:
    """Each of 40 models is refused in a sentence, or draws finite pictures with a random sampler."""
    files = [*model.glob("*/*config.json"), model / "model_index.json"]
    assert len(files) == 6
    contents = {file: file.read_text() for file in sorted(files)}
    draw = random.Random(seed)
    for _ in range(40):
        file = draw.choice(list(contents))
        file.write_text(json.dumps(mutated(json.loads(contents[file]), draw)))
        with contextlib.suppress(ModelError):
            pipeline = Pipeline(load(model, device="cpu"))
            sampler = draw.choice(list(SAMPLER_LABELS))
            result = pipeline("a red fox", num_inference_steps=2, width=32, height=32, seed=0, sampler=sampler)
            assert result.latents.isfinite().all(), file.read_text()
        file.write_text(contents[file])
