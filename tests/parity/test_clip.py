"""CLIP measures pictures and texts as transformers' `CLIPModel` does, from files to cosines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stable_diffusion.clip import CLIP, CLIPModel, preprocess
from stable_diffusion.loading.clip_config import CLIPConfig, CLIPImageConfig
from stable_diffusion.loading.config import ModelError
from tests.parity.pairs import BOUND, clip_models, clip_settings, difference
from tests.tiny import save_tokenizer

TEXTS = ["a red fox", "the moon", "a photo of a blue cat " * 12, ""]
SIZES = [(32, 32), (45, 33), (31, 100), (7, 5), (129, 64), (200, 201)]


def pictures(mode: str = "RGB") -> list[Image.Image]:
    random = np.random.default_rng(0)
    shapes = [(height, width, 3) for width, height in SIZES]
    return [Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).convert(mode) for shape in shapes]


def save_clip(folder: Path, hidden_act: str = "quick_gelu", eos_token_id: int | None = None) -> transformers.CLIPModel:
    """Save a tiny CLIP model as transformers writes it; return transformers' own."""
    folder.mkdir()
    theirs = clip_models(clip_settings(hidden_act, eos_token_id))[1]
    theirs.save_pretrained(folder)
    save_tokenizer(folder, "sd1")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("eos_token_id", [None, 2])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_similarity_from_files(hidden_act: str, eos_token_id: int | None, tmp_path: Path) -> None:
    theirs = save_clip(tmp_path / "clip", hidden_act, eos_token_id)
    clip = CLIP.from_pretrained(tmp_path / "clip")
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "clip")
    tokens = clip.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    logits = theirs(input_ids=tokens, pixel_values=processor(pictures(), return_tensors="pt").pixel_values)
    expected = logits.logits_per_image / theirs.logit_scale.exp()
    similarity = clip.similarity(pictures(), TEXTS)
    assert similarity.shape == (len(SIZES), len(TEXTS))
    assert difference((similarity, expected)) <= BOUND


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
        {"size": 32, "crop_size": 32},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 24}},
        {"size": {"height": 40, "width": 30}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
        {"size": {"shortest_edge": 37}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_preprocessing(options: dict[str, Any], mode: str, tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(**options)
    processor.save_pretrained(tmp_path)
    config = CLIPImageConfig.from_dict(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    expected = processor(pictures(mode), return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocess(config, pictures(mode)), expected, rtol=1e-5, atol=1e-6)


def test_first_configurations_are_read() -> None:
    """OpenAI's first uploads: plain sizes, and settings under `text_config_dict`, which win."""
    config = CLIPImageConfig.from_dict(
        {"size": 224, "crop_size": 224, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_resize": True}
    )
    assert (config.shortest_edge, config.size, config.crop_size) == (224, None, (224, 224))
    settings = clip_settings("gelu")
    settings["text_config_dict"] = {"hidden_act": "quick_gelu"}
    settings["vision_config_dict"] = None
    read = CLIPConfig.from_dict(settings)
    assert (read.text.hidden_act, read.vision.hidden_act) == ("quick_gelu", "gelu")


def test_real_names_and_shapes() -> None:
    """CLIP ViT-L/14, which Stable Diffusion 1.x took its text tower from, on the meta device."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"image_size": 224, "patch_size": 14},
    }
    settings = {"text_config": {**text, "vocab_size": 49408}, "vision_config": vision, "projection_dim": 768}
    with torch.device("meta"):
        ours = CLIPModel(CLIPConfig.from_dict(settings))
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**settings))
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(427.6e6, rel=1e-3)


def test_unusable_directories_are_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    processor = tmp_path / "clip" / "preprocessor_config.json"
    original = processor.read_text()
    for setting, message in (
        ({"do_center_crop": False}, "do_center_crop=false is not supported"),
        ({"crop_size": {"height": 16, "width": 16}}, r"crop_size=\(16, 16\) does not fit .* image_size=32"),
    ):
        processor.write_text(json.dumps({**json.loads(original), **setting}))
        with pytest.raises(ModelError, match=message):
            CLIP.from_pretrained(tmp_path / "clip")
    processor.write_text(original)
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        CLIP.from_pretrained(tmp_path / "clip")
    with pytest.raises(ModelError, match="no text_config"):
        CLIPConfig.from_dict({"hidden_size": 32})
