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

from ..loading.tokenizer import encode_text


@dataclass(frozen=True)
class Word:
    """A word of a prompt as it was written, and the positions of its tokens in the context."""

    text: str
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
    spans = tokens.offsets
    return [
        Word(prompt[spans[at[0]][0] : spans[at[-1]][1]], tuple(1 + place for place in at)) for at in pieces.values()
    ]


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
        size = _feature_size(weights.shape[2], height, width)
        layer = weights.float().mean(dim=1).transpose(1, 2).unflatten(2, size)  # (B, heads, hw, S) -> (B, S, h, w)
        # Bicubic interpolation overshoots; attention is never negative.
        heat += F.interpolate(layer, size=(height, width), mode="bicubic").clamp(min=0)
    return heat / len(maps)


def word_heat(heat: Tensor, words: Sequence[Word]) -> Tensor:
    """Return the heat of words (B, len(words), h, w) from tokens' (B, S, h, w): the mean over a word's tokens."""
    if not words:
        return heat[:, :0]
    return torch.stack([heat[:, list(word.positions)].mean(dim=1) for word in words], dim=1)


def _feature_size(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the feature map with so many pixels; the U-Net halves the latents, rounding up."""
    h, w = height, width
    while h * w > pixels:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != pixels:
        raise ValueError(f"height and width must be those of the latents, got {height} and {width} for {pixels} pixels")
    return h, w
