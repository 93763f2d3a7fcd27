"""LoRA files and embeddings that lie beside the models: found, offered, and never in the way."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import weakref
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stable_diffusion.adapters import lora
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from tests import tiny
from tests.conftest import awaited
from ui.form.controls import lora_menu, with_lora
from ui.form.prompt import connect_embeddings_note
from ui.runs.adapter_files import find_files
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.errors import errors_as_text, errors_on_page, without_folders
from ui.runs.events import Event, News
from ui.runs.limits import MAX_RUNNING
from ui.runs.models import LoadedModels
from ui.runs.prepare import prepare
from ui.runs.visitors import Visitor

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models, with a LoRA and an embedding for one of two tiny ones."""
    for kind in ("sd1", "sd2"):
        tiny.save_model(tmp_path / kind, kind)
    width = tiny.configs("sd1")["unet"]["block_out_channels"][0]
    (tmp_path / "loras" / "peft").mkdir(parents=True)
    (tmp_path / "loras" / "peft" / "adapter_config.json").write_text("{}")
    factors = {f"{LAYER}.lora_down.weight": torch.ones(1, 32), f"{LAYER}.lora_up.weight": torch.ones(width, 1)}
    save_file(factors, tmp_path / "loras" / "ink.safetensors")
    (tmp_path / "loras" / "notes.txt").write_text("no LoRA")
    (tmp_path / "embeddings").mkdir()
    save_file({"a": torch.ones(2, 32)}, tmp_path / "embeddings" / "zub.safetensors")
    (tmp_path / "embeddings" / "torn.pt").write_bytes(b"torn")
    monkeypatch.setenv("SD_MODELS", str(tmp_path))
    return tmp_path


def test_files_are_found_by_the_names_that_a_prompt_has_for_them(folder: Path):
    assert list(find_files("loras")) == ["ink", "peft"]
    assert list(find_files("embeddings")) == ["torn", "zub"]
    assert {"sd1", "sd2"} < set(Catalogue().sources)


def test_a_model_gets_the_words_that_fit_it(folder: Path, caplog: pytest.LogCaptureFixture):
    holder = LoadedModels(Catalogue(), device="cpu")
    with caplog.at_level("INFO", "ui"):
        assert holder.pipeline("sd1").embeddings == ("zub",)
        assert holder.pipeline("sd2").embeddings == ()
    assert "zub.safetensors is not an embedding of this model" in caplog.text
    assert "torn.pt" in caplog.text


def test_a_prompt_brings_its_loras_to_the_run(folder: Path):
    holder = LoadedModels(Catalogue(), device="cpu")
    pipeline, request = prepare(holder, Request("a fox <lora:ink:0.8>", model="sd1", num_inference_steps=1))
    assert request.prompt == "a fox <lora:ink:0.8>"  # as pictures and links carry it
    merged = pipeline.begin(request).denoise.unet
    assert merged is pipeline.loras.models_for((("ink", 0.8),)).unet
    assert merged is not pipeline.models.unet


@pytest.mark.parametrize(
    ("model", "prompt", "message"),
    [
        ("sd1", "<lora:pen:1>", "names the LoRA 'pen', which is not here"),
        ("sd2", "<lora:ink:1>", "does not have the shapes of this model"),
        ("sd1", "<lora:peft:1>", "is not a regular file"),
        ("sd1", "<lora:ink:much>", "the weight of a LoRA must be a number"),
    ],
)
def test_a_lora_that_can_not_be_used_is_a_sentence(folder: Path, model: str, prompt: str, message: str):
    with pytest.raises(RequestError, match=message):
        prepare(LoadedModels(Catalogue(), device="cpu"), Request(prompt, model=model))


def test_a_lora_is_in_a_prompt_once():
    assert with_lora("", "ink", 1.0) == "<lora:ink:1>"
    assert with_lora("a fox <lora:ink:0.5>, <lora:oil>", "ink", 0.8) == "a fox , <lora:oil> <lora:ink:0.8>"


def test_a_model_follows_the_folder(folder: Path):
    holder = LoadedModels(Catalogue(), device="cpu")
    assert holder.pipeline("sd1").embeddings == ("zub",)
    (folder / "embeddings" / "zub.safetensors").rename(folder / "embeddings" / "bop.safetensors")
    (folder / "loras" / "ink.safetensors").rename(folder / "loras" / "oil.safetensors")
    pipeline, _ = prepare(holder, Request("a bop <lora:oil:1>", model="sd1"))
    assert pipeline.embeddings == ("bop",)


def test_a_file_that_was_replaced_is_read_again(folder: Path):
    holder = LoadedModels(Catalogue(), device="cpu")
    pipeline, request = prepare(holder, Request("zub <lora:ink>", model="sd1"))
    before = [pipeline.condition(request).context, pipeline.models_for(request).unet]
    for file in ("embeddings/zub.safetensors", "loras/ink.safetensors"):
        state = {name: 2 * tensor for name, tensor in load_file(folder / file).items()}
        save_file(state, folder / "new")
        (folder / "new").replace(folder / file)
        prepare(holder, request)
        after = [pipeline.condition(request).context, pipeline.models_for(request).unet]
        assert not after[0].equal(before[0])
        before = after


def test_names_in_another_form_are_found(folder: Path):
    """A file system may keep an accent as a character of its own; a keyboard writes one for both."""
    for file, name in (("embeddings/zub", "embeddings/zu\u0308b"), ("loras/ink", "loras/i\u0301nk")):
        (folder / f"{file}.safetensors").rename(folder / f"{name}.safetensors")
    pipeline, request = prepare(LoadedModels(Catalogue(), device="cpu"), Request("<lora:\u00ednk>", model="sd1"))
    assert pipeline.embeddings == ("z\u00fcb",)
    assert pipeline.models_for(request) is not pipeline.models


