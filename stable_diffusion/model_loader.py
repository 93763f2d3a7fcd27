"""From a model directory, a single file or a name on the hub to networks on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from .clip import CLIPTextEncoder
from .diffusion import UNet
from .loading.checkpoints import build
from .loading.config import BUNDLED, ModelError, SchedulerConfig
from .loading.hub import OnProgress, locate
from .loading.model_config import ModelConfig, read_config
from .loading.tokenizer import find_tokenizer, load_tokenizer
from .model_converter import networks_of, read_directory, read_single_file
from .vae import Autoencoder


@dataclass(frozen=True)
class Models:
    """A model ready to run: networks in evaluation mode on one device, and what is needed to use them."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextEncoder
    unet: UNet
    vae: Autoencoder
    scheduler: SchedulerConfig
    name: str
    source: str


def load(
    source: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    on_progress: OnProgress | None = None,
) -> Models:
    """Load a model in full, or raise `ModelError` naming the file at fault and the remedy.

    source: None for the bundled model, a model directory as diffusers writes it, a single file of Stable Diffusion
        1.x or 2.x (.safetensors, .ckpt), or a name on the hub, `owner/name`.
    device: by default CUDA, then Apple's GPU, then the CPU.
    dtype: by default float16 on CUDA and float32 elsewhere, whatever the files hold.
    on_progress: told what is going on and how much of it is done, from 0 to 1, while downloading and while loading.
    """
    device = _device(device)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    half = dtype in (torch.float16, torch.bfloat16)
    path = BUNDLED if source is None else locate(source, prefer_half=half, on_progress=on_progress)
    if path.is_dir():
        config = read_config(path)
        parts = read_directory(path, prefer_half=half)
        tokenizer = load_tokenizer(path / "tokenizer", config.text_encoder)
    else:
        settings, parts = read_single_file(path)
        config = ModelConfig.from_settings(settings)
        tokenizer = find_tokenizer(path, config.text_encoder)
    networks: dict[str, Any] = {}
    kinds = networks_of(config)
    for done, (part, network) in enumerate(kinds.items()):
        if on_progress is not None:
            on_progress(f"Loading {part.replace('_', ' ')}", done / len(kinds))
        state, origin = parts.pop(part)
        networks[part] = build(network, getattr(config, part), state, origin, device=device, dtype=dtype)
    named = path.stem if path.is_file() else path.name
    return Models(
        tokenizer=tokenizer,
        scheduler=config.scheduler,
        # The folder of a model from the hub is called after a commit.
        name=named if source is None or Path(source).expanduser().exists() else str(source),
        source=str(path if source is None else source),
        **networks,
    )


def _device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or the best there is; raises `ModelError` where it can't be used."""
    if device is None:
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else accelerator)
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device} can't be used here ({error}): use cpu, or leave it out") from None
