"""LoRA files of every naming merge as diffusers merges them, and come out again without a trace."""

from __future__ import annotations

import json
import math
import re
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stable_diffusion.adapters.lora import CACHED_MERGES, PARTS, LoRAs
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.config import ModelError
from stable_diffusion.model_loader import Models, load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import RequestError
from tests.parity.pairs import BOUND, difference, gaussian
from tests.tiny import KINDS, save_model

BLOCK = "down_blocks.0.attentions.0"
ATTENTION = [
    *(f"{BLOCK}.transformer_blocks.0.attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
]
LINEAR = [*ATTENTION, f"{BLOCK}.transformer_blocks.0.ff.net.0.proj", f"{BLOCK}.transformer_blocks.0.ff.net.2"]
CONVOLUTIONS = ["down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0.conv_shortcut", "conv_in"]
TEXT_ATTENTION = [
    f"text_model.encoder.layers.{n}.self_attn.{name}_proj" for n in (0, 1) for name in ("q", "k", "v", "out")
]
TEXT = [*TEXT_ATTENTION, "text_model.encoder.layers.1.mlp.fc1", "text_model.encoder.layers.1.mlp.fc2"]


@pytest.fixture
def models(folder: Path) -> Models:
    return load(folder)


def weight(models: Models, part: str, name: str) -> Tensor:
    return getattr(models, part).get_submodule(name).weight


def factors(models: Models, part: str, names: list[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each layer's name with random down and up factors of ranks 2 and 3."""
    for seed, name in enumerate(names):
        rank, original = 2 + seed % 2, weight(models, part, name)
        up = gaussian(len(original), rank, *[1] * (original.ndim - 2), seed=seed)
        yield name, gaussian(rank, *original.shape[1:], seed=100 + seed) * 0.3, up * 0.3


def kohya(models: Models, alpha: float = 1.5) -> dict[str, Tensor]:
    state = {}
    names = {"unet": [*LINEAR, f"{BLOCK}.proj_in", *CONVOLUTIONS], "text_encoder": TEXT}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for name, down, up in factors(models, part, names[part]):
            stem = prefix + name.replace(".", "_")
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            state[f"{stem}.alpha"] = torch.tensor(alpha)
    return state


def peft(models: Models) -> dict[str, Tensor]:
    state = {}
    for part, names in (("unet", [*LINEAR, f"{BLOCK}.proj_out", *CONVOLUTIONS]), ("text_encoder", TEXT)):
        for name, down, up in factors(models, part, names):
            state |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    return state


def second_generation(models: Models) -> dict[str, Tensor]:
    state = {}
    for part, kind, names in (("unet", "lora", LINEAR), ("text_encoder", "lora_linear_layer", TEXT_ATTENTION)):
        for name, down, up in factors(models, part, names):
            state |= {f"{part}.{name}.{kind}.down.weight": down, f"{part}.{name}.{kind}.up.weight": up}
    return state


def first_generation(models: Models, prefix: str = "unet.") -> dict[str, Tensor]:
    state = {}
    for name, down, up in factors(models, "unet", ATTENTION):
        block, _, layer = name.removesuffix(".0").rpartition(".")
        stem = f"{prefix}{block}.processor.{layer}_lora"
        state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return state


def first_generation_with_text(models: Models) -> dict[str, Tensor]:
    state = first_generation(models)
    for name, down, up in factors(models, "text_encoder", TEXT_ATTENTION):
        block, _, layer = name.rpartition(".")
        stem = f"text_encoder.{block}.to_{layer.removesuffix('_proj')}_lora"
        state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return state


def merged(models: Models, file: Path, scale: float = 1.0) -> Models:
    loras = LoRAs(models)
    loras.merge(file, scale)
    return loras.models


def latents(pipe: Pipeline, prompt: str) -> Tensor:
    """Return the final latents of a short run of a prompt."""
    return pipe(prompt, num_inference_steps=2, seed=3, guidance_scale=2.0).latents


@torch.no_grad()
def outputs(text_encoder: Callable, unet: Callable) -> Tensor:
    """Return features of some words and the U-Net's prediction with them, in one vector."""
    features = text_encoder(torch.arange(77)[None])
    context = features if isinstance(features, Tensor) else features.last_hidden_state
    second = unet.read(context) if isinstance(unet, UNet) else context
    prediction = unet(gaussian(1, 4, 8, 8), torch.tensor([501]), second)
    prediction = prediction if isinstance(prediction, Tensor) else prediction.sample
    return torch.cat([context.flatten(), prediction.flatten()])


@pytest.mark.parametrize(
    ("make", "scale"),
    [(kohya, 1.0), (kohya, -0.6), (peft, -0.6), (second_generation, 1.0), (first_generation_with_text, -0.6)],
)
def test_merged_as_diffusers_merges(
    folder: Path, models: Models, make: Callable[[Models], dict[str, Tensor]], scale: float, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(make(models), file)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    before = outputs(models.text_encoder, models.unet)
    assert difference((before, outputs(pipe.text_encoder, pipe.unet))) <= BOUND
    pipe.load_lora_weights(str(file))
    pipe.fuse_lora(lora_scale=scale)
    models = merged(models, file, scale)
    after = outputs(models.text_encoder, models.unet)
    assert difference((after, before)) > 100 * BOUND
    assert difference((after, outputs(pipe.text_encoder, pipe.unet))) <= BOUND


def test_every_layer_has_its_own_alpha(models: Models, tmp_path: Path) -> None:
    """kohya's scripts write one alpha a layer; diffusers applies the commonest to all."""
    file = kohya(models)
    before = state(models)
    for number, key in enumerate(sorted(key for key in file if key.endswith(".alpha"))):
        file[key] = torch.tensor(1.0 + number)
    save_file(file, tmp_path / "lora.safetensors")
    models = merged(models, tmp_path / "lora.safetensors", 0.5)
    for name in (LINEAR[0], LINEAR[3], *CONVOLUTIONS):
        stem = "lora_unet_" + name.replace(".", "_")
        down, up, alpha = (file[f"{stem}.{key}"] for key in ("lora_down.weight", "lora_up.weight", "alpha"))
        delta = torch.einsum("or,ri...->oi...", up.flatten(1), down)
        expected = before[f"unet.{name}.weight"] + 0.5 * alpha / len(down) * delta
        torch.testing.assert_close(weight(models, "unet", name), expected)


def test_settings_in_the_metadata_count(folder: Path, models: Models, tmp_path: Path) -> None:
    """diffusers saves a LoRA whose alpha is no tensor, and loads it again."""
    from peft.utils import get_peft_model_state_dict

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    settings = LoraConfig(
        r=2,
        lora_alpha=5,
        alpha_pattern={"mid_block.attentions.0.transformer_blocks.0.attn2.to_q": 9},
        target_modules=["to_q", "to_v"],
        init_lora_weights=False,
    )
    pipe.unet.add_adapter(settings)
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
    )
    models = merged(models, tmp_path / "pytorch_lora_weights.safetensors")
    assert difference((outputs(models.text_encoder, models.unet), outputs(pipe.text_encoder, pipe.unet))) <= BOUND


def test_names_without_the_part(models: Models, tmp_path: Path) -> None:
    """The first files name no part; diffusers no longer reads them."""
    results = []
    for prefix in ("", "unet."):
        save_file(first_generation(models, prefix), tmp_path / "lora.safetensors")
        changed = merged(models, tmp_path / "lora.safetensors")
        results.append(outputs(changed.text_encoder, changed.unet))
    assert results[0].equal(results[1])


def state(models: Models) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(models, part).state_dict().items()}


def assert_state(models: Models, expected: dict[str, Tensor]) -> None:
    assert state(models).keys() == expected.keys()
    for name, tensor in state(models).items():
        assert tensor.equal(expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_gives_the_identical_weights(folder: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    models = load(folder, dtype=dtype)
    pipe = Pipeline(models)
    before = {name: tensor.clone() for name, tensor in state(models).items()}
    for name, make in (("a", kohya), ("b", peft)):
        save_file(make(models), tmp_path / f"{name}.safetensors")
    pipe.loras.merge(tmp_path / "a.safetensors", 0.7)
    once = state(pipe.models)
    pipe.loras.merge(tmp_path / "b.safetensors", 1e-3)
    assert all(tensor.dtype == before[name].dtype for name, tensor in state(pipe.models).items())
    changed = [name for name, tensor in state(pipe.models).items() if not tensor.equal(once[name])]
    assert changed
    pipe.loras.unmerge()
    assert_state(pipe.models, before)
    assert_state(load(folder, dtype=dtype), before)  # nor has the mapped file changed
    pipe.loras.unmerge()
    assert_state(pipe.models, before)
    pipe.loras.merge(tmp_path / "a.safetensors", 0.7)
    assert_state(pipe.models, once)


def test_several_add_up(models: Models, tmp_path: Path) -> None:
    save_file(kohya(models), tmp_path / "lora.safetensors")
    loras, name = LoRAs(models), LINEAR[0]
    original = weight(models, "unet", name)
    loras.merge(tmp_path / "lora.safetensors", 0.5)
    loras.merge(tmp_path / "lora.safetensors", 0.25)
    twice = weight(loras.models, "unet", name)
    loras.unmerge()
    assert weight(loras.models, "unet", name) is original
    loras.merge(tmp_path / "lora.safetensors", 0.75)
    torch.testing.assert_close(weight(loras.models, "unet", name), twice)


def test_only_what_a_file_changes_takes_memory(models: Models, tmp_path: Path) -> None:
    save_file(second_generation(models), tmp_path / "lora.safetensors")
    original, changed = state(models), state(merged(models, tmp_path / "lora.safetensors"))
    own = {name for name, tensor in changed.items() if tensor.data_ptr() != original[name].data_ptr()}
    assert own == {
        *(f"unet.{name}.weight" for name in LINEAR),
        *(f"text_encoder.{name}.weight" for name in TEXT_ATTENTION),
    }


def test_a_run_keeps_the_weights_that_it_began_with(models: Models, tmp_path: Path) -> None:
    save_file(kohya(models), tmp_path / "lora.safetensors")
    pipe = Pipeline(models)
    options = {"num_inference_steps": 3, "seed": 1, "sampler": "ddim", "preview": "linear"}
    before = pipe("a red fox", **options).latents
    run = pipe.stream("a red fox", **options)
    next(run)
    pipe.loras.merge(tmp_path / "lora.safetensors")
    assert list(run)[-1].result.latents.equal(before)
    after = pipe("a red fox", **options).latents
    assert difference((after, before)) > 100 * BOUND
    run = pipe.stream("a red fox", **options)
    next(run)
    pipe.loras.unmerge()
    assert list(run)[-1].result.latents.equal(after)
    assert pipe("a red fox", **options).latents.equal(before)


def test_threads_see_one_model_or_the_other(models: Models, tmp_path: Path) -> None:
    """While one thread merges and unmerges, every run draws one of two pictures; no merge is lost."""
    save_file(kohya(models), tmp_path / "lora.safetensors")
    pipe = Pipeline(models)

    def run(_: int) -> Tensor:
        return pipe("a red fox", num_inference_steps=2, seed=1, sampler="ddim").latents

    expected = [run(0)]
    pipe.loras.merge(tmp_path / "lora.safetensors")
    expected.append(run(0))
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(run, range(24))
        for _ in range(12):
            pipe.loras.unmerge()
            pipe.loras.merge(tmp_path / "lora.safetensors")
        assert all(any(latents.equal(one) for one in expected) for latents in found)
        pipe.loras.unmerge()
        list(threads.map(lambda _: pipe.loras.merge(tmp_path / "lora.safetensors", 0.25), range(4)))
    whole = merged(models, tmp_path / "lora.safetensors")
    torch.testing.assert_close(state(pipe.models), state(whole))


STEM = "lora_unet_" + LINEAR[0].replace(".", "_")
DOWN, UP, ALPHA = (f"{STEM}.{name}" for name in ("lora_down.weight", "lora_up.weight", "alpha"))
WRONG_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor | None]], str]] = {
    "unknown": (
        lambda state: {f"lora_te2_text_model_encoder_layers_{n}.alpha": torch.ones(()) for n in range(7)},
        r"is not a LoRA of this model \(unknown: (lora_te2_text_model_encoder_layers_\d.alpha, ){4}"
        r"lora_te2_text_model_encoder_layers_4.alpha and 2 more\)",
    ),
    "mixed": (
        lambda state: {f"{STEM}.hada_w1_a": torch.ones(2, 2)},
        r"lacks factors.*unet/\S+to_q: alpha, down, hada_w1_a, up",
    ),
    "twice": (
        lambda state: {f"unet.{LINEAR[0]}.lora_A.weight": state[DOWN].clone()},
        r"unknown: unet\.\S+to_q.lora_A.weight",
    ),
    "half": (lambda state: {UP: None}, r"lacks factors.*unet/\S+to_q: alpha, down"),
    "shape": (
        lambda state: {DOWN: torch.ones(2, 7)},
        r"the shapes of this model \(unet/\S+to_q: alpha \(\), down \(2, 7\), up .* weight \(8, 8\)",
    ),
    "rank": (lambda state: {DOWN: torch.ones(5, state[DOWN].shape[1])}, "does not have the shapes"),
    "alphas": (lambda state: {ALPHA: torch.ones(2)}, "does not have the shapes"),
    "vector": (lambda state: {UP: torch.ones(8)}, "does not have the shapes"),
    "nan": (lambda state: {UP: torch.full_like(state[UP], math.nan)}, "not finite"),
    "integers": (lambda state: {UP: state[UP].to(torch.int8)}, "not finite"),
    "huge": (lambda state: {ALPHA: torch.tensor(math.inf)}, "not finite"),
    "empty": (lambda state: dict.fromkeys(state), "it is empty"),
}
"""What goes into a LoRA file, None where a tensor is left out, and the refusal."""
WRONG_SETTINGS = [
    ("{", "not valid JSON"),
    ("[]", "must hold a JSON object"),
    ('{"a":' * 100_000, "nested too deep"),
    ('{"unet.lora_alpha": "eight"}', "damaged settings"),
    ('{"unet.alpha_pattern": [1]}', "damaged settings"),
    (json.dumps({"unet.lora_alpha": 10**400}), "damaged settings"),
    (json.dumps({"unet.use_dora": True}), "is marked as a DoRA and has no magnitudes"),
]


