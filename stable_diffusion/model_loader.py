"""Load a model directory, a single file or a model on the hub as networks on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import CLIPTokenizer

from .clip import CLIPTextEncoder
from .compute.packed import packs
from .compute.precision import fastest_dtype
from .diffusion import UNet
from .loading.checkpoints import (
    State,
    build,
    read_directory,
    read_tensors,
    read_weights,
    weight_names,
    with_today_names,
)
from .loading.config import (
    BUNDLED,
    ONLY_IN_A_CLONE,
    ConfigError,
    ModelError,
    SchedulerConfig,
    TinyVAEConfig,
    VAEConfig,
    require,
)
from .loading.files import read_json
from .loading.hub import OnProgress, locate
from .loading.key_table import PREFIXES, KeyTable
from .loading.model_config import (
    PART_CLASSES,
    SAFETY_FILES,
    TINY_VAE_FILES,
    TURBO_FILE,
    ModelConfig,
    read_config,
    vae_config,
)
from .loading.single_file import carried_settings, read_single_file
from .loading.tokenizer import find_tokenizer, load_tokenizer
from .request import shown
from .safety import SafetyChecker
from .tiny_vae import TinyVAE
from .vae import VAE, Autoencoder

NETWORKS: dict[str, type[nn.Module]] = {"text_encoder": CLIPTextEncoder, "unet": UNet, "vae": VAE}
"""The classes of the parts that a single file can hold."""

VAE_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]
"""The files of a VAE alone, in a repository of its own or in a model's folder `vae`."""

TAESD = "madebyollin/taesd"
"""The tiny autoencoder of Stable Diffusion's latents, on the hub."""
STABLE_DIFFUSION_LATENTS = (4, 8, 0.18215)
"""Channels, width of one latent in pixels, and scaling factor."""


@dataclass(frozen=True)
class Models:
    """A model ready to run: networks in evaluation mode on one device, with tokenizer and noise schedule.

    tiny_vae is a small autoencoder of the same latents, for previews; None if the model's directory has none.
    safety_checker checks all pictures; None if the directory has none or `load` was called without it.
    turbo is the file of a LoRA for fast requests; None if the directory has none.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextEncoder
    unet: UNet
    vae: Autoencoder
    scheduler: SchedulerConfig
    name: str
    source: str
    tiny_vae: TinyVAE | None = None
    safety_checker: SafetyChecker | None = None
    turbo: Path | None = None

    def decoder_for(self, preview: str) -> Autoencoder:
        """Return the decoder of previews: the tiny VAE for "tiny", and for "auto" if the model has one; else the VAE.

        If the directory has none, "tiny" downloads that of Stable Diffusion 1.x and 2.x from the hub, once.
        Raises `ModelError` if there is no tiny VAE for this model, or the hub can't be reached.
        """
        if preview not in ("tiny", "auto") or isinstance(self.vae, TinyVAE):
            return self.vae
        if preview == "auto" or self.tiny_vae is not None:
            return self.tiny_vae or self.vae
        config, weight = self.vae.config, next(self.vae.parameters())
        if (config.latent_channels, config.downscale, config.scaling_factor) != STABLE_DIFFUSION_LATENTS:
            raise ModelError(
                f"preview='tiny' needs a tiny VAE, and {self.name} has none: put an AutoencoderTiny into "
                "the folder vae_tiny of the model's directory, or choose another preview"
            )
        return _fetched_tiny_vae(TAESD, config, weight.device, weight.dtype)


def load(
    source: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    safety_checker: bool = False,
    on_progress: OnProgress | None = None,
) -> Models:
    """Load a model in full; raises `ModelError` naming the file at fault and the remedy.

    source: None for the bundled model, a model directory of diffusers, a single file of Stable Diffusion 1.x or 2.x
        (.safetensors, .ckpt), or a name on the hub, `owner/name`.
    vae: a VAE in place of the model's own: the directory of a VAE or of a model, a single file of either
        (.safetensors, .vae.pt, .ckpt), or a name on the hub.
    device: by default CUDA, then Apple's GPU, then the CPU.
    dtype: the type that the networks compute in; by default float16 on CUDA and float32 elsewhere, for "auto" the
        `fastest_dtype`. A U-Net that is packed for bfloat16 keeps the weights in the type of the file.
    safety_checker: load the checker of the model's directory, if it has one.
    on_progress: called with the current activity and its progress from 0 to 1, during download and loading.
    """
    device = _device(device)
    if dtype == "auto":
        dtype = fastest_dtype(device)
    elif dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    half = dtype in (torch.float16, torch.bfloat16)
    if source is None and not BUNDLED.is_dir():
        raise ModelError(f"source=None is the bundled model, which {ONLY_IN_A_CLONE}, or name another model")
    path = (
        BUNDLED
        if source is None
        else locate(source, prefer_half=half, safety_checker=safety_checker, on_progress=on_progress)
    )
    if path.is_dir():
        config = read_config(path)
        parts = read_directory(path, prefer_half=half)
        tokenizer = load_tokenizer(path / "tokenizer", config.text_encoder)
    else:
        settings, parts = read_single_file(path, NETWORKS, own_vae=vae is None)
        config = ModelConfig.from_settings(settings)
        tokenizer = find_tokenizer(path, config.text_encoder)
    if vae is not None:
        config, parts["vae"] = _with_vae(config, vae, prefer_half=half)
    networks: dict[str, Any] = {}
    kinds = networks_of(config)
    for done, (part, network) in enumerate(kinds.items()):
        if on_progress is not None:
            on_progress(f"Loading {part.replace('_', ' ')}", done / len(kinds))
        state, origin = parts.pop(part)
        packed = part in ("unet", "vae") and packs(device, dtype)
        unread = packed or part == "text_encoder"
        # `for_inference` converts these weights when it packs them. Converting here too would take memory and
        # make merging LoRA files less exact.
        kept = packed and part == "unet" and dtype != torch.float32
        networks[part] = build(
            network, getattr(config, part), state, origin, device=device, dtype=None if kept else dtype, unread=unread
        )
    if (path / TINY_VAE_FILES[0]).exists():
        networks["tiny_vae"] = _tiny_vae(path / "vae_tiny", config.vae, device, dtype)
    if safety_checker and (path / SAFETY_FILES[0]).exists():
        networks["safety_checker"] = SafetyChecker.of(path, device, dtype)
    stem = path.stem if path.is_file() else path.name
    return Models(
        tokenizer=tokenizer,
        scheduler=config.scheduler,
        # The folder of a model from the hub is named after a commit.
        name=stem if source is None or Path(source).expanduser().exists() else str(source),
        source=str(path if source is None else source),
        turbo=path / TURBO_FILE if (path / TURBO_FILE).is_file() else None,
        **networks,
    )


def networks_of(config: ModelConfig) -> dict[str, type[nn.Module]]:
    """Return the class of each part's network."""
    return {**NETWORKS, "vae": TinyVAE} if isinstance(config.vae, TinyVAEConfig) else NETWORKS


