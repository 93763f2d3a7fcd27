"""Words of embedding files, in both forms, condition as they do in diffusers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stable_diffusion.inspect.heat_maps import prompt_words
from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.tokenizer import encode_text
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.prompt import encode_prompts, tokenize
from tests.parity.pairs import BOUND, difference, gaussian


def write(file: Path, vectors: Tensor) -> Path:
    """Write an embedding in the form of its file's ending; return its path."""
    if file.suffix == ".safetensors":
        save_file({"<trained-as>": vectors}, file)
    elif file.suffix == ".bin":
        torch.save({"<trained-as>": vectors}, file)
    else:
        a1111: dict[str, Any] = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "trained-as"}
        torch.save({**a1111, "step": 99, "sd_checkpoint": None, "sd_checkpoint_name": None}, file)
    return file


def width(pipe: Pipeline) -> int:
    return pipe.models.text_encoder.config.hidden_size


def context(pipe: Pipeline, prompt: str) -> Tensor:
    models = pipe.models
    return encode_prompts(models.tokenizer, models.text_encoder, [prompt])


@pytest.mark.parametrize(
    ("ending", "count"),
    [(".pt", 1), (".pt", 3), (".bin", 0), (".bin", 1), (".safetensors", 0), (".safetensors", 3)],
)
def test_words_condition_as_in_diffusers(folder: Path, ending: str, count: int, tmp_path: Path) -> None:
    """A count of 0 is a single vector without an axis for its number; AUTOMATIC1111's .pt always has the axis."""
    pipe = Pipeline.from_pretrained(folder)
    shape = (count, width(pipe)) if count else (width(pipe),)
    files = [write(tmp_path / f"{name}{ending}", gaussian(*shape, seed=i)) for i, name in enumerate(("<zub>", "qx-2"))]
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    for file in files:
        pipe.add_embedding(file)
        theirs.load_textual_inversion(str(tmp_path), weight_name=file.name, token=file.stem)
    for prompt in ("a <zub> fox, qx-2", "qx-2", "<zub> <zub>", "a fox", "fox " * 73 + "<zub> cat"):
        expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
        assert difference((context(pipe, prompt), expected)) <= BOUND, prompt
    tokens = pipe.tokenize("a <zub> fox").ids[0].tolist()
    text = theirs.maybe_convert_prompt("a <zub> fox", theirs.tokenizer)
    assert tokens == theirs.tokenizer(text, padding="max_length", max_length=77).input_ids


def test_nothing_in_use_changes(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    models, words = pipe.models, len(pipe.models.tokenizer)
    table = models.text_encoder.text_model.embeddings.token_embedding.weight
    before, rows = context(pipe, "a zub"), len(table)
    pipe.add_embedding(write(tmp_path / "zub.pt", gaussian(2, width(pipe))))
    assert difference((context(pipe, "a zub"), before)) > 100 * BOUND
    assert context(pipe, "a red zubs").equal(context(Pipeline(models), "a red zubs"))  # a whole word or none
    assert context(pipe, "a ZUB").equal(context(pipe, "a zub"))
    assert pipe.models.unet is models.unet
    assert len(models.tokenizer) == words
    assert models.text_encoder.text_model.embeddings.token_embedding.weight is table
    assert len(table) == rows
    assert context(Pipeline(models), "a zub").equal(before)


def test_every_vector_is_a_token_of_its_word(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    pipe.add_embedding(write(tmp_path / "zub.pt", gaussian(3, width(pipe))))
    assert pipe.tokenize("a zub fox").count == 5
    found = [(word.text, word.positions) for word in prompt_words(pipe.models.tokenizer, "a Zub fox")]
    assert found == [("a", (1,)), ("Zub", (2, 3, 4)), ("fox", (5,))]
    models = pipe.models
    plain = encode_prompts(models.tokenizer, models.text_encoder, ["a zub, fox"])
    assert plain.equal(encode_prompts(models.tokenizer, models.text_encoder, ["a (zub:1.0), fox"], "weighted"))


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        *[("EasyNegative", "EasyNegative"), ("EasyNegative", "easynegative"), ("<Cat-Toy>", "<cat-toy>")],
        *[("cafe\u0301", "caf\u00e9"), ("\u00e9t\u00e9", "E\u0301te\u0301"), ("a:b", "(a:b)"), ("日本", "日本")],
    ],
)
def test_a_name_is_read_as_a_whole_however_it_is_written(
    original: Path, name: str, prompt: str, tmp_path: Path
) -> None:
    """Capitals, and letters with accents in one character or in two."""
    pipe, vectors = Pipeline.from_pretrained(original), gaussian(3, 32)
    pipe.add_embedding(write(tmp_path / f"{name}.pt", vectors))
    ids = tokenize(pipe.models.tokenizer, prompt, "weighted").ids[0, 1:4]
    assert pipe.models.text_encoder.text_model.embeddings.token_embedding(ids).equal(vectors)


