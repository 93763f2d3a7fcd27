"""One tokenizer serves many threads: reading a text does not change it, and its tokens are those of transformers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from stable_diffusion.inspect.heat_maps import prompt_words
from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.loading.tokenizer import clip_tokenizer, encode_text, frame, load_tokenizer
from stable_diffusion.prompt import tokenize
from tests.tiny import configs, save_tokenizer

TEXTS = ["", "a red fox", "the moon, a photo", "red " * 75, "blue cat " * 60, "<|endoftext|> fox", "日本 ß é"]
CONFIG = CLIPTextConfig.from_dict(configs("sd1")["text_encoder"])


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    save_tokenizer(tmp_path, kind)
    return tmp_path


def framed(folder: Path, text: str) -> list[list[int]]:
    """Return the tokens that diffusers gives the text tower."""
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return tokenizer([text], padding="max_length", max_length=77, truncation=True).input_ids


def test_ids_are_those_of_transformers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, CONFIG)
    for text in TEXTS:
        assert tokenize(tokenizer, text).ids.tolist() == framed(folder, text)
        alone = encode_text(tokenizer, text).ids
        assert alone == tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        assert frame(tokenizer, alone, len(alone) + 2) == tokenizer(text, verbose=False).input_ids


def test_padding_and_truncation_left_set_do_not_count(folder: Path) -> None:
    """A file may hold them, and a call of the tokenizer leaves them set."""
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["truncation"] = {"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    settings["padding"] = {
        **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder, CONFIG)
    assert tokenizer.backend_tokenizer.padding is None
    assert tokenizer.backend_tokenizer.truncation is None
    expected = encode_text(tokenizer, "a red fox and the blue moon").ids
    assert len(expected) > 5
    tokenizer("fox", padding="max_length", max_length=5, truncation=True)
    assert encode_text(tokenizer, "a red fox and the blue moon").ids == expected
    assert len(encode_text(tokenizer, "a").ids) == 1


def test_eight_threads_read_one_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, CONFIG)

    def read(number: int) -> object:
        text = TEXTS[number % len(TEXTS)]
        plain, weighted = tokenize(tokenizer, text), tokenize(tokenizer, f"({text}:1.2)", "weighted")
        words = prompt_words(tokenizer, text)
        return plain.ids.tolist(), plain.count, plain.dropped, weighted.ids.tolist(), weighted.count, words

    alone = [read(number) for number in range(len(TEXTS))]
    with ThreadPoolExecutor(8) as threads:
        for number, found in enumerate(threads.map(read, range(500))):
            assert found == alone[number % len(TEXTS)]


def test_clips_own_tokenizer() -> None:
    """The ids that CLIP's published tokenizer gives."""
    tokenizer = clip_tokenizer()
    assert sorted(tokenizer.get_vocab().values()) == list(range(49408))
    assert tokenizer.convert_tokens_to_ids(["!", "ÿ", "Ā", "Ń", "!</w>", "in", "<|endoftext|>"]) == (
        [0, 187, 188, 255, 256, 512, 49407]
    )
    for text, ids in (
        ("a photo of an astronaut riding a horse", [320, 1125, 539, 550, 18376, 6765, 320, 4558]),
        ("A photo  of a CAT!", [320, 1125, 539, 320, 2368, 256]),
        ("<|startoftext|><|endoftext|>", [49406, 49407]),
        ("!", [256]),  # at the end of a word; 0 is the one within a word
    ):
        assert encode_text(tokenizer, text).ids == ids
        assert tokenizer(text).input_ids == [49406, *ids, 49407]
    assert tokenizer.decode(encode_text(tokenizer, "日本 ß é").ids).strip() == "日本 ß é"
