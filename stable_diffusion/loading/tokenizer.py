"""The CLIP tokenizer of a model: loading, checks against the text encoder, thread-safe encoding, and saving."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from transformers import CLIPTokenizer

from .clip_config import CLIPTextConfig, TokenizerConfig
from .config import BUNDLED, ONLY_IN_A_CLONE, ConfigError, ModelError, one_line
from .files import check_file
from .model_config import TOKENIZER_FILES

# The vocabulary of both Stable Diffusion families; single files do not contain it.
CLIP_MERGES = BUNDLED.parents[1] / "clip_vocabulary" / "merges.txt.gz"
MAX_VOCABULARY = 16 * 2**20  # bytes of a file; the largest of CLIP's, tokenizer.json, has 3.6 MB


def load_tokenizer(folder: Path, config: CLIPTextConfig) -> CLIPTokenizer:
    """Load the tokenizer in `folder`; its `model_max_length` is at most the text encoder's number of positions.

    Raises `ModelError` for a missing or damaged tokenizer, and one with more tokens than the text encoder.
    """
    present = {name for name in TOKENIZER_FILES if (folder / name).exists()}
    for name in present:
        check_file(folder / name, MAX_VOCABULARY)
    # Without a vocabulary transformers would invent one of two words.
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise ModelError(f"{folder} has no tokenizer: it needs vocab.json and merges.txt, or tokenizer.json")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the parser raises bare Exceptions
        raise ModelError(f"{folder} holds a damaged tokenizer ({one_line(error)}): download it again") from None
    names = ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id")
    try:
        TokenizerConfig.from_dict({name: getattr(tokenizer, name) for name in names})
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    _fit(tokenizer, config, folder)
    return tokenizer


def _fit(tokenizer: CLIPTokenizer, config: CLIPTextConfig, origin: Path) -> None:
    """Adapt a tokenizer to the text encoder's limits; raises `ModelError` if it has more tokens than the encoder."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > config.vocab_size:
        raise ModelError(
            f"{origin} has {tokens} tokens, the text encoder only {config.vocab_size}: they belong to different models"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    _reset(tokenizer)  # a tokenizer.json may have padding and truncation on


class Encoded(NamedTuple):
    """The tokens of a text: ids, the start and end of each in the text, and the number of its word."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


_vectors: WeakKeyDictionary[CLIPTokenizer, dict[int, list[int]]] = WeakKeyDictionary()


def set_vectors(tokenizer: CLIPTokenizer, vectors: dict[int, list[int]]) -> None:
    """Make the token ids `vectors[id]` follow each other wherever `encode_text` finds the token `id`."""
    _vectors[tokenizer] = vectors


def vectors_of(tokenizer: CLIPTokenizer) -> dict[int, list[int]]:
    """Return the token ids of every word that has several, an embedding, by the first of them.

    They go by ids and not by names, because the tokenizer lower-cases the words that it finds. Unless `set_vectors`
    told them, they are diffusers' tokens `<name>`, `<name>_1`, `<name>_2` and so on.
    """
    if tokenizer not in _vectors:
        added = tokenizer.get_added_vocab()
        _vectors[tokenizer] = {
            id: [id, *(added[name] for name in takewhile(added.__contains__, (f"{word}_{i}" for i in count(1))))]
            for word, id in added.items()
            if f"{word}_1" in added
        }
    return _vectors[tokenizer]


def encode_text(tokenizer: CLIPTokenizer, text: str) -> Encoded:
    """Return all tokens of a text without start, end and padding; the word of an embedding becomes all its tokens.

    Threads can share a tokenizer here. Calling the tokenizer itself sets padding and truncation on the shared object,
    so that a concurrent call would return a wrong length.
    """
    if tokenizer.backend_tokenizer.padding is not None or tokenizer.backend_tokenizer.truncation is not None:
        _reset(tokenizer)  # another caller left them set
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    # Each attribute of `found` is a new list at every access.
    ids, offsets, word_ids, vectors = found.ids, found.offsets, found.word_ids, vectors_of(tokenizer)
    places = [(id, place) for place, first in enumerate(ids) for id in vectors.get(first, (first,))]
    return Encoded(
        [id for id, _ in places], [offsets[place] for _, place in places], [word_ids[place] for _, place in places]
    )


def frame(tokenizer: CLIPTokenizer, ids: Sequence[int], length: int) -> list[int]:
    """Return exactly `length` token ids: start, as many of `ids` as fit, end and padding."""
    framed = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
    return framed + [tokenizer.pad_token_id] * (length - len(framed))


def _reset(tokenizer: CLIPTokenizer) -> None:
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def find_tokenizer(path: Path, config: CLIPTextConfig) -> CLIPTokenizer:
    """Return the tokenizer for a single file: that of a folder `tokenizer` beside it, or else the bundled CLIP one.

    The padding token comes from the text encoder: Stable Diffusion 2.x was trained with "!", 1.x with the end token.
    Raises `ModelError` as `load_tokenizer`.
    """
    folder = path.parent / "tokenizer"
    if folder.is_dir():
        tokenizer = load_tokenizer(folder, config)
    else:
        tokenizer = clip_tokenizer()
        try:
            _fit(tokenizer, config, CLIP_MERGES)
        except ModelError as error:
            raise ModelError(f"{error}; put the folder `tokenizer` of the model of {path} beside it") from None
    if config.pad_token_id is not None and config.pad_token_id < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's byte-pair encoding (arXiv:2103.00020, section 2.4), 49,408 tokens, built from its merges.

    The ids are in this order: the 256 bytes, the bytes at the end of a word, the result of each merge, start, end.
    Bytes are spelt as in GPT-2: printable ones as themselves, the others as characters from U+0100 on.
    """
    if not CLIP_MERGES.is_file():
        raise ModelError(f"the single file needs CLIP's vocabulary, which {ONLY_IN_A_CLONE}, or load a model directory")
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]
    with gzip.open(CLIP_MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(first + second for first, second in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)  # type: ignore[arg-type]  # wants pairs


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer that every version of transformers can read."""
    tokenizer.save_pretrained(str(folder))
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which version 5 does not write
