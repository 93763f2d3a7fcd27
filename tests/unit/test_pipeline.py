"""What holds for every request: seeds, batches, previews, closing, and sentences about bad arguments."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stable_diffusion.compute.packed import packs
from stable_diffusion.levels import SAMPLERS
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import SAMPLER_LABELS, Request, RequestError
from stable_diffusion.run import Step
from stable_diffusion.vae import NotFinite
from tests.tiny import save_model

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Networks of float64: batches of other sizes take other kernels, whose rounding in float32 steps make larger."""
    return Pipeline.from_pretrained(save_model(tmp_path_factory.mktemp("exact")), dtype=torch.float64)


def steps_of(pipe: Pipeline, prompt: str = "a red fox", **options: object) -> list[Step]:
    return list(pipe.stream(prompt, **{"num_inference_steps": 4, "seed": 3, "sampler": "ddpm", **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stream_counts_every_evaluation_and_ends_with_the_result(pipe: Pipeline, sampler: str) -> None:
    steps = steps_of(pipe, sampler=sampler)
    total = 7 if sampler == "heun" else 4
    assert [step.index for step in steps] == list(range(1, total + 1))
    assert {step.total for step in steps} == {total}
    assert all(step.result is None for step in steps[:-1])
    result = steps[-1].result
    assert result is not None
    assert result.images == steps[-1].images
    assert all(step.latents.shape == step.denoised.shape == (1, 4, 8, 8) for step in steps)
    levels = [step.sigma / step.alpha for step in steps]
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_other_words_from_a_step_on_are_two_runs_by_hand(pipe: Pipeline, sampler: str) -> None:
    settings = {"num_inference_steps": 5, "seed": 3, "sampler": sampler}
    both = pipe("a pizza", then="a red heart", then_at=3, **settings).latents
    first, then = pipe.begin("a pizza", **settings), pipe.begin("a red heart", **settings)
    for _ in range(2):  # the second run follows the first one's guesses
        [answer] = first.denoise([first.query])
        first.answer(answer)
        then.answer(answer)
    *_, last = then.steps()
    torch.testing.assert_close(both, last.result.latents, rtol=0, atol=0)
    assert not torch.equal(both, pipe("a pizza", **settings).latents)
    assert torch.equal(
        pipe("a pizza", then="a red heart", then_at=1, **settings).latents, pipe("a red heart", **settings).latents
    )
    with pytest.raises(RequestError, match="then_at must be at most 5"):
        pipe("a pizza", then="a red heart", then_at=6, **settings)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde"])
def test_previews_change_nothing(pipe: Pipeline, sampler: str) -> None:
    latents = [
        pipe("a fox", num_inference_steps=4, seed=3, sampler=sampler, preview=preview).latents
        for preview in ("none", "vae", "linear", "auto")
    ]
    assert all(torch.equal(latents[0], other) for other in latents[1:])


def test_previews_come_when_due(pipe: Pipeline) -> None:
    assert [step.images is None for step in steps_of(pipe, preview="none")] == [True, True, True, False]
    every_second = steps_of(pipe, preview="linear", preview_every=2)
    assert [step.images is None for step in every_second] == [True, False, True, False]


@pytest.mark.parametrize("image", [None, PHOTO])
def test_a_picture_does_not_depend_on_its_batch(exact: Pipeline, image: Image.Image | None) -> None:
    together = exact("a fox", num_inference_steps=3, seed=10, num_images=3, image=image).latents
    for i in range(3):
        alone = exact("a fox", num_inference_steps=3, seed=10 + i, image=image).latents
        assert torch.allclose(together[i], alone[0], rtol=0, atol=1e-9)


def test_two_streams_at_once_do_not_disturb_each_other(pipe: Pipeline) -> None:
    alone = [steps_of(pipe, sampler="ddpm", seed=seed)[-1].result for seed in (1, 2)]
    streams = [
        pipe.stream("a red fox", num_inference_steps=4, sampler="ddpm", seed=seed, preview="vae") for seed in (1, 2)
    ]
    last = [None, None]
    for _ in range(4):
        last = [next(stream) for stream in streams]
    for step, expected in zip(last, alone, strict=True):
        assert torch.equal(step.result.latents, expected.latents)


def test_a_closed_stream_leaves_no_trace(pipe: Pipeline) -> None:
    expected = pipe("a fox", num_inference_steps=3, seed=1).latents
    stream = pipe.stream("a fox", num_inference_steps=3, seed=1, preview="vae")
    latents = weakref.ref(next(stream).latents)
    stream.close()
    del stream
    gc.collect()
    assert latents() is None
    assert torch.is_grad_enabled()
    assert torch.equal(pipe("a fox", num_inference_steps=3, seed=1).latents, expected)


def test_yielded_tensors_stay_as_they_were(pipe: Pipeline) -> None:
    kept = [(step, step.latents.clone(), step.denoised.clone()) for step in pipe.stream("a fox", num_inference_steps=4)]
    for step, latents, denoised in kept:
        assert torch.equal(step.latents, latents)
        assert torch.equal(step.denoised, denoised)


def test_a_random_seed_is_told_and_repeats_the_picture(pipe: Pipeline) -> None:
    first = pipe("a fox", num_inference_steps=2)
    assert 0 <= first.seed < 2**32
    assert torch.equal(pipe("a fox", num_inference_steps=2, seed=first.seed).latents, first.latents)


def test_seed_zero_is_a_seed(pipe: Pipeline) -> None:
    assert pipe("a fox", num_inference_steps=1, seed=0).seed == 0


def test_the_prompt_guides(pipe: Pipeline) -> None:
    def latents(prompt: str, **options: object) -> torch.Tensor:
        return pipe(prompt, num_inference_steps=2, seed=1, **options).latents

    assert not torch.equal(latents("a fox"), latents("the moon"))
    assert not torch.equal(latents("a fox"), latents("a fox", negative_prompt="blue"))
    # At a scale of 1 the guided prediction is the conditional one: the negative prompt cannot matter.
    plain = latents("a fox", guidance_scale=1.0)
    assert torch.equal(plain, latents("a fox", guidance_scale=1.0, negative_prompt="blue"))


def test_strength_runs_the_last_steps(pipe: Pipeline) -> None:
    whole = pipe.plan(Request(num_inference_steps=10))
    part = pipe.plan(Request(image=PHOTO, num_inference_steps=10, strength=0.35))
    assert part.steps == whole.steps[-3:]
    assert len(steps_of(pipe, image=PHOTO, strength=0.05)) == 1


def test_size_is_the_models_the_photos_or_as_asked(pipe: Pipeline) -> None:
    assert pipe("a fox", num_inference_steps=1).images[0].size == (64, 64)
    assert pipe("a fox", num_inference_steps=1, width=40).images[0].size == (40, 64)
    assert pipe("a fox", num_inference_steps=1, image=PHOTO.crop((0, 0, 95, 70))).images[0].size == (88, 64)
    assert pipe("a fox", num_inference_steps=1, image=PHOTO).images[0].size == (64, 64)
    assert pipe("a fox", num_inference_steps=1, image=PHOTO, width=32, height=32).images[0].size == (32, 32)


def test_a_long_prompt_is_cut_and_the_lost_words_are_named(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="prompt is longer than 75 tokens, dropped: '.*moon'"):
        pipe("fox " * 80 + "moon", num_inference_steps=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strength": 0.0, "image": PHOTO}, r"strength must be in \(0, 1\], got 0.0"),
        ({"strength": 1.5, "image": PHOTO}, r"strength must be in \(0, 1\], got 1.5"),
        ({"num_inference_steps": 0}, "num_inference_steps must be between 1 and 1,000, got 0: choose a number in that"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps must be a whole number, got 2.5: try 2"),
        (
            {"num_inference_steps": 60, "sampler": "lcm"},
            r"num_inference_steps must be between 1 and 50 for lcm, got 60",
        ),
        ({"num_inference_steps": True}, "num_inference_steps must be between 1 and 1,000, got True"),
        ({"width": 100}, "width must be a multiple of 8 with this model, got 100: try 96"),
        ({"height": 0}, "height must be between 1 and 4,096, got 0"),
        ({"seed": -2}, "seed must be between 0 and .*, got -2: .*leave it empty for a random one"),
        ({"seed": 10**5000}, "seed must be between 0 and .*, got a value that is too long to show"),
        ({"num_images": 0}, "num_images must be between 1 and 1,000, got 0"),
        ({"image": 3}, "image must be a picture or the path of one, got 3"),
        ({"image": PHOTO, "mask": 3}, "mask must be a picture or the path of one, got 3"),
        ({"image": PHOTO, "mask": PHOTO, "mask_blur": 65}, "mask_blur must be between 0 and 64, got 65"),
        ({"mask": "mask.png"}, "mask must come with an image, got 'mask.png' alone"),
        ({"image": PHOTO, "mask": "nowhere.png"}, "mask 'nowhere.png' is not a readable file"),
        ({"prompt_syntax": ["plain"]}, r"prompt_syntax must be one of read, plain, weighted, got \['plain'\]"),
        ({"sampler": "magic"}, "sampler must be one of ddpm, .*, got 'magic'"),
        ({"preview": "hd"}, "preview must be one of auto, .*, got 'hd'"),
        ({"preview_every": 0}, "preview_every must be between 1 and 1,000, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be between 0 and 100, got nan"),
    ],
)
def test_bad_arguments_are_named_with_value_and_remedy(pipe: Pipeline, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        steps_of(pipe, **options)


def test_image_can_be_a_path(pipe: Pipeline, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "photo.png")
    by_path = pipe("a fox", num_inference_steps=2, seed=1, image=tmp_path / "photo.png").latents
    assert torch.equal(by_path, pipe("a fox", num_inference_steps=2, seed=1, image=PHOTO).latents)


def test_every_label_has_its_sampler() -> None:
    assert list(SAMPLERS) == list(SAMPLER_LABELS)


def test_runs_answered_in_one_batch_draw_what_they_draw_alone(exact: Pipeline) -> None:
    requests = [
        Request("a red fox", num_inference_steps=3, seed=1, guidance_scale=4.0, sampler="euler"),
        Request("the moon", negative_prompt="blue", num_inference_steps=4, seed=2, num_images=2, sampler="ddpm"),
        Request("a fox", num_inference_steps=2, seed=3, guidance_scale=1.0, sampler="heun"),
    ]
    runs = [exact.begin(request) for request in requests]
    finals: dict[int, torch.Tensor] = {}
    while waiting := [i for i, run in enumerate(runs) if run.query is not None]:
        answers = runs[0].denoise([runs[i].query for i in waiting])
        for i, x_0 in zip(waiting, answers, strict=True):
            step = runs[i].answer(x_0)
            if step.final is not None:
                finals[i] = step.final
    for i, request in enumerate(requests):
        assert torch.allclose(finals[i], exact(request).latents, rtol=0, atol=1e-9)


def test_eight_threads_draw_what_each_draws_alone(exact: Pipeline) -> None:
    """Nothing that threads share may change under them: tokenizer, networks, schedule, previews."""
    requests = [
        Request("a fox " * (1 + 9 * i), seed=i, num_inference_steps=3, sampler=sampler, preview="auto")
        for i, sampler in enumerate(list(SAMPLERS)[:8])
    ]
    alone = [exact(request).latents for request in requests]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for result, expected in zip(pool.map(exact, requests), alone, strict=True):
                assert torch.allclose(result.latents, expected, rtol=0, atol=1e-9)


def test_a_run_that_leaves_half_precision_says_so(tmp_path: Path) -> None:
    half = Pipeline.from_pretrained(save_model(tmp_path), dtype=torch.float16)
    half.models.unet.conv_out.bias.data.fill_(-6e4)
    half.models.unet.conv_norm_out.weight.data.fill_(6e4)
    with pytest.raises(
        NotFinite, match="overflowed in float16, and the picture would be black: load the model with dtype"
    ):
        steps_of(half)


@pytest.mark.skipif(not packs(torch.device("cpu"), torch.bfloat16), reason="no bfloat16 here")
def test_the_error_names_the_type_that_computes_and_a_remedy_for_it(tmp_path: Path) -> None:
    """A packed U-Net computes in bfloat16 and keeps its weights in the type of the file."""
    pipe = Pipeline.from_pretrained(save_model(tmp_path), dtype=torch.bfloat16)
    pipe.models.unet.conv_out.bias.data.fill_(3e38)
    assert pipe.models.unet.conv_out.bias.dtype == torch.float32
    with pytest.raises(NotFinite, match="overflowed in bfloat16, and the picture would be black: lower guidance_scale"):
        steps_of(pipe)


@pytest.mark.parametrize("preview", ["none", "linear", "vae"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vae_that_leaves_float32_says_so(tmp_path: Path, dtype: torch.dtype, preview: str) -> None:
    pipe = Pipeline.from_pretrained(save_model(tmp_path), dtype=dtype)
    pipe.models.vae.decoder.conv_norm_out.weight.data.fill_(3e38)
    with pytest.raises(NotFinite, match="the VAE's output overflowed in float32, and the picture would be black"):
        steps_of(pipe, preview=preview)


def test_a_closed_run_has_no_question(pipe: Pipeline) -> None:
    run = pipe.begin("a fox", num_inference_steps=3, seed=1)
    run.close()
    assert run.query is None
    assert list(run.steps()) == []
