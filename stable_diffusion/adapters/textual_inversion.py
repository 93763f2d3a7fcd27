"""Textual inversion (arXiv:2208.01618): learned token embeddings under a new word of the prompt."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken
from torch import Tensor

from ..loading.checkpoints import finite, first_five, is_dense_float, read_tensors
from ..loading.config import ModelError
from ..loading.tokenizer import set_vectors, vectors_of
from ..model_loader import Models
from .weights import with_weights

TABLE = "text_model.embeddings.token_embedding.weight"


Word = tuple[str, Tensor]
"""A new word and its vectors (count, width)."""


def with_embeddings(models: Models, original: Models, words: Sequence[Word]) -> Models:
    """Return `models` with the vocabulary of `original` extended by `words`; see `Pipeline.add_embedding`.

    Each vector becomes a token after those of the model, in the order of diffusers. Tokenizer and text encoder are
    copies that share all weights except the token embedding.
    """
    table = original.text_encoder.get_parameter(TABLE)
    tokenizer = copy.deepcopy(original.tokenizer)
    known = {word.lower() for word in tokenizer.get_vocab()}
    rows: dict[str, Tensor] = {}
    for name, vectors in words:
        if not name.strip() or name.lower() in known:
            raise ModelError(
                f"the embedding {name!r} can't be the word {name!r}, which the model already has: rename the file"
            )
        known.add(name.lower())
        rows |= zip(_tokens(name, len(vectors)), vectors, strict=True)
    tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=True) for token in rows])
    added = tokenizer.get_added_vocab()
    ids = {name: [added[token] for token in _tokens(name, len(vectors))] for name, vectors in words}
    set_vectors(tokenizer, {**vectors_of(original.tokenizer), **{several[0]: several for several in ids.values()}})
    # A model's token embedding may have more rows than its tokenizer has tokens.
    longer = table.new_zeros(max(len(table), *(1 + added[token] for token in rows), 0), table.shape[1])
    longer[: len(table)] = table
    for token, row in rows.items():
        longer[added[token]] = row
    return replace(models, tokenizer=tokenizer, text_encoder=with_weights(models.text_encoder, {TABLE: longer}))


def _tokens(name: str, count: int) -> list[str]:
    """Return the tokens of a word with `count` vectors; all but the first have names that no file can have."""
    return [name, *(f"{name}\0{i}" for i in range(1, count))]


def read_word(file: Path, models: Models) -> Word:
    """Read diffusers' `{word: tensor}` or AUTOMATIC1111's `string_to_param`; the file's name is the word.

    Raises `ModelError` for a damaged file and for one of a model with another token width.
    """
    table = models.text_encoder.get_parameter(TABLE)
    width, state = table.shape[1], read_tensors(file)
    if len(state) != 1:
        raise ModelError(
            f"{file} is not an embedding of this model: it holds {len(state)} tensors ({first_five(state)}), not one; "
            "it may belong to another model, such as Stable Diffusion XL"
        )
    [vectors] = state.values()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors) or not is_dense_float(vectors):
        raise ModelError(
            f"{file} is not an embedding of this model: it is {tuple(vectors.shape)}, {vectors.dtype}, "
            f"and this model's tokens have a width of {width}"
        )
    vectors = vectors.to(table, copy=True)  # not the mapped file, which may be replaced
    if not finite(vectors):
        raise ModelError(f"{file} holds numbers that are not finite in {table.dtype}: use float32, or another file")
    return unicodedata.normalize("NFC", file.stem), vectors  # as the tokenizer reads a prompt; file systems may differ
