"""Weight files: read without running code from them, checked in full, and only then put into a network.

A network is built on the meta device and given the file's tensors, so that no second copy of the weights exists. Every
complaint is a `ModelError` that names the file and the remedy; a network that did not fit is never handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import ConfigError, ModelError, one_line, short_repr
from .files import MAX_WEIGHTS, check_file, read_json
from .pickles import read_pickle

State = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)

# The stem of a part's weight files, in safetensors and in pickles.
WEIGHT_STEMS = {
    "text_encoder": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "safety_checker": ("model", "pytorch_model"),
}
PARTS = ("text_encoder", "unet", "vae")
"""The parts of every model."""

# The VAE's attention in directories from before diffusers 0.14.
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
LEGACY_NAMES = {
    f"{half}.mid_block.attentions.0.{old}.{kind}": f"{half}.mid_block.attentions.0.{new}.{kind}"
    for half in ("encoder", "decoder")
    for old, new in LEGACY_ATTENTION.items()
    for kind in ("weight", "bias")
}

# Entries of transformers' text encoders that no picture depends on.
TEXT_UNUSED = ("text_model.embeddings.position_ids", "embeddings.position_ids", "text_projection.weight", "logit_scale")

PICKLED = (".bin", ".ckpt", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLED)
MAX_HEADER = 8 * 2**20  # bytes of names and metadata in a safetensors file; a whole model has 0.3 MB of names
LISTED = 5  # how many names an error lists


def read_tensors(path: Path) -> State:
    """Every tensor of one weight file: `.safetensors`, or a pickle of nothing but tensors.

    The tensors are the mapped file itself where they can be: replace a file that is in use, never write into it.

    Raises `ModelError` where the file is missing, damaged, of another kind, or wants to run code.
    """
    check_file(path, MAX_WEIGHTS)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return read_pickle(path)
    raise ModelError(f"{path} is no weight file: its name must end in {', '.join(SUFFIXES)}")


def _read_safetensors(path: Path) -> State:
    try:
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if header > MAX_HEADER:  # the library's own limit takes gigabytes, and not having them it ends the program
            raise ModelError(f"{path} is damaged or cut short (a header of {header:,} bytes): download it again")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the handle is no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short ({one_line(error)}): download it again") from None


def weight_names(part: str, *, prefer_half: bool = False) -> list[str]:
    """Where a directory may keep the weights of a part, as diffusers names files and indices of shards; best first.

    safetensors come before pickles; float16 files come first where `prefer_half` asks, and otherwise serve in need.
    """
    variants = (".fp16", "") if prefer_half else ("", ".fp16")
    return [
        f"{part}/{name}"
        for stem, suffix in zip(WEIGHT_STEMS[part], ("safetensors", "bin"), strict=True)
        for variant in variants
        for name in (f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json")
    ]


def find_weights(folder: Path, part: str, *, prefer_half: bool = False) -> Path:
    """The best of `weight_names` that a model directory has; raises `ModelError` where it has none."""
    names = weight_names(part, prefer_half=prefer_half)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ModelError(f"{folder} holds no weights of the {part}: expected {' or '.join(names)}")


def shards(index: Path) -> dict[str, Path]:
    """Which file holds each weight, of those that an index lists; raises `ModelError` where it is damaged."""
    try:
        placed = read_json(index)["weight_map"]
        outside = sorted(file for file in set(placed.values()) if Path(file).name != file)
    except (ConfigError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is no index of shards: download it again") from None
    if outside:
        raise ModelError(f"{index} names the shard {short_repr(outside[0])}, which lies outside its folder")
    return {name: index.parent / file for name, file in placed.items()}


def read_weights(path: Path) -> State:
    """Every tensor of a weight file, or of the shards that an index lists."""
    if path.suffix != ".json":
        return read_tensors(path)
    placed = shards(path)
    state: State = {}
    for shard in sorted(set(placed.values())):
        state.update(read_tensors(shard))
    lost = placed.keys() - state.keys()
    if lost:
        raise ModelError(f"{path} lists weights that its shards lack ({first_five(lost)}): download them again")
    return state


def read_directory(folder: Path, *, prefer_half: bool = False) -> dict[str, tuple[State, Path]]:
    """Return the weights of each of a model directory's `PARTS` under today's names, with their file."""
    parts = {}
    for part in PARTS:
        path = find_weights(folder, part, prefer_half=prefer_half)
        state = read_weights(path)
        if part == "vae":
            state = with_today_names(state)
        if part == "text_encoder":
            # transformers saves without this prefix since 5.2.
            state = {
                f"text_model.{name.removeprefix('text_model.')}": tensor
                for name, tensor in state.items()
                if name not in TEXT_UNUSED
            }
        parts[part] = state, path
    return parts


def with_today_names(vae: State) -> State:
    """Return a VAE's weights with the names that diffusers has given them since 0.14."""
    return {LEGACY_NAMES.get(name, name): tensor for name, tensor in vae.items()}


