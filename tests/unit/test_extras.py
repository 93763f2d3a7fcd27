"""LoRA files and embeddings that lie beside the models: found, offered, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stable_diffusion.request import Request, RequestError
from tests import tiny
from ui.form.controls import with_lora
from ui.runs.adapter_files import find_files
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels
from ui.runs.prepare import prepare

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
