"""Single files without a VAE, and without a word on whether their U-Net predicts noise or velocity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stable_diffusion import Pipeline
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading import single_file
from stable_diffusion.loading.checkpoints import LEGACY_NAMES
from stable_diffusion.loading.config import ModelError, SchedulerConfig, UNetConfig
from stable_diffusion.loading.key_table import PREFIXES
from stable_diffusion.loading.model_config import Settings, read_settings
from stable_diffusion.loading.single_file import prediction_type
from stable_diffusion.model_converter import convert
from stable_diffusion.model_loader import load
from stable_diffusion.schedule import NoiseSchedule
from stable_diffusion.tiny_vae import TinyVAE
from tests.tiny import configs, networks, save_model

VAE = Path("vae", "diffusion_pytorch_model.safetensors")


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a published single file without a VAE, of a family as small as our tiny models."""
    folder = save_model(tmp_path / "tiny")
    convert(folder, tmp_path / "whole.safetensors")
    state = load_file(tmp_path / "whole.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIXES["vae"])}
    save_file(kept, tmp_path / "model.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    monkeypatch.setattr(single_file, "stable_diffusion_1", lambda: read_settings(folder))
    return tmp_path / "model.safetensors"


def vae_of(seed: int, form: str, tmp_path: Path) -> Path:
    """Write the VAE of the tiny model of a seed in one of its usual forms."""
    folder, whole = save_model(tmp_path / f"other{seed}", seed=seed), tmp_path / f"other{seed}.safetensors"
    if form == "model directory":
        return folder
    if form == "directory":
        return folder / "vae"
    if form == "diffusers' file":
        return folder / VAE
    if form == "old names":
        old = {new: old for old, new in LEGACY_NAMES.items()}
        save_file({old.get(name, name): tensor for name, tensor in load_file(folder / VAE).items()}, whole)
        return whole
    convert(folder, whole)
    if form == "converted model":
        return whole
    start = PREFIXES["vae"]
    state = {name: tensor for name, tensor in load_file(whole).items() if name.startswith(start)}
    if form == "part of a file":
        save_file(state, tmp_path / "part.safetensors")
        return tmp_path / "part.safetensors"
    bare = {name.removeprefix(start): tensor for name, tensor in state.items()}
    bare |= {"loss.logvar": torch.ones(()), "model_ema.decay": torch.ones(())}
    torch.save({"state_dict": bare, "epoch": 1}, tmp_path / "some.vae.pt")
    return tmp_path / "some.vae.pt"


FORMS = (
    *("model directory", "directory", "diffusers' file", "old names"),
    *("converted model", "part of a file", ".vae.pt"),
)


@pytest.mark.parametrize("form", FORMS)
def test_a_vae_from_elsewhere(form: str, without: Path, tmp_path: Path) -> None:
    models = load(without, vae=vae_of(7, form, tmp_path), device="cpu")
    for part, seed in (("vae", 7), ("unet", 0), ("text_encoder", 0)):
        for name, tensor in networks("sd1", seed)[part].state_dict().items():
            assert torch.equal(getattr(models, part).state_dict()[name], tensor), name
    assert (models.name, models.source) == ("model", str(without))


def test_a_vae_in_place_of_a_models_own(without: Path, tmp_path: Path) -> None:
    own, other = (
        Pipeline.from_pretrained(tmp_path / "tiny", vae=vae, device="cpu")("a fox", num_inference_steps=1).images[0]
        for vae in (None, vae_of(7, "directory", tmp_path))
    )
    assert own.tobytes() != other.tobytes()


def test_a_file_without_a_vae_names_the_remedy(without: Path) -> None:
    with pytest.raises(ModelError, match=r"model.safetensors lacks its VAE: name one as vae= or --vae, such as \w+/"):
        load(without, device="cpu")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("other", r"numbers.safetensors lacks weights of the vae"),
        ("empty", r"empty.config.json does not exist"),
        ("other class", r"is not a VAE: 'VQModel', only AutoencoderKL or AutoencoderTiny is supported"),
        ("other latents", r"does not fit the model: unet: in_channels=4 does not fit the vae's latent_channels=16"),
        ("weightless", r"holds no weights of a VAE: expected diffusion_pytorch_model.safetensors"),
        ("nowhere", r"nowhere.vae.pt does not exist"),
    ],
)
def test_what_is_no_vae_of_this_model(form: str, message: str, without: Path, tmp_path: Path) -> None:
    folder = tmp_path / form
    if form == "other":
        save_file({"numbers": torch.ones(3)}, tmp_path / "numbers.safetensors")
        folder = tmp_path / "numbers.safetensors"
    elif form == "nowhere":
        folder = tmp_path / "nowhere.vae.pt"
    else:
        folder.mkdir()
    if form in ("other class", "other latents", "weightless"):
        changed = {"other class": {"_class_name": "VQModel"}, "other latents": {"latent_channels": 16}}
        (folder / "config.json").write_text(json.dumps({**configs("sd1")["vae"], **changed.get(form, {})}))
    if form == "other latents":
        shutil.copy(tmp_path / "tiny" / VAE, folder)
    with pytest.raises(ModelError, match=message):
        load(without, vae=folder, device="cpu")
    assert load(without, vae=tmp_path / "tiny", device="cpu").vae.config.latent_channels == 4


