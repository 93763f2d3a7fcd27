"""LoRA (arXiv:2106.09685) and its kin DoRA, LoHa and LoKr: small files that change the weights of a model."""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from weakref import ref

import torch
from torch import Tensor, nn

from ..loading.checkpoints import finite, first_five, is_dense_float, read_metadata, read_tensors
from ..loading.config import Json, ModelError
from ..loading.files import Version, parse_json, read_json, version
from ..model_loader import Models
from ..request import RequestError
from .weights import with_weights

PARTS = ("unet", "text_encoder")
Layer = tuple[str, str]
"""A part of the model, and the name of a linear layer or convolution in it."""

# The factors of each method's weight change. Each matrix of LoHa and LoKr may be split in two or three.
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

# The factor that a tensor holds, by the end of its name in files of kohya, LyCORIS, PEFT and three generations of
# diffusers.
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

# diffusers since 0.34 writes PEFT's settings as JSON into the file's metadata, PEFT into a file beside the weights.
SETTINGS = "lora_adapter_metadata"
PEFT_SETTINGS, PEFT_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")

WHOLE_NUMBERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}

# The names of an attention's layers in diffusers' first generation of files.
FIRST_NAMES = {
    "unet": {f".{name}": f".processor.{name.removesuffix('.0')}" for name in ("to_q", "to_k", "to_v", "to_out.0")},
    "text_encoder": {".q_proj": ".to_q", ".k_proj": ".to_k", ".v_proj": ".to_v", ".out_proj": ".to_out"},
}


def file_names(part: str, name: str) -> Iterator[str]:
    """Yield every name that a LoRA file may have for one of our layers."""
    # transformers 5 omits `text_model`.
    for ours in {name, name.removeprefix("text_model.")}:
        yield f"{part}.{ours}"
        yield f"base_model.model.{ours}"
        yield KOHYA[part] + ours.replace(".", "_")
        for ending, first in FIRST_NAMES[part].items():
            if ours.endswith(ending):
                yield f"{part}.{ours.removesuffix(ending)}{first}"
                if part == "unet":  # diffusers' first files held a U-Net alone
                    yield f"{ours.removesuffix(ending)}{first}"


@dataclass(frozen=True)
class Update:
    """The change of one weight by a file: the `factors` of one of the sets in `FACTORS`, and DoRA's "magnitude"."""

    factors: dict[str, Tensor]
    scale: float

    def applied_to(self, weight: Tensor, strength: float) -> Tensor:
        """Return weight + strength * scale * change (Eq. 3, arXiv:2106.09685), computed in float32.

        DoRA takes only its direction: m V / ||V|| (Eq. 5, arXiv:2402.09353), where m has a length for every output or,
        in LyCORIS' first files, for every input. As in PEFT, strength 0 still applies these lengths.
        """
        factors = {name: factor.to(weight.device, torch.float32) for name, factor in self.factors.items()}
        changed = weight.float() + strength * self.scale * change(factors).reshape(weight.shape)
        if "magnitude" in factors:
            lengths = factors["magnitude"].reshape(_lengths(factors["magnitude"], weight))
            across = [axis for axis, size in enumerate(lengths.shape) if size == 1]
            changed *= lengths / torch.linalg.vector_norm(changed, dim=across, keepdim=True)
        return changed.to(weight.dtype)


def change(factors: dict[str, Tensor]) -> Tensor:
    """Return the unscaled change of a weight as a matrix (out, in * kernel).

    LoRA: up @ down. LoHa: the elementwise product of two matrices (Eq. 1, arXiv:2108.06098). LoKr: their Kronecker
    product (Section 3, arXiv:2309.14859).
    """
    if "up" in factors:
        return factors["up"].flatten(1) @ factors["down"].flatten(1)
    if "hada_w1_a" in factors:
        return _matrix(factors, "hada_w1") * _matrix(factors, "hada_w2")
    return torch.kron(_matrix(factors, "lokr_w1"), _matrix(factors, "lokr_w2"))


