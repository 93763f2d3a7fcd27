"""LoRA (arXiv:2106.09685) and its kin DoRA, LoHa and LoKr: small files that change the weights of a model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..loading.checkpoints import finite, first_five, is_dense_float, read_metadata, read_tensors
from ..loading.config import ModelError
from ..loading.files import parse_json, read_json
from ..model_loader import Models
from .weights import with_weights

PARTS = ("unet", "text_encoder")
Layer = tuple[str, str]
"""A part of the model and the name of a linear layer or convolution in it."""

# The factors that make a change, by method; of LoHa's and LoKr's matrices each may be split in turn.
_SPLIT_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
FACTORS = (
    {"down", "up"},
    _SPLIT_LOHA,
    _SPLIT_LOHA | {"hada_t1", "hada_t2"},
    *(
        first | second
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    ),
)

# How the name of a tensor ends, in the files of kohya, LyCORIS, PEFT and diffusers' three generations, and what it is.
ENDINGS = {
    **{".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha", ".dora_scale": "magnitude"},
    **{".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_magnitude_vector": "magnitude"},
    **{
        f"{kind}.{factor}.weight": factor
        for kind in (".lora", "_lora", ".lora_linear_layer")
        for factor in ("down", "up")
    },
    **{f".{factor}": factor for factors in FACTORS[1:] for factor in factors},
}

# Where diffusers, since 0.34, keeps PEFT's settings in a file's metadata, as JSON; PEFT itself, in a file of its own.
SETTINGS = "lora_adapter_metadata"
PEFT_SETTINGS, PEFT_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")

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
        yield f"base_model.model.{ours}"
        yield KOHYA[part] + ours.replace(".", "_")
        for ending, first in FIRST_NAMES[part].items():
            if ours.endswith(ending):
                yield f"{part}.{ours.removesuffix(ending)}{first}"
                if part == "unet":  # its very first files were of the U-Net alone
                    yield f"{ours.removesuffix(ending)}{first}"


@dataclass(frozen=True)
class Update:
    """What a file makes of one weight: `factors` of one of the `FACTORS`' kinds, with DoRA also the `magnitude`."""

    factors: dict[str, Tensor]
    scale: float

    def applied_to(self, weight: Tensor, strength: float) -> Tensor:
        """weight + strength * scale * change (Eq. 3, arXiv:2106.09685), in float32.

        DoRA keeps of that only the direction: m V / ||V|| (Eq. 5, arXiv:2402.09353), where m holds a length for every
        output or, as LyCORIS once trained it, for every input. Its lengths stay at strength 0, as they do in PEFT.
        """
        factors = {name: factor.to(weight.device, torch.float32) for name, factor in self.factors.items()}
        changed = weight.float() + strength * self.scale * change(factors).reshape(weight.shape)
        if "magnitude" in factors:
            lengths = factors["magnitude"].reshape(_lengths(factors["magnitude"], weight))
            across = [axis for axis, size in enumerate(lengths.shape) if size == 1]
            changed *= lengths / torch.linalg.vector_norm(changed, dim=across, keepdim=True)
        return changed.to(weight.dtype)


def change(factors: dict[str, Tensor]) -> Tensor:
    """What is added to a weight, but for the scale, as a matrix (out, in * kernel).

    LoRA: up @ down. LoHa: the elementwise product of two matrices (Eq. 1, arXiv:2108.06098). LoKr: their Kronecker
    product (Section 3, arXiv:2309.14859).
    """
    if "up" in factors:
        return factors["up"].flatten(1) @ factors["down"].flatten(1)
    if "hada_w1_a" in factors:
        return _matrix(factors, "hada_w1") * _matrix(factors, "hada_w2")
    return torch.kron(_matrix(factors, "lokr_w1"), _matrix(factors, "lokr_w2"))


def _matrix(factors: dict[str, Tensor], name: str) -> Tensor:
    """A matrix of LoHa or LoKr: whole, a product a @ b, or a core with a and b at its sides (Tucker)."""
    if name in factors:
        return factors[name].flatten(1)
    a, b, core = factors[f"{name}_a"], factors[f"{name}_b"], factors.get(name.replace("_w", "_t"))
    if core is None:
        return a.flatten(1) @ b.flatten(1)
    return torch.einsum("rshw,ro,si->oihw", core, a, b).flatten(1)


def _lengths(magnitude: Tensor, weight: Tensor) -> list[int]:
    """The shape (out, 1, ...) or (1, in, ...) in which DoRA's lengths multiply a weight."""
    axis = 1 if magnitude.ndim > 1 and len(magnitude) == 1 else 0
    return [magnitude.numel() if one == axis else 1 for one in range(weight.ndim)]


Wanted = tuple[tuple[str, float], ...]
"""Names of LoRA files with their weights."""

KEPT_MERGES = 3
"""For how many runs of other LoRAs those of one can still be drawn in one batch."""