def test_a_wrong_file_merges_nothing(original: Path, tmp_path: Path) -> None:
    models = load(original)
    loras, before, file = LoRAs(models), state(models), tmp_path / "lora.safetensors"
    with pytest.raises(ModelError, match=r"lora.safetensors does not exist"):
        loras.merge(file)
    for change, message in WRONG_TENSORS.values():
        tensors = kohya(models) | change(kohya(models))
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
        with pytest.raises(ModelError, match=message):
            loras.merge(file)
    for settings, message in WRONG_SETTINGS:
        save_file(peft(models), file, metadata={"lora_adapter_metadata": settings})
        with pytest.raises(ModelError, match=message):
            loras.merge(file)
    save_file(kohya(models), file)
    for scale in (math.nan, math.inf, 1e300):
        with pytest.raises(RequestError, match="finite"):
            loras.merge(file, scale)
    assert_state(loras.models, before)


PEFT_METHODS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(
        r=2, lora_alpha=5, alpha_pattern={"attn1.to_q": 9}, rank_pattern={"to_v": 3}, init_lora_weights=False
    ),
    "rslora": lambda: LoraConfig(r=2, lora_alpha=5, use_rslora=True, init_lora_weights=False),
    "dora": lambda: LoraConfig(r=2, lora_alpha=5, use_dora=True, init_lora_weights=False),
    "loha": lambda: LoHaConfig(r=2, alpha=5, init_weights=False),
    "loha with a core": lambda: LoHaConfig(r=2, alpha=5, use_effective_conv2d=True, init_weights=False),
    "lokr": lambda: LoKrConfig(r=2, alpha=5, init_weights=False),
    "lokr of whole matrices": lambda: LoKrConfig(r=4, alpha=5, rank_pattern={"to_v": 9}, init_weights=False),
    "lokr of split matrices": lambda: LoKrConfig(r=1, alpha=5, decompose_both=True, init_weights=False),
    "lokr with a core": lambda: LoKrConfig(r=2, alpha=5, use_effective_conv2d=True, init_weights=False),
}
LAYERS = {"unet": ["to_q", "to_v", "ff.net.2", "conv1", "conv_shortcut", "proj_in"], "text_encoder": ["q_proj", "fc1"]}


