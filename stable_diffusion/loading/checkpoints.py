"""Weight files: read without executing code from them, checked in full and only then put into a network.

A network is built on the meta device and takes the file's tensors, so there is no second copy of the weights. Every
error is a `ModelError` that names the file and the remedy; no partly loaded network is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..request import shown
from .config import ConfigError, ModelError, one_line
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


def read_tensors(path: Path) -> State:
    """Return all tensors of one weight file: `.safetensors`, or a pickle of tensors only.

    Where possible the tensors are the mapped file itself, so a file in use must be replaced, not written into.
    Raises `ModelError` for a missing or damaged file, another kind of file, and a pickle with code.
    """
    check_file(path, MAX_WEIGHTS)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return read_pickle(path)
    raise ModelError(f"{path} is not a weight file: its name must end in {', '.join(SUFFIXES)}")


def _read_safetensors(path: Path) -> State:
    try:
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if header > MAX_HEADER:  # the library would allocate gigabytes for it, or end the process
            raise ModelError(f"{path} is damaged or cut short (a header of {header:,} bytes): download it again")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the handle is not a mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short ({one_line(error)}): download it again") from None


def weight_names(part: str, *, prefer_half: bool = False) -> list[str]:
    """Return diffusers' names of a part's weight files and shard indices, best first.

    safetensors come before pickles. float16 files come first if `prefer_half`, otherwise last of their kind.
    """
    variants = (".fp16", "") if prefer_half else ("", ".fp16")
    return [
        f"{part}/{name}"
        for stem, suffix in zip(WEIGHT_STEMS[part], ("safetensors", "bin"), strict=True)
        for variant in variants
        for name in (f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json")
    ]


def find_weights(folder: Path, part: str, *, prefer_half: bool = False) -> Path:
    """Return the first of `weight_names` in a model directory; raises `ModelError` if it has none."""
    names = weight_names(part, prefer_half=prefer_half)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ModelError(f"{folder} holds no weights of the {part}: expected {' or '.join(names)}")


def shards(index: Path) -> dict[str, Path]:
    """Return the file of each weight in an index of shards; raises `ModelError` for a damaged index."""
    try:
        placed = read_json(index)["weight_map"]
        outside = sorted(file for file in set(placed.values()) if Path(file).name != file)
    except (ConfigError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index} is not an index of shards: download it again") from None
    if outside:
        raise ModelError(f"{index} names the shard {shown(outside[0])}, outside its folder: download it again")
    return {name: index.parent / file for name, file in placed.items()}


def read_weights(path: Path) -> State:
    """Return all tensors of a weight file, or of all shards in an index."""
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
    """Write one safetensors file with `metadata` in its header."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, {"format": "pt", **(metadata or {})})
    path.chmod(mode)  # safetensors makes its files readable by the owner only


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def outline(network: type[Network], config: object) -> Network:
    """Return `network(config)` on the meta device: names and shapes of weights without storage."""
    with torch.device("meta"), _Unfilled():
        return network(config)


class _Unfilled(TorchFunctionMode):
    """Skip the initialisation of weights, for which PyTorch would import its compiler in 2 s."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
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
    """Return `network(config)` with the weights `state`, on `device` in `dtype`, ready for inference.

    state is emptied while its tensors move, so that weights of two types never exist in full. dtype None keeps their
    types. unread skips the check of matrices and kernels for finite numbers, which would read the whole file;
    `for_inference` makes it later, and `encode_tokens` checks its output. Raises `ModelError` naming `origin`.
    """
    built = outline(network, config)
    check(built, state, origin)
    placed = {name: state.pop(name).to(device=device, dtype=dtype) for name in sorted(state)}
    check_finite({name: tensor for name, tensor in placed.items() if not unread or tensor.ndim < 2}, origin)
    built.load_state_dict(placed, strict=True, assign=True)
    return built.eval().requires_grad_(False)


def check(network: nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Raise `ModelError` unless `state` has exactly the network's keys and shapes, and floating-point numbers."""
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
    """Return whether a tensor is dense, floating-point and has storage; a pickle can hold other kinds."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def check_finite(state: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raise `ModelError` naming `origin` unless all numbers are finite."""
    broken = [name for name, tensor in state.items() if not finite(tensor)]
    if broken:
        dtype = state[broken[0]].dtype
        # The other types reach as far as float32.
        remedy = ", or dtype float32" if dtype == torch.float16 else ""
        raise ModelError(
            f"{origin} holds weights that are not finite in {str(dtype).removeprefix('torch.')} "
            f"({first_five(broken)}): use another file of this model{remedy}"
        )


def finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite, in one pass and without a mask of the tensor's size."""
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() & high.isfinite())


def first_five(names: Iterable[str]) -> str:
    """Return the first five names in order, and the number of the others."""
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(one_line, names[:5])) + more
