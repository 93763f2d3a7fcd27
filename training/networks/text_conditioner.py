"""All weights of the bundled model that see text: the text encoder, and the U-Net's projections of its features.

They can be replaced without touching a weight that sees the picture. `grow` makes a larger encoder from a trained one:
more tokens, a longer window, more layers, and at first nearly the same answers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from stable_diffusion.attention import Attention
from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.diffusion import UNet

from .train_tokenizer import WORD_END


class TextConditioner(nn.Module):
    """Tokens to the keys and values of every cross-attention, as `UNet.read` has them side by side.

    Args:
        text_encoder: copied.
        unet: its `to_k` and `to_v` of the cross-attentions are copied.
    """

    def __init__(self, text_encoder: CLIPTextEncoder, unet: UNet):
        super().__init__()
        self.text_encoder = copy.deepcopy(text_encoder)
        self.names = list(cross_attentions(unet))
        self.projections = nn.ModuleList(
            copy.deepcopy(projection)
            for attention in cross_attentions(unet).values()
            for projection in (attention.to_k, attention.to_v)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, S) -> words (B, S, K), for `UNet.forward`."""
        context = self.text_encoder(tokens)
        return torch.cat([projection(context) for projection in self.projections], dim=2)

    def unet_weights(self) -> dict[str, Tensor]:
        """Return the projections under the names that they have in the U-Net."""
        names = [f"{name}.{part}.weight" for name in self.names for part in ("to_k", "to_v")]
        return dict(zip(names, self.projections.parameters(), strict=True))

    def load_unet_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the projections from a U-Net's weights, or from a file of these alone."""
        with torch.no_grad():
            for name, weight in self.unet_weights().items():
                weight.copy_(weights[name])


def cross_attentions(unet: UNet) -> dict[str, Attention]:
    """Return the cross-attentions by name, in the order in which they are evaluated."""
    found = {name: module for name, module in unet.named_modules() if name.endswith(".attn2")}
    return dict(sorted(found.items(), key=lambda item: ("down", "mid", "up").index(item[0].partition("_")[0])))


def grow(
    old: CLIPTextEncoder,
    old_tokenizer: CLIPTokenizer,
    tokenizer: CLIPTokenizer,
    layers: int,
    same: Mapping[str, str] | None = None,
) -> CLIPTextEncoder:
    """Return an encoder for the vocabulary and window of `tokenizer`, with the knowledge of `old`.

    A new token starts as the mean of the old tokens of its text, or of the text that `same` gives as its translation.
    New layers come first and add nothing yet; the last position is repeated.
    """
    if layers < old.config.num_hidden_layers:
        raise ValueError(f"layers must be at least the {old.config.num_hidden_layers} of the old encoder, got {layers}")
    encoder = CLIPTextEncoder(
        replace(
            old.config,
            num_hidden_layers=layers,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    known, model = old.text_model, encoder.text_model
    with torch.no_grad():
        model.final_layer_norm.load_state_dict(known.final_layer_norm.state_dict())
        new = layers - old.config.num_hidden_layers
        for name, parameter in model.encoder.layers[:new].named_parameters():
            if ".out_proj." in name or ".fc2." in name:
                nn.init.zeros_(parameter)
        for layer, trained in zip(model.encoder.layers[new:], known.encoder.layers, strict=True):
            layer.load_state_dict(trained.state_dict())
        positions = known.embeddings.position_embedding.weight
        at = torch.arange(tokenizer.model_max_length).clamp(max=len(positions) - 1)
        model.embeddings.position_embedding.weight.copy_(positions[at])
        rows = _token_rows(known.embeddings.token_embedding.weight, old_tokenizer, tokenizer, same or {})
        model.embeddings.token_embedding.weight.copy_(rows)
    return encoder


def _token_rows(
    known: Tensor, old_tokenizer: CLIPTokenizer, tokenizer: CLIPTokenizer, same: Mapping[str, str]
) -> Tensor:
    """Return the embeddings (V, C) of the new tokens, from the old ones or, for lack of text, small at random."""
    rows = 0.3 * known.std() * torch.randn(len(tokenizer), known.shape[1], generator=torch.Generator().manual_seed(0))
    old_ids, texts = old_tokenizer.get_vocab(), {}
    for token, number in tokenizer.get_vocab().items():
        if token in old_ids:
            rows[number] = known[old_ids[token]]
            continue
        text = tokenizer.convert_tokens_to_string([token.removesuffix(WORD_END)]).strip()
        if text and "\ufffd" not in text and number not in tokenizer.all_special_ids:
            texts[number] = text
    for word, translation in same.items():
        if len(numbers := tokenizer(word, add_special_tokens=False).input_ids) == 1:
            texts[numbers[0]] = translation
    for number, text in texts.items():
        if old := old_tokenizer(text, add_special_tokens=False, verbose=False).input_ids:
            rows[number] = known[old].mean(dim=0)
    return rows


def widths(unet: UNet) -> list[tuple[int, int]]:
    """Return the first and last-but-one column of each cross-attention's keys and values in `UNet.read`'s."""
    ends = [0]
    for attention in cross_attentions(unet).values():
        ends.append(ends[-1] + 2 * attention.channels)
    return list(pairwise(ends))