def save_adapter(network: nn.Module, settings: PeftConfig, part: str, folder: Path) -> PeftModel:
    """Return `network` with random factors, saved by PEFT; DoRA's magnitudes differ from the weights' norms."""
    settings.target_modules = LAYERS[part]
    adapted = get_peft_model(network, settings)
    numbers = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 0.5 + torch.rand(parameter.shape, generator=numbers)
    adapted.save_pretrained(str(folder))
    return adapted


@pytest.mark.parametrize(
    ("kind", "part", "method", "scale"),
    [
        *((KINDS[i % 2], "unet", method, 1.0) for i, method in enumerate(PEFT_METHODS)),
        *(("sd1", "text_encoder", "dora", 1.0), ("sd2", "text_encoder", "lokr", 1.0)),
        *(
            ("sd1", "unet", "loha", -0.6),
            ("sd2", "unet", "dora", -0.6),
            ("sd2", "unet", "lokr of split matrices", -0.6),
        ),
    ],
    indirect=["kind"],
)
def test_pefts_folders_merge_as_peft_merges_them(
    folder: Path, models: Models, part: str, method: str, scale: float, tmp_path: Path
) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    torch.manual_seed(0)  # PEFT draws its factors
    adapted = save_adapter(getattr(pipe, part), PEFT_METHODS[method](), part, tmp_path)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.scale_layer(scale)
    before = outputs(models.text_encoder, models.unet)
    theirs = {"text_encoder": pipe.text_encoder, "unet": pipe.unet, part: adapted.merge_and_unload()}
    models = merged(models, tmp_path, scale)
    after = outputs(models.text_encoder, models.unet)
    assert difference((after, before)) > 100 * BOUND
    assert difference((after, outputs(theirs["text_encoder"], theirs["unet"]))) <= BOUND
    again = merged(load(folder), tmp_path / "adapter_model.safetensors", scale)
    assert_state(again, state(models))


