"""The names of a model's weights in CompVis' single files and in diffusers' directories: one table for each part.

The table is generated from the model's configuration. Both directions of the conversion derive from it, so that a round
trip changes no bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoints import State, first_five, outline
from .clip_config import CLIPTextConfig
from .config import ATTENTION_DOWN, ConfigError, ModelError, TinyVAEConfig, UNetConfig, VAEConfig
from .model_config import ModelConfig

# The prefix of each part's weights in a single file. Other weights are the state of its training: averaged weights
# (model_ema), the noise schedule (betas and its derivatives), the loss.
PREFIXES = {"text_encoder": "cond_stage_model.", "unet": "model.diffusion_model.", "vae": "first_stage_model."}

# Weights within those parts that making pictures does not need, and that a model directory does not keep.
UNUSED = re.compile(
    r"first_stage_model\.(loss|model_ema)\."
    r"|cond_stage_model\.transformer\.((text_model\.)?embeddings\.position_ids|text_projection\.weight)$"
    r"|cond_stage_model\.logit_scale$"
    r"|cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)$"
)

# The layers of the OpenCLIP tower. Stable Diffusion 2.x uses the features of the last but one layer, so the file's last
# layer, which a directory does not have, is unused as well.
OPEN_CLIP_LAYER = re.compile(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\.")

# Names within a block: the directory's on the left, the file's on the right.
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


@dataclass(frozen=True)
class Row:
    """One row of a table: the file's tensor `name` of `shape` is a stack of the directory's tensors `parts`."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    part_shape: tuple[int, ...]


@dataclass(frozen=True)
class KeyTable:
    """The weights of one part, "text_encoder", "unet" or "vae", under the names of a file and of a directory."""

    part: str
    rows: tuple[Row, ...]
    text_layers: int

    @classmethod
    def of(cls, part: str, config: ModelConfig, network: type[nn.Module]) -> KeyTable:
        """Generate the table of a part whose network is of this class.

        Raises `ConfigError` for a VAE that a single file can't hold.
        """
        settings = getattr(config, part)
        if isinstance(settings, TinyVAEConfig):
            raise ConfigError("vae: a single file has no place for an AutoencoderTiny: use the model's directory")
        renames = NAMES[part](settings)
        shapes = {name: tuple(tensor.shape) for name, tensor in outline(network, settings).state_dict().items()}
        stacks: dict[str, list[str]] = {}
        for name in shapes:
            stacks.setdefault(PREFIXES[part] + _rename(name, renames), []).append(name)
        order = {name: position for position, name in enumerate(renames)}
        rows = []
        for name, parts in stacks.items():
            if len(parts) > 1:
                parts.sort(key=order.__getitem__)
            shape = shapes[parts[0]]
            stack = (len(parts) * shape[0], *shape[1:])
            # The file's VAE attends by 1x1 convolutions, ours by linear layers: the same numbers.
            convolution = (1, 1) if part == "vae" and len(shape) == 2 else ()
            rows.append(Row(name, stack + convolution, tuple(parts), shape))
        return cls(part, tuple(rows), config.text_encoder.num_hidden_layers)

    def to_file(self, state: State) -> State:
        """Return a directory's weights under the file's names and in its shapes."""
        return {
            row.name: (
                torch.cat([state[name] for name in row.parts]) if len(row.parts) > 1 else state[row.parts[0]]
            ).reshape(row.shape)
            for row in self.rows
        }

    def from_file(self, state: State, origin: Path) -> State:
        """Return the part's weights out of a single file's, under a directory's names and in its shapes.

        Raises `ModelError` naming `origin` if the file lacks weights of the part, or has other names or shapes.
        """
        own = {_with_text_model(name): t for name, t in state.items() if name.startswith(PREFIXES[self.part])}
        rows = {row.name: row for row in self.rows}
        unknown = [name for name in own if name not in rows and not self._unused(name)]
        for complaint, names in (("lacks weights", rows.keys() - own.keys()), ("holds unknown weights", unknown)):
            if names:
                raise ModelError(
                    f"{origin} {complaint} of the {self.part} ({first_five(names)}): "
                    "it is damaged, or of another kind of model"
                )
        wrong = [
            f"{name} is {tuple(own[name].shape)}, not {row.shape}"
            for name, row in rows.items()
            if _without_ones(own[name].shape) != _without_ones(row.shape)
        ]
        if wrong:
            raise ModelError(
                f"{origin} has weights of another shape ({first_five(wrong)}): it is of another kind of model"
            )
        return {
            name: piece.reshape(row.part_shape)
            for row in self.rows
            for name, piece in zip(row.parts, own[row.name].chunk(len(row.parts)), strict=True)
        }

    def _unused(self, name: str) -> bool:
        layer = OPEN_CLIP_LAYER.match(name)
        return UNUSED.match(name) is not None or (layer is not None and int(layer[1]) >= self.text_layers)


def _rename(name: str, renames: Mapping[str, str]) -> str:
    """Return `name` with its longest beginning in `renames` replaced."""
    head, tail = name, ""
    while head not in renames:
        head, _, last = head.rpartition(".")
        if not head:
            return name
        tail = f".{last}{tail}"
    return renames[head] + tail


def _within(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return the renames of a block and of the layers in it."""
    inside = {f"{ours}.{name}": f"{theirs}.{other}" for name, other in names.items()}
    return {ours: theirs, **inside}


def _text_names(config: CLIPTextConfig) -> dict[str, str]:
    """Only OpenAI's tower, which has quick_gelu, has transformers' names in a file; OpenCLIP's has its own."""
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
    """The file numbers all blocks on the way down and on the way up; a directory counts levels and layers."""
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
    """The file counts the decoder's levels from the picture, a directory from the latents."""
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


NAMES: dict[str, Callable[[Any], dict[str, str]]] = {
    "text_encoder": _text_names,
    "unet": _unet_names,
    "vae": _vae_names,
}


def _with_text_model(name: str) -> str:
    """Return a name with `text_model`, which files merged with old tools leave out."""
    start = PREFIXES["text_encoder"] + "transformer."
    rest = name.removeprefix(start)
    return f"{start}text_model.{rest}" if rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else name


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape without the ones at its end: some files keep 1x1 convolutions as matrices."""
    shape = tuple(shape)
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