def write_tensors(path: Path, state: State, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; `metadata` is text that travels with it."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, {"format": "pt", **(metadata or {})})
    path.chmod(mode)  # safetensors lets nobody but the owner read what it wrote


def read_metadata(path: Path) -> dict[str, str]:
    """The text that travels with a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def outline(network: type[Network], config: object) -> Network:
    """`network(config)` with the names and shapes of its weights, but no storage."""
    with torch.device("meta"), _Unfilled():
        return network(config)


class _Unfilled(TorchFunctionMode):
    """New layers leave their weights as they are; to draw numbers for them PyTorch would import its compiler, 2 s."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def build(
    network: type[Network],
    config: object,
    state: State,
    origin: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    unread: bool = False,
) -> Network:
    """`network(config)` holding `state`, on `device` in `dtype`, ready for inference; `origin` is named in errors.

    `state` is emptied as its tensors move over, so that a conversion never holds all weights twice. dtype None leaves
    them as they are. unread leaves matrices and kernels, which are most of a file, to be checked by whoever reads them
    first: `for_inference`, and `encode_tokens` by what they give.
    """
    built = outline(network, config)
    check(built, state, origin)
    placed = {name: state.pop(name).to(device=device, dtype=dtype) for name in sorted(state)}
    check_finite({name: tensor for name, tensor in placed.items() if not unread or tensor.ndim < 2}, origin)
    built.load_state_dict(placed, strict=True, assign=True)
    return built.eval().requires_grad_(False)


def check(network: nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Raise `ModelError` unless `state` has exactly the network's keys, in its shapes, of floating-point numbers."""
    wanted = network.state_dict()
    kind = type(network).__name__
    for complaint, names in (
        ("lacks weights", wanted.keys() - state.keys()),
        ("holds unknown weights", state.keys() - wanted.keys()),
    ):
        if names:
            raise ModelError(
                f"{origin} {complaint} of the {kind} that its configuration describes ({first_five(names)}): "
                "the file belongs to another model, or its config.json does"
            )
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted)
        if state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ModelError(
            f"{origin} does not have the shapes of the {kind} that its configuration describes ({first_five(wrong)}): "
            "the file belongs to another model, or its config.json does"
        )
    odd = [name for name in wanted if not is_dense_float(state[name])]
    if odd:
        raise ModelError(
            f"{origin} holds quantised or sparse weights ({first_five(odd)}): use a float16 or float32 file"
        )


def is_dense_float(tensor: Tensor) -> bool:
    """Whether a tensor is floating-point numbers in memory; a pickle can hold other kinds."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def check_finite(state: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raise `ModelError` unless all numbers are finite; `origin` is named."""
    broken = [name for name, tensor in state.items() if not finite(tensor)]
    if broken:
        dtype = str(state[broken[0]].dtype).removeprefix("torch.")
        raise ModelError(
            f"{origin} holds weights that are not finite in {dtype} ({first_five(broken)}): "
            "use another file of this model, or dtype float32"
        )


def finite(tensor: Tensor) -> bool:
    """Whether every number is finite, in one pass and without a mask as large as the tensor."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() & high.isfinite())


def first_five(names: Iterable[str]) -> str:
    """The first five names in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(one_line, names[:LISTED])) + more
