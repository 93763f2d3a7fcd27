"""Properties of every input: settings in pictures and links come back, prompts are read, grids stay in range."""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stable_diffusion.loading.config import SchedulerConfig
from stable_diffusion.prompt import EMPHASIS, parse_weights
from stable_diffusion.request import (
    FIT_LABELS,
    LORA_TAG,
    MAX_CLIP_SKIP,
    MAX_MASK_BLUR,
    MAX_STEPS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    SPACED_SAMPLERS,
    SYNTAX_LABELS,
    Request,
    RequestError,
)
from stable_diffusion.schedule import NoiseSchedule, karras_sigmas
from ui.keep.infotext import parse_infotext, write_infotext
from ui.keep.link import LINKED, from_query, to_query
from ui.keep.metadata import FORMAT_OPTIONS, encoded, read_infotext
from ui.keep.settings import PAGE_MAX_GUIDANCE, PAGE_MAX_SEED
from ui.runs.limits import LOCAL_LIMITS

# Where CI is set, Hypothesis draws the same examples every time.
KINDS = {setting.name: setting.kind for setting in LINKED}

every_input = settings(deadline=None, max_examples=100)

seeds = st.integers(0, PAGE_MAX_SEED)
sides = st.integers(1, 512).map(lambda units: 8 * units)
model_names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
PIECES = [
    *(
        "a red fox",
        " ",
        "\n",
        "\r",
        "\r\n",
        "\t",
        "\0",
        "\ufeff",
        "\x85",
        "\u2028",
        ",",
        ":",
        '"',
        "'",
        "\\",
        "{",
        "}",
        "🦊",
    ),
    *("一", "가", "Ā", "一" * 300, "ก", "שועל", "\u202e", "é", "e\u0301", "<lora:ink:0.8>", "(fox:1.3)", "a" * 20_000),
    *("Negative prompt: ", "\nNegative prompt: ", "Steps: 3", "\nSteps: 3, Sampler: Euler, Seed: 9", '{"prompt": "a"}'),
    *("Exact prompts: x", "\nSteps: 3, Exact prompts: x", "\u0a00\u5300\u7400\u6500\u7000\u7300\u3a00\u2000\u3300"),
]
"""Texts that readers of files may take for something else; the last is a line of settings with its bytes swapped."""
prompts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(PIECES), max_size=6
).map(lambda pieces: "".join(pieces)[:20_000])
requests = st.builds(
    Request,
    prompt=prompts,
    negative_prompt=prompts,
    num_inference_steps=st.integers(1, MAX_STEPS),
    guidance_scale=st.floats(0, PAGE_MAX_GUIDANCE),
    height=sides,
    width=sides,
    sampler=st.sampled_from(sorted(SAMPLER_LABELS)),
    clip_skip=st.integers(0, MAX_CLIP_SKIP),
    prompt_syntax=st.sampled_from(sorted(SYNTAX_LABELS)),
    seed=seeds,
    num_images=st.integers(1, LOCAL_LIMITS.max_images),
    then=prompts.filter(lambda text: not LORA_TAG.search(text)),
    then_at=st.integers(1, MAX_STEPS),
)
spaced_requests = st.builds(
    replace, requests, sampler=st.sampled_from(SPACED_SAMPLERS), schedule=st.sampled_from(sorted(SCHEDULE_LABELS))
)
fast_requests = st.builds(
    replace,
    requests,
    negative_prompt=st.just(""),
    guidance_scale=st.just(1.0),
    sampler=st.just("ddim"),
    fast=st.just(True),
)
photo_requests = st.builds(
    replace,
    requests,
    image=st.just("photo.png"),
    strength=st.floats(0, 1, exclude_min=True),
    fit=st.sampled_from(sorted(FIT_LABELS)),
    mask_blur=st.integers(0, MAX_MASK_BLUR),
)


# Settings in a picture.


@every_input
@given(
    requests | spaced_requests | fast_requests | photo_requests,
    st.sampled_from(sorted(FORMAT_OPTIONS)),
    st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)),
)
def test_every_request_comes_back_from_a_file(request: Request, kind: str, stopped_at: tuple[int, int] | None) -> None:
    image, text = Image.new("RGB", (8, 8)), write_infotext(request, request.seed, "emoji", stopped_at)
    if kind == "JPEG" and len(text) > 32_500:  # of two bytes each or more
        with pytest.raises(RequestError, match="are too long for a JPEG: choose PNG"):
            encoded(image, text, kind)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "picture").write_bytes(encoded(image, text, kind))
        read = read_infotext(Path(folder) / "picture")
    names = ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "seed", "width", "height", "sampler"]
    names += ["schedule", "clip_skip", "prompt_syntax"] + (["strength", "fit"] if request.image is not None else [])
    names += ["fast", "then", "then_at"] if request.then else ["fast", "then"]
    others = {"Model": "emoji"}
    if stopped_at is not None:
        others["Stopped at step"] = "{} of {}".format(*stopped_at)
    assert read == {**{name: getattr(request, name) for name in names}, "others": others}


@every_input
@given(requests, model_names)
def test_every_models_name_comes_back(request: Request, model: str) -> None:
    assert parse_infotext(write_infotext(request, request.seed, model))["others"] == {"Model": model}


