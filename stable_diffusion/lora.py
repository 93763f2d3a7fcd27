"""LoRA (arXiv:2106.09685): small files that change a model by adding matrices of low rank to its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from .loading.checkpoints import finite, listed, read_metadata, read_tensors
from .loading.config import ModelError
from .loading.files import parse_json
from .model_loader import Models
from .weights import with_weights

PARTS = ("unet", "text_encoder")
Layer = tuple[str, str]
"""A part of the model and the name of a linear layer or convolution in it."""

# How the name of a tensor ends, in the files of kohya, PEFT and diffusers' three generations, and what it is there.
ENDINGS = {
    **{".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"},
    **{".lora_A.weight": "down", ".lora_B.weight": "up"},
    **{
        f"{kind}.{factor}.weight": factor
        for kind in (".lora", "_lora", ".lora_linear_layer")
        for factor in ("down", "up")
    },
}

# Where diffusers, since 0.34, keeps PEFT's settings in a file's metadata, as JSON.
SETTINGS = "lora_adapter_metadata"

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}

# What diffusers' first generation called the layers of an attention.
FIRST_NAMES = {
    "unet": {f".{name}": f".processor.{name.removesuffix('.0')}" for name in ("to_q", "to_k", "to_v", "to_out.0")},
    "text_encoder": {".q_proj": ".to_q", ".k_proj": ".to_k", ".v_proj": ".to_v", ".out_proj": ".to_out"},
}


def file_names(part: str, name: str) -> Iterator[str]:
    """Every name that a LoRA file may have for a layer of ours."""
    # transformers 5 leaves `text_model` out.
    for ours in {name, name.removeprefix("text_model.")}:
        yield f"{part}.{ours}"
        yield KOHYA[part] + ours.replace(".", "_")
        for ending, first in FIRST_NAMES[part].items():
            if ours.endswith(ending):
                yield f"{part}.{ours.removesuffix(ending)}{first}"
                if part == "unet":  # its very first files were of the U-Net alone
                    yield f"{ours.removesuffix(ending)}{first}"


@dataclass(frozen=True)
class Update:
    """What a file adds to one weight: scale * up @ down, with down (r, in, ...) and up (out, r, ...)."""

    down: Tensor
    up: Tensor
    scale: float

    def added_to(self, weight: Tensor, strength: float) -> Tensor:
        """weight + strength * scale * up @ down (Eq. 3, arXiv:2106.09685), summed in float32."""
        up, down = (factor.flatten(1).to(weight.device, torch.float32) for factor in (self.up, self.down))
        delta = (up @ down).reshape(weight.shape)
        return (weight.float() + strength * self.scale * delta).to(weight.dtype)


class LoRAs:
    """The LoRA files merged into a model, as whose weights they run as fast as before.

    `models` is the model with what is merged by now, a value that never changes: whoever takes it, once, where a run
    begins, keeps it while others merge. Layers that no file changes are the original's own and take no more memory.
    """

    def __init__(self, models: Models):
        self.models = self._original = models
        self._merging = Lock()  # so that of two merges at once none is lost; no run waits for it

    def merge(self, file: str | Path, scale: float = 1.0) -> None:
        """Add a file (.safetensors, .bin, .ckpt, .pt) to the weights, `scale` times; several add up.

        Files are those of kohya's scripts, of PEFT and of diffusers, for linear layers and convolutions. Raises
        `ModelError` where one is damaged, of another model or of another method; then nothing is merged.
        """
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale!r}")
        with self._merging:
            self.models = merged(self.models, Path(file).expanduser(), scale)

    def unmerge(self) -> None:
        """Take every merged file out again: the networks are the very ones from before."""
        with self._merging:
            self.models = self._original


def merged(models: Models, file: Path, scale: float) -> Models:
    """`models` with a file added `scale` times, sharing every weight that it does not change; see `LoRAs.merge`."""
    layers = _layers(models)
    weights: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for (part, name), update in read_updates(file, layers).items():
        weights[part][f"{name}.weight"] = update.added_to(layers[part, name], scale)
    broken = [f"{part}/{name}" for part in PARTS for name, weight in weights[part].items() if not finite(weight)]
    if broken:
        raise ModelError(f"{file} makes weights that are not finite at scale {scale} ({listed(broken)}): lower it")
    networks = {part: with_weights(getattr(models, part), weights[part]) for part in PARTS if weights[part]}
    return replace(models, **networks)


def _layers(models: Models) -> dict[Layer, Tensor]:
    """The weights that a LoRA may change."""
    return {
        (part, name): module.weight
        for part in PARTS
        for name, module in getattr(models, part).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def read_updates(file: Path, layers: dict[Layer, Tensor]) -> dict[Layer, Update]:
    """Read what a file adds to each of `layers`; raises `ModelError` unless all of it is understood and fits."""
    found = _collect(file, layers)
    _check(file, found, layers)
    try:
        settings = parse_json(read_metadata(file).get(SETTINGS, "{}"), file)
        if any(settings.get(f"{part}.use_dora") for part in PARTS):
            raise ModelError(f"{file} is a DoRA, which is not supported: use a LoRA")
        return {
            layer: Update(factors["down"], factors["up"], _scale(layer, factors, settings))
            for layer, factors in found.items()
        }
    except (TypeError, AttributeError) as error:
        raise ModelError(f"{file} has damaged settings in its metadata ({error}): download it again") from None


def _collect(file: Path, layers: dict[Layer, Tensor]) -> dict[Layer, dict[str, Tensor]]:
    """The tensors of a file by layer: down, up and perhaps alpha."""
    names = {alias: layer for layer in layers for alias in file_names(*layer)}
    found: dict[Layer, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in read_tensors(file).items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        layer = None if ending is None else names.get(key.removesuffix(ending))
        if ending is None or layer is None or ENDINGS[ending] in found.setdefault(layer, {}):
            unknown.append(key)
        else:
            found[layer][ENDINGS[ending]] = tensor
    if unknown or not found:
        raise ModelError(
            f"{file} is no LoRA of this model ({f'unknown: {listed(unknown)}' if unknown else 'it is empty'}): "
            "it may be of another model, such as Stable Diffusion XL, or of another method, such as LoHa or DoRA"
        )
    return found


def _check(file: Path, found: dict[Layer, dict[str, Tensor]], layers: dict[Layer, Tensor]) -> None:
    """Raise `ModelError` unless every layer has two factors of its shape, of finite numbers."""
    halves = ["/".join(layer) for layer, factors in found.items() if not {"down", "up"} <= factors.keys()]
    if halves:
        raise ModelError(f"{file} has only one of two factors for {listed(halves)}: download it again")
    wrong = [
        f"{'/'.join(layer)}: up {tuple(factors['up'].shape)}, down {tuple(factors['down'].shape)}, "
        f"weight {tuple(layers[layer].shape)}"
        for layer, factors in found.items()
        if not _fits(factors, layers[layer])
    ]
    if wrong:
        raise ModelError(f"{file} does not have the shapes of this model ({listed(wrong)}): it is of another one")
    broken = [
        "/".join(layer)
        for layer, factors in found.items()
        if not all(tensor.is_floating_point() and finite(tensor) for tensor in factors.values())
    ]
    if broken:
        raise ModelError(f"{file} holds numbers that are not finite ({listed(broken)}): download it again")


def _fits(factors: dict[str, Tensor], weight: Tensor) -> bool:
    """Whether up @ down has the weight's shape; a linear layer's may be stored as a 1x1 convolution's."""
    up, down, alpha = factors["up"], factors["down"], factors.get("alpha")
    return (
        min(up.ndim, down.ndim) >= 2
        and len(up) == len(weight)
        and up[0].numel() == len(down) > 0
        and down.shape[1] == weight.shape[1]
        and down[0].numel() == weight[0].numel()
        and (alpha is None or alpha.numel() == 1)
    )


def _scale(layer: Layer, factors: dict[str, Tensor], settings: dict[str, Any]) -> float:
    """alpha / r; alpha is in the file, or in its metadata, or else it is r."""
    part, name = layer
    rank = len(factors["down"])
    if "alpha" in factors:
        return factors["alpha"].item() / rank
    alpha = settings.get(f"{part}.lora_alpha", rank)
    for pattern, other in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if f".{name}".endswith(f".{pattern}"):
            alpha = other
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)