def _matrix(factors: dict[str, Tensor], name: str) -> Tensor:
    """Return a matrix of LoHa or LoKr: as it is, as a product a @ b, or as a Tucker decomposition with a core."""
    if name in factors:
        return factors[name].flatten(1)
    a, b, core = factors[f"{name}_a"], factors[f"{name}_b"], factors.get(name.replace("_w", "_t"))
    if core is None:
        return a.flatten(1) @ b.flatten(1)
    return torch.einsum("rshw,ro,si->oihw", core, a, b).flatten(1)


def _lengths(magnitude: Tensor, weight: Tensor) -> list[int]:
    """Return the shape (out, 1, ...) or (1, in, ...) in which DoRA's lengths multiply a weight."""
    axis = 1 if magnitude.ndim > 1 and len(magnitude) == 1 else 0
    return [magnitude.numel() if one == axis else 1 for one in range(weight.ndim)]


Selection = tuple[tuple[str, float], ...]
"""Names of LoRA files with their weights."""

Files = tuple[tuple[Path, float, list[Version | None]], ...]
"""Paths of LoRA files with their weights, and their versions, which tell a file from one that replaced it."""

CACHED_MERGES = 3
"""How many merged models to keep that no run uses, so that the next run with the same LoRAs need not merge again."""
MAX_MERGED = 4 * 2**30
"""Bytes of merged weights in use from which on no further model is merged for single runs. Packed copies of them, on a
processor, take as many again."""


@dataclass(frozen=True)
class Merge:
    """Files merged into the model `base` for single runs, for as long as something uses the result."""

    base: ref[Models]
    files: Files
    models: ref[Models]
    size: int
    """Bytes of the weights that are not those of `base`."""


class LoRAs:
    """The LoRA files merged into the weights of a model, which then runs as fast as without them.

    `models` is the model with all files merged so far. Its value never changes in place, so a run that took it when it
    began is not affected by later merges. Layers that no file changes are shared with the original.
    """

    def __init__(self, models: Models):
        self.models = self._original = models
        self.files: dict[str, Path] = {}
        """The files that a prompt can name."""
        self._merges: tuple[Merge, ...] = ()
        self._recent: tuple[Models, ...] = ()  # newest first
        self._fast: Models | None = None
        self._lock = Lock()  # for merging alone: runs read `models` without it

    def register(self, file: str | Path) -> None:
        """Let prompts name a file, or PEFT's folder, by its name without the suffix: `<lora:name:0.8>`."""
        path = Path(file).expanduser()
        self.files = {**self.files, _normal(path.name if path.is_dir() else path.stem): path}

    def models_for(self, selection: Selection, turbo: Path | None = None) -> Models:
        """Return `models` with registered files merged too, the same for all that use it at the same time.

        turbo: the file of fast requests, to merge before them. Merging takes seconds; it is done again once nothing
        uses the result, except for the last three and for `turbo` alone, which every sketch uses. Raises `RequestError`
        for a name that is not registered and where `MAX_MERGED` is reached, and the errors of `merge`.
        """
        chosen = [*([] if turbo is None else [(turbo, 1.0)]), *map(self._find, selection)]
        if not chosen:
            return self.models
        files = tuple((path, weight, _versions(path)) for path, weight in chosen)
        models = self._merged(files)
        if models is None:
            with self._lock:
                models = self._merged(files) or self._merge_for_runs(files)
                self._fast = self._fast if selection else models
        return models

    def _find(self, named: tuple[str, float]) -> tuple[Path, float]:
        name, weight = named
        path = self.files.get(_normal(name))
        if path is None:
            there = f"there are {first_five(self.files)}" if self.files else "there is none"
            raise RequestError(f"the prompt names the LoRA {name!r}, which is not here ({there}): remove its tag")
        return path, weight

    def _merged(self, files: Files) -> Models | None:
        found = (one.models() for one in self._merges if one.base() is self.models and one.files == files)
        return next((models for models in found if models is not None), None)

    def _merge_for_runs(self, files: Files) -> Models:
        base = models = self.models
        while self._in_use() >= MAX_MERGED:
            if not self._recent and self._fast is None:
                raise RequestError(
                    "pictures with other LoRAs or other weights of them are being drawn, and take all memory for that: "
                    "try again when they are done, or with one of theirs"
                )
            if not self._recent:
                self._fast = None
            self._recent = self._recent[:-1]
        for path, weight, _ in files:
            models = merged(models, path, weight)
        merge = Merge(ref(base), files, ref(models), _own_bytes(models, base))
        self._merges = (*(one for one in self._merges if one.models() is not None), merge)
        self._recent = (models, *self._recent)[:CACHED_MERGES]
        return models

    def _in_use(self) -> int:
        return sum(one.size for one in self._merges if one.models() is not None)

    def merge(self, file: str | Path, scale: float = 1.0) -> None:
        """Add a file (.safetensors, .bin, .ckpt, .pt) or PEFT's folder to the weights, `scale` times; several add up.

        It may hold LoRA, DoRA, LoHa or LoKr for linear layers and convolutions, written by kohya's scripts, LyCORIS,
        PEFT or diffusers. Embeddings in it are ignored, with a warning. Raises `ModelError` for a file that is damaged,
        of another model or of another method; then nothing is merged.
        """
        if not math.isfinite(scale):
            raise RequestError(f"scale must be a finite number, got {scale!r}")
        with self._lock:
            self._set(merged(self.models, Path(file).expanduser(), scale))

    def unmerge(self) -> None:
        """Restore the original networks."""
        with self._lock:
            self._set(self._original)

    def change_base(self, change: Callable[[Models], Models]) -> None:
        """Apply `change` to the original and to the merged model; if it raises, nothing changes."""
        with self._lock:
            original = change(self._original)
            self._set(original if self.models is self._original else change(self.models))
            self._original = original

    def _set(self, models: Models) -> None:
        self.models, self._recent, self._fast = models, (), None


