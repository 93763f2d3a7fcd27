"""The safety checker agrees with diffusers' on random pictures and concepts, and its finds are blurred."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stable_diffusion.loading.config import ModelError
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from tests.parity.pairs import clip_settings
from tests.tiny import save_model

SIDE = 32  # what its image tower sees


def pictures(count: int) -> list[Image.Image]:
    """Return pictures, half of them noise and half plain, so that their features differ."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)
    noise[::2] = random.integers(0, 256, (count // 2, 1, 1, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def save_checker(folder: Path) -> tuple[StableDiffusionSafetyChecker, CLIPImageProcessorPil]:
    """Save a checker of random weights, whose thresholds lie among `pictures`; return diffusers' own."""
    torch.manual_seed(0)
    theirs = StableDiffusionSafetyChecker(transformers.CLIPConfig(**clip_settings("quick_gelu"))).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(theirs, name).data.normal_()
    with torch.no_grad():
        pixels = processor(pictures(40), return_tensors="pt").pixel_values
        found = torch.nn.functional.normalize(theirs.visual_projection(theirs.vision_model(pixels)[1]))
        for name, share in (("concept_embeds", 0.97), ("special_care_embeds", 0.8)):
            near = found @ torch.nn.functional.normalize(getattr(theirs, name)).T
            getattr(theirs, f"{name}_weights").data.copy_(near.quantile(share, dim=0))
    theirs.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    return theirs, processor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.mark.parametrize("published", [False, True])
def test_finds_what_diffusers_finds(folder: Path, published: bool) -> None:
    """In the layout that transformers writes now, and in that of the weights that were published."""
    theirs, processor = save_checker(folder)
    if published:
        weights = folder / "safety_checker" / "model.safetensors"
        renamed = {
            name.replace("vision_model.", "vision_model.vision_model."): tensor
            for name, tensor in load_file(weights).items()
        }
        positions = {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}
        torch.save(renamed | positions, weights.with_name("pytorch_model.bin"))
        weights.unlink()
    checker = load(folder, device="cpu", safety_checker=True).safety_checker
    assert checker is not None
    shown = pictures(40)
    pixels = processor(shown, return_tensors="pt").pixel_values
    _, expected = theirs(clip_input=pixels, images=[np.asarray(one) for one in shown])
    assert 5 < sum(expected) < 35
    assert checker.find(shown) == expected


@pytest.mark.parametrize("threshold", [-1.0, 1.0])
def test_what_is_found_is_blurred(folder: Path, threshold: float) -> None:
    """All pictures or none; previews and the noise beside them are blurred too."""
    theirs, _ = save_checker(folder)
    theirs.concept_embeds_weights.data.fill_(threshold)
    theirs.save_pretrained(folder / "safety_checker")
    plain = Pipeline.from_pretrained(folder, device="cpu")
    looked = Pipeline.from_pretrained(folder, device="cpu", safety_checker=True)
    settings = {"seed": 1, "num_inference_steps": 2, "num_images": 2, "preview": "vae", "guidance_scale": 1}
    for bare, step in zip(plain.stream("", **settings), looked.stream("", **settings), strict=True):
        assert bare.images is not None
        assert step.images is not None
        assert step.found == (threshold < 0,) * 2
        for before, after in zip([*bare.images, *bare.noisy()], [*step.images, *step.noisy()], strict=True):
            change = np.abs(np.asarray(before, np.int16) - np.asarray(after, np.int16))
            # The networks' own weights lie elsewhere in memory, which may change a rounding.
            assert change.max() <= 1 if threshold > 0 else change.max() > 32
            # Of a blurred picture, no pixel differs much from its neighbour.
            assert threshold > 0 or np.abs(np.diff(np.asarray(after, np.int16), axis=0)).max() < 32
    assert step.result is not None
    assert step.result.found == step.found


def test_it_is_left_out_unless_asked_for_and_named_where_damaged(folder: Path) -> None:
    assert load(folder, device="cpu", safety_checker=True).safety_checker is None  # this model has none
    save_checker(folder)
    assert load(folder, device="cpu").safety_checker is None
    config = folder / "safety_checker" / "config.json"
    settings = json.loads(config.read_text())
    del settings["vision_config"]
    config.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"safety_checker: config\.json has no vision_config"):
        load(folder, device="cpu", safety_checker=True)
