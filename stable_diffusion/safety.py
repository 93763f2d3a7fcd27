"""The safety checker of Stable Diffusion's directories: CLIP's image tower, and vectors of unwanted concepts.

Pictures near such a concept are blurred. Concepts and thresholds come with the model, as numbers without names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import CLIPVisionTransformer, preprocess
from .loading.checkpoints import build, find_weights, read_weights
from .loading.clip_config import CLIPImageConfig, SafetyConfig
from .loading.files import read_json
from .loading.model_config import SAFETY_FILES

CONCEPTS, SPECIAL = 17, 3
STRICTER = 0.01
"""Increment of a picture's similarities once it is near a special concept."""
BLUR = 1 / 12
"""The radius as a share of a picture's longer side, which leaves only colours."""


class SafetyNetwork(nn.Module):
    """diffusers' `StableDiffusionSafetyChecker`: it finds pictures that are too near to one of its concepts."""

    def __init__(self, config: SafetyConfig):
        super().__init__()
        self.vision_model = CLIPVisionTransformer(config.vision)
        self.visual_projection = nn.Linear(config.vision.hidden_size, config.projection_dim, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(CONCEPTS, config.projection_dim))
        self.concept_embeds_weights = nn.Parameter(torch.ones(CONCEPTS))
        self.special_care_embeds = nn.Parameter(torch.ones(SPECIAL, config.projection_dim))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(SPECIAL))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return whether each preprocessed picture of (N, 3, H, W) is too near to a concept, bool (N,).

        Similarities are rounded to thousandths, as in diffusers.
        """
        embeds = F.normalize(self.visual_projection(self.vision_model(pixels)).float())

        def excess(concepts: Tensor, thresholds: Tensor) -> Tensor:
            return embeds @ F.normalize(concepts.float()).T - thresholds.float()

        special = excess(self.special_care_embeds, self.special_care_embeds_weights)
        # After one of them was near, the next ones count as nearer too.
        near = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
        for column in special.T:
            near |= (column + STRICTER * near).round(decimals=3) > 0
        concepts = excess(self.concept_embeds, self.concept_embeds_weights) + STRICTER * near[:, None]
        return (concepts.round(decimals=3) > 0).any(dim=1)


@dataclass(frozen=True)
class SafetyChecker:
    """The network with its image preprocessing."""

    network: SafetyNetwork
    images: CLIPImageConfig

    @classmethod
    def of(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> SafetyChecker:
        """Load the checker of a model directory; raises `ModelError` naming the file at fault."""
        config = SafetyConfig.from_dict(read_json(folder / SAFETY_FILES[0]))
        images = CLIPImageConfig.from_dict(read_json(folder / SAFETY_FILES[1]))
        weights = find_weights(folder, "safety_checker", prefer_half=dtype != torch.float32)
        # Before transformers 5 the tower's name is doubled; files from older versions also hold a counter.
        state = {
            name.replace("vision_model.vision_model.", "vision_model."): tensor
            for name, tensor in read_weights(weights).items()
            if not name.endswith("position_ids")
        }
        return cls(build(SafetyNetwork, config, state, weights, device=device, dtype=dtype), images)

    @torch.no_grad()
    def find(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Return whether each picture is too near to one of the unwanted concepts."""
        pixels = preprocess(self.images, pictures)
        return self.network(pixels.to(self.network.visual_projection.weight)).tolist()


def blur(pictures: Sequence[Image.Image], found: Sequence[bool]) -> list[Image.Image]:
    """Return the pictures; flagged ones are blurred until only their colours remain."""
    return [
        picture.filter(ImageFilter.GaussianBlur(BLUR * max(picture.size))) if hit else picture
        for picture, hit in zip(pictures, found, strict=True)
    ]
