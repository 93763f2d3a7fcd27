"""From a model directory to networks on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from stable_diffusion.checkpoints import build, find_weights, read_weights
from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.config import (
    CLIPTextConfig,
    ModelError,
    SchedulerConfig,
    UNetConfig,
    VAEConfig,
    read_json,
)
from stable_diffusion.diffusion import UNet
from stable_diffusion.vae import VAE

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "models" / "emoji"


@dataclass
class Models:
    """A model ready to run: networks in evaluation mode on one device, and what is needed to use them."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextEncoder
    unet: UNet
    vae: VAE
    scheduler: SchedulerConfig
    name: str
    source: str


def load(
    source: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Models:
    """Load a model; None is the bundled one.

    device defaults to CUDA, then Apple's GPU, then the CPU; dtype to float16 on CUDA and float32 elsewhere.
    Raises `ModelError`, naming the file and the remedy, and never hands out a model that is half loaded.
    """
    device = default_device() if device is None else torch.device(device)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    folder = BUNDLED if source is None else Path(source).expanduser()
    return load_directory(folder, device=device, dtype=dtype)


def default_device() -> torch.device:
    """CUDA where there is one, then Apple's GPU, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_directory(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Models:
    """Load a model directory as diffusers lays it out."""
    read_json(folder / "model_index.json")
    half = dtype in (torch.float16, torch.bfloat16)

    def weights(part: str, stem: str, pickled_stem: str) -> tuple[dict[str, Tensor], Path]:
        path = find_weights(folder / part, stem, pickled_stem, prefer_half=half)
        return read_weights(path), path

    diffusers_stem = "diffusion_pytorch_model"
    text, text_path = weights("text_encoder", "model", "pytorch_model")
    unet, unet_path = weights("unet", diffusers_stem, diffusers_stem)
    vae, vae_path = weights("vae", diffusers_stem, diffusers_stem)
    text = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.items()}
    text_config = CLIPTextConfig.from_dict(read_json(folder / "text_encoder" / "config.json"))
    unet_config = UNetConfig.from_dict(read_json(folder / "unet" / "config.json"))
    vae_config = VAEConfig.from_dict(read_json(folder / "vae" / "config.json"))
    return Models(
        tokenizer=load_tokenizer(folder / "tokenizer"),
        text_encoder=build(CLIPTextEncoder, text_config, text, text_path, device=device, dtype=dtype),
        unet=build(UNet, unet_config, unet, unet_path, device=device, dtype=dtype),
        vae=build(VAE, vae_config, vae, vae_path, device=device, dtype=dtype),
        scheduler=SchedulerConfig.from_dict(read_json(folder / "scheduler" / "scheduler_config.json")),
        name=folder.name,
        source=str(folder),
    )


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer of a model directory."""
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds no CLIP tokenizer ({error}): download vocab.json and merges.txt") from None