@dataclass(frozen=True)
class Merge:
    """A model, the files merged into it for single runs, and what came of it."""

    base: Models
    wanted: Wanted
    models: Models


class LoRAs:
    """The LoRA files merged into a model, as whose weights they run as fast as before.

    `models` is the model with what is merged by now, a value that never changes: whoever takes it, once, where a run
    begins, keeps it while others merge. Layers that no file changes are the original's own and take no more memory.
    """

    def __init__(self, models: Models):
        self.models = self._original = models
        self.offered: dict[str, Path] = {}
        """What a prompt may name."""
        self._kept: tuple[Merge, ...] = ()
        self._merging = Lock()  # so that of two merges at once none is lost; no run waits for it

    def offer(self, file: str | Path) -> None:
        """Let prompts name a file, or PEFT's folder, by its name without the ending: `<lora:name:0.8>`."""
        path = Path(file).expanduser()
        self.offered = {**self.offered, (path.name if path.is_dir() else path.stem): path}

    def using(self, wanted: Wanted) -> Models:
        """`models` with offered files merged too, given by name and weight; the last few of these are kept.

        Raises ValueError where a name is not offered, and as `merge` does.
        """
        for name, _ in wanted:
            if name not in self.offered:
                there = f"there are {', '.join(self.offered)}" if self.offered else "there is none"
                raise ValueError(f"the prompt names the LoRA {name!r}, which is not here ({there}): take its tag out")
        if not wanted:
            return self.models
        models = self._found(wanted)
        if models is None:
            with self._merging:
                models = self._found(wanted) or self._merged_for_runs(wanted)  # somebody may have been quicker
        return models

    def _found(self, wanted: Wanted) -> Models | None:
        return next((one.models for one in self._kept if one.base is self.models and one.wanted == wanted), None)

    def _merged_for_runs(self, wanted: Wanted) -> Models:
        base = models = self.models
        for name, weight in wanted:
            models = merged(models, self.offered[name], weight)
        current = [one for one in self._kept if one.base is base]
        self._kept = (Merge(base, wanted, models), *current[: KEPT_MERGES - 1])
        return models

    def merge(self, file: str | Path, scale: float = 1.0) -> None:
        """Add a file (.safetensors, .bin, .ckpt, .pt) or PEFT's folder to the weights, `scale` times; several add up.

        Files are LoRA, DoRA, LoHa and LoKr for linear layers and convolutions, from kohya's scripts, LyCORIS, PEFT and
        diffusers. Raises `ModelError` where one is damaged, of another model or of another method; then nothing is
        merged. Embeddings in it are left out, with a warning.
        """
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale!r}")
        with self._merging:
            self.models = merged(self.models, Path(file).expanduser(), scale)

    def unmerge(self) -> None:
        """Take every merged file out again: the networks are the very ones from before."""
        with self._merging:
            self.models = self._original

    def rebase(self, change: Callable[[Models], Models]) -> None:
        """Change what lies under the merged files, and so what unmerging gives; whatever `change` raises, undone."""
        with self._merging:
            original = change(self._original)
            self.models = original if self.models is self._original else change(self.models)
            self._original = original


def merged(models: Models, file: Path, scale: float) -> Models:
    """`models` with a file added `scale` times, sharing every weight that it does not change; see `LoRAs.merge`."""
    layers = _layers(models)
    weights: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for (part, name), update in read_updates(file, layers).items():
        weights[part][f"{name}.weight"] = update.applied_to(layers[part, name], scale)
    broken = [f"{part}/{name}" for part in PARTS for name, weight in weights[part].items() if not finite(weight)]
    if broken:
        raise ModelError(f"{file} makes weights that are not finite at scale {scale} ({first_five(broken)}): lower it")
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


def read_updates(path: Path, layers: dict[Layer, Tensor]) -> dict[Layer, Update]:
    """Read what a file does to each of `layers`; raises `ModelError` unless all of it is understood and fits."""
    file = next((path / name for name in PEFT_WEIGHTS if (path / name).exists()), path) if path.is_dir() else path
    found = _collect(file, layers)
    _check(file, found, layers)
    try:
        settings = _read_settings(file)
        for part in PARTS:
            lengths = ["magnitude" in factors for layer, factors in found.items() if layer[0] == part]
            if lengths and settings[part].get("use_dora") and not any(lengths):
                raise ModelError(f"{file} says that it is a DoRA, and holds none of its lengths: download it again")
        return {
            layer: Update(factors, _scale(layer[1], factors, settings[layer[0]])) for layer, factors in found.items()
        }
    except ModelError:
        raise
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{file} has damaged settings ({error}): download it again") from None