@every_input
@example("prompt\nSteps: 1, Size: " + "1" * 5000 + "x1")
@given(st.text() | st.text().map("prompt\nSteps: {}".format) | st.text(st.sampled_from('ab:, "\\1\n')))
def test_any_text_is_read_as_infotext(text: str) -> None:
    read = parse_infotext(text)
    assert {"prompt", "negative_prompt"} <= read.keys() <= {"strength", "prompt_syntax", "others", *KINDS}


# Settings in a link.

ODD_NUMBERS = ["-1", "0", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 4000, "-" + "9" * 400, "9" * 5000]


@every_input
@given(requests | spaced_requests | fast_requests | photo_requests, st.none() | model_names)
def test_a_link_comes_back(request: Request, model: str | None) -> None:
    request = replace(request, model=model)
    read = from_query(dict(parse_qsl(to_query(request))))
    assert replace(Request(**read), image=request.image) == request


@every_input
@given(st.dictionaries(st.sampled_from([*KINDS, "other"]), st.text(max_size=10) | st.sampled_from(ODD_NUMBERS)))
def test_any_link_is_read(query: dict[str, str]) -> None:
    read = from_query(query)
    others = read.pop("others", {})
    assert read.keys() | others.keys() == query.keys() & KINDS.keys(), "each is taken or named"
    assert all(isinstance(value, KINDS[name]) for name, value in read.items())
    assert all(math.isfinite(value) for value in read.values() if not isinstance(value, str))


# Weighted prompts: characters with their weights, whatever the texts that they come in.

Characters = list[tuple[str, float]]


def characters(prompt: str) -> Characters:
    (part,) = parse_weights(prompt)
    return [(character, weight) for text, weight in part for character in text]


def bracketed(inner: st.SearchStrategy[tuple[str, Characters]]) -> st.SearchStrategy[tuple[str, Characters]]:
    """Prompts with what they mean, side by side and in brackets of three kinds."""
    weights = st.integers(-500, 500).map(lambda hundredths: hundredths / 100)

    def wrap(prompt: tuple[str, Characters], form: str, weight: float) -> tuple[str, Characters]:
        text, meant = prompt
        return form.format(text, weight), [(character, weight * factor) for character, factor in meant]

    return st.one_of(
        st.lists(inner, max_size=3).map(
            lambda prompts: ("".join(text for text, _ in prompts), [one for _, meant in prompts for one in meant])
        ),
        st.builds(wrap, inner, st.just("({0})"), st.just(EMPHASIS["("])),
        st.builds(wrap, inner, st.just("[{0}]"), st.just(EMPHASIS["["])),
        st.builds(wrap, inner, st.just("({0}:{1})"), weights),
    )


plain = st.text("ab ,:é狐", max_size=5).map(lambda text: (text, [(character, 1.0) for character in text]))


@every_input
@given(st.recursive(plain, bracketed, max_leaves=12))
def test_nested_weights_multiply_and_only_brackets_go(prompt: tuple[str, Characters]) -> None:
    text, meant = prompt
    read = characters(text)
    assert [character for character, _ in read] == [character for character, _ in meant]
    assert [weight for _, weight in read] == pytest.approx([weight for _, weight in meant])


@every_input
@given(st.text("ab :1.5()[]\\") | st.text())
def test_any_prompt_is_read_without_losing_a_letter(prompt: str) -> None:
    assume("BREAK" not in prompt)
    read = "".join(character for character, _ in characters(prompt))
    assert list(filter(str.isalpha, read)) == list(filter(str.isalpha, prompt))
    rest = iter(prompt)
    assert all(character in rest for character in read), "what is read stands in the prompt in this order"


@every_input
@given(st.text("ab :1.5()[]\\") | st.text())
def test_escaped_text_is_text(text: str) -> None:
    assume("BREAK" not in text)
    escaped = re.sub(r"[()\[\]\\]", r"\\\g<0>", text)
    assert characters(escaped) == [(character, 1.0) for character in text]


# Timesteps and noise levels.


@every_input
@given(
    total=st.integers(10, 1000), data=st.data(), spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    offset=st.integers(0, 1), spare=st.integers(0, 1),
)  # fmt: skip
def test_grids_have_n_descending_timesteps_in_range(
    total: int, data: st.DataObject, spacing: str, offset: int, spare: int
) -> None:
    schedule = NoiseSchedule(SchedulerConfig(num_train_timesteps=total, steps_offset=offset))

    n = data.draw(st.integers(1, total - spare), "num_inference_steps")
    if spacing == "leading" and (n + spare - 1) * (total // (n + spare)) + offset >= total:
        with pytest.raises(ValueError, match=f"num_inference_steps {n} with steps_offset {offset} reaches timestep"):
            schedule.timesteps(n, spacing, spare=spare)
        return
    grid = schedule.timesteps(n, spacing, spare=spare)
    assert grid.shape == (n,)
    assert (np.diff(grid) < 0).all()
    assert grid[-1] >= 0
    assert grid[0] <= total - 1
    if spacing != "trailing":
        assert np.array_equal(grid, schedule.timesteps(n + spare, spacing)[:n])


@every_input
@given(low=st.floats(1e-3, 1.0), ratio=st.floats(1.01, 1e6), n=st.integers(2, 1000))
def test_karras_sigmas_descend_between_their_ends(low: float, ratio: float, n: int) -> None:
    sigmas = karras_sigmas(low, low * ratio, n)
    assert sigmas.shape == (n,)
    assert sigmas[[0, -1]] == pytest.approx([low * ratio, low], rel=1e-9)
    assert (np.diff(sigmas) < 0).all()
