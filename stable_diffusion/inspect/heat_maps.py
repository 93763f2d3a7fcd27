"""Heat maps of a prompt's words from cross-attention, by the method of DAAM (arXiv:2210.04885).

Each cross-attention layer has a weight for every pixel of its feature map and every token. A word's heat map is that
weight, enlarged to the latents' size and averaged over heads, layers and steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from ..attention import TransformerBlock
from ..diffusion import UNet
from ..loading.tokenizer import encode_text
from ..request import LORA_TAG, Request, without_loras


@dataclass(frozen=True)
class Word:
    """A word of a prompt as it was written, its first character there, and its tokens' positions in the context."""

    text: str
    start: int
    positions: tuple[int, ...]


def prompt_words(tokenizer: CLIPTokenizer, prompt: str) -> list[Word]:
    """Return the words of a prompt, punctuation apart, up to the model's limit.

    Rare words have several tokens, and the first token of the context is the start of the text: so positions differ
    from the order in the prompt.
    """
    tokens = encode_text(tokenizer, prompt)
    pieces: dict[int, list[int]] = {}
    for place, word in enumerate(tokens.word_ids[: tokenizer.model_max_length - 2]):
        if word is not None:
            pieces.setdefault(word, []).append(place)
    words = []
    for places in pieces.values():
        start, end = tokens.offsets[places[0]][0], tokens.offsets[places[-1]][1]
        words.append(Word(prompt[start:end], start, tuple(1 + place for place in places)))
    return words


def crossed_out(request: Request, word: Word) -> Request:
    """Return a request with a word of its prompt crossed out: simply the prompt without it, so that others move up.

    word: one of the `prompt_words` of the prompt without its LoRA tags.
    """
    text = without_loras(request.prompt)
    return with_text(request, f"{text[: word.start]} {text[word.start + len(word.text) :]}")


def with_text(request: Request, text: str) -> Request:
    """Return a request with another text as its prompt, and with the LoRAs of its own."""
    tags = [tag[0] for tag in LORA_TAG.finditer(request.prompt)]
    return request.with_values(prompt=" ".join([*tags, *text.split()]))


@dataclass(frozen=True)
class Layer:
    """A cross-attention of a U-Net: its name in the weights, its number of heads, and the size of its feature map."""

    name: str
    heads: int
    height: int
    width: int


def attention_layers(unet: UNet, height: int, width: int) -> list[Layer]:
    """Return the cross-attentions in the order of their maps, for latents of a height and width."""
    deepest, layers = len(unet.down_blocks) - 1, []
    for name, module in unet.named_modules():
        if isinstance(module, TransformerBlock):
            side, number, *_ = name.split(".")
            level = int(number) if side == "down_blocks" else deepest - int(number) if side == "up_blocks" else deepest
            # The U-Net halves the latents from level to level, rounding up.
            h, w = (-(-size // 2**level) for size in (height, width))
            layers.append(Layer(name.removesuffix(".transformer_blocks.0"), module.attn2.heads, h, w))
    return layers


def token_heat(maps: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Average cross-attention maps over heads and layers at the latents' size (Section 2.2, arXiv:2210.04885).

    maps: weights (B, heads, pixels, S) of each layer, as `UNet.forward` records them for latents (B, C, height, width).
    Returns the heat of each token (B, S, height, width) in float32; its sum over S is about one at every pixel.
    """
    if not maps:
        raise ValueError(
            "maps must hold the attention of at least one layer, got none: does the U-Net attend to words?"
        )
    heat = torch.zeros(maps[0].shape[0], maps[0].shape[3], height, width, device=maps[0].device)
    for weights in maps:
        heat += _enlarged(weights.float().mean(dim=1).transpose(1, 2), height, width)  # (B, heads, L, S) -> (B, S, L)
    return heat / len(maps)


def word_heat(heat: Tensor, words: Sequence[Word]) -> Tensor:
    """Return the heat of words (B, len(words), h, w) from tokens' (B, S, h, w): the mean over a word's tokens."""
    if not words:
        return heat[:, :0]
    return torch.stack([heat[:, list(word.positions)].mean(dim=1) for word in words], dim=1)


def head_heat(maps: Sequence[Tensor], height: int, width: int, words: Sequence[Word]) -> Tensor:
    """Return the heat of words in each head, (B, H, len(words), height, width): those of the first layer come first.

    maps: as for `token_heat`. H is the number of heads of all `attention_layers`; the heat of a selection of heads is
    the mean over these.
    """
    if not words:
        return maps[0].new_zeros(len(maps[0]), sum(weights.shape[1] for weights in maps), 0, height, width)
    found = []
    for weights in maps:
        heat = torch.stack([weights[..., list(word.positions)].float().mean(dim=3) for word in words], dim=2)
        enlarged = _enlarged(heat.flatten(1, 2), height, width)  # (B, heads, words, L) -> (B, heads * words, h, w)
        found.append(enlarged.unflatten(1, heat.shape[1:3]))
    return torch.cat(found, dim=1)


def _enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    """Return maps of a layer's pixels (B, N, L) at the latents' size (B, N, height, width)."""
    small = maps.unflatten(2, _feature_size(maps.shape[2], height, width))
    # Bicubic interpolation overshoots; attention is never negative.
    return F.interpolate(small, size=(height, width), mode="bicubic").clamp(min=0)


def _feature_size(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the feature map with so many pixels; the U-Net halves the latents, rounding up."""
    h, w = height, width
    while h * w > pixels:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != pixels:
        raise ValueError(f"height and width must be those of the latents, got {height} and {width} for {pixels} pixels")
    return h, w
