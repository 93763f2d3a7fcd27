"""Fast requests: few steps by an adapter in the model's directory, which is merged once and stays merged."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stable_diffusion.adapters.lora import CACHED_MERGES
from stable_diffusion.guidance import Denoiser, Query
from stable_diffusion.loading.model_config import TURBO_FILE
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Defaults, Request, RequestError
from tests.tiny import save_turbo


@pytest.fixture
def turbo(model: Path) -> Path:
    """The adapter in the directory of a tiny model."""
    return save_turbo(model)


@pytest.fixture
def pipe(model: Path, turbo: Path) -> Pipeline:
    """A tiny model with the adapter."""
    return Pipeline.from_pretrained(model)


def test_a_fast_picture_is_that_of_the_merged_adapter_in_four_unguided_evaluations(
    pipe: Pipeline, model: Path, turbo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Query] = []
    answer = Denoiser.__call__

    def count(self: Denoiser, queries: Sequence[Query]) -> Any:
        asked.extend(queries)
        return answer(self, queries)

    monkeypatch.setattr(Denoiser, "__call__", count)
    fast = pipe("a red fox", seed=3, fast=True)
    assert [query.rows for query in asked] == [1, 1, 1, 1]
    by_hand = Pipeline.from_pretrained(model)
    by_hand.loras.merge(turbo)
    settings: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 1, "sampler": "ddim"}
    assert fast.latents.equal(by_hand("a red fox", **settings).latents)
    assert not fast.latents.equal(pipe("a red fox", **settings).latents), "the others are drawn without it"


def test_loras_of_the_prompt_add_to_the_adapter(pipe: Pipeline, model: Path, turbo: Path) -> None:
    pipe.loras.files = {"ink": turbo}
    by_hand = Pipeline.from_pretrained(model)
    by_hand.loras.merge(turbo)
    by_hand.loras.merge(turbo, 0.5)
    settings: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 1, "sampler": "ddim"}
    ours = pipe("a fox <lora:ink:0.5>", seed=3, fast=True)
    assert ours.latents.equal(by_hand("a fox ", **settings).latents)


def test_loras_of_visitors_do_not_displace_the_fast_weights(pipe: Pipeline, turbo: Path) -> None:
    fast = weakref.ref(pipe.models_for(Request(fast=True)))
    pipe.loras.files = {"ink": turbo}
    for weight in range(1, CACHED_MERGES + 2):
        pipe.models_for(Request(f"<lora:ink:{weight}>"))
    assert pipe.models_for(Request(fast=True)) is fast()
    pipe.loras.merge(turbo, 0.5)
    assert fast() is None, "those of other base weights are let go"


def test_a_model_without_the_adapter_refuses_a_fast_request(original: Path, pipe: Pipeline) -> None:
    plain = Pipeline.from_pretrained(original)
    assert (plain.defaults.fast, pipe.defaults.fast) == (False, True)
    with pytest.raises(RequestError, match=r"fast must be False with this model, got True: .* draw without fast"):
        plain.begin("a fox", fast=True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"negative_prompt": "blue"}, "negative_prompt must be empty in a fast request, got 'blue': .* without fast"),
        ({"guidance_scale": 4.0}, "guidance_scale must be 1.0 in a fast request, got 4.0: .* choose it"),
        ({"sampler": "euler"}, "sampler must be ddim in a fast request, got 'euler': .* choose it"),
        ({"fast": 1}, "fast must be True or False, got 1"),
    ],
)
def test_what_the_fast_weights_can_not_do_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        Request("a fox", **{"fast": True, **settings})


def test_a_fast_request_is_completed_by_settings_of_its_own() -> None:
    defaults = Defaults(64, num_inference_steps=20, sampler="dpmpp_2m", fast=True)
    request = defaults.complete(Request("a fox", fast=True, negative_prompt=" "))
    assert (request.num_inference_steps, request.guidance_scale, request.sampler) == (4, 1.0, "ddim")
    assert defaults.complete(Request(fast=True, num_inference_steps=8)).num_inference_steps == 8
    assert defaults.complete(replace(request, num_inference_steps=None)) == request
    with pytest.raises(RequestError, match="schedule must be model or uniform for the sampler ddim, got 'karras'"):
        defaults.complete(Request(fast=True, schedule="karras"))


def test_the_name_of_the_adapter_is_that_of_diffusers() -> None:
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    assert Path(TURBO_FILE).name == LORA_WEIGHT_NAME_SAFE
