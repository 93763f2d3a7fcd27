"""The CLIP tokenizer of a model: found, checked against the text tower, used by many threads at once, and saved."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from transformers import CLIPTokenizer

from .clip_config import CLIPTextConfig, TokenizerConfig
from .config import BUNDLED, ONLY_IN_A_CLONE, ConfigError, ModelError
from .fields import told
from .files import check_file
from .model_config import TOKENIZER_FILES

# The vocabulary of both Stable Diffusion families; single files do not carry it.
CLIP_MERGES = BUNDLED.parents[1] / "clip_vocabulary" / "merges.txt.gz"
MAX_VOCABULARY = 16 * 2**20  # bytes of a file; the largest of CLIP's, tokenizer.json, has 3.6 MB


def load_tokenizer(folder: Path, config: CLIPTextConfig) -> CLIPTokenizer:
    """The tokenizer in a model directory's `tokenizer` folder; raises `ModelError` unless the text tower has its words.

    Its `model_max_length` is at most the number of positions that the tower knows.
    """
    present = {name for name in TOKENIZER_FILES if (folder / name).exists()}
    for name in present:
        check_file(folder / name, MAX_VOCABULARY)
    # Without a vocabulary transformers would make up one of two words.
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise ModelError(f"{folder} holds no tokenizer: it needs vocab.json and merges.txt, or tokenizer.json")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the parser raises bare Exceptions
        raise ModelError(f"{folder} holds a damaged tokenizer ({told(error)}): download it again") from None
    names = ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id")
    try:
        TokenizerConfig.from_dict({name: getattr(tokenizer, name) for name in names})
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    _fit(tokenizer, config, folder)
    return tokenizer


def _fit(tokenizer: CLIPTokenizer, config: CLIPTextConfig, origin: Path) -> None:
    """Hold a tokenizer to the text tower's limits; raises `ModelError` where the tower lacks words of it."""
    words = max(tokenizer.get_vocab().values()) + 1
    if words > config.vocab_size:
        raise ModelError(
            f"{origin} has {words} tokens, the text encoder only {config.vocab_size}: they belong to different models"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    _reset(tokenizer)  # a tokenizer.json may carry padding and truncation


class Encoded(NamedTuple):
    """The tokens of a text: ids, where in the text each begins and ends, and the number of its word."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


def encode_text(tokenizer: CLIPTokenizer, text: str) -> Encoded:
    """All tokens of a text, without start, end and padding; an embedding's word has all its vectors' tokens.

    It reads the tokenizer and changes nothing in it, so that many threads may share one. Calling the tokenizer itself
    does not: it sets padding and truncation on the shared object, and a call beside it then gets the wrong length.
    """
    if tokenizer.backend_tokenizer.padding is not None or tokenizer.backend_tokenizer.truncation is not None:
        _reset(tokenizer)  # somebody did call it, and left them set
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    added = tokenizer.get_added_vocab()
    places = []
    for place, (id, word) in enumerate(zip(found.ids, found.tokens, strict=True)):
        places.append((id, place))
        # As diffusers names them: a word that was learned as several vectors is `<name>`, `<name>_1`, `<name>_2`, ...
        for i in count(1) if added.get(word) == id else ():
            if f"{word}_{i}" not in added:
                break
            places.append((added[f"{word}_{i}"], place))
    return Encoded(
        [id for id, _ in places],
        [found.offsets[place] for _, place in places],
        [found.word_ids[place] for _, place in places],
    )


def frame(tokenizer: CLIPTokenizer, ids: Sequence[int], length: int) -> list[int]:
    """Exactly `length` token ids: start, as many of `ids` as fit, end, and padding behind."""
    framed = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
    return framed + [tokenizer.pad_token_id] * (length - len(framed))


def _reset(tokenizer: CLIPTokenizer) -> None:
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def find_tokenizer(path: Path, config: CLIPTextConfig) -> CLIPTokenizer:
    """The tokenizer for the single file `path`: in a folder `tokenizer` beside it, or else the CLIP one that we carry.

    The text tower knows what fills up short prompts: Stable Diffusion 2.x was trained with "!", 1.x with the end.
    Raises `ModelError` where the tower lacks words of the tokenizer.
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
    """CLIP's own byte-pair encoding (arXiv:2103.00020, section 2.4), of 49,408 tokens, from its merges alone.

    The tokens count up: the 256 bytes, the same at the end of a word, what each merge makes of two tokens,
    start and end. Bytes are spelt as in GPT-2: a printable one as itself, the others as the characters from U+0100 on.
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
    """Write a tokenizer so that every version of transformers reads it."""
    tokenizer.save_pretrained(str(folder))
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt, which version 5 no longer writes