def _normal(name: str) -> str:
    """Return a name with each letter in one form: file systems and keyboards differ in those with accents."""
    return unicodedata.normalize("NFC", name)


def _versions(path: Path) -> list[Version | None]:
    names = (*PEFT_WEIGHTS, PEFT_SETTINGS)
    return [version(path / name) for name in names] if path.is_dir() else [version(path)]


def _own_bytes(models: Models, base: Models) -> int:
    """Return the bytes of the weights in `models` that are not in `base`."""
    shared = {id(tensor) for part in PARTS for tensor in getattr(base, part).parameters()}
    own = (tensor for part in PARTS for tensor in getattr(models, part).parameters() if id(tensor) not in shared)
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def merged(models: Models, file: Path, scale: float) -> Models:
    """Return `models` with a file added `scale` times; they share all unchanged weights. See `LoRAs.merge`."""
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
    """Return the weights that a LoRA can change."""
    return {
        (part, name): module.weight
        for part in PARTS
        for name, module in getattr(models, part).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def read_updates(path: Path, layers: dict[Layer, Tensor]) -> dict[Layer, Update]:
    """Read a file's change of each of `layers`; raises `ModelError` unless all its entries are known and fit."""
    file = next((path / name for name in PEFT_WEIGHTS if (path / name).exists()), path) if path.is_dir() else path
    found = _collect(file, layers)
    _check(file, found, layers)
    try:
        settings = _read_settings(file)
        for part in PARTS:
            lengths = ["magnitude" in factors for layer, factors in found.items() if layer[0] == part]
            if lengths and settings[part].get("use_dora") and not any(lengths):
                raise ModelError(f"{file} is marked as a DoRA and has no magnitudes: download it again")
        return {
            layer: Update(factors, _scale(layer[1], factors, settings[layer[0]])) for layer, factors in found.items()
        }
    except ModelError:
        raise
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{file} has damaged settings ({error}): download it again") from None


def _read_settings(file: Path) -> dict[str, Json]:
    """Return PEFT's settings for each part, from the file beside the weights or from the metadata."""
    if file.name in PEFT_WEIGHTS:
        return dict.fromkeys(PARTS, read_json(file.parent / PEFT_SETTINGS))
    settings = parse_json(read_metadata(file).get(SETTINGS, "{}"), file)
    return {
        part: {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
        for part in PARTS
    }


def _collect(file: Path, layers: dict[Layer, Tensor]) -> dict[Layer, dict[str, Tensor]]:
    """Return a file's tensors by layer: factors, alpha if it has one, and DoRA's magnitude."""
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
            # PEFT's lengths are a vector, or for a convolution a tensor with axes of 1.
            found[layer][ENDINGS[ending]] = tensor.flatten() if ending == ".lora_magnitude_vector" else tensor
    if unknown or not found:
        raise ModelError(
            f"{file} is not a LoRA of this model ({f'unknown: {first_five(unknown)}' if unknown else 'it is empty'}): "
            "it may belong to another model, such as Stable Diffusion XL, or not be LoRA, DoRA, LoHa or LoKr"
        )
    for remark, keys in (
        ("contains embeddings, which are ignored", bundled),
        ("changes a middle block, which this model does not have: that part is ignored", middle),
    ):
        if keys:
            warnings.warn(f"{file} {remark} ({first_five(keys)})", stacklevel=2)
    return found


def _check(file: Path, found: dict[Layer, dict[str, Tensor]], layers: dict[Layer, Tensor]) -> None:
    """Raise `ModelError` unless every layer has all factors of a method, in its shape, of finite numbers."""
    halves = [
        f"{'/'.join(layer)}: {', '.join(sorted(factors))}"
        for layer, factors in found.items()
        if factors.keys() - {"alpha", "magnitude"} not in FACTORS
    ]
    if halves:
        raise ModelError(f"{file} lacks factors, or has those of two methods ({first_five(halves)}): download it again")
    wrong = [
        f"{'/'.join(layer)}: {', '.join(f'{name} {tuple(factors[name].shape)}' for name in sorted(factors))}, "
        f"weight {tuple(layers[layer].shape)}"
        for layer, factors in found.items()
        if not _fits(factors, layers[layer])
    ]
    if wrong:
        raise ModelError(f"{file} does not have the shapes of this model ({first_five(wrong)}): it belongs to another")
    broken = [
        "/".join(layer)
        for layer, factors in found.items()
        if not all(_is_usable(name, tensor) for name, tensor in factors.items())
    ]
    if broken:
        raise ModelError(f"{file} holds numbers that are not finite ({first_five(broken)}): download it again")


def _is_usable(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor holds finite floating-point numbers, or as an alpha also whole ones."""
    whole = name == "alpha" and tensor.dtype in WHOLE_NUMBERS and tensor.layout is torch.strided and not tensor.is_meta
    return (whole or is_dense_float(tensor)) and finite(tensor)


def _fits(factors: dict[str, Tensor], weight: Tensor) -> bool:
    """Whether the change has the weight's shape; a linear layer's factors may be stored as a 1x1 convolution's."""
    if not all(tensor.numel() for tensor in factors.values()) or factors.get("alpha", torch.ones(1)).numel() != 1:
        return False
    if "magnitude" in factors:
        lengths = _lengths(factors["magnitude"], weight)
        if any(length not in (1, size) for length, size in zip(lengths, weight.shape, strict=True)):
            return False
    try:  # with shapes alone, because a file may describe more than fits into memory
        made = change({name: torch.empty(factor.shape, device="meta") for name, factor in factors.items()})
    except (RuntimeError, IndexError):
        return False
    return made.shape == weight.flatten(1).shape


def _scale(name: str, factors: dict[str, Tensor], settings: Json) -> float:
    """Return alpha / r; alpha comes from the file, its settings, or is r.

    LoKr of whole matrices has no r of its own: LyCORIS uses a scale of 1 then, PEFT has r in the settings.
    """
    inner = next((len(factors[key]) for key in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if key in factors), None)
    if "alpha" in factors:
        return 1.0 if inner is None else factors["alpha"].item() / inner
    rank = inner or _of_layer(name, settings, "rank_pattern", settings.get("r", 1))
    common: float = settings["lora_alpha"] if "lora_alpha" in settings else settings.get("alpha", rank)
    alpha = _of_layer(name, settings, "alpha_pattern", common)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_layer(name: str, settings: Json, patterns: str, common: float) -> float:
    """Return a layer's value in PEFT's settings: that of the first pattern that ends its name, or the `common` one."""
    found = (settings.get(patterns) or {}).items()
    return next((value for pattern, value in found if f".{name}".endswith(f".{pattern}")), common)
