"""From the words of a prompt to the context that the U-Net attends to.

A plain prompt is read as diffusers reads it. A weighted one follows the rules of AUTOMATIC1111's web UI (its wiki,
"Attention/emphasis" and "Infinite prompt length"):

- `(word)` gives a word 1.1 times the attention, `[word]` that much less, `(word:1.3)` 1.3 times; nested ones multiply.
- A backslash before a bracket, or before another backslash, makes it text. A closing bracket without an opening one is
  text too; a bracket left open reaches to the end. Round and square brackets need not nest in each other.
- A long prompt is cut into chunks of as many tokens as the text tower takes, each is encoded alone, and the features
  are joined. The cut moves back to a comma, if there is one among the last 20 tokens of 75, and else to the beginning
  of an embedding that it would cut through. `MAX_CONTEXT` bounds the chunks.
- `BREAK`, in capitals, ends a chunk early.
- A token's features are multiplied by its weight, and the whole chunk by the factor that restores its mean.

The rules about sampling steps, `[from:to:when]`, `[a|b]` and `AND`, are not implemented: they are read as text.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from .clip import CLIPTextEncoder
from .loading.checkpoints import check_finite, finite
from .loading.tokenizer import encode_text, frame, vectors_of
from .request import BREAK, MAX_CONTEXT, SYNTAX_LABELS, Request, RequestError, without_loras

EMPHASIS = {"(": 1.1, "[": 1 / 1.1}
OPENING = {")": "(", "]": "["}
MAX_WEIGHT = 1e3  # far beyond use; nested brackets would reach infinity and give NaN
WRAP = 20 / 75  # a chunk may end at a comma within this part of its end

# Both patterns take linear time: no two repetitions in a row match the same characters.
SYMBOLS = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a prompt, in one or more chunks of S tokens with start, end and padding.

    ids and weights are (chunks, S); all weights of a plain prompt are 1. count is the number of tokens of the whole
    prompt without start and end; dropped is the text that did not fit, always empty for a weighted prompt.
    """

    ids: Tensor
    weights: Tensor
    count: int
    dropped: str


def tokenize(tokenizer: CLIPTokenizer, prompt: str, syntax: str = "plain") -> Tokens:
    """Cut a prompt into tokens: a plain one into one chunk, which drops the rest, a weighted one into several chunks.

    A chunk has `tokenizer.model_max_length` tokens with start and end, which are always kept.
    """
    if syntax not in SYNTAX_LABELS:
        raise RequestError(f"prompt_syntax must be one of {', '.join(SYNTAX_LABELS)}, got {syntax!r}")
    length = tokenizer.model_max_length
    if syntax != "weighted":
        found = encode_text(tokenizer, prompt)
        too_long = len(found.ids) > length - 2
        dropped = prompt[found.offsets[length - 2][0] :].strip() if too_long else ""
        ids = torch.tensor([frame(tokenizer, found.ids, length)])
        return Tokens(ids, torch.ones(1, length), len(found.ids), dropped)
    chunks = cut_into_chunks(tokenizer, prompt)
    ids = torch.tensor([frame(tokenizer, [token for token, _ in chunk], length) for chunk in chunks])
    weights = torch.ones(ids.shape)
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : 1 + len(chunk)] = torch.tensor([weight for _, weight in chunk])
    return Tokens(ids, weights, sum(map(len, chunks)), "")


def tokenize_request(tokenizer: CLIPTokenizer, request: Request) -> dict[str, Tokens]:
    """Return the tokens of a request's prompt, negative prompt and, if it has one, `then`, by the name of the field.

    Raises `RequestError` for more than `MAX_CONTEXT` tokens in the chunks of one: each step takes longer with them, and
    the run more memory.
    """
    texts = {"prompt": without_loras(request.prompt), "negative_prompt": request.negative_prompt}
    if request.then:
        texts["then"] = request.then
    tokens = {name: tokenize(tokenizer, text, request.prompt_syntax) for name, text in texts.items()}
    for name, read in tokens.items():
        if len(read.ids) > max_chunks(tokenizer):
            raise RequestError(
                f"{name} must have at most {max_chunks(tokenizer)} chunks of {tokenizer.model_max_length - 2} tokens "
                f"with this model, got {len(read.ids)}: shorten it, or leave out some BREAKs"
            )
    return tokens


def max_chunks(tokenizer: CLIPTokenizer) -> int:
    """Return the largest number of chunks of a prompt."""
    return max(1, MAX_CONTEXT // tokenizer.model_max_length)


@torch.no_grad()
def encode_tokens(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextEncoder, prompts: Sequence[Tokens], clip_skip: int = 0
) -> Tensor:
    """Return the context (N, chunks * S, hidden_size) of N prompts: the text encoder's features of each token.

    Prompts with fewer chunks than the longest are padded with empty chunks. clip_skip: number of last layers to leave
    out. Raises `ModelError` if weights that the loader did not check turn out not to be finite.
    """
    device = text_encoder.text_model.final_layer_norm.weight.device
    count = max(len(prompt.ids) for prompt in prompts)
    empty = torch.tensor([frame(tokenizer, [], tokenizer.model_max_length)])
    missing = [count - len(prompt.ids) for prompt in prompts]
    ids = torch.cat([row for prompt, n in zip(prompts, missing, strict=True) for row in (prompt.ids, *[empty] * n)])
    weights = torch.cat([F.pad(one.weights, (0, 0, 0, n), value=1.0) for one, n in zip(prompts, missing, strict=True)])
    features = text_encoder(ids.to(device), clip_skip)
    if not finite(features):
        check_finite(text_encoder.state_dict(), type(text_encoder).__name__)
    if (weights != 1).any():
        features = _weigh(features, weights.to(device))
    return features.unflatten(0, (len(prompts), count)).flatten(1, 2)  # (N * chunks, S, D) -> (N, chunks * S, D)


def encode_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextEncoder, prompts: Sequence[str], syntax: str = "plain"
) -> Tensor:
    """Return the context (N, chunks * S, hidden_size) of N texts, as `encode_tokens` does."""
    return encode_tokens(tokenizer, text_encoder, [tokenize(tokenizer, prompt, syntax) for prompt in prompts])


