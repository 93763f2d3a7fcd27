"""Distillation of the text encoder: what grows from an encoder answers as it did, and the losses compare answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.loading.config import ATTENTION_DOWN, ATTENTION_UP, BUNDLED, PLAIN_DOWN, PLAIN_UP, UNetConfig
from stable_diffusion.model_loader import load
from stable_diffusion.schedule import NoiseSchedule
from training.networks.export_text import export_text
from training.networks.fit import LossByNoise
from training.networks.text_conditioner import TextConditioner, grow
from training.networks.train_text_encoder import (
    HeldoutSentences,
    Teacher,
    attention_loss,
    save_conditioner,
    velocity_loss,
)
from training.networks.train_tokenizer import caption_tokens, learn_merges, write_tokenizer
from training.networks.train_unet import SCHEDULER

CAPTIONS = ["a red fox on a blue background", "a cat next to a pizza", "a key", ""]
UNET = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=(PLAIN_DOWN, ATTENTION_DOWN),
    up_block_types=(ATTENTION_UP, PLAIN_UP),
    layers_per_block=1,
    attention_head_dim=(1, 2),
    cross_attention_dim=32,
    in_channels=4,
    out_channels=4,
    sample_size=4,
)


def make_tokenizer(folder: Path, merges: int, length: int) -> CLIPTokenizer:
    write_tokenizer(folder, learn_merges([*CAPTIONS, "ein Fuchs"] * 3, merges), length)
    return CLIPTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("old"), 40, 24)
    torch.manual_seed(0)
    made = Teacher.__new__(Teacher)
    torch.nn.Module.__init__(made)
    config = CLIPTextConfig(32, 64, 2, 2, len(tokenizer), 24, eos_token_id=tokenizer.eos_token_id)
    made.tokenizer, made.text_encoder, made.unet = tokenizer, CLIPTextEncoder(config), UNet(UNET)
    made.schedule = NoiseSchedule(SCHEDULER)
    return made.eval().requires_grad_(False)


@pytest.fixture
def batch(teacher: Teacher) -> tuple[Tensor, ...]:
    """Return a batch: plain captions as sentences, two of each picture."""
    plain = caption_tokens(teacher.tokenizer, CAPTIONS).long()
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn((2, len(CAPTIONS), 4, 4, 4), generator=generator)
    return plain.repeat_interleave(2, 0), plain, latents, torch.tensor([999, 800, 600, 10]), noise


def test_a_reader_gives_what_the_unet_reads(teacher: Teacher) -> None:
    tokens = caption_tokens(teacher.tokenizer, CAPTIONS).long()
    expected = teacher.unet.read(teacher.text_encoder(tokens))
    torch.testing.assert_close(TextConditioner(teacher.text_encoder, teacher.unet)(tokens), expected)


def test_projections_go_back_under_their_names(teacher: Teacher) -> None:
    conditioner = TextConditioner(teacher.text_encoder, teacher.unet)
    weights = teacher.unet.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in conditioner.unet_weights().items())
    conditioner.load_unet_weights({name: weight + 1 for name, weight in weights.items()})
    assert all(torch.equal(weights[name] + 1, weight) for name, weight in conditioner.unet_weights().items())


def test_what_grows_answers_as_before_to_the_same_tokens(teacher: Teacher, tmp_path: Path) -> None:
    """New layers add nothing yet; causal attention lets a longer window change nothing before it."""
    longer = make_tokenizer(tmp_path, 40, 40)
    grown = grow(teacher.text_encoder, teacher.tokenizer, longer, layers=4)
    old = teacher.text_encoder(caption_tokens(teacher.tokenizer, CAPTIONS).long())
    new = grown(caption_tokens(longer, CAPTIONS).long())
    assert new.shape[1] == 40
    torch.testing.assert_close(new[:, :24], old, rtol=1e-4, atol=1e-5)


def test_a_new_word_starts_as_its_parts_or_as_its_translation(teacher: Teacher, tmp_path: Path) -> None:
    larger = make_tokenizer(tmp_path, 400, 40)
    [fuchs] = larger("fuchs", add_special_tokens=False).input_ids
    [fox] = teacher.tokenizer("fox", add_special_tokens=False).input_ids
    known = teacher.text_encoder.text_model.embeddings.token_embedding.weight
    parts = teacher.tokenizer("fuchs", add_special_tokens=False).input_ids
    for same, expected in (({}, known[parts].mean(0)), ({"fuchs": "fox"}, known[fox])):
        grown = grow(teacher.text_encoder, teacher.tokenizer, larger, 2, same)
        torch.testing.assert_close(grown.text_model.embeddings.token_embedding.weight[fuchs], expected)


@pytest.mark.parametrize("make_loss", [attention_loss, velocity_loss])
def test_a_loss_is_nothing_for_the_teachers_own_reader_and_teaches_another(make_loss, teacher: Teacher, batch) -> None:
    by_noise = LossByNoise(1000)
    loss, conditioner = make_loss(teacher, by_noise), TextConditioner(teacher.text_encoder, teacher.unet)
    assert loss(conditioner, *batch).item() < 1e-8
    conditioner.requires_grad_(True)
    with torch.no_grad():
        conditioner.text_encoder.text_model.embeddings.token_embedding.weight[batch[0][0, 3]] += torch.randn(32)
    value = loss(conditioner, *batch)
    value.backward()
    bands = by_noise.take()
    assert bands.keys() == {"0-199", "600-799", "800-999"}
    assert max(bands.values()) > 1e-8
    assert value.item() > 1e-7
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in conditioner.projections.parameters()
    )
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_held_out_errors_are_0_for_the_teacher_and_1_for_a_reader_of_nothing(teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "heldout.json").write_text('{"de": [["a key", "a key"], ["a red fox", "a red fox"]]}')
    heldout = HeldoutSentences(teacher, tmp_path / "heldout.json")
    conditioner = TextConditioner(teacher.text_encoder, teacher.unet)
    assert heldout.measure(conditioner, teacher.tokenizer)["de"] == pytest.approx(0, abs=1e-3)
    heldout.sentences = ["", ""]
    assert heldout.measure(conditioner, teacher.tokenizer)["de"] == pytest.approx(1, rel=1e-2)


def test_an_exported_reader_is_what_the_pipeline_reads(tmp_path: Path) -> None:
    """The bundled model with a grown encoder: the files load, and give the trained conditioner's keys and values."""
    models = load(BUNDLED, dtype=torch.float32)
    larger = make_tokenizer(tmp_path / "tokenizer", 100, 40)
    conditioner = TextConditioner(models.text_encoder, models.unet)
    conditioner.text_encoder = grow(models.text_encoder, models.tokenizer, larger, 4)
    conditioner.load_unet_weights({name: weight * 1.5 for name, weight in conditioner.unet_weights().items()})
    save_conditioner(conditioner, tmp_path / "tokenizer", tmp_path / "text")
    export_text(tmp_path / "text", BUNDLED, tmp_path / "model")
    exported = load(tmp_path / "model", dtype=torch.float32)
    tokens = caption_tokens(exported.tokenizer, CAPTIONS).long()
    assert tokens.shape == (len(CAPTIONS), 40)
    with torch.no_grad():
        expected, read = conditioner(tokens), exported.unet.read(exported.text_encoder(tokens))
    torch.testing.assert_close(read, expected, rtol=0.02, atol=0.02 * expected.abs().mean().item())
