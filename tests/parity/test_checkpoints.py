"""Files and names agree with diffusers and transformers: theirs load here, ours load there, real sizes included."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.config import TinyVAEConfig, UNetConfig
from stable_diffusion.loading.key_table import KeyTable
from stable_diffusion.loading.model_config import ModelConfig, Settings, read_settings
from stable_diffusion.loading.single_file import stable_diffusion_1, stable_diffusion_2
from stable_diffusion.model_converter import convert
from stable_diffusion.model_loader import NETWORKS, Models, load
from stable_diffusion.tiny_vae import TinyVAE
from tests.tiny import SMALL, save_model

diffusers.utils.logging.set_verbosity_error()

REAL = {"sd1": stable_diffusion_1, "sd2": stable_diffusion_2}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def pipeline(folder: Path, **options: Any) -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True, **options
    )


@torch.no_grad()
def assert_same_outputs(ours: Models, theirs: diffusers.StableDiffusionPipeline) -> None:
    """Every network gives the same answer, within 1e-5 in float32."""
    generator = torch.Generator().manual_seed(0)
    tokens = ours.tokenizer("a red fox", padding="max_length", return_tensors="pt").input_ids
    assert tokens.equal(theirs.tokenizer("a red fox", padding="max_length", return_tensors="pt").input_ids)
    context = theirs.text_encoder(tokens).last_hidden_state
    torch.testing.assert_close(ours.text_encoder(tokens), context, **TOLERANCE)
    latents, timestep = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([501])
    torch.testing.assert_close(
        ours.unet(latents, timestep, ours.unet.read(context)),
        theirs.unet(latents, timestep, context).sample,
        **TOLERANCE,
    )
    scaling = theirs.vae.config.scaling_factor
    torch.testing.assert_close(ours.vae.decode(latents), theirs.vae.decode(latents / scaling).sample, **TOLERANCE)
    pictures = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    mean = theirs.vae.encode(pictures).latent_dist.mean * scaling
    torch.testing.assert_close(ours.vae.encode(pictures), mean, **TOLERANCE)


def test_diffusers_loads_what_the_converter_wrote(kind: str, tmp_path: Path) -> None:
    folder, file = save_model(tmp_path / kind, kind), tmp_path / "one.safetensors"
    convert(folder, file)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    convert(file, tmp_path / "written")
    theirs = pipeline(tmp_path / "written")
    assert_same_outputs(load(file), theirs)
    assert_same_outputs(load(tmp_path / "written"), theirs)


@pytest.mark.parametrize(
    "options", [{}, {"variant": "fp16"}, {"max_shard_size": "100KB"}, {"safe_serialization": False}]
)
def test_what_diffusers_wrote_loads(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    pipe = pipeline(save_model(tmp_path / kind, kind))
    pipe.save_pretrained(tmp_path / "saved", **options)
    assert_same_outputs(load(tmp_path / "saved"), pipe)


def fill(settings: Settings, meta: bool) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a single file of this model, part by part, numbered or on the meta device."""
    config = ModelConfig.from_settings(settings)
    made, start = {}, 0
    for part in NETWORKS:
        made[part] = {}
        for row in KeyTable.of(part, config, NETWORKS[part]).rows:
            size = torch.Size(row.shape).numel()
            numbers = torch.empty(size, device="meta") if meta else torch.arange(start, start + size).double()
            made[part][row.name] = numbers.reshape(row.shape)
            start += size
    return made


