"""From the words of a prompt to the context that the U-Net attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .clip import CLIPTextEncoder


@dataclass(frozen=True)
class Tokens:
    """A prompt as the text tower reads it: ids (1, S) with start, end and padding; how many it took; what was cut."""

    ids: Tensor
    count: int
    dropped: str


def tokenize(tokenizer: CLIPTokenizer, prompt: str) -> Tokens:
    """Cut a prompt into tokens, at most `tokenizer.model_max_length` with start and end, which are always kept.

    `count` is the number of tokens of the whole prompt without start and end; `dropped` is the text beyond the limit.
    """
    limit = tokenizer.model_max_length
    ids = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids
    words = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return Tokens(ids, len(words), tokenizer.decode(words[limit - 2 :]).strip())


@torch.no_grad()
def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextEncoder, prompts: list[str]) -> Tensor:
    """Prompts -> context (N, S, hidden_size): the text tower's features of each token."""
    device = text_encoder.text_model.final_layer_norm.weight.device
    ids = torch.cat([tokenize(tokenizer, prompt).ids for prompt in prompts])
    return text_encoder(ids.to(device))
