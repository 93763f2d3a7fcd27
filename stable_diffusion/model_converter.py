"""CompVis single file <-> model directory: `python -m stable_diffusion.model_converter SOURCE TARGET [--half]`.

One table, generated from the model's configuration, says which tensor of the file holds which tensors of a directory,
and in which shape. Both directions read it, so that a round trip changes no bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .clip import CLIPTextEncoder
from .diffusion import UNet
from .loading.checkpoints import (
    SUFFIXES,
    WEIGHT_STEMS,
    State,
    build,
    check,
    find_weights,
    finite,
    listed,
    outline,
    read_tensors,
    read_weights,
    write_tensors,
)
from .loading.clip_config import CLIPTextConfig
from .loading.config import ATTENTION_DOWN, ConfigError, ModelError, TinyVAEConfig, UNetConfig, VAEConfig
from .loading.hub import locate
from .loading.model_config import SETTINGS_FILES, ModelConfig, Settings, read_settings
from .loading.single_file import METADATA_KEY, OPEN_CLIP_LAYER, PREFIXES, UNUSED, prediction_type, recognise
from .loading.tokenizer import find_tokenizer, save_tokenizer
from .tiny_vae import TinyVAE
from .vae import VAE

NETWORKS: dict[str, type[nn.Module]] = {"text_encoder": CLIPTextEncoder, "unet": UNet, "vae": VAE}
"""The parts of a model that a single file can hold."""

# Names within a block: a directory's on the left, the file's on the right.
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    # One tensor of the file stacks these three, in this order.
    **{
        f"self_attn.{name}.{kind}": f"attn.in_proj_{kind}"
        for kind in ("weight", "bias")
        for name in ("q_proj", "k_proj", "v_proj")
    },
}

# The VAE's attention in directories from before diffusers 0.14.
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
LEGACY_NAMES = {
    f"{half}.mid_block.attentions.0.{old}.{kind}": f"{half}.mid_block.attentions.0.{new}.{kind}"
    for half in ("encoder", "decoder")
    for old, new in LEGACY_ATTENTION.items()
    for kind in ("weight", "bias")
}

# What transformers stores beside the text tower's weights, and no picture depends on.
TEXT_UNUSED = ("text_model.embeddings.position_ids", "embeddings.position_ids", "text_projection.weight", "logit_scale")


@dataclass(frozen=True)
class Entry:
    """One row of the table: the file's tensor `name`, of `shape`, stacks a directory's tensors `parts`."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    part_shape: tuple[int, ...]


def networks_of(config: ModelConfig) -> dict[str, type[nn.Module]]:
    """The class of each part's network."""
    return {**NETWORKS, "vae": TinyVAE} if isinstance(config.vae, TinyVAEConfig) else NETWORKS


def table(part: str, config: ModelConfig) -> list[Entry]:
    """Every tensor of one part: "text_encoder", "unet" or "vae"; raises `ConfigError` for what no single file holds."""
    settings = getattr(config, part)
    if isinstance(settings, TinyVAEConfig):
        raise ConfigError("vae: a single file has no place for an AutoencoderTiny: use the model's directory")
    names_of: dict[str, Callable[[Any], dict[str, str]]] = {
        "text_encoder": _text_names,
        "unet": _unet_names,
        "vae": _vae_names,
    }
    renames = names_of[part](settings)
    shapes = {name: tuple(t.shape) for name, t in outline(NETWORKS[part], settings).state_dict().items()}
    stacked: dict[str, list[str]] = {}
    for name in shapes:
        stacked.setdefault(PREFIXES[part] + _rename(name, renames), []).append(name)
    order = {name: position for position, name in enumerate(renames)}
    entries = []
    for theirs, parts in stacked.items():
        if len(parts) > 1:
            parts.sort(key=order.__getitem__)
        shape = shapes[parts[0]]
        stack = (len(parts) * shape[0], *shape[1:])
        # The file's VAE attends by 1x1 convolutions, ours by linear layers: the same numbers.
        convolution = (1, 1) if part == "vae" and len(shape) == 2 else ()
        entries.append(Entry(theirs, stack + convolution, tuple(parts), shape))
    return entries


def _rename(name: str, renames: Mapping[str, str]) -> str:
    """`name` with its longest beginning that the table knows replaced."""
    head, tail = name, ""
    while head not in renames:
        head, _, last = head.rpartition(".")
        if not head:
            return name
        tail = f".{last}{tail}"
    return renames[head] + tail