def trained(kind: str) -> UNet:
    """Return a tiny network of the 2.x family, trained for a moment on smooth latents to predict `kind`."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig.from_dict(configs("sd2")["unet"]))
    schedule = NoiseSchedule(SchedulerConfig.from_dict(configs("sd2")["scheduler"]))
    optimiser = torch.optim.Adam(unet.parameters(), 5e-3)
    for _ in range(80):
        x_0 = torch.randn(4, 4, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
        noise, t = torch.randn_like(x_0), torch.randint(1000, (4,))
        target = noise if kind == "epsilon" else schedule.velocity(x_0, noise, t)
        keys_values = unet.read(torch.randn(4, 4, unet.config.cross_attention_dim))
        loss = (unet(schedule.add_noise(x_0, noise, t), t, keys_values) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return unet


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_file_is_asked_what_it_predicts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published 2.x file with nothing beside it, whichever way its network was trained."""
    folder = save_model(tmp_path / "tiny", "sd2")
    save_file(trained(kind).state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    convert(folder, tmp_path / "whole.safetensors")
    save_file(load_file(tmp_path / "whole.safetensors"), tmp_path / "model.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")

    def settings(prediction_type: str = "v_prediction") -> Settings:
        read = read_settings(folder)
        return {**read, "scheduler": {**read["scheduler"], "prediction_type": prediction_type}}

    monkeypatch.setattr(single_file, "stable_diffusion_2", settings)
    monkeypatch.setattr(single_file, "CONTEXT_2", configs("sd2")["unet"]["cross_attention_dim"])
    assert load(tmp_path / "model.safetensors", device="cpu").scheduler.prediction_type == kind
    convert(tmp_path / "model.safetensors", tmp_path / "back")
    assert read_settings(tmp_path / "back")["scheduler"]["prediction_type"] == kind


@pytest.mark.weights
def test_the_bundled_network_tells_that_it_predicts_velocity(bundled_model: Path) -> None:
    models = load(bundled_model, device="cpu", dtype=torch.float32)
    assert prediction_type(models.unet, models.unet.config) == models.scheduler.prediction_type == "v_prediction"


def test_a_tiny_autoencoder_in_place_of_a_models_own(without: Path, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", "sdxs", seed=7)
    models = load(without, vae=small / "vae", device="cpu")
    assert isinstance(models.vae, TinyVAE)
    for name, tensor in networks("sdxs", 7)["vae"].state_dict().items():
        assert torch.equal(models.vae.state_dict()[name], tensor), name
