"""The configuration of a whole model: the files of its directory, and the diffusers pipelines that can be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..request import MAX_SIDE, SIZE_UNIT, shown
from .clip_config import CLIPTextConfig
from .config import (
    CORRECT_IT,
    ConfigError,
    Json,
    SchedulerConfig,
    TinyVAEConfig,
    UNetConfig,
    VAEConfig,
    require,
)
from .files import read_json

# The JSON files of a model directory by part.
SETTINGS_FILES = {
    "model_index": "model_index.json",
    "text_encoder": "text_encoder/config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}

# Files in the folder `tokenizer`. The first two, or the third, hold the vocabulary.
TOKENIZER_FILES = (
    *("vocab.json", "merges.txt", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)

# Optional: a small autoencoder of the same latents, for previews.
TINY_VAE_FILES = ("vae_tiny/config.json", "vae_tiny/diffusion_pytorch_model.safetensors")

# Optional: a LoRA of the U-Net for fast requests. The name is that which diffusers' `load_lora_weights` looks for.
TURBO_FILE = "turbo/pytorch_lora_weights.safetensors"

# Optional: the safety checker's network and image preprocessing.
SAFETY_FILES = ("safety_checker/config.json", "feature_extractor/preprocessor_config.json")

Settings = dict[str, Json]
"""The content of `SETTINGS_FILES` by part."""

PIPELINES = ("StableDiffusion", "StableDiffusionImg2Img", "LatentConsistencyModel", "LatentConsistencyModelImg2Img")

# Reasons for refusing related models, by a piece of their pipeline's name; the first match is given.
RELATIVES = {
    "StableDiffusionXL": "Stable Diffusion XL has two text encoders",
    "StableDiffusion3": "Stable Diffusion 3 is a transformer with three text encoders",
    "Flux": "Flux is a transformer with other text encoders",
    "Inpaint": "an inpainting model also takes a mask and a masked picture",
    "Depth2Img": "a depth model also takes a depth map",
    "Pix2Pix": "an editing model also takes the latents of a picture",
    "Upscale": "an upscaler also takes a small picture",
    "ControlNet": "ControlNet adds a network of its own",
}

# Reasons for refusing U-Nets with more inputs than the latents, by their number of input channels.
RELATIVES_BY_CHANNELS = {
    5: RELATIVES["Depth2Img"],
    7: RELATIVES["Upscale"],
    8: RELATIVES["Pix2Pix"],
    9: RELATIVES["Inpaint"],
}

PART_CLASSES = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}

ONLY_THESE = "only Stable Diffusion 1.x and 2.x and models built like them can be loaded"


CLIPPING_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
"""diffusers' classes whose default is clip_sample=True."""


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a whole model directory; its constructor checks that the parts fit each other."""

    text_encoder: CLIPTextConfig
    unet: UNetConfig
    vae: VAEConfig | TinyVAEConfig
    scheduler: SchedulerConfig

    def __post_init__(self) -> None:
        require(
            self.unet.cross_attention_dim == self.text_encoder.hidden_size,
            f"unet: cross_attention_dim={self.unet.cross_attention_dim} does not fit the text encoder's "
            f"hidden_size={self.text_encoder.hidden_size}",
        )
        require(
            self.unet.in_channels == self.vae.latent_channels,
            f"unet: in_channels={self.unet.in_channels} does not fit the vae's "
            f"latent_channels={self.vae.latent_channels}",
        )
        side = self.unet.sample_size * self.vae.downscale
        require(
            SIZE_UNIT <= side <= MAX_SIDE and side % SIZE_UNIT == 0,
            f"unet: sample_size={self.unet.sample_size} makes pictures of {side} pixels a side, and it must be a "
            f"multiple of {SIZE_UNIT} from {SIZE_UNIT} to {MAX_SIDE}: {CORRECT_IT}",
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> ModelConfig:
        """Build the configuration from a directory's JSON files; raises `ConfigError` for an unsupported model."""
        pipeline = _check_pipeline(settings["model_index"])
        channels = settings["unet"].get("in_channels")
        relative = RELATIVES_BY_CHANNELS.get(channels) if isinstance(channels, int) else None
        # Extra input channels carry a mask or another picture; with as many output channels the latents are wider.
        if relative is not None and channels != settings["unet"].get("out_channels"):
            raise ConfigError(f"unet: in_channels={channels}: {relative}; {ONLY_THESE}")
        scheduler = settings["scheduler"]
        if pipeline.startswith("StableDiffusion"):
            # diffusers' pipeline makes the same two corrections, for configurations from its first weeks. It looks at
            # the file's own class: where the file does not say, another sampler's class may still clip.
            scheduler = {**scheduler, "steps_offset": 1}
            if scheduler.get("clip_sample", scheduler.get("_class_name") in CLIPPING_SCHEDULERS):
                scheduler["clip_sample"] = False
        return cls(
            text_encoder=CLIPTextConfig.from_dict(settings["text_encoder"]),
            unet=UNetConfig.from_dict(settings["unet"]),
            vae=vae_config(settings["vae"]),
            scheduler=SchedulerConfig.from_dict(scheduler),
        )


def vae_config(settings: Json) -> VAEConfig | TinyVAEConfig:
    """Read `vae/config.json` as the settings of its `_class_name`."""
    tiny = settings.get("_class_name") == "AutoencoderTiny"
    return (TinyVAEConfig if tiny else VAEConfig).from_dict(settings)


def read_config(folder: Path) -> ModelConfig:
    """Read a model directory's configuration; raises `ConfigError` naming the directory, the setting and its value."""
    settings = read_settings(folder)
    try:
        return ModelConfig.from_settings(settings)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def read_settings(folder: Path) -> Settings:
    """Read a model directory's JSON files; raises `ConfigError` if `folder` is not a model directory."""
    if not (folder / SETTINGS_FILES["model_index"]).exists():
        raise ConfigError(
            f"{folder} is not a model directory: it has no model_index.json; "
            "give the folder that holds unet, vae, text_encoder, tokenizer and scheduler"
        )
    index = read_json(folder / SETTINGS_FILES["model_index"])
    _check_pipeline(index)  # first, because other kinds of pipelines lack some of the files
    parts = {part: read_json(folder / name) for part, name in SETTINGS_FILES.items() if part != "model_index"}
    return {"model_index": index, **parts}


def _check_pipeline(index: Json) -> str:
    """Return the class name of a `model_index.json`; raises `ConfigError` unless it and its parts are supported."""
    name = str(index.get("_class_name", "StableDiffusionPipeline"))
    if name.removesuffix("Pipeline") not in PIPELINES:
        reason = next((reason for piece, reason in RELATIVES.items() if piece in name), "it is of another kind")
        raise ConfigError(f"model_index.json: {shown(name)} is not supported, {reason}; {ONLY_THESE}")
    for part, classes in PART_CLASSES.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else entry
        require(
            found in classes,
            f"model_index.json: the {part} is {shown(found)}, only {' or '.join(classes)} is supported",
        )
    return name
