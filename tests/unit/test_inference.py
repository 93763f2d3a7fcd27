"""Packed networks answer as plain ones do, at every size and in every thread, and leave the plain ones unchanged."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from stable_diffusion import guidance, pipeline, vae
from stable_diffusion.adapters.weights import with_weights
from stable_diffusion.blocks import UpsamplingConv2d
from stable_diffusion.compute import precision
from stable_diffusion.compute.packed import PACKED, PackedConv2d, PackedLinear, PackedUpsamplingConv2d, for_inference
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.config import ModelError
from stable_diffusion.model_loader import Models, load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request
from tests.parity.pairs import BOUND, difference, gaussian, photo
from tests.tiny import KINDS, save_model

SIZES = [(1, 8, 8), (2, 16, 16), (3, 7, 9), (8, 8, 8), (5, 1, 3), (2, 33, 20), (1, 40, 24)]
packs = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_packing = pytest.mark.skipif(not packs, reason="plain networks are faster on this processor")
needs_bfloat16 = pytest.mark.skipif(
    not (packs and torch.ops.mkldnn._is_mkldnn_bf16_supported()), reason="no instructions for bfloat16"
)


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


def predict(unet: UNet, latents: Tensor, timesteps: Tensor, context: Tensor, **options: Any) -> Tensor:
    return unet(latents, timesteps, unet.read(context), **options)


def pairs(models: Models, packed: Models, rows: int, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Return the answers of U-Net, decoder and encoder, packed and plain, in float32.

    The decoder is asked for pictures: to one that learned beside a critic, latents of noise alone are edges everywhere,
    which it draws here or there by 1e-6.
    """
    inputs = unet_inputs(models, rows, height, width)
    pictures = F.interpolate(gaussian(rows, 3, height, width), scale_factor=models.vae.config.downscale)
    dtype = models.vae.quant_conv.weight.dtype
    latents = models.vae.posterior(pictures.to(dtype)).mean
    answers = [
        (
            predict(network.unet, inputs[0].to(dtype), inputs[1], inputs[2].to(dtype)),
            network.vae.decode(latents),
            network.vae.posterior(pictures.to(dtype)).mean,
        )
        for network in (packed, models)
    ]
    return [(ours.float(), plain.float()) for ours, plain in zip(*answers, strict=True)]


def packed(models: Models) -> Models:
    dtype = models.vae.quant_conv.weight.dtype
    return replace(models, unet=for_inference(models.unet, dtype), vae=for_inference(models.vae))


@needs_packing
@torch.no_grad()
def test_packed_networks_answer_as_plain_ones(models: Models) -> None:
    """At one size after the other, back and forth: a packing is never taken for that of another size."""
    for size in (*SIZES, *SIZES[:3]):
        for pair in pairs(models, packed(models), *size):
            assert difference(pair) <= BOUND
            assert pair[0].shape == pair[1].shape


@needs_bfloat16
@torch.no_grad()
def test_bfloat16_is_no_farther_from_float32_packed_than_plain(folder: Path, models: Models) -> None:
    """Both round alike, in another order: errors of one size, give or take half for chance."""
    half = load(folder, dtype=torch.bfloat16)
    plainly = replace(half, unet=copy.deepcopy(half.unet).to(torch.bfloat16))
    for size in SIZES[:4]:
        exact = [plain for _, plain in pairs(models, models, *size)]
        for (ours, plain), true in zip(pairs(plainly, packed(half), *size), exact, strict=True):
            assert (ours - true).square().mean().sqrt() <= 1.5 * (plain - true).square().mean().sqrt()