def _within(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names of a block at `ours`, which is `theirs` in the file."""
    inside = {f"{ours}.{name}": f"{theirs}.{other}" for name, other in names.items()}
    return {ours: theirs, **inside}


def _text_names(config: CLIPTextConfig) -> dict[str, str]:
    """OpenAI's tower is kept as transformers names it; OpenCLIP's, told by its exact GELU, as OpenCLIP does."""
    if config.hidden_act == "quick_gelu":
        return {"text_model": "transformer.text_model"}
    names = {
        "text_model.embeddings.token_embedding": "model.token_embedding",
        "text_model.embeddings.position_embedding.weight": "model.positional_embedding",
        "text_model.final_layer_norm": "model.ln_final",
    }
    for layer in range(config.num_hidden_layers):
        theirs = f"model.transformer.resblocks.{layer}"
        names |= _within(f"text_model.encoder.layers.{layer}", theirs, OPEN_CLIP_LAYER_NAMES)
    return names


def _unet_names(config: UNetConfig) -> dict[str, str]:
    """The file numbers the blocks of both ways through, where a directory counts levels and layers."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
        **_within("mid_block.resnets.0", "middle_block.0", UNET_RESNET),
        "mid_block.attentions.0": "middle_block.1",
        **_within("mid_block.resnets.1", "middle_block.2", UNET_RESNET),
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    last = len(config.block_out_channels) - 1
    block = 1
    for level in range(last + 1):
        for layer in range(config.layers_per_block):
            names |= _within(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0", UNET_RESNET)
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < last:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for level, kind in enumerate(reversed(config.down_block_types)):
        for layer in range(config.layers_per_block + 1):
            names |= _within(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0", UNET_RESNET)
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        place = 2 if kind == ATTENTION_DOWN else 1
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{place}.conv"
    return names


def _vae_names(config: VAEConfig) -> dict[str, str]:
    """The file numbers the decoder's levels from the picture inwards, a directory from the latents outwards."""
    levels = len(config.block_out_channels)
    names: dict[str, str] = {}
    for half, way, resample, layers in (
        ("encoder", "down", "downsample", config.layers_per_block),
        ("decoder", "up", "upsample", config.layers_per_block + 1),
    ):
        names |= _within(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", VAE_RESNET)
        names |= _within(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        names |= _within(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", VAE_RESNET)
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for level in range(levels):
            ours = f"{half}.{way}_blocks.{level}"
            theirs = f"{half}.{way}.{level if way == 'down' else levels - 1 - level}"
            names[f"{ours}.{resample}rs.0.conv"] = f"{theirs}.{resample}.conv"
            for layer in range(layers):
                names |= _within(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}", VAE_RESNET)
    return names


def to_file(part: str, config: ModelConfig, state: State) -> State:
    """A part's weights under the file's names and in its shapes."""
    return {
        entry.name: (
            torch.cat([state[name] for name in entry.parts]) if len(entry.parts) > 1 else state[entry.parts[0]]
        ).reshape(entry.shape)
        for entry in table(part, config)
    }


def from_file(part: str, config: ModelConfig, state: State, origin: Path) -> State:
    """One part's weights out of a single file's, under a directory's names and in its shapes.

    Raises `ModelError` where the file lacks weights of the part, has others, or has them in another shape.
    """
    mine = {_with_text_model(name): t for name, t in state.items() if name.startswith(PREFIXES[part])}
    rows = {entry.name: entry for entry in table(part, config)}
    layers = config.text_encoder.num_hidden_layers
    lost = rows.keys() - mine.keys()
    extra = [name for name in mine if name not in rows and not _unused(name, layers)]
    for complaint, names in (("lacks weights", lost), ("holds unknown weights", extra)):
        if names:
            raise ModelError(
                f"{origin} {complaint} of the {part} ({listed(names)}): it is damaged, or of another kind of model"
            )
    wrong = [
        f"{name} is {tuple(mine[name].shape)}, not {row.shape}"
        for name, row in rows.items()
        if _without_ones(mine[name].shape) != _without_ones(row.shape)
    ]
    if wrong:
        raise ModelError(f"{origin} has weights of another shape ({listed(wrong)}): it is of another kind of model")
    return {
        ours: piece.reshape(row.part_shape)
        for name, row in rows.items()
        for ours, piece in zip(row.parts, mine[name].chunk(len(row.parts)), strict=True)
    }


def _with_text_model(name: str) -> str:
    """Files that were merged with old tools leave out `text_model`."""
    start = PREFIXES["text_encoder"] + "transformer."
    rest = name.removeprefix(start)
    return f"{start}text_model.{rest}" if rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name


def _unused(name: str, layers: int) -> bool:
    layer = OPEN_CLIP_LAYER.match(name)
    return UNUSED.match(name) is not None or (layer is not None and int(layer[1]) >= layers)


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape less the ones at its end: some files keep 1x1 convolutions as matrices."""
    shape = tuple(shape)
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def read_directory(folder: Path, *, prefer_half: bool = False) -> dict[str, tuple[State, Path]]:
    """Each part's weights under today's names, and the file that they came from."""
    parts = {}
    for part in NETWORKS:
        path = find_weights(folder, part, prefer_half=prefer_half)
        state = read_weights(path)
        if part == "vae":
            state = {LEGACY_NAMES.get(name, name): tensor for name, tensor in state.items()}
        if part == "text_encoder":
            # transformers saves without this prefix since 5.2.
            state = {
                f"text_model.{name.removeprefix('text_model.')}": tensor
                for name, tensor in state.items()
                if name not in TEXT_UNUSED
            }
        parts[part] = state, path
    return parts


def read_single_file(path: Path, *, own_vae: bool = True) -> tuple[Settings, dict[str, tuple[State, Path]]]:
    """The settings, and each part's weights under a directory's names, of a single file; without VAE if not `own_vae`.

    Where nothing tells what the U-Net predicts it is asked, on the CPU, which takes memory for it in float32.
    """
    state = read_tensors(path)

    def ask(settings: Settings) -> str:
        config = ModelConfig.from_settings(settings)
        return prediction_type(build(UNet, config.unet, from_file("unet", config, state, path), path), config.unet)

    settings = recognise(path, state, ask, own_vae=own_vae)
    try:
        config = ModelConfig.from_settings(settings)
        wanted = [part for part in NETWORKS if own_vae or part != "vae"]
        return settings, {part: (from_file(part, config, state, path), path) for part in wanted}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def convert(source: str | Path, target: str | Path, *, half: bool = False) -> None:
    """Write a model directory as the single file `target`, or a single file as the directory `target`.

    source: a directory, a single file, or a name on the hub. half: store float16.
    Raises `ModelError` where `target` exists or `source` is damaged; `target` appears only when it is complete.
    """
    source, target = locate(source, prefer_half=half), Path(target)
    if target.exists():
        raise ModelError(f"{target} exists already: name another target, or remove it first")
    if source.is_dir() != (target.suffix in SUFFIXES):
        wanted = "a single file, NAME.safetensors" if source.is_dir() else "a directory"
        raise ModelError(f"{target} must name {wanted}, which is what {source} becomes")
    if source.is_dir():
        _directory_to_file(source, target, half)
    else:
        _file_to_directory(source, target, half)


def _directory_to_file(source: Path, target: Path, half: bool) -> None:
    if target.suffix != ".safetensors":
        raise ModelError(f"{target} must end in .safetensors: no other format is written")
    settings = read_settings(source)
    config = ModelConfig.from_settings(settings)
    kinds = networks_of(config)
    tensors: State = {}
    for part, (state, origin) in read_directory(source, prefer_half=half).items():
        check(outline(kinds[part], getattr(config, part)), state, origin)
        tensors |= to_file(part, config, _halved(state, origin) if half else state)
    with _appearing(target) as path:
        write_tensors(path, tensors, {METADATA_KEY: json.dumps(settings)})


def _file_to_directory(source: Path, target: Path, half: bool) -> None:
    settings, parts = read_single_file(source)
    config = ModelConfig.from_settings(settings)
    tokenizer = find_tokenizer(source, config.text_encoder)
    with _appearing(target) as path:
        for part, name in SETTINGS_FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(json.dumps(settings[part], indent=2) + "\n", encoding="utf-8")
        for part, (state, origin) in parts.items():
            state = _halved(state, origin) if half else state
            write_tensors(path / part / f"{WEIGHT_STEMS[part][0]}.safetensors", state)
        save_tokenizer(tokenizer, path / "tokenizer")


def _halved(state: State, origin: Path) -> State:
    """The weights in float16; raises `ModelError` where one is too large for it."""
    halved = {name: tensor.half() for name, tensor in state.items()}
    broken = [name for name, tensor in halved.items() if not finite(tensor)]
    if broken:
        raise ModelError(f"{origin} holds weights that float16 can't ({listed(broken)}): convert without --half")
    return halved


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` if all goes well and leaves nothing behind if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as workplace:
        yield Path(workplace) / target.name
        os.rename(Path(workplace) / target.name, target)


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 where the target was written, 1 where it was not."""
    parser = argparse.ArgumentParser(
        prog="python -m stable_diffusion.model_converter",
        description="Convert a model directory to a single file, or a single file to a model directory.",
    )
    parser.add_argument("source", help="a model directory, a single file, or a name on the hub, owner/name")
    parser.add_argument("target", type=Path, help="NAME.safetensors, or a new directory")
    parser.add_argument("--half", action="store_true", help="store float16: half the size")
    asked = parser.parse_args(arguments)
    try:
        convert(asked.source, asked.target, half=asked.half)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
