"""CLIP (arXiv:2103.00020): its text tower turns a prompt into the context of the U-Net; with its image tower it
measures the similarity of pictures and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from .attention import attend
from .loading.checkpoints import build, read_weights
from .loading.clip_config import CLIPConfig, CLIPImageConfig, CLIPTextConfig, CLIPVisionConfig
from .loading.config import ModelError, require
from .loading.files import read_json
from .loading.tokenizer import encode_text, frame, load_tokenizer

# Weight files of a directory in transformers' layout, best first.
WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x): OpenAI's approximation of GELU, with which its checkpoints were trained."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CLIPAttention(nn.Module):
    """Multi-head self-attention under CLIP's key names; causal in the text tower."""

    def __init__(self, channels: int, heads: int, *, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, C) -> (B, S, C)."""
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=self.causal))


class CLIPMLP(nn.Module):
    """The two-layer network after attention."""

    def __init__(self, channels: int, hidden: int, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, C) -> (B, S, C)."""
        return self.fc2(self.activation(self.fc1(x)))


class CLIPLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, causal: bool):
        super().__init__()
        self.self_attn = CLIPAttention(config.hidden_size, config.num_attention_heads, causal=causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, C) -> (B, S, C)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPLayers(nn.Module):
    """The stack of layers, under the key name `layers`."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, causal: bool):
        super().__init__()
        self.layers = nn.ModuleList(CLIPLayer(config, causal=causal) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """x (B, S, C) -> (B, S, C), without the last `skip` layers."""
        for layer in islice(self.layers, len(self.layers) - skip):
            x = layer(x)
        return x


class CLIPTextEmbeddings(nn.Module):
    """Token embedding plus learned position."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, S) -> (B, S, hidden_size)."""
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class CLIPTextTransformer(nn.Module):
    """Embeddings, causal layers, final normalisation."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPLayers(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor, clip_skip: int = 0) -> Tensor:
        """Token ids (B, S) -> features (B, S, hidden_size), without the last `clip_skip` layers."""
        return self.final_layer_norm(self.encoder(self.embeddings(tokens), clip_skip))


class CLIPTextEncoder(nn.Module):
    """The text tower alone: the features of the tokens condition the U-Net."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)

    def forward(self, tokens: Tensor, clip_skip: int = 0) -> Tensor:
        """Token ids (B, S) -> features (B, S, hidden_size), without the last `clip_skip` layers."""
        return self.text_model(tokens, clip_skip)


class CLIPVisionEmbeddings(nn.Module):
    """A class token and patches as tokens, plus learned positions (Eq. 1, arXiv:2010.11929)."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> (B, 1 + patches, hidden_size), the class token first."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, 3, H, W) -> (B, patches, hidden_size)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class CLIPVisionTransformer(nn.Module):
    """The image tower: the features of the class token represent the picture."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # so spelt in checkpoints
        self.encoder = CLIPLayers(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> features (B, hidden_size)."""
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(pixels)))[:, 0])


class CLIPModel(nn.Module):
    """Both towers, projected into a space where a picture is near its caption."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config.text)
        self.vision_model = CLIPVisionTransformer(config.vision)
        self.visual_projection = nn.Linear(config.vision.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)
        # The log of the softmax's inverse temperature: used in training, and part of every checkpoint.
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Token ids (N, S) -> vectors (N, projection_dim) of length 1, from the features of each end token."""
        features = self.text_model(tokens)
        eos = self.config.text.eos_token_id
        # Older configurations say 2, which never was the id; the end is the largest id there, as in OpenAI's code.
        ends = tokens.argmax(dim=1) if eos == 2 else (tokens == eos).int().argmax(dim=1)
        pooled = features[torch.arange(len(tokens), device=tokens.device), ends]
        return F.normalize(self.text_projection(pooled), dim=-1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (N, 3, H, W) -> vectors (N, projection_dim) of length 1."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)


def preprocess(config: CLIPImageConfig, images: Sequence[Image.Image]) -> Tensor:
    """Resize, crop at the centre and normalise pictures; returns (N, 3, crop height, crop width).

    It equals transformers' `CLIPImageProcessor` on Pillow; a picture smaller than the crop gets a black frame.
    """
    height, width = config.crop_size
    cropped = []
    for image in images:
        image = image.convert("RGB").resize(_resized(config, image), config.resample)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        cropped.append(np.asarray(image.crop((left, top, left + width, top + height))))
    pixels = torch.from_numpy(np.stack(cropped)).permute(0, 3, 1, 2) * config.rescale_factor
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return (pixels - mean) / std


def _resized(config: CLIPImageConfig, image: Image.Image) -> tuple[int, int]:
    """Return the new width and height of a picture."""
    if config.shortest_edge is None:
        assert config.size is not None
        return config.size[1], config.size[0]
    short = min(image.size)
    # The longer side is rounded down.
    return config.shortest_edge * image.width // short, config.shortest_edge * image.height // short


@dataclass(frozen=True)
class CLIP:
    """A CLIP model with its tokenizer and preprocessing, for the similarity of pictures and texts."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    images: CLIPImageConfig

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> CLIP:
        """Load a directory in the layout of transformers' `CLIPModel` and `CLIPProcessor`, OpenAI's or OpenCLIP's.

        Raises `ModelError` naming the file at fault.
        """
        folder = Path(folder).expanduser()
        config = CLIPConfig.from_dict(read_json(folder / "config.json"))
        images = CLIPImageConfig.from_dict(read_json(folder / "preprocessor_config.json"))
        require(
            images.crop_size == (config.vision.image_size,) * 2,
            f"clip preprocessor: crop_size={images.crop_size} does not fit the image encoder's "
            f"image_size={config.vision.image_size}",
        )
        tokenizer = load_tokenizer(folder, config.text)
        weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if weights is None:
            raise ModelError(f"{folder} has no weights: expected {' or '.join(WEIGHT_FILES)}")
        # Files from older versions also hold a counter, which is not a weight.
        state = {name: t for name, t in read_weights(weights).items() if not name.endswith("position_ids")}
        return cls(build(CLIPModel, config, state, weights, device=device, dtype=dtype), tokenizer, images)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return vectors (N, projection_dim) of length 1 for pictures."""
        return self.model.embed_images(preprocess(self.images, images).to(self.model.visual_projection.weight))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return vectors (N, projection_dim) of length 1 for texts, which are truncated at the model's limit."""
        encoded = [encode_text(self.tokenizer, text).ids for text in texts]
        length = min(self.tokenizer.model_max_length, 2 + max(len(ids) for ids in encoded))
        tokens = torch.tensor([frame(self.tokenizer, ids, length) for ids in encoded])
        return self.model.embed_texts(tokens.to(self.model.text_projection.weight.device))

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return the cosine similarity of every picture and every text, (number of pictures, number of texts)."""
        return self.embed_images(images) @ self.embed_texts(texts).T