@pytest.mark.parametrize("method", ["dora", "loha with a core", "lokr of split matrices"])
def test_lycoris_names_say_the_same(folder: Path, models: Models, method: str, tmp_path: Path) -> None:
    """kohya's and LyCORIS' names, an alpha for each layer, and DoRA's magnitudes as a column."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    torch.manual_seed(0)
    save_adapter(pipe.unet, PEFT_METHODS[method](), "unet", tmp_path)
    file = {}
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        name, ending = re.fullmatch(r"base_model\.model\.(.+?)\.((?:lora|hada|lokr)_.+)", key).groups()
        stem = "lora_unet_" + name.replace(".", "_")
        for theirs, ours in (("lora_A", "lora_down"), ("lora_B", "lora_up"), ("lora_magnitude_vector", "dora_scale")):
            ending = ending.replace(theirs, ours)
        if ending == "dora_scale":
            tensor = tensor.reshape(-1, *[1] * (weight(models, "unet", name).ndim - 1))
        file |= {f"{stem}.{ending}": tensor}
        file[f"{stem}.alpha"] = torch.tensor(5.0)
    save_file(file, tmp_path / "lora.safetensors")
    assert_state(merged(models, tmp_path / "lora.safetensors"), state(merged(models, tmp_path)))


def test_lengths_of_the_inputs(models: Models, tmp_path: Path) -> None:
    """LyCORIS' first DoRA normalises over outputs and kernel, a magnitude for each input."""
    file = kohya(models)
    lengths = {name: gaussian(weight(models, "unet", name).shape[1], seed=9).abs() for name in CONVOLUTIONS}
    for name, one in lengths.items():
        file["lora_unet_" + name.replace(".", "_") + ".dora_scale"] = one.reshape(1, -1, 1, 1)
    save_file(file, tmp_path / "lora.safetensors")
    models = merged(models, tmp_path / "lora.safetensors")
    for name, one in lengths.items():
        found = weight(models, "unet", name).transpose(0, 1).flatten(1).norm(dim=1)
        torch.testing.assert_close(found, one)


