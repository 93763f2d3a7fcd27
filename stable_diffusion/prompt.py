"""From the words of a prompt to the context that the U-Net attends to.

A plain prompt is read as diffusers reads it. A weighted one is read by the rules that AUTOMATIC1111's web UI made
common (its wiki, "Attention/emphasis" and "Infinite prompt length"):

- `(word)` gives a word 1.1 times the attention, `[word]` that much less, `(word:1.3)` 1.3 times; nested ones multiply.
- A backslash before a bracket, or before another backslash, makes it text. So is a closing bracket that closes nothing;
  one left open reaches to the end. Round and square brackets need not nest in each other.
- A prompt may be of any length: it is cut into chunks of as many tokens as the text tower takes, each is encoded alone,
  and the features are joined. The cut moves back to a comma, if there is one among the last 20 tokens of 75.
- `BREAK`, in capitals, ends a chunk early.
- A token's features are multiplied by its weight, and a chunk by what restores its mean.

Of those rules the ones about sampling steps, `[from:to:when]`, `[a|b]` and `AND`, are not kept: they are read as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .clip import CLIPTextEncoder

SYNTAXES = ("plain", "weighted")
EMPHASIS = 1.1
WRAP = 20 / 75  # how far from its end, in parts of a chunk, a comma may end it

SYMBOLS = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")


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
def encode_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextEncoder, prompts: list[str], syntax: str = "plain"
) -> Tensor:
    """Prompts -> context (N, S, hidden_size): the text tower's features of each token.

    S is the tower's limit, and with the weighted syntax as many times that as the longest prompt needs.
    """
    if syntax not in SYNTAXES:
        raise ValueError(f"prompt_syntax must be one of {', '.join(SYNTAXES)}, got {syntax!r}")
    device = text_encoder.text_model.final_layer_norm.weight.device
    if syntax == "plain":
        ids = torch.cat([tokenize(tokenizer, prompt).ids for prompt in prompts])
        return text_encoder(ids.to(device))
    chunked = [cut_into_chunks(tokenizer, prompt) for prompt in prompts]
    count = max(len(chunks) for chunks in chunked)
    padded = [chunk for chunks in chunked for chunk in chunks + [[]] * (count - len(chunks))]
    ids, weights = (tensor.to(device) for tensor in _to_tensors(tokenizer, padded))
    features = _weigh(text_encoder(ids), weights)
    return features.unflatten(0, (len(prompts), count)).flatten(1, 2)  # (N * chunks, S, D) -> (N, chunks * S, D)


def _weigh(features: Tensor, weights: Tensor) -> Tensor:
    """Multiply features (N, S, D) by weights (N, S), and each of the N by what restores its mean."""
    weighted = features.float() * weights[..., None]
    restore = features.float().mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)
    return (weighted * restore).to(features.dtype)


@dataclass
class _Piece:
    """Text between brackets with its weight so far; text None is a BREAK."""

    text: str | None
    weight: float = 1.0


Weighted = tuple[str, float]


def parse_weights(prompt: str) -> list[list[Weighted]]:
    """Read a prompt of the weighted syntax: texts with their weights, in a list for each part between BREAKs.

    Every text is a prompt; the worst that a stray bracket does is to be read as text.
    """
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for piece in pieces[opened[bracket].pop() :]:
            piece.weight *= factor

    for symbol in SYMBOLS.finditer(prompt):
        if symbol["bracket"] in opened:
            opened[symbol["bracket"]].append(len(pieces))
        elif symbol["weight"] and opened["("]:
            close("(", float(symbol["weight"]))
        elif symbol["bracket"] == ")" and opened["("]:
            close("(", EMPHASIS)
        elif symbol["bracket"] == "]" and opened["["]:
            close("[", 1 / EMPHASIS)
        elif symbol["escaped"]:
            pieces.append(_Piece(symbol["escaped"]))
        else:
            first, *others = BREAK.split(symbol[0])
            pieces.append(_Piece(first))
            for text in others:
                pieces += [_Piece(None), _Piece(text)]
    for bracket, factor in (("(", EMPHASIS), ("[", 1 / EMPHASIS)):
        while opened[bracket]:
            close(bracket, factor)
    return _join(pieces)


def _join(pieces: list[_Piece]) -> list[list[Weighted]]:
    """Part at BREAKs, and join neighbours of one weight, so that a word is not cut by brackets that say nothing."""
    parts: list[list[Weighted]] = [[]]
    for piece in pieces:
        if piece.text is None:
            parts.append([])
        elif parts[-1] and parts[-1][-1][1] == piece.weight:
            text, weight = parts[-1].pop()
            parts[-1].append((text + piece.text, weight))
        elif piece.text:
            parts[-1].append((piece.text, piece.weight))
    return parts


Chunk = list[tuple[int, float]]
"""Token ids with their weights, without start, end and padding."""


def cut_into_chunks(tokenizer: CLIPTokenizer, prompt: str) -> list[Chunk]:
    """Read a prompt of the weighted syntax into one or more chunks that the text tower has room for."""
    room = tokenizer.model_max_length - 2
    comma = tokenizer.get_vocab().get(",</w>")
    chunks: list[Chunk] = []
    for part in parse_weights(prompt):
        tokens = [
            (token, weight)
            for text, weight in part
            for token in tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        ]
        while len(tokens) > room:
            end = _last_comma(tokens, room, comma)
            chunks.append(tokens[:end])
            tokens = tokens[end:]
        chunks.append(tokens)
    # Nothing follows a BREAK at the end of a prompt.
    return chunks if chunks[-1] or len(chunks) == 1 else chunks[:-1]


def _last_comma(tokens: Chunk, room: int, comma: int | None) -> int:
    """Where to cut: behind the last comma if it is near the end of the room, or else at the end."""
    if tokens[room][0] != comma:
        for end in range(room, room - round(WRAP * room), -1):
            if tokens[end - 1][0] == comma:
                return end
    return room


def _to_tensors(tokenizer: CLIPTokenizer, chunks: list[Chunk]) -> tuple[Tensor, Tensor]:
    """Chunks -> ids and weights, both (N, S), with start, end and padding, which have weight 1."""
    ids = torch.full((len(chunks), tokenizer.model_max_length), tokenizer.pad_token_id)
    weights = torch.ones(ids.shape)
    for row, row_weights, chunk in zip(ids, weights, chunks, strict=True):
        row[0], row[len(chunk) + 1] = tokenizer.bos_token_id, tokenizer.eos_token_id
        for place, (token, weight) in enumerate(chunk, start=1):
            row[place], row_weights[place] = token, weight
    return ids, weights