def _read_settings(file: Path) -> dict[str, dict[str, Any]]:
    """PEFT's settings for each part: of the file beside, of one model alone, or of the metadata, of both."""
    if file.name in PEFT_WEIGHTS:
        return dict.fromkeys(PARTS, read_json(file.parent / PEFT_SETTINGS))
    settings = parse_json(read_metadata(file).get(SETTINGS, "{}"), file)
    return {
        part: {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
        for part in PARTS
    }


def _collect(file: Path, layers: dict[Layer, Tensor]) -> dict[Layer, dict[str, Tensor]]:
    """The tensors of a file by layer: factors, perhaps alpha, and with DoRA the magnitude."""
    names = {alias: layer for layer in layers for alias in file_names(*layer)}
    found: dict[Layer, dict[str, Tensor]] = {}
    unknown, bundled, middle = [], [], []
    no_middle = not any(name.startswith("mid_block.") for part, name in layers if part == "unet")
    for key, tensor in read_tensors(file).items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        layer = None if ending is None else names.get(key.removesuffix(ending))
        if key.startswith("bundle_emb."):
            bundled.append(key)
        elif no_middle and ending is not None and "mid_block" in key:
            middle.append(key)
        elif ending is None or layer is None or ENDINGS[ending] in found.setdefault(layer, {}):
            unknown.append(key)
        else:
            # PEFT has the length of every output, as a vector or, for a convolution, behind an axis of 1.
            found[layer][ENDINGS[ending]] = tensor.flatten() if ending == ".lora_magnitude_vector" else tensor
    if unknown or not found:
        raise ModelError(
            f"{file} is no LoRA of this model ({f'unknown: {first_five(unknown)}' if unknown else 'it is empty'}): "
            "it may be of another model, such as Stable Diffusion XL, or of another method than LoRA, DoRA, LoHa, LoKr"
        )
    for what, keys in (
        ("brings embeddings, which are left out", bundled),
        ("changes a middle block, which this model does not have: that part is left out", middle),
    ):
        if keys:
            warnings.warn(f"{file} {what} ({first_five(keys)})", stacklevel=2)
    return found


def _check(file: Path, found: dict[Layer, dict[str, Tensor]], layers: dict[Layer, Tensor]) -> None:
    """Raise `ModelError` unless every layer has all factors of a method, in its shape, of finite numbers."""
    halves = [
        f"{'/'.join(layer)}: {', '.join(sorted(factors))}"
        for layer, factors in found.items()
        if factors.keys() - {"alpha", "magnitude"} not in FACTORS
    ]
    if halves:
        raise ModelError(
            f"{file} has not all the factors, or those of two methods ({first_five(halves)}): download it again"
        )
    wrong = [
        f"{'/'.join(layer)}: {', '.join(f'{name} {tuple(factors[name].shape)}' for name in sorted(factors))}, "
        f"weight {tuple(layers[layer].shape)}"
        for layer, factors in found.items()
        if not _fits(factors, layers[layer])
    ]
    if wrong:
        raise ModelError(f"{file} does not have the shapes of this model ({first_five(wrong)}): it is of another one")
    broken = [
        "/".join(layer)
        for layer, factors in found.items()
        if not all(is_dense_float(tensor) and finite(tensor) for tensor in factors.values())
    ]
    if broken:
        raise ModelError(f"{file} holds numbers that are not finite ({first_five(broken)}): download it again")


def _fits(factors: dict[str, Tensor], weight: Tensor) -> bool:
    """Whether the change has the weight's shape; a linear layer's factors may be stored as a 1x1 convolution's."""
    if not all(tensor.numel() for tensor in factors.values()) or factors.get("alpha", torch.ones(1)).numel() != 1:
        return False
    if "magnitude" in factors:
        lengths = _lengths(factors["magnitude"], weight)
        if any(length not in (1, size) for length, size in zip(lengths, weight.shape, strict=True)):
            return False
    try:  # shapes alone: a file may describe far more than there is memory
        made = change({name: torch.empty(factor.shape, device="meta") for name, factor in factors.items()})
    except (RuntimeError, IndexError):
        return False
    return made.shape == weight.flatten(1).shape


def _scale(name: str, factors: dict[str, Tensor], settings: dict[str, Any]) -> float:
    """alpha / r; alpha is in the file, or in its settings, or else it is r. LoKr of whole matrices has no r of its own,
    which LyCORIS takes for a scale of 1, and PEFT has it in the settings."""
    inner = next((len(factors[key]) for key in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if key in factors), None)
    if "alpha" in factors:
        return 1.0 if inner is None else factors["alpha"].item() / inner
    rank = inner or _of_layer(name, settings, "rank_pattern", settings.get("r", 1))
    alpha = settings.get("lora_alpha", settings.get("alpha", rank))
    alpha = _of_layer(name, settings, "alpha_pattern", alpha)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_layer(name: str, settings: dict[str, Any], patterns: str, common: float) -> float:
    """What PEFT's settings give a layer: that of the first pattern which is the end of its name, or what is common."""
    found = (settings.get(patterns) or {}).items()
    return next((value for pattern, value in found if f".{name}".endswith(f".{pattern}")), common)