def _with_vae(config: ModelConfig, source: str | Path, *, prefer_half: bool) -> tuple[ModelConfig, tuple[State, Path]]:
    """Return the configuration with the VAE of `source`, and its weights; raises `ModelError` if it does not fit."""
    path = locate(source, files=[*VAE_FILES, *(f"vae/{name}" for name in VAE_FILES)])
    if path.is_dir():
        settings, state, path = _vae_directory(path / "vae" if (path / "vae").is_dir() else path, prefer_half)
    else:
        state = read_tensors(path)
        carried = carried_settings(path)
        own = config if carried is None else ModelConfig.from_settings(carried)
        settings, state = own.vae, _vae_weights(own, state, path)
    try:
        return replace(config, vae=settings), (state, path)
    except ConfigError as error:
        raise ConfigError(f"{path} does not fit the model: {error}") from None


def _tiny_vae(source: str | Path, vae: VAEConfig | TinyVAEConfig, device: torch.device, dtype: torch.dtype) -> TinyVAE:
    """Return the tiny VAE of a directory or of the hub; raises `ModelError` if it does not fit the latents of `vae`."""
    settings, state, path = _vae_directory(locate(source, files=VAE_FILES), prefer_half=False)
    require(isinstance(settings, TinyVAEConfig), f"{path.parent} is not an AutoencoderTiny")
    for name in ("latent_channels", "downscale"):
        ours, theirs = getattr(settings, name), getattr(vae, name)
        require(ours == theirs, f"{path.parent} does not fit the model's vae: {name} is {ours}, not {theirs}")
    return build(TinyVAE, settings, state, path, device=device, dtype=dtype)


_fetched_tiny_vae = cache(_tiny_vae)


def _vae_directory(folder: Path, prefer_half: bool) -> tuple[VAEConfig | TinyVAEConfig, State, Path]:
    """Return settings, weights and weight file of a VAE in diffusers' layout."""
    settings = read_json(folder / "config.json")
    kind, supported = settings.get("_class_name", PART_CLASSES["vae"][0]), PART_CLASSES["vae"]
    require(kind in supported, f"{folder} is not a VAE: {shown(kind)}, only {' or '.join(supported)} is supported")
    names = [Path(name).name for name in weight_names("vae", prefer_half=prefer_half)]
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise ModelError(f"{folder} holds no weights of a VAE: expected {' or '.join(names)}")
    return vae_config(settings), with_today_names(read_weights(path)), path


def _vae_weights(config: ModelConfig, state: State, path: Path) -> State:
    """Return the VAE's weights from a file of a whole model, or of a VAE with the names of diffusers or CompVis."""
    if any(name.startswith("decoder.up_blocks.") for name in state):
        return with_today_names(state)
    if not any(name.startswith(PREFIXES["vae"]) for name in state):
        state = {PREFIXES["vae"] + name: tensor for name, tensor in state.items()}
    return KeyTable.of("vae", config, VAE).from_file(state, path)


def _device(device: torch.device | str | None) -> torch.device:
    """Return the requested device, by default the best one; raises `ModelError` if it can't be used."""
    if device is None:
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else accelerator)
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device} can't be used here ({error}): use cpu, or leave it out") from None
