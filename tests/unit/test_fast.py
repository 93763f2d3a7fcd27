"""Fast requests: few steps by an adapter in the model's directory, which is merged once and stays merged."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from stable_diffusion.adapters import lora
from stable_diffusion.adapters.lora import CACHED_MERGES
from stable_diffusion.guidance import Denoiser, Query
from stable_diffusion.inspection import conduct
from stable_diffusion.loading.model_config import TURBO_FILE
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import MAX_STEPS, Defaults, Request, RequestError
from tests.tiny import save_turbo
from ui.api import argument
from ui.form.controls import SAMPLED, Controls, connect_fast, keep_fast, more_controls, request_of, sampling_controls
from ui.form.fitting import fill, fit
from ui.form.model_menu import suit
from ui.form.prompt import prompt_controls
from ui.inside.stops.push import PUSH
from ui.inside.stops.sees import SEES
from ui.keep.infotext import parse_infotext, write_infotext
from ui.keep.link import from_query, to_query
from ui.keep.settings import SETTINGS
from ui.runs import cost
from ui.runs.catalogue import BUNDLED_NAME, Catalogue
from ui.runs.errors import errors_on_page
from ui.runs.models import LoadedModels

WHOLE = Request(
    "a fox", fast=True, num_inference_steps=4, guidance_scale=1.0, sampler="ddim", width=64, height=64, seed=3
)


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
    for strength, steps in ((None, 6), (1.0, 4), (0.4, 10), (1e-9, MAX_STEPS)):
        over = defaults.complete(Request(fast=True, image="photo.png", strength=strength))
        assert (over.num_inference_steps, over.steps) == (steps, 1 if steps == MAX_STEPS else 4)
    assert defaults.complete(replace(request, num_inference_steps=None)) == request
    with pytest.raises(RequestError, match="schedule must be model or uniform for the sampler ddim, got 'karras'"):
        defaults.complete(Request(fast=True, schedule="karras"))


def test_the_name_of_the_adapter_is_that_of_diffusers() -> None:
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    assert Path(TURBO_FILE).name == LORA_WEIGHT_NAME_SAFE


@pytest.fixture
def models(model: Path, turbo: Path, original: Path) -> LoadedModels:
    """The models of a page: a tiny one with the adapter first, one without beside it."""
    return LoadedModels(Catalogue(str(model), [str(original.parent)]), device="cpu")


@pytest.fixture
def page(models: LoadedModels) -> gr.Blocks:
    """A page with the form of Text2Image; its `form` holds the controls."""
    with gr.Blocks() as page:
        menu, defaults = gr.Dropdown(list(models.catalogue.sources), label="Model"), models.defaults()
        form = prompt_controls("", menu, models, "t2i") | sampling_controls(defaults, "t2i")
        form |= more_controls(defaults, "t2i", form, menu, models)
        connect_fast(form, menu, models)
    page.form = {name: control for name, control in form.items() if not name.startswith("_")} | {"model": menu}
    return page


def values_of(form: Controls, **values: Any) -> dict[Any, Any]:
    return {control: values.get(name, control.value) for name, control in form.items()}


def test_the_switch_sets_the_settings_that_are_drawn(page: gr.Blocks, models: LoadedModels) -> None:
    form, name = page.form, models.catalogue.first
    assert form["fast"].visible
    [switch] = [function.fn for function in page.fns.values() if function.targets == [(form["fast"]._id, "input")]]
    assert switch(name, True) == [4, 1.0, "ddim", 2]
    assert switch(name, False) == [20, 4.0, "dpmpp_2m", form["then_at"].value]
    names = ("num_inference_steps", "guidance_scale", "sampler", "then_at")
    sampled = dict(zip(names, switch(name, True), strict=True))
    request = request_of(form, values_of(form, prompt="a fox", then="a cat", fast=True, **sampled))
    assert next(models.pipeline().stream(request)) is not None
    for field, label, value in (("negative_prompt", "t2i-negative", "blue"), ("guidance_scale", "t2i-guidance", 4.0)):
        with pytest.raises(gr.Error, match=f'<span class="refusal {label}">.* in a fast request'), errors_on_page(form):
            request_of(form, values_of(form, prompt="a fox", fast=True, **{**sampled, field: value}))


def test_as_many_evaluations_are_left_when_a_visitor_moves_the_strength(models: LoadedModels) -> None:
    with gr.Blocks() as page:
        menu, form = gr.Dropdown(list(models.catalogue.sources)), sampling_controls(models.defaults(), "i2i")
        form |= {"sampler": gr.Dropdown(), "image": gr.Image(type="filepath"), "strength": gr.Slider(0, 1)}
        keep_fast(form["strength"].input, form, menu, models)
    [moved] = [one.fn for one in page.fns.values() if one.targets == [(form["strength"]._id, "input")]]
    name = models.catalogue.first
    assert [moved(name, True, "photo.png", strength) for strength in (0.3, 0.7, 1)] == [14, 6, 4]
    assert moved(name, False, "photo.png", 0.3) == gr.skip()


def test_the_switch_is_there_where_the_model_has_the_weights(page: gr.Blocks, models: LoadedModels) -> None:
    form, able = page.form, models.catalogue.first
    for name in models.catalogue.sources:
        if name == BUNDLED_NAME or models.catalogue.path(name).exists():
            has = models.defaults(name).fast
            shown = suit(models, name, [form])[form["fast"]]
            assert (shown.value, shown.visible) == (False, has)
            shown = fill(form, {"fast": True, "model": name}, models)[0][form["fast"]]
            assert (shown.value, shown.visible) == (has, has)
    assert models.defaults(able).fast
    left = fit({"fast": True, "num_inference_steps": 4, "guidance_scale": 1.0}, form, Defaults(64))
    assert (left.left, left.values["fast"], left.values.keys() & set(SAMPLED)) == (["Fast"], False, set())


def test_a_link_that_says_fast_alone_brings_the_settings_that_it_needs(page: gr.Blocks, models: LoadedModels) -> None:
    form, defaults = page.form, models.defaults()
    values = fit({"fast": True, "seed": 3}, form, defaults).values
    assert [values[name] for name in SAMPLED] == [4, 1.0, "ddim"]
    assert fit({"fast": True, "num_inference_steps": 8}, form, defaults).values["num_inference_steps"] == 8
    over = form | {"image": gr.Image(type="filepath", render=False), "strength": gr.Slider(0, 1, 0.5, render=False)}
    assert fit({"fast": True}, over, defaults).values["num_inference_steps"] == 8
    assert fit({"fast": True, "strength": 0.4}, over, defaults).values["num_inference_steps"] == 10


def test_other_words_take_over_halfway(pipe: Pipeline) -> None:
    half = pipe("a fox", then="a cat", then_at=2, fast=True, seed=3).latents
    assert pipe("a fox", then="a cat", fast=True, seed=3).latents.equal(half)
    usual = replace(WHOLE, then="a cat", then_at=2)
    assert {pipe.defaults.complete(one).then_at for one in PUSH.requests(PUSH.question.read({}), usual)} == {10}


def test_sketches_by_the_fast_weights_are_quick_where_others_are_not(
    pipe: Pipeline, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = Pipeline.from_pretrained(original)
    for one in (pipe, without):
        monkeypatch.setitem(cost._paces, one, cost.Pace(one.default_size, 0, 0, 0.15, 0))
    assert cost.is_quick(pipe)
    assert not cost.is_quick(without)


def test_the_adapter_gives_way_to_files_of_the_prompt(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    size = lora._own_bytes(pipe.models_for(WHOLE), pipe.models)
    monkeypatch.setattr(lora, "MAX_MERGED", size)
    pipe.loras._recent = ()  # as after three other mixes
    pipe.loras.files = {"ink": pipe.models.turbo}
    assert pipe("a fox <lora:ink:0.5>", seed=3, num_inference_steps=1).images


def test_a_fast_request_comes_back_from_text_and_link() -> None:
    text = write_infotext(WHOLE, 3, "emoji")
    assert ", Fast: True" in text
    assert "Fast" not in write_infotext(replace(WHOLE, fast=False), 3, "emoji")
    assert parse_infotext(text)["fast"] is True
    assert parse_infotext("a fox\nSteps: 20, Sampler: Euler")["fast"] is False
    assert Request(**from_query(dict(parse_qsl(to_query(WHOLE))))) == WHOLE
    assert from_query({"fast": "perhaps"}) == {"others": {"fast": "perhaps"}}


def test_programs_ask_for_it_by_a_boolean(models: LoadedModels) -> None:
    [setting] = [one for one in SETTINGS if one.name == "fast"]
    component = argument(setting, models)
    assert component.api_info() == {"type": "boolean"}
    assert "by default what suits the model" not in str(component.label)


def test_the_first_sketch_merges_nothing(model: Path, models: LoadedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = models.pipeline()
    monkeypatch.setattr("stable_diffusion.adapters.lora.merged", None)
    pipeline.models_for(Request(fast=True))


def test_guidance_is_taken_apart_by_the_usual_weights(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, *others = map(pipe.defaults.complete, PUSH.requests(PUSH.question.read({}), WHOLE))
    assert (drawn.fast, drawn.num_inference_steps, drawn.guidance_scale) == (False, 20, 4.0)
    assert {(one.fast, one.guidance_scale) for one in others} == {(False, 2.0)}, "each takes two answers a step"
    networks, begin = list[Any](), Denoiser.__init__

    def note(self: Denoiser, network: Any, *others: Any) -> None:
        networks.append(network)
        begin(self, network, *others)

    monkeypatch.setattr(Denoiser, "__init__", note)
    conduct(SEES.view(SEES.question.read({}), pipe, [pipe.defaults.complete(WHOLE)], lambda value: None))
    fast = pipe.models_for(WHOLE).unet
    assert networks[0] is fast, "the run itself"
    assert {id(network) for network in networks[1:]} == {id(pipe.models.unet)}, "the guesses"
