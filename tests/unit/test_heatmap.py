"""Heat maps of words, on attention that is known, on tiny models of several shapes, and on the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stable_diffusion import attention
from stable_diffusion.guidance import Answer, Predictions, Query
from stable_diffusion.inspect.heat_maps import (
    Word,
    attention_layers,
    crossed_out,
    head_heat,
    prompt_words,
    token_heat,
    word_heat,
)
from stable_diffusion.inspect.look_inside import Observer, absent_heat, add_noise, look_inside
from stable_diffusion.inspect.recording import record
from stable_diffusion.inspection import conduct
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.preview import Renderer
from stable_diffusion.request import Request, RequestError, without_loras


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def planted(height: int, width: int, tokens: int, heads: int) -> Tensor:
    """Return attention (1, heads, pixels, tokens): 1 at token 1 in the left half, at token 2 in the right half."""
    weights = torch.zeros(1, heads, height, width, tokens)
    weights[:, :, :, : width // 2, 1] = 1
    weights[:, :, :, width // 2 :, 2] = 1
    return weights.flatten(2, 3)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16)])
def test_planted_attention_comes_back_at_its_place(height: int, width: int):
    maps = [planted(height // scale, width // scale, 5, heads=scale + 1) for scale in (1, 2, 4)]
    heat = token_heat(maps, height, width)
    assert heat.shape == (1, 5, height, width)
    left, right = heat[..., : width // 2], heat[..., width // 2 :]
    assert left[:, 1].sum() > 20 * right[:, 1].sum()
    assert right[:, 2].sum() > 20 * left[:, 2].sum()
    assert not heat[:, [0, 3, 4]].any()


def test_heads_and_layers_count_alike_and_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, heads, 8 * 6, 7, generator=generator).softmax(dim=-1) for heads in (2, 5)]
    heat = token_heat(maps, 8, 6)
    by_hand = (maps[0].mean(dim=1) + maps[1].mean(dim=1)).mT.reshape(2, 7, 8, 6) / 2
    torch.testing.assert_close(heat, by_hand)
    torch.testing.assert_close(heat.sum(dim=1), torch.ones(2, 8, 6))


def test_odd_sizes_are_told_from_their_halves_rounded_up():
    heat = token_heat([planted(5, 7, 3, 1), planted(3, 4, 3, 1), planted(2, 2, 3, 1), planted(1, 1, 3, 1)], 5, 7)
    assert heat.shape == (1, 3, 5, 7)
    with pytest.raises(ValueError, match="height and width must be those of the latents, got 4 and 4 for 15 pixels"):
        token_heat([planted(5, 3, 3, 1)], 4, 4)
    with pytest.raises(ValueError, match="maps must hold the attention of at least one layer, got none"):
        token_heat([], 8, 8)


def test_words_know_the_places_of_their_pieces(tiny: Pipeline):
    words = prompt_words(tiny.models.tokenizer, "A red  foxy, cat")
    assert [word.text for word in words] == ["A", "red", "foxy", ",", "cat"]
    ids = tiny.models.tokenizer("A red  foxy, cat").input_ids
    pieces = [tiny.models.tokenizer.decode([ids[at] for at in word.positions]).strip() for word in words]
    assert pieces == ["a", "red", "foxy", ",", "cat"]
    assert [len(word.positions) for word in words[:2]] == [1, 1]
    assert len(words[2].positions) > 1
    assert [word.start for word in words] == [0, 2, 7, 11, 13]


def test_words_beyond_the_limit_are_left_out(tiny: Pipeline):
    limit = tiny.models.tokenizer.model_max_length
    words = prompt_words(tiny.models.tokenizer, "cat " * 100)
    assert len(words) == limit - 2
    assert words[-1].positions == (limit - 2,)
    assert prompt_words(tiny.models.tokenizer, "") == []
    assert word_heat(torch.ones(2, 7, 4, 5), []).shape == (2, 0, 4, 5)


def test_the_heat_of_a_word_is_the_mean_of_its_pieces():
    heat = torch.arange(4.0)[None, :, None, None].expand(1, 4, 2, 2)
    merged = word_heat(heat, [Word("foxy", 0, (1, 2)), Word("cat", 5, (3,))])
    assert merged[0, :, 0, 0].tolist() == [1.5, 3.0]


def test_a_word_crossed_out_is_the_prompt_without_it(tiny: Pipeline):
    request = Request("<lora:ink:0.8> a red-blue fox, the moon", then="the sun")
    words = prompt_words(tiny.models.tokenizer, without_loras(request.prompt))
    texts = [without_loras(crossed_out(request, word).prompt).strip() for word in words]
    assert texts[1] == "a -blue fox, the moon"
    assert texts[2] == "a red blue fox, the moon"
    assert texts[-1] == "a red-blue fox, the"
    assert crossed_out(request, words[0]).loras == request.loras
    assert crossed_out(request, words[0]).then == "the sun"


def test_layers_are_named_in_the_order_of_their_maps_with_heads_and_size(tiny: Pipeline):
    unet, maps = tiny.models.unet, []
    request = Request("a red fox", guidance_scale=1.0)
    query = Query(torch.randn(1, 4, 5, 7), tiny.schedule.level(500), tiny.condition(request).context, None, 1.0)
    tiny.condition(request).denoise.predict([query], maps)
    layers = attention_layers(unet, 5, 7)
    assert [(layer.heads, layer.height * layer.width) for layer in layers] == [one.shape[1:3] for one in maps]
    assert [layer.name for layer in layers] == [
        *("down_blocks.0.attentions.0", "down_blocks.0.attentions.1", "mid_block.attentions.0"),
        *(f"up_blocks.1.attentions.{i}" for i in range(3)),
    ]
    assert (layers[2].height, layers[2].width) == (3, 4)


def test_each_head_has_a_heat_of_its_own():
    """Of two layers only the second head of the second looks for a word, in the left half."""
    nowhere = torch.zeros(1, 3, 16 * 24, 5)
    one = planted(8, 12, 5, heads=2)
    one[:, 0] = 0
    words = [Word("foxy", 0, (1, 3)), Word("cat", 5, (2,))]
    heat = head_heat([nowhere, one], 16, 24, words)
    assert heat.shape == (1, 5, 2, 16, 24)
    assert head_heat([nowhere, one], 16, 24, []).shape == (1, 5, 0, 16, 24)
    assert not heat[:, :4].any()
    foxy, cat = heat[0, 4]
    assert foxy[:, :11].mean() == pytest.approx(0.5, abs=0.02)
    assert cat[:, 13:].mean() == pytest.approx(1, abs=0.02)
    assert foxy[:, 14:].max() < 0.02
    by_layer = torch.stack([heat[:, :3].mean(dim=1), heat[:, 3:].mean(dim=1)]).mean(dim=0)
    torch.testing.assert_close(by_layer, word_heat(token_heat([nowhere, one], 16, 24), words))


def test_an_observer_reads_the_heat_of_each_head(tiny: Pipeline):
    words = prompt_words(tiny.models.tokenizer, "a red fox")
    options = {"num_inference_steps": 1, "seed": 3, "preview": "none", "guidance_scale": 4.0}
    run = tiny.begin("a red fox", **options)
    observer = Observer(run.denoise, partial(head_heat, words=words))
    next(run.steps(observer))
    heat, heads = observer.take(), [layer.heads for layer in attention_layers(tiny.models.unet, 8, 8)]
    assert heat.shape == (1, sum(heads), 3, 8, 8)
    mean = torch.stack([layer.mean(dim=1) for layer in heat.split(heads, dim=1)]).mean(dim=0)
    expected = next(look_inside(tiny, "a red fox", **options)).heat
    # Each head is clamped at zero alone here.
    torch.testing.assert_close(mean, word_heat(expected, words), rtol=0, atol=1e-3)


@dataclass
class PlantedDenoiser:
    """A denoiser whose attention to the tokens at `positions` is in the left half, and to all others in the right."""

    positions: tuple[int, ...]

    def predict(self, queries: Sequence[Query], maps: list[Tensor]) -> list[Predictions]:
        weights = planted(8, 8, 3, heads=2)
        left = torch.tensor([1 if place in self.positions else 2 for place in range(77)])
        maps.append(weights[..., left])
        return [(None, queries[0].x)]

    def answer(self, query: Query, unconditional: Tensor | None, conditional: Tensor) -> Answer:
        return Answer(conditional, conditional, None)


def test_a_word_that_the_prompt_lacks_is_found_behind_it(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch):
    request = Request("a red fox", seed=3, num_inference_steps=2, sampler="ddim", preview="none", height=64, width=64)
    recording, condition = conduct(record(tiny, request)), tiny.condition
    places = prompt_words(tiny.models.tokenizer, "a red fox foxy")[-1].positions
    assert len(places) > 1
    monkeypatch.setattr(tiny, "condition", lambda one: replace(condition(one), denoise=PlantedDenoiser(places)))
    [heat] = conduct(absent_heat(tiny, recording, 2, "foxy"))
    assert heat[:, :4].mean() == pytest.approx(1, abs=0.05)
    assert heat[:, 5:].max() < 0.05
    for word in (" ", "<lora:ink:0.8>"):
        with pytest.raises(RequestError, match=f"word must have a token that fits behind the prompt, got '{word}'"):
            conduct(absent_heat(tiny, recording, 2, word))


@pytest.mark.parametrize(("step", "text"), [(1, "a red fox"), (2, "a blue cat")])
def test_the_word_stands_behind_the_prompt_that_holds_at_the_step(tiny: Pipeline, step: int, text: str):
    request = Request("a red fox", then="a blue cat", then_at=2, seed=3, num_inference_steps=2, preview="none")
    recording, longer = conduct(record(tiny, request)), f"{text} moon"
    given = tiny.condition(Request(longer, guidance_scale=1.0))
    observer = Observer(given.denoise)
    observer([Query(recording.latents[step - 1], recording.levels[step - 1], given.context, None, 1.0)])
    moon = prompt_words(tiny.models.tokenizer, longer)[-1:]
    expected = word_heat(observer.take(), moon)[:, 0]
    torch.testing.assert_close(conduct(absent_heat(tiny, recording, step, "moon")), expected)


@pytest.mark.parametrize(("height", "width", "guidance_scale"), [(8, 12, 1.0), (5, 7, 4.0)])
def test_looking_inside_changes_no_pixel(tiny: Pipeline, height: int, width: int, guidance_scale: float):
    options = {"num_inference_steps": 2, "guidance_scale": guidance_scale, "seed": 3, "num_images": 2}
    options |= {"height": 8 * height, "width": 8 * width, "sampler": "ddim"}
    result = tiny("a red fox", **options)
    steps = list(look_inside(tiny, "a red fox", preview="none", **options))
    assert torch.equal(steps[-1].step.result.latents, result.latents)
    for inside in steps:
        assert inside.heat.shape == (2, tiny.models.tokenizer.model_max_length, height, width)
        if guidance_scale == 1.0:
            assert inside.unconditional is None
            assert torch.equal(inside.conditional, inside.step.denoised)
        else:
            guided = inside.unconditional + guidance_scale * (inside.conditional - inside.unconditional)
            torch.testing.assert_close(guided, inside.step.denoised, rtol=1e-3, atol=1e-3)


def test_the_heat_is_that_of_the_prompt_not_of_the_negative_prompt(tiny: Pipeline):
    options = {"num_inference_steps": 1, "seed": 3, "preview": "none"}
    guided, other, alone = (
        next(look_inside(tiny, "a red fox", negative_prompt=negative, guidance_scale=scale, **options))
        for negative, scale in (("", 4.0), ("the blue moon", 4.0), ("", 1.0))
    )
    torch.testing.assert_close(guided.heat, alone.heat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.heat, other.heat, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided.unconditional, other.unconditional)


def test_an_ordinary_run_computes_no_map(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("a map was computed")

    monkeypatch.setattr(attention, "attention_map", forbidden)
    tiny("a red fox", num_inference_steps=1, seed=0)
    with pytest.raises(AssertionError, match="a map was computed"):
        next(look_inside(tiny, "a red fox", num_inference_steps=1, seed=0))


def test_a_noised_photo_keeps_its_share_of_signal(tiny: Pipeline):
    photo = Image.new("RGB", (72, 56), "teal")
    schedule, last = tiny.schedule, tiny.schedule.num_train_timesteps - 1
    early, late = add_noise(tiny, photo, 0), add_noise(tiny, photo, last, prompt="a cat")
    assert early.x_t.shape == early.x_0.shape == early.predicted.shape == (1, 4, 7, 9)
    assert early.pixels.shape == (1, 3, 56, 72)
    torch.testing.assert_close(early.x_0, late.x_0)
    noise = (late.x_t - late.level.alpha * late.x_0) / late.level.sigma
    expected = schedule.alphas_cumprod[0].sqrt() * early.x_0 + (1 - schedule.alphas_cumprod[0]).sqrt() * noise
    torch.testing.assert_close(early.x_t, expected.float(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"t must be in \\[0, {last}\\], got {last + 1}"):
        add_noise(tiny, photo, last + 1)


@pytest.mark.weights
def test_the_bundled_model_looks_for_cat_and_pizza_on_different_halves(bundled_model: Path):
    # Where the words leave it open, it learned to draw the first thing on the left.
    pipeline, prompt = Pipeline.from_pretrained(bundled_model), "a cat next to a pizza"
    words = prompt_words(pipeline.models.tokenizer, prompt)
    cat, pizza = ([word.text for word in words].index(text) for text in ("cat", "pizza"))
    steps = list(
        look_inside(pipeline, prompt, num_inference_steps=20, guidance_scale=4.0, seed=1, num_images=4, preview="none")
    )
    heat = word_heat(torch.stack([inside.heat for inside in steps]).mean(dim=0), words)
    for maps in heat[:, [cat, pizza]]:
        # What a word has at a place beyond the other word, each as a share of its own whole.
        share = maps / maps.sum(dim=(1, 2), keepdim=True)
        more = (share[0] - share[1]).clamp(min=0), (share[1] - share[0]).clamp(min=0)
        cat_left, pizza_left = (one[:, : one.shape[1] // 2].sum() / one.sum() for one in more)
        assert cat_left > 0.8
        assert pizza_left < 0.2


@pytest.mark.weights
@pytest.mark.parametrize("prompt", ["a star", "a pizza"])
def test_the_bundled_model_knows_the_background_that_no_prompt_names(bundled_model: Path, prompt: str):
    pipeline = Pipeline.from_pretrained(bundled_model, device="cpu")
    recording = conduct(record(pipeline, Request(prompt, seed=1, num_inference_steps=10, preview="none")))
    heat = conduct(absent_heat(pipeline, recording, 5, "background"))
    [picture] = Renderer(pipeline.models)(recording.final).images
    white = np.asarray(picture.convert("RGB").resize((16, 16), Image.Resampling.BOX)).min(axis=2) > 240
    assert np.corrcoef(heat[0].flatten(), white.flatten())[0, 1] > 0.7
