"""Packed networks answer as the plain ones do, at every size, in every thread, and leave those as they were."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stable_diffusion import guidance, pipeline, vae
from stable_diffusion.inference import PACKED, PackedConv2d, PackedLinear, for_inference
from stable_diffusion.model_loader import Models, load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.weights import with_weights
from tests.parity.pairs import BOUND, difference, gaussian, photo
from tests.tiny import KINDS, save_model

SIZES = [(1, 8, 8), (2, 16, 16), (3, 7, 9), (8, 8, 8), (5, 1, 3), (2, 33, 20), (1, 40, 24)]
packs = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_packing = pytest.mark.skipif(not packs, reason="plain networks are faster on this processor")


@pytest.fixture(scope="module", params=["bundled", *KINDS])
def folder(request: pytest.FixtureRequest, bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "bundled":
        return bundled_model
    return save_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    return load(folder)


def unet_inputs(models: Models, rows: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    config = models.unet.config
    latents = gaussian(rows, config.in_channels, height, width)
    timesteps = torch.linspace(1, 999, rows)
    return latents, timesteps, gaussian(rows, 77, config.cross_attention_dim, seed=1)


def pairs(models: Models, packed: Models, rows: int, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """What U-Net, decoder and encoder answer, packed and plain, in float32."""
    inputs = unet_inputs(models, rows, height, width)
    scale, config = models.vae.config.downscale, models.vae.config
    latents = gaussian(rows, config.latent_channels, height, width)
    pictures = gaussian(rows, 3, scale * height, scale * width)
    dtype = models.unet.conv_in.weight.dtype
    answers = [
        (
            network.unet(inputs[0].to(dtype), inputs[1], inputs[2].to(dtype)),
            network.vae.decode(latents.to(dtype)),
            network.vae.posterior(pictures.to(dtype)).mean,
        )
        for network in (packed, models)
    ]
    return [(ours.float(), plain.float()) for ours, plain in zip(*answers, strict=True)]


def packed(models: Models) -> Models:
    return replace(models, unet=for_inference(models.unet), vae=for_inference(models.vae))


@needs_packing
@torch.no_grad()
def test_packed_networks_answer_as_plain_ones(models: Models) -> None:
    """At one size after the other, back and forth: a packing is never taken for that of another size."""
    for size in (*SIZES, *SIZES[:3]):
        for pair in pairs(models, packed(models), *size):
            assert difference(pair) <= BOUND
            assert pair[0].shape == pair[1].shape


@pytest.mark.skipif(not (packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()), reason="no instructions for bfloat16")
@torch.no_grad()
def test_bfloat16_is_no_farther_from_float32_packed_than_plain(folder: Path, models: Models) -> None:
    """Both round alike, in another order: errors of one size, give or take half for chance."""
    half = load(folder, dtype=torch.bfloat16)
    for size in SIZES[:4]:
        exact = [plain for _, plain in pairs(models, models, *size)]
        for (ours, plain), true in zip(pairs(half, packed(half), *size), exact, strict=True):
            assert (ours - true).square().mean().sqrt() <= 1.5 * (plain - true).square().mean().sqrt()


@needs_packing
@torch.no_grad()
def test_the_same_question_has_the_same_answer(models: Models) -> None:
    """Bit by bit, also after another size was packed for in between."""
    first = pairs(models, packed(models), 2, 16, 16)
    pairs(models, packed(models), 2, 8, 8)
    for (one, _), (again, _) in zip(first, pairs(models, packed(models), 2, 16, 16), strict=True):
        assert one.equal(again)


@needs_packing
@torch.no_grad()
def test_eight_threads_of_several_sizes_get_what_each_gets_alone(models: Models) -> None:
    inputs = [unet_inputs(models, *size) for size in SIZES]
    alone = [for_inference(models.unet)(*one) for one in inputs]
    again = copy.deepcopy(models.unet)  # nothing of it is packed yet

    @torch.no_grad()
    def ask(i: int) -> bool:
        return for_inference(again)(*inputs[i % len(inputs)]).equal(alone[i % len(inputs)])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(40)))


@needs_packing
def test_threads_that_begin_together_share_one_packed_network(models: Models) -> None:
    network = copy.deepcopy(models.unet)
    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(for_inference, [network] * 8)
    assert all(other is first for other in others)


@needs_packing
def test_every_layer_that_can_be_is_packed_and_the_plain_network_stays(models: Models) -> None:
    for network in (models.unet, models.vae):
        before = dict(network.named_parameters())
        layers = [type(module) for module in network.modules()]
        fast = for_inference(network)
        assert not PACKED.keys() & {type(module) for module in fast.modules()}
        assert [type(module) for module in network.modules()] == layers
        assert dict(network.named_parameters()).keys() == dict(fast.named_parameters()).keys() == before.keys()
        for name, parameter in network.named_parameters():
            assert parameter is before[name]
            assert fast.get_parameter(name) is parameter  # nothing but the packed weights takes memory
        assert fast.config == network.config


@needs_packing
@torch.no_grad()
def test_recorded_attention_is_the_plain_networks(models: Models) -> None:
    inputs, recorded = unet_inputs(models, 2, 16, 16), []
    for network in (for_inference(models.unet), models.unet):
        maps: list[Tensor] = []
        network(*inputs, maps=maps)
        recorded.append(maps)
    for pair in zip(*recorded, strict=True):
        assert difference(pair) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_left_alone(models: Models, dtype: torch.dtype) -> None:
    network = copy.deepcopy(models.unet).to(dtype)
    assert for_inference(network) is network


def test_a_network_in_training_is_left_alone(models: Models) -> None:
    network = copy.deepcopy(models.unet).train()
    assert for_inference(network) is network


def test_a_packed_network_goes_with_its_plain_one(models: Models) -> None:
    network = copy.deepcopy(models.unet)
    fast = weakref.ref(for_inference(network))
    del network
    gc.collect()
    assert fast() is None


@needs_packing
def test_other_weights_share_what_stays(models: Models) -> None:
    changed = "mid_block.resnets.0.conv1"
    weight = models.unet.get_parameter(f"{changed}.weight")
    other = with_weights(models.unet, {f"{changed}.weight": weight + 1})
    ours, theirs = for_inference(models.unet), for_inference(other)
    kinds = (PackedConv2d, PackedLinear)
    own = [
        name
        for name, module in theirs.named_modules()
        if isinstance(module, kinds) and module is not ours.get_submodule(name)
    ]
    assert own == [changed]


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines take the plain networks."""
    for module in (guidance, vae, pipeline):
        monkeypatch.setattr(module, "for_inference", lambda network: network)


