"""Train the bundled model's tokenizer: `python -m training.networks.train_tokenizer`.

A byte-pair encoding (arXiv:1508.07909) in CLIP's format, over the words that captions are made of. All 256 bytes are in
its alphabet, so any text tokenises; the vocabulary is small because the embedding table is shipped with the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from training.data.captions import Composer
from training.data.dataset import Dataset
from training.data.heldout import HELDOUT, Heldout
from training.data.sentences.paraphraser import Paraphraser

from .cache_latents import load_facts

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_LENGTH = 32
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Return the `count` most useful merges, in order; fewer where `texts` has not as many pairs that occur twice."""
    reader = CLIPTokenizer().backend_tokenizer  # for its normalizer and its way of cutting text into words
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer, tokenizer.pre_tokenizer = reader.normalizer, reader.pre_tokenizer
    alphabet = 2 * len(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=alphabet + count,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges[:count]]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + WORD_END for symbol in alphabet), *("".join(merge) for merge in merges), START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def write_tokenizer(folder: Path, merges: list[tuple[str, str]], max_length: int = MAX_LENGTH) -> None:
    """Write the files that `CLIPTokenizer.from_pretrained` reads; a prompt has at most `max_length` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True, **special}
    files = {"vocab.json": vocabulary(merges), "tokenizer_config.json": settings, "special_tokens_map.json": special}
    for name, content in files.items():
        indent = None if name == "vocab.json" else 2
        text = json.dumps(content, ensure_ascii=False, indent=indent)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def caption_tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Captions -> int32 (N, S) with start and end, cut and padded to S, the tokenizer's `model_max_length`.

    The tokenizer does not cut and pad by itself: it would keep the setting for all its users.
    """
    words = tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids
    ids = torch.full((len(words), tokenizer.model_max_length), tokenizer.pad_token_id, dtype=torch.int32)
    for row, caption in zip(ids, words, strict=True):
        framed = [tokenizer.bos_token_id, *caption[: len(row) - 2], tokenizer.eos_token_id]
        row[: len(framed)] = torch.tensor(framed)
    return ids


def corpus(data: Path, heldout: Path, captions: int) -> Iterable[str]:
    """Yield every label and keyword of the data set, and captions composed from it."""
    dataset = Dataset.load(data)
    for row in dataset.rows:
        yield from (row["label"], *row["tags"], *row["keywords"])
    composer = Composer(dataset, size=8, heldout=Heldout.load(heldout))  # only the words are wanted
    for index in range(captions):
        yield composer.sample(np.random.default_rng((7, index)))[1]


def sentence_corpus(paraphraser: Paraphraser, facts: Sequence[dict], count: int) -> Iterable[str]:
    """`count` sentences about the facts in all languages, and what each language calls the things.

    The languages with a word list of their own give all their names and keywords twice, the others theirs once.
    """
    rng = Random(0)
    for _ in range(count):
        yield paraphraser.pair(rng.choice(facts), rng).sentence
    concepts = {row["concept"] for row in paraphraser.rows}
    for language in paraphraser.languages.values():
        for concept, names in language.names.items():
            if concept in concepts:
                yield from (names.name, *names.keywords) * (2 if language.words else 1)


def main() -> None:
    """Learn the merges from composed captions, and write the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sentences", type=Path, nargs="+", help="folders with facts: learn from sentences in all languages about them"
    )
    parser.add_argument("--length", type=int, default=MAX_LENGTH, help="tokens of a prompt")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--heldout", type=Path, default=HELDOUT)
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--captions", type=int, default=20_000, help="captions, or sentences, to make for the corpus")
    parser.add_argument("--merges", type=int, default=3_000)
    args = parser.parse_args()
    if args.sentences:
        texts = sentence_corpus(Paraphraser.load(args.data), load_facts(args.sentences), args.captions)
    else:
        texts = corpus(args.data, args.heldout, args.captions)
    merges = learn_merges(texts, args.merges)
    write_tokenizer(args.out, merges, args.length)
    print(f"{len(vocabulary(merges))} tokens in {args.out}")


if __name__ == "__main__":
    main()