def _weigh(features: Tensor, weights: Tensor) -> Tensor:
    """Multiply features (N, S, D) by weights (N, S), and each of the N by the factor that restores its mean."""
    weighted = features.float() * weights[..., None]
    restore = features.float().mean(dim=(1, 2), keepdim=True) / weighted.mean(dim=(1, 2), keepdim=True)
    return (weighted * restore).to(features.dtype)


Weighted = tuple[str, float]


def parse_weights(prompt: str) -> list[list[Weighted]]:
    """Return the texts of a weighted prompt with their weights, in a list for each part between BREAKs.

    Every text is a valid prompt: a stray bracket is read as text. Neighbours of equal weight are joined, so that
    brackets without effect cut no word. The time is linear in the prompt's length.
    """
    parts: list[list[Weighted]] = [[]]
    for text, weight in _weigh_texts(list(SYMBOLS.finditer(prompt))):
        *ended, last = BREAK.split(text)
        for one in ended:
            parts[-1].append((one.rstrip(), weight))
            parts.append([])
        parts[-1].append((last, weight))
    return [
        [
            ("".join(text for text, _ in run), weight)
            for weight, run in groupby(filter(itemgetter(0), part), itemgetter(1))
        ]
        for part in parts
    ]


def without_weights(prompt: str) -> str:
    """Return a weighted prompt with a space for each sign of its syntax, so that its words keep their places."""
    text = SYMBOLS.sub(lambda symbol: (symbol["escaped"] or symbol["text"] or "").rjust(len(symbol[0])), prompt)
    return BREAK.sub(lambda found: " " * len(found[0]), text)


def _weigh_texts(symbols: list[re.Match[str]]) -> Iterator[Weighted]:
    """Yield each text among the symbols with the product of the brackets around it."""
    factors, closings = _match_brackets(symbols)
    inside = {bracket: [1.0] for bracket in EMPHASIS}  # the product up to each open bracket
    for place, symbol in enumerate(symbols):
        if place in factors:
            products = inside[symbol[0]]
            products.append(max(-MAX_WEIGHT, min(products[-1] * factors[place], MAX_WEIGHT)))
        elif place in closings:
            inside[closings[place]].pop()
        else:
            yield symbol["escaped"] or symbol[0], inside["("][-1] * inside["["][-1]


def _match_brackets(symbols: list[re.Match[str]]) -> tuple[dict[int, float], dict[int, str]]:
    """Return the factor of each opening bracket and the kind of each closing one, by their places."""
    factors: dict[int, float] = {}
    closings: dict[int, str] = {}
    opened: dict[str, list[int]] = {bracket: [] for bracket in EMPHASIS}
    for place, symbol in enumerate(symbols):
        bracket = symbol["bracket"] or (symbol["weight"] and ")")
        if bracket in opened:
            factors[place] = EMPHASIS[bracket]  # also for a bracket left open
            opened[bracket].append(place)
        elif bracket and opened[OPENING[bracket]]:
            start = opened[OPENING[bracket]].pop()
            closings[place] = OPENING[bracket]
            if symbol["weight"]:
                factors[start] = float(symbol["weight"])
    return factors, closings


Chunk = list[tuple[int, float]]
"""Token ids with their weights, without start, end and padding."""


def cut_into_chunks(tokenizer: CLIPTokenizer, prompt: str) -> list[Chunk]:
    """Cut a weighted prompt into one or more chunks that fit the text encoder."""
    room = tokenizer.model_max_length - 2
    comma = tokenizer.backend_tokenizer.token_to_id(",</w>")
    later = {id for ids in vectors_of(tokenizer).values() for id in ids[1:]}
    chunks: list[Chunk] = []
    for part in parse_weights(prompt):
        tokens = [(token, weight) for text, weight in part for token in encode_text(tokenizer, text).ids]
        start = 0
        while len(tokens) - start > room:
            end = start + _end_of_chunk([token for token, _ in tokens[start : start + room + 1]], comma, later)
            chunks.append(tokens[start:end])
            start = end
        chunks.append(tokens[start:])
    # A BREAK at the end of a prompt starts no chunk.
    return chunks if chunks[-1] or len(chunks) == 1 else chunks[:-1]


def _end_of_chunk(tokens: Sequence[int], comma: int | None, later: Container[int]) -> int:
    """Return where to cut tokens of which all but the last have room: behind the last comma if it is near the end.

    later: the tokens of embeddings except their first. One that has more vectors than a chunk has room is cut anyway.
    """
    room = len(tokens) - 1
    if tokens[room] != comma:
        for end in range(room, room - round(WRAP * room), -1):
            if tokens[end - 1] == comma:
                return end
    return next((end for end in range(room, 0, -1) if tokens[end] not in later), room)