def test_embeddings_in_a_lora_are_left_out_and_said(models: Models, tmp_path: Path) -> None:
    file = kohya(models)
    save_file(file, tmp_path / "lora.safetensors")
    save_file({**file, "bundle_emb.style.string_to_param.*": torch.ones(2, 32)}, tmp_path / "bundle.safetensors")
    with pytest.warns(UserWarning, match=r"contains embeddings, which are ignored \(bundle_emb.style"):
        bundle = merged(models, tmp_path / "bundle.safetensors")
    assert_state(bundle, state(merged(models, tmp_path / "lora.safetensors")))


def test_a_missing_middle_block_is_left_out_and_said(tmp_path: Path) -> None:
    small = load(save_model(tmp_path / "small", "bk_tiny"))
    original = small.unet.down_blocks[0].attentions[0].proj_in.weight
    both = {"lora_down.weight": gaussian(2, *original.shape[1:]), "lora_up.weight": gaussian(len(original), 2, 1, 1)}
    file = {f"lora_unet_down_blocks_0_attentions_0_proj_in.{name}": factor for name, factor in both.items()}
    save_file(file, tmp_path / "lora.safetensors")
    middle = {f"lora_unet_mid_block_attentions_0_proj_in.{name}": factor.clone() for name, factor in both.items()}
    save_file({**file, **middle}, tmp_path / "whole.safetensors")
    with pytest.warns(UserWarning, match=r"a middle block, .* that part is ignored \(lora_unet_mid_block"):
        whole = merged(small, tmp_path / "whole.safetensors")
    assert_state(whole, state(merged(small, tmp_path / "lora.safetensors")))