def to_directory(settings: Settings, file: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a directory that our table makes of the file's."""
    config = ModelConfig.from_settings(settings)
    return {
        part: {
            ours: piece.reshape(row.part_shape)
            for row in KeyTable.of(part, config, NETWORKS[part]).rows
            for ours, piece in zip(row.parts, file[part][row.name].chunk(len(row.parts)), strict=True)
        }
        for part in NETWORKS
    }


def text_model(settings: Settings) -> CLIPTextModel:
    values = {name: value for name, value in settings["text_encoder"].items() if name != "_class_name"}
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**values))


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return names with `text_model`, which transformers since 5.2 leaves out, without the buffer of positions."""
    return {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }


@pytest.mark.parametrize("real", [False, True], ids=["tiny", "real"])
def test_the_table_is_diffusers_own(kind: str, real: bool, tmp_path: Path) -> None:
    """Same names, shapes and numbers as diffusers' conversion functions; in the real sizes names and shapes."""
    settings = REAL[kind]() if real else read_settings(save_model(tmp_path / kind, kind))
    file = fill(settings, meta=real)
    ours = to_directory(settings, file)
    whole = {name: tensor for state in file.values() for name, tensor in state.items()}
    theirs = {
        "unet": convert_ldm_unet_checkpoint(dict(whole), dict(settings["unet"])),
        "vae": convert_ldm_vae_checkpoint(dict(whole), dict(settings["vae"])),
        "text_encoder": convert_ldm_clip_checkpoint(dict(whole))
        if kind == "sd1"
        else convert_open_clip_checkpoint(text_model(settings), dict(whole)),
    }
    for part in NETWORKS:
        expected = prefixed(theirs[part]) if part == "text_encoder" else theirs[part]
        assert ours[part].keys() == expected.keys()
        for name, tensor in ours[part].items():
            assert tensor.shape == expected[name].shape, name
            assert real or torch.equal(tensor, expected[name]), name


def test_real_names_shapes_and_sizes(kind: str) -> None:
    """The networks of the real SD 1.5 and 2.1, on the meta device, against those of diffusers and transformers."""
    settings = REAL[kind]()
    config = ModelConfig.from_settings(settings)
    with torch.device("meta"):
        theirs = {
            "text_encoder": text_model(settings),
            "unet": diffusers.UNet2DConditionModel.from_config(settings["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(settings["vae"]),
        }
        ours = {part: network(getattr(config, part)) for part, network in NETWORKS.items()}
    for part, network in ours.items():
        expected = theirs[part].state_dict()
        expected = prefixed(expected) if part == "text_encoder" else expected
        assert shapes(network) == {name: tensor.shape for name, tensor in expected.items()}
    millions = {part: sum(p.numel() for p in network.parameters()) / 1e6 for part, network in ours.items()}
    published = {
        "sd1": {"text_encoder": 123.06, "unet": 859.52, "vae": 83.65},
        "sd2": {"text_encoder": 340.39, "unet": 865.91, "vae": 83.65},
    }
    assert millions == pytest.approx(published[kind], abs=0.005)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("name", "billions"), [("bk_small", 0.49), ("bk_tiny", 0.33)])
def test_real_names_and_sizes_of_small_unets(name: str, billions: float) -> None:
    """As large as BK-SDM's model card says, https://github.com/Nota-NetsPresso/BK-SDM, whose last digit is rounded."""
    base = stable_diffusion_1()["unet"]
    levels = len(SMALL[name]["block_out_channels"])
    widths = base["block_out_channels"][:levels]
    settings = {**base, **SMALL[name], "block_out_channels": widths}
    with torch.device("meta"):
        ours = UNet(UNetConfig.from_dict(settings))
        theirs = diffusers.UNet2DConditionModel.from_config(settings)
        assert shapes(TinyVAE(TinyVAEConfig())) == shapes(diffusers.AutoencoderTiny())
    assert shapes(ours) == shapes(theirs)
    assert sum(p.numel() for p in ours.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_file_is_as_large_as_its_weights(tmp_path: Path) -> None:
    """No tensor is stored twice, or with the tensor that it is a part of."""
    folder, file = save_model(tmp_path / "sd2", "sd2"), tmp_path / "one.safetensors"
    convert(folder, file)
    weights = sum(tensor.nbytes for tensor in load_file(file).values())
    assert file.stat().st_size < weights + 200_000
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    convert(file, tmp_path / "back")
    text = tmp_path / "back" / "text_encoder" / "model.safetensors"
    assert text.stat().st_size < sum(tensor.nbytes for tensor in load_file(text).values()) + 10_000