@needs_bfloat16
def test_weights_stay_as_the_file_has_them_where_packing_converts(models: Models, folder: Path) -> None:
    """The one copy in memory is the packed one; nothing else in bfloat16 is large."""
    half = load(folder, dtype=torch.bfloat16).unet
    fast = for_inference(half, torch.bfloat16)
    kinds = (PackedConv2d, PackedLinear)
    shared = {id(module.weight) for module in fast.modules() if isinstance(module, kinds)}
    assert shared == {id(module.weight) for module in half.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    others = {parameter.dtype for parameter in fast.parameters() if id(parameter) not in shared}
    assert others == {torch.bfloat16}
    for name, weight in half.named_parameters():
        assert torch.equal(weight.float(), models.unet.get_parameter(name)), name


@needs_packing
@pytest.mark.parametrize(
    ("dtype", "side", "channels", "contiguous"),
    [
        (torch.bfloat16, 16, 64, True),
        (torch.bfloat16, 32, 64, False),  # 1,024 pixels
        (torch.bfloat16, 16, 640, False),  # 20 channels a group
        (torch.float32, 16, 64, False),
    ],
)
def test_small_bfloat16_maps_are_normalised_in_the_contiguous_format(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, side: int, channels: int, contiguous: bool
) -> None:
    """There PyTorch's group normalisation of channels_last is slower than two changes of format; the sums are equal."""
    formats = []

    def record(x: Tensor, *arguments: object) -> Tensor:
        formats.append(x.is_contiguous())
        return group_norm(x, *arguments)

    group_norm = F.group_norm
    monkeypatch.setattr(F, "group_norm", record)
    plain = nn.GroupNorm(32, channels).to(dtype)
    x = gaussian(1, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
    normalised = PACKED[nn.GroupNorm](plain, dtype)(x)
    assert formats == [contiguous]
    assert difference((normalised, plain(x))) <= (BOUND if dtype == torch.float32 else 0.02)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a model with one NaN in a kernel."""
    file = save_model(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    state["conv_out.weight"][-1, -1, -1, -1] = torch.nan
    save_file(state, file, metadata={"format": "pt"})
    return tmp_path


@needs_packing
def test_what_packing_reads_is_checked_before_the_first_step(broken: Path) -> None:
    """Loading leaves it unread."""
    steps = Pipeline.from_pretrained(broken, device="cpu").stream("a fox")
    with pytest.raises(ModelError, match=r"UNet holds weights that are not finite in float32 \(conv_out.weight\)"):
        next(steps)


def test_the_words_weights_are_checked_by_what_they_give(tmp_path: Path) -> None:
    file = save_model(tmp_path) / "text_encoder" / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    state[name][0, 0] = torch.inf
    save_file(state, file, metadata={"format": "pt"})
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(ModelError, match=rf"CLIPTextEncoder holds weights .*not finite in float32 \({name}\)"):
        pipe.condition(Request("a fox"))


def test_what_is_not_packed_is_checked_when_it_is_loaded(broken: Path) -> None:
    with pytest.raises(ModelError, match=r"safetensors holds weights .*not finite in float16 \(conv_out.weight\)"):
        load(broken, device="cpu", dtype=torch.float16)


def test_auto_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 only where it is faster, also on a busy machine, and never where it was not measured."""
    times = {torch.float32: itertools.cycle([1.0, 9.0]), torch.bfloat16: itertools.cycle([9.0, 0.8])}
    now = [0.0]

    class Step:
        def __init__(self, device: torch.device, dtype: torch.dtype):
            self.dtype = dtype

        def __call__(self) -> None:
            now[0] += next(times[self.dtype])

    monkeypatch.setattr(precision, "_Step", Step)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    fastest = precision.fastest_dtype.__wrapped__
    assert fastest(torch.device("cpu")) == torch.bfloat16
    times[torch.bfloat16] = itertools.cycle([0.95])
    assert fastest(torch.device("cpu")) == torch.float32
    assert fastest(torch.device("mps")) == torch.float32
    assert fastest(torch.device("cuda")) == torch.float16


def test_auto_draws_in_what_this_machine_is_fastest_in(tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(save_model(tmp_path), device="cpu", dtype="auto")
    *_, last = pipe.stream("a fox", num_inference_steps=2, seed=1)
    assert f"torch.{last.precision}" == str(precision.fastest_dtype(torch.device("cpu")))
    assert last.result.latents.dtype == torch.float32


@needs_packing
@torch.no_grad()
def test_eight_threads_of_several_sizes_get_what_each_gets_alone(models: Models) -> None:
    inputs = [unet_inputs(models, *size) for size in SIZES]
    alone = [predict(for_inference(models.unet), *one) for one in inputs]
    again = copy.deepcopy(models.unet)  # nothing of it is packed yet
    networks = []

    @torch.no_grad()
    def ask(i: int) -> bool:
        networks.append(for_inference(again))
        return predict(networks[-1], *inputs[i % len(inputs)]).equal(alone[i % len(inputs)])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(21)))
    assert all(network is networks[0] for network in networks)


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
        predict(network, *inputs, maps=maps)
        recorded.append(maps)
    for pair in zip(*recorded, strict=True):
        assert difference(pair) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_and_training_are_left_alone(models: Models, dtype: torch.dtype) -> None:
    for network in (copy.deepcopy(models.unet).to(dtype), copy.deepcopy(models.unet).train()):
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
        monkeypatch.setattr(module, "for_inference", lambda network, dtype=None: network)


OPTIONS = {"num_inference_steps": 3, "seed": 1, "sampler": "ddim", "image": photo(), "strength": 0.7}


@pytest.fixture
def drawn_plainly(models: Models, lora: Path, plainly: None, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    latents = draw_around_a_merge(models, lora)
    monkeypatch.undo()
    return latents


def draw_around_a_merge(models: Models, lora: Path) -> list[Tensor]:
    """Return the final latents before a LoRA file is merged, with it, and after it is taken out."""
    pipe = Pipeline(models)
    latents = [pipe("a red fox", **OPTIONS).latents]
    pipe.loras.merge(lora)
    latents.append(pipe("a red fox", **OPTIONS).latents)
    pipe.loras.unmerge()
    return [*latents, pipe("a red fox", **OPTIONS).latents]


@pytest.fixture
def lora(models: Models, tmp_path: Path) -> Path:
    """Return a LoRA file that changes one convolution and one linear layer."""
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
def test_guided_pictures_are_evaluated_once_up_to_the_context(models: Models) -> None:
    """Of three pictures the first two are guided: five contexts, read in two calls, and three latents."""
    latents, timesteps, context = unet_inputs(models, 3, 8, 8)
    network = for_inference(models.unet)
    keys_values = torch.cat([network.read(-context[:2]), network.read(context)])
    rows = [0, 1, 0, 1, 2]
    apart = network(latents[rows], timesteps[rows], keys_values)
    assert difference((network(latents, timesteps, keys_values), apart)) <= BOUND
    assert difference((apart[:2], apart[2:4])) > 100 * BOUND


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 3)])
def test_a_map_is_convolved_small_as_if_it_were_doubled(height: int, width: int, bias: bool) -> None:
    """Edges too; where it is enlarged by anything but two, it is enlarged first."""
    plain = UpsamplingConv2d(24, bias=bias)
    packed, x = PackedUpsamplingConv2d(plain, torch.float32), gaussian(2, 24, height, width)
    for size in (None, (2 * height, 2 * width), (2 * height - 1, 2 * width)):
        assert difference((packed(x, size), plain(x, size))) <= BOUND