def test_a_prompt_names_the_files_of_its_own_run(models: Models, tmp_path: Path) -> None:
    for seed, name in enumerate(("ink", "oil")):
        scaled = {key: tensor * (1 + seed) for key, tensor in kohya(models).items()}
        save_file(scaled, tmp_path / f"{name}.safetensors")
    pipe, by_hand = Pipeline(models), Pipeline(models)
    pipe.loras.register(tmp_path / "ink.safetensors")
    pipe.loras.register(tmp_path / "oil.safetensors")
    plain = latents(pipe, "a fox ")
    by_hand.loras.merge(tmp_path / "ink.safetensors", 0.8)
    by_hand.loras.merge(tmp_path / "oil.safetensors")
    assert latents(pipe, "a fox <lora:ink:0.8><lora:oil>").equal(latents(by_hand, "a fox "))
    assert latents(pipe, "a fox").equal(plain)
    assert pipe.tokenize("a fox <lora:ink:0.8>").ids.equal(pipe.tokenize("a fox").ids)
    with pytest.raises(RequestError, match=r"names the LoRA 'pen', which is not here \(there are ink, oil\)"):
        pipe.begin("a fox <lora:pen:1>")


def test_runs_of_the_same_files_share_a_network(models: Models, tmp_path: Path) -> None:
    save_file(kohya(models), tmp_path / "ink.safetensors")
    loras = LoRAs(models)
    loras.register(tmp_path / "ink.safetensors")
    first = loras.models_for((("ink", 0.8),))
    for weight in range(1, CACHED_MERGES + 1):
        loras.models_for((("ink", float(weight)),))
    assert loras.models_for((("ink", 0.8),)) is first  # while a run uses it
    unused = weakref.ref(loras.models_for((("ink", 9.0),)))
    for weight in range(1, CACHED_MERGES):
        loras.models_for((("ink", float(weight)),))
    assert unused() is not None
    loras.models_for((("ink", 10.0),))
    loras.models_for((("ink", 11.0),))
    assert unused() is None
    loras.merge(tmp_path / "ink.safetensors")
    assert_state(loras.models_for((("ink", 0.5),)), state(merged(loras.models, tmp_path / "ink.safetensors", 0.5)))


def test_an_alpha_may_be_a_whole_number(models: Models, tmp_path: Path) -> None:
    save_file(kohya(models, alpha=2.0), tmp_path / "floating.safetensors")
    whole = {name: tensor.long() if name.endswith("alpha") else tensor for name, tensor in kohya(models, 2.0).items()}
    save_file(whole, tmp_path / "whole.safetensors")
    expected = merged(models, tmp_path / "floating.safetensors")
    assert_state(merged(models, tmp_path / "whole.safetensors"), state(expected))


def test_a_folder_without_its_settings_merges_nothing(models: Models, tmp_path: Path) -> None:
    loras, before = LoRAs(models), state(models)
    save_file(peft(models), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_config.json does not exist"):
        loras.merge(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "eight"}')
    with pytest.raises(ModelError, match="damaged settings"):
        loras.merge(tmp_path)
    assert_state(loras.models, before)