def test_a_name_may_continue_another(original: Path, tmp_path: Path) -> None:
    """diffusers calls the second vector of `style` `style_1`."""
    pipe = Pipeline.from_pretrained(original)
    vectors = {"style": gaussian(1, 32), "style_1": gaussian(2, 32, seed=1), "style_2": gaussian(1, 32, seed=2)}
    for name, several in vectors.items():
        pipe.add_embedding(write(tmp_path / f"{name}.pt", several))
    table = pipe.models.text_encoder.text_model.embeddings.token_embedding.weight
    found = pipe.tokenize("style_1 style style_2")
    assert found.count == 4
    assert table[found.ids[0, 1:5]].equal(torch.cat([vectors[name] for name in ("style_1", "style", "style_2")]))


def test_words_that_a_tokenizer_came_with(original: Path) -> None:
    """diffusers saves them as `<name>` and `<name>_1`."""
    tokenizer = load(original).tokenizer
    tokenizer.add_tokens(["Zub", "Zub_1"])
    assert [len(encode_text(tokenizer, text).ids) for text in ("Zub", "zub", "Zub_1")] == [2, 2, 1]


def test_loras_come_and_go_over_it(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    factors = {"lora_A": gaussian(2, width(pipe)), "lora_B": gaussian(width(pipe), 2)}
    save_file({f"{name}.{key}.weight": factor for key, factor in factors.items()}, tmp_path / "lora.safetensors")
    pipe.loras.merge(tmp_path / "lora.safetensors")
    pipe.add_embedding(write(tmp_path / "zub.pt", gaussian(2, width(pipe))))
    both = context(pipe, "a zub")
    pipe.loras.unmerge()
    alone = context(pipe, "a zub")
    assert difference((both, alone)) > 100 * BOUND
    other = Pipeline.from_pretrained(folder)
    other.add_embedding(tmp_path / "zub.pt")
    assert alone.equal(context(other, "a zub"))
    other.loras.merge(tmp_path / "lora.safetensors")
    assert both.equal(context(other, "a zub"))


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("zub", {"a": torch.ones(2, 7)}, r"it is \(2, 7\), torch.float32, and this model's tokens have a width of 32"),
        ("zub", {"clip_g": torch.ones(2, 7), "clip_l": torch.ones(2, 7)}, "holds 2 tensors .* Stable Diffusion XL"),
        ("zub", {}, "holds 0 tensors"),
        ("zub", {"a": torch.full((1, 32), math.nan)}, "not finite"),
        ("zub", {"a": torch.ones(0, 32)}, r"it is \(0, 32\)"),
        ("zub", {"a": torch.ones(1, 32, dtype=torch.int64)}, "torch.int64"),
        ("x", {"a": torch.ones(1, 32)}, "can't be the word 'x', which the model already has: rename"),
    ],
)
def test_a_wrong_file_adds_nothing(
    original: Path, name: str, state: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    pipe = Pipeline.from_pretrained(original)
    models = pipe.models
    save_file(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=message):
        pipe.add_embedding(tmp_path / f"{name}.safetensors")
    assert pipe.models is models


def test_a_word_is_added_once_and_can_be_taken_out_again(folder: Path, tmp_path: Path) -> None:
    pipe, other = (Pipeline.from_pretrained(folder) for _ in range(2))
    before = context(pipe, "a zub qx")
    for name, count in (("zub", 2), ("qx", 3)):
        pipe.add_embedding(write(tmp_path / f"{name}.pt", gaussian(count, width(pipe))))
    with pytest.raises(ModelError, match="which the model already has: rename the file"):
        pipe.add_embedding(write(tmp_path / "Zub.bin", gaussian(1, width(pipe))))
    other.add_embedding(tmp_path / "qx.pt")
    pipe.remove_embedding("zub")
    assert pipe.embeddings == ("qx",)
    assert context(pipe, "a zub qx").equal(context(other, "a zub qx"))
    pipe.remove_embedding("qx")
    assert context(pipe, "a zub qx").equal(before)
    with pytest.raises(ValueError, match="name must be one of none, got 'qx'"):
        pipe.remove_embedding("qx")