OPTIONS = {"num_inference_steps": 3, "seed": 1, "sampler": "ddim", "image": photo(), "strength": 0.7}


@pytest.fixture
def drawn_plainly(models: Models, lora: Path, plainly: None, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    latents = draw_around_a_merge(models, lora)
    monkeypatch.undo()
    return latents


def draw_around_a_merge(models: Models, lora: Path) -> list[Tensor]:
    """Final latents before a LoRA file is merged, with it, and after it is taken out."""
    pipe = Pipeline(models)
    latents = [pipe("a red fox", **OPTIONS).latents]
    pipe.loras.merge(lora)
    latents.append(pipe("a red fox", **OPTIONS).latents)
    pipe.loras.unmerge()
    return [*latents, pipe("a red fox", **OPTIONS).latents]


@pytest.fixture
def lora(models: Models, tmp_path: Path) -> Path:
    """One convolution and one linear layer changed."""
    state = {}
    for name in ("conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"):
        weight = models.unet.get_submodule(name).weight
        state[f"unet.{name}.lora_A.weight"] = 0.3 * gaussian(2, *weight.shape[1:])
        state[f"unet.{name}.lora_B.weight"] = 0.3 * gaussian(len(weight), 2, *[1] * (weight.ndim - 2), seed=1)
    save_file(state, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


@needs_packing
def test_merging_and_unmerging_draw_what_plain_networks_draw(
    models: Models, lora: Path, drawn_plainly: list[Tensor]
) -> None:
    drawn = draw_around_a_merge(models, lora)
    assert not drawn[0].equal(drawn_plainly[0])  # other sums, so packed ones
    for pair in zip(drawn, drawn_plainly, strict=True):
        assert difference(pair) <= BOUND
    assert difference((drawn[1], drawn[0])) > 100 * BOUND
    assert drawn[2].equal(drawn[0])


@torch.no_grad()
def test_words_read_once_are_words_read_at_each_step(models: Models) -> None:
    """Also where those of several runs are joined."""
    latents, timesteps, context = unet_inputs(models, 4, 8, 8)
    network = for_inference(models.unet)
    words = torch.cat([network.read(context[:1]), network.read(context[1:])])
    assert difference((network.predict(latents, timesteps, words), network(latents, timesteps, context))) <= BOUND
