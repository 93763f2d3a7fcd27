"""Weighted and long prompts by the written rules of AUTOMATIC1111's syntax; plain ones as before."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from stable_diffusion.model_loader import Models, load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.prompt import (
    MAX_WEIGHT,
    cut_into_chunks,
    encode_prompts,
    parse_weights,
    tokenize,
    without_weights,
)
from stable_diffusion.request import Request, RequestError


@pytest.fixture
def models(folder: Path) -> Models:
    return load(folder)


@pytest.fixture
def tokenizer(original: Path) -> CLIPTokenizer:
    return load(original).tokenizer


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # The examples of the web UI's documentation and of its parser.
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1)],
                *[("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
        ("a (word:0.25)", [("a ", 1.0), ("word", 0.25)]),
        (r"anime_\(character\)", [("anime_(character)", 1.0)]),
        # What follows from the rules.
        ("", []),
        ("()", []),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("(word : -.5 )", [("word ", -0.5)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("12:30 a:1.3)", [("12:30 a:1.3)", 1.0)]),
        ("(word:1.2.3)", [("word:1.2.3", 1.1)]),
        ("(word:much)", [("word:much", 1.1)]),
        ("[a:b:0.5]", [("a:b:0.5", 1 / 1.1)]),
        ("[word:1.3]", [("word:1.3", 1 / 1.1)]),
        (r"C:\dir \\(a\\)", [("C:\\dir \\", 1.0), ("a\\", 1.1)]),
        ("(a (b", [("a ", 1.1), ("b", 1.21)]),
        ("BREAKFAST break", [("BREAKFAST break", 1.0)]),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    (part,) = parse_weights(prompt)
    assert [text for text, _ in part] == [text for text, _ in expected]
    assert [weight for _, weight in part] == pytest.approx([weight for _, weight in expected])


def test_break_parts_a_prompt_inside_brackets_too() -> None:
    assert parse_weights("a fox BREAK the moon") == [[("a fox", 1.0)], [("the moon", 1.0)]]
    assert parse_weights("(a\nBREAK\n b:2) c") == [[("a", 2.0)], [("b", 2.0), (" c", 1.0)]]


def weigh_letters(prompt: str) -> list[tuple[str, float]]:
    """Return every letter with its weight, by the rules read letter by letter, without numbers and escapes."""
    letters: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        letters[start:] = [(letter, weight * factor) for letter, weight in letters[start:]]

    for letter in prompt:
        kind = "(" if letter in "()" else "["
        if letter in opened:
            opened[letter].append(len(letters))
        elif letter in ")]" and opened[kind]:
            close(kind, 1.1 if letter == ")" else 1 / 1.1)
        else:
            letters.append((letter, 1.0))
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        while opened[bracket]:
            close(bracket, factor)
    return letters


def test_brackets_in_any_order() -> None:
    chance = random.Random(0)
    for _ in range(500):
        prompt = "".join(chance.choices("ab (([[))]]", k=chance.randrange(40)))
        (part,) = parse_weights(prompt)
        expected = weigh_letters(prompt)
        assert "".join(text for text, _ in part) == "".join(letter for letter, _ in expected)
        found = [weight for text, weight in part for _ in text]
        assert found == pytest.approx([weight for _, weight in expected]), prompt


def test_weights_stay_finite() -> None:
    for prompt in ("(" * 10_000 + "fox", f"(fox:{'9' * 400})", f"(({'(' * 9000}fox{')' * 9000}:0):-{'9' * 400})"):
        ((_, weight),) = parse_weights(prompt)[0]
        assert math.isfinite(weight)
        assert abs(weight) <= MAX_WEIGHT


def test_reading_a_prompt_takes_linear_time() -> None:
    """Linear time is some 6 s, quadratic time 30 and more, in a process, since a pattern can't be interrupted."""
    program = """
import time
from stable_diffusion.loading.tokenizer import clip_tokenizer
from stable_diffusion.prompt import parse_weights, tokenize
begun, n = time.process_time(), 100_000
for prompt in (
    "(" * n, "[" * n + "a", "(a" * n + ")" * n, "(a" * n, ")" * n, "([" * n + "a" + ")]" * n, "(a:1)" * n,
    " " * n + "a", "a" + " " * n + "BREAK", "BREAK " * n, "(a:" + " " * n, "(a:" + "1" * n + "b)", "(a:" * n,
    "(a:1." + "1" * n + "b)", "(a:1" + " " * n + "b)", ": " * n, "(a: " + "+" * n, r"\\(" * 4 * n,
):
    parse_weights(prompt)
    assert time.process_time() - begun < 25, prompt[:9]
tokenizer, n = clip_tokenizer(), 20_000  # the longest prompt
for prompt in ("\U0001f600" * 4000, "(a:1.1)" * (n // 7), "(" * n, "(a" * (n // 2), "," * n, "a BREAK " * (n // 8)):
    for syntax in ("plain", "weighted"):
        tokenize(tokenizer, prompt, syntax)
        assert time.process_time() - begun < 25, prompt[:9]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, cwd=Path(__file__).parents[2])


def words(tokenizer: CLIPTokenizer, prompt: str) -> list[str]:
    """Return the text of each chunk."""
    return [tokenizer.decode([token for token, _ in chunk]).strip() for chunk in cut_into_chunks(tokenizer, prompt)]


def test_chunks(tokenizer: CLIPTokenizer) -> None:
    assert words(tokenizer, "") == [""]
    assert words(tokenizer, "red " * 75) == [("red " * 75).strip()]
    assert words(tokenizer, "red " * 76) == [("red " * 75).strip(), "red"]
    assert [len(chunk) for chunk in cut_into_chunks(tokenizer, "red " * 160)] == [75, 75, 10]
    assert words(tokenizer, "a fox BREAK the moon") == ["a fox", "the moon"]
    assert words(tokenizer, "a fox BREAK BREAK the moon BREAK") == ["a fox", "", "the moon"]
    assert words(tokenizer, "BREAK fox") == ["", "fox"]


def test_chunks_end_at_a_comma_near_their_end(tokenizer: CLIPTokenizer) -> None:
    """Within 20 tokens of the end, unless the first token that does not fit is a comma itself."""
    for commas, first in (([54], 75), ([55], 56), ([30, 60], 61), ([74], 75), ([60, 75], 75), ([60, 76], 61)):
        prompt = " ".join("," if place in commas else "red" for place in range(80))
        assert [len(chunk) for chunk in cut_into_chunks(tokenizer, prompt)] == [first, 80 - first], commas


def test_chunks_end_before_an_embedding_that_they_would_cut(original: Path, tmp_path: Path) -> None:
    pipe = Pipeline(load(original))
    for name, count in (("zub", 4), ("vast", 80)):
        torch.save({"a": torch.ones(count, 32)}, tmp_path / f"{name}.pt")
        pipe.add_embedding(tmp_path / f"{name}.pt")
    for reds, first in ((70, 74), (71, 75), (72, 72), (74, 74), (75, 75)):
        chunks = cut_into_chunks(pipe.models.tokenizer, "red " * reds + "zub")
        assert [len(chunk) for chunk in chunks] == [first, reds + 4 - first][: 1 if reds < 72 else 2], reds
    assert [len(chunk) for chunk in cut_into_chunks(pipe.models.tokenizer, "vast red")] == [75, 6]
    assert [len(chunk) for chunk in cut_into_chunks(pipe.models.tokenizer, "red vast")] == [1, 75, 5]


def test_a_prompt_has_at_most_eight_chunks(models: Models) -> None:
    """Memory and time of every step grow with them."""
    pipe = Pipeline(models)
    run = pipe.begin("red " * 8 * 75, prompt_syntax="weighted")
    assert run.query is not None
    assert run.query.context.shape[1] == 8 * 77
    for name in ("prompt", "negative_prompt"):
        for text in ("red " * (8 * 75 + 1), "red BREAK " * 8 + "red"):
            message = f"{name} must have at most 8 chunks of 75 tokens with this model, got 9: shorten it"
            with pytest.raises(RequestError, match=message):
                pipe.begin(Request(**{name: text, "prompt_syntax": "weighted"}))


def test_unweighted_short_prompts_are_encoded_as_plain_ones(models: Models) -> None:
    prompts = ["a red fox", "", "the moon, a photo of the sun"]
    plain = encode_prompts(models.tokenizer, models.text_encoder, prompts)
    weighted = encode_prompts(models.tokenizer, models.text_encoder, prompts, "weighted")
    assert weighted.equal(plain)


def test_brackets_of_plain_prompts_are_text(models: Models) -> None:
    marked, bare = (
        encode_prompts(models.tokenizer, models.text_encoder, [prompt]) for prompt in ("a (fox:1.3)", "a fox")
    )
    assert not marked.equal(bare)


def test_weights_multiply_features_and_restore_the_mean(models: Models) -> None:
    plain = encode_prompts(models.tokenizer, models.text_encoder, ["a red fox"])
    weighted = encode_prompts(models.tokenizer, models.text_encoder, ["a (red:1.5) fox"], "weighted")
    weights = torch.ones(77, 1)
    weights[2] = 1.5  # behind the start and "a"
    expected = plain * weights
    torch.testing.assert_close(weighted, expected * (plain.mean() / expected.mean()))
    torch.testing.assert_close(weighted.mean(), plain.mean())


def test_chunks_are_joined_and_shorter_prompts_get_empty_ones(models: Models) -> None:
    tokenizer, text_encoder = models.tokenizer, models.text_encoder
    context = encode_prompts(tokenizer, text_encoder, ["a red fox BREAK (the moon:0.7)", "blue"], "weighted")
    assert context.shape[:2] == (2, 154)
    alone = [
        encode_prompts(tokenizer, text_encoder, [prompt], "weighted")[0]
        for prompt in ("a red fox", "(the moon:0.7)", "blue", "")
    ]
    torch.testing.assert_close(context.flatten(0, 1), torch.cat(alone))


def test_a_tower_with_less_room_gets_more_chunks(original: Path) -> None:
    models = load(original)
    models.tokenizer.model_max_length = 32
    assert [len(chunk) for chunk in cut_into_chunks(models.tokenizer, "red " * 70)] == [30, 30, 10]
    assert [len(chunk) for chunk in cut_into_chunks(models.tokenizer, "red " * 22 + ", " + "red " * 20)] == [23, 20]
    context = encode_prompts(models.tokenizer, models.text_encoder, ["red " * 70], "weighted")
    assert context.shape == (1, 96, 32)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_request_with_weights(models: Models) -> None:
    """Weights change the picture, nothing is dropped, and a plain request is unchanged."""
    pipe = Pipeline(models)
    options = {"num_inference_steps": 2, "seed": 1, "negative_prompt": "blue"}
    plain = pipe("a red fox", **options)
    assert pipe("a red fox", **options, prompt_syntax="weighted").latents.equal(plain.latents)
    assert not pipe("a (red:1.5) fox", **options, prompt_syntax="weighted").latents.equal(plain.latents)
    long = pipe("a red fox " * 40, **options, prompt_syntax="weighted").latents
    assert not pipe("a red fox " * 41, **options, prompt_syntax="weighted").latents.equal(long)


def test_a_plain_prompt_tells_what_was_dropped(models: Models) -> None:
    tokens = tokenize(models.tokenizer, "red " * 75 + "blue moon")
    assert (tokens.ids.shape, tokens.count, tokens.dropped) == ((1, 77), 77, "blue moon")
    assert tokens.ids[0, -1] == models.tokenizer.eos_token_id
    with pytest.warns(UserWarning, match="negative_prompt is longer than 75 tokens, dropped: 'blue moon'"):
        Pipeline(models)("fox", negative_prompt="red " * 75 + "blue moon", num_inference_steps=1)


def test_a_weighted_prompt_without_its_signs_keeps_the_places_of_its_words():
    prompt = r"a (red fox:1.4) BREAK [the \(cat\)] BREAKFAST at 1.5"
    text = without_weights(prompt)
    assert len(text) == len(prompt)
    words = list(re.finditer(r"[\w.]+", text))
    assert [word[0] for word in words] == ["a", "red", "fox", "the", "cat", "BREAKFAST", "at", "1.5"]
    assert all(prompt.startswith(word[0], word.start()) for word in words)