def test_a_name_with_brackets_is_offered_or_told_of(folder: Path):
    for file, name in (("embeddings/zub", "embeddings/<zub:1>"), ("loras/ink", "loras/a:b")):
        (folder / f"{file}.safetensors").rename(folder / f"{name}.safetensors")
    holder = LoadedModels(Catalogue(str(folder / "sd1")), device="cpu")
    assert holder.pipeline().embeddings == ("<zub:1>",)
    with gr.Blocks() as page:
        prompt, model = gr.Textbox(), gr.Dropdown()
        lora_menu(prompt, "t")
        connect_embeddings_note(model, holder, "t")
    (_, menu), note = (function.fn() for function in page.fns.values() if not function.inputs)
    assert menu.info.endswith("a tag can't name a:b: rename the file")
    assert note == "Words of your embeddings: `<zub:1>`; not for this model: `torn`"


def test_a_refusal_names_no_folder_of_the_server(folder: Path):
    """A LoRA file that is gone, damaged or of the wrong kind, and a model that can't be loaded."""
    holder = LoadedModels(Catalogue(), device="cpu")
    pipeline, _ = prepare(holder, Request(model="sd1"))
    (folder / "sd2" / "unet" / "config.json").write_text("{")
    torn = folder / "loras" / "ink.safetensors"
    for request, sentence, spoil in (
        (Request("<lora:ink>", model="sd1"), "ink.safetensors does not exist", torn.unlink),
        (Request("<lora:ink>", model="sd1"), "ink.safetensors is damaged", lambda: torn.write_bytes(b"torn")),
        (Request("<lora:peft>", model="sd1"), "peft is not a regular file", lambda: None),
        (Request(model="sd2"), "config.json is not valid JSON", lambda: None),
    ):
        spoil()
        for door in (errors_as_text, errors_on_page):
            with pytest.raises(gr.Error) as told, door():
                pipeline.begin(request) if request.loras else holder.pipeline(request.model)
            assert sentence in told.value.message
            assert str(folder.parent) not in told.value.message
    assert without_folders("see https://huggingface.co/a/b, 3/4") == "see https://huggingface.co/a/b, 3/4"


def test_merged_weights_have_a_bound_while_runs_use_them(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline, _ = prepare(LoadedModels(Catalogue(), device="cpu"), Request(model="sd1"))
    width = tiny.configs("sd1")["unet"]["block_out_channels"][0]
    monkeypatch.setattr(lora, "MAX_MERGED", 6 * 4 * 32 * width)  # the weight of one layer, six times
    runs = [pipeline.begin(f"<lora:ink:{i}>", num_inference_steps=1) for i in range(6)]
    with pytest.raises(RequestError, match=r"other LoRAs or other weights .* are being drawn, .*: try again when"):
        pipeline.begin("<lora:ink:6>")
    assert pipeline.begin("<lora:ink:5>").denoise.unet is runs[5].denoise.unet
    assert pipeline.begin("a fox").denoise.unet is pipeline.models.unet
    runs[0].close()
    del runs[0]
    pipeline.begin("<lora:ink:6>")


def test_a_parked_run_keeps_its_latents_and_no_keys_nor_merged_weights(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A long prompt makes keys and values the largest part of a run, and a LoRA gives it a network of its own."""
    monkeypatch.setattr(lora, "CACHED_MERGES", 0)
    backend = Local(LoadedModels(Catalogue(str(folder / "sd1")), device="cpu"))
    request = Request("a <lora:ink:0.7>", num_inference_steps=40, seed=1, preview="none")

    async def ask() -> News:
        stream = backend.stream("one", request, Visitor("somebody"))
        while not isinstance(await anext(stream), Event):
            pass
        assert backend._engine is not None
        run = backend._engine._slots[0].run
        large = [weakref.ref(one) for one in (run.conditioning, run.conditioning.context, run.denoise.unet)]
        del run
        await stream.aclose()
        while backend._engine.running:  # until its next turn
            await asyncio.sleep(0.01)
        gc.collect()
        assert [one() for one in large] == [None] * 3
        return [news async for news in backend.stream("one", request, Visitor("somebody"))]

    news = awaited(ask())
    assert news[0].index > 1
    whole = backend.models.pipeline()(request).images[0]
    assert np.array_equal(Image.open(io.BytesIO(news[-1].images[0])), whole)


def test_many_requests_for_loras_delay_no_other_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    released, backend = threading.Event(), Local(LoadedModels(Catalogue(str(folder / "sd1")), device="cpu"))

    def slow(models: LoadedModels, request: Request) -> tuple[Pipeline, Request]:
        assert not request.loras or released.wait(60)
        return prepare(models, request)

    monkeypatch.setattr("ui.runs.backend.prepare", slow)

    async def last(run_id: str, prompt: str) -> News:
        return [news async for news in backend.stream(run_id, Request(prompt, num_inference_steps=2), Visitor(run_id))][
            -1
        ]

    async def ask() -> None:
        others = [asyncio.create_task(last(str(i), f"<lora:ink:{i / 10}>")) for i in range(MAX_RUNNING + 1)]
        assert (await asyncio.wait_for(last("quick", "a fox"), 30)).images
        released.set()
        assert all(event.images for event in await asyncio.gather(*others))

    awaited(ask())
