"""Textual inversion (arXiv:2208.01618): vectors that were learned to stand for a word of the prompt."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken
from torch import Tensor

from .loading.checkpoints import finite, listed, read_tensors
from .loading.config import ModelError
from .model_loader import Models
from .weights import with_weights

TABLE = "text_model.embeddings.token_embedding.weight"


def with_embedding(models: Models, file: Path) -> Models:
    """`models` with one word more, the name of `file` without its ending; see `Pipeline.add_embedding`.

    As in diffusers the vectors are new tokens, `<name>`, `<name>_1`, `<name>_2` and so on, behind those of the model.
    Tokenizer and text tower are copies, and all weights but the table of tokens are shared.
    """
    name = file.stem
    table = models.text_encoder.get_parameter(TABLE)
    vectors = read_vectors(file, table.shape[1]).to(table)
    if not finite(vectors):
        raise ModelError(f"{file} holds numbers that are not finite in {table.dtype}: use float32, or another file")
    words = [name, *(f"{name}_{i}" for i in range(1, len(vectors)))]
    tokenizer = copy.deepcopy(models.tokenizer)
    known = {word.lower() for word in tokenizer.get_vocab()}
    taken = [word for word in words if not word.strip() or word.lower() in known]
    if taken:
        raise ModelError(f"{file} can't be the word {taken[0]!r}, which the model has: rename the file")
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    added = tokenizer.get_added_vocab()
    ids = [added[word] for word in words]
    # A model's table may have more rows than its tokenizer has words.
    longer = table.new_zeros(max(len(table), *(id + 1 for id in ids)), table.shape[1])
    longer[: len(table)] = table
    longer[ids] = vectors
    return replace(models, tokenizer=tokenizer, text_encoder=with_weights(models.text_encoder, {TABLE: longer}))


def read_vectors(file: Path, width: int) -> Tensor:
    """The vectors (count, width) of a file: diffusers' `{word: tensor}`, or AUTOMATIC1111's `string_to_param`.

    Raises `ModelError` where it is damaged, or of a model whose tokens have another width.
    """
    state = read_tensors(file)
    if len(state) != 1:
        raise ModelError(
            f"{file} is no embedding of this model: it holds {len(state)} tensors ({listed(state)}) and not one; "
            "it may be of another model, such as Stable Diffusion XL"
        )
    [vectors] = state.values()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors) or not vectors.is_floating_point():
        raise ModelError(
            f"{file} is no embedding of this model: it is {tuple(vectors.shape)}, {vectors.dtype}, "
            f"and this model's tokens have {width} numbers"
        )
    return vectors
