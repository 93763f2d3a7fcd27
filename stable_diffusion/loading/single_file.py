"""Single files in the layout of CompVis and Stability AI: reading them, and recognising the model that one holds.

Such a file has weights and no settings. The settings of the two published families, Stable Diffusion 1.x and 2.x, are
therefore constants of this module; files of our own converter have settings in their metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from .checkpoints import PARTS, State, build, read_metadata, read_tensors
from .config import ConfigError, Json, ModelError, UNetConfig
from .files import parse_json, read_text
from .key_table import PREFIXES, KeyTable
from .model_config import ONLY_THESE, RELATIVES, RELATIVES_BY_CHANNELS, SETTINGS_FILES, ModelConfig, Settings

TITLES = {"text_encoder": "text encoder", "unet": "U-Net", "vae": "VAE"}

TEXT_2, CONTEXT_2 = "cond_stage_model.model.ln_final.weight", 1024
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"

# Reasons for refusing other files, by the prefix of one of their names.
OTHERS = {
    "conditioner.embedders.": RELATIVES["StableDiffusionXL"],
    "model.diffusion_model.joint_blocks.": RELATIVES["StableDiffusion3"],
    "joint_blocks.": RELATIVES["StableDiffusion3"],
    "model.diffusion_model.double_blocks.": RELATIVES["Flux"],
    "double_blocks.": RELATIVES["Flux"],
    "control_model.": RELATIVES["ControlNet"],
    "lora_": "it is a LoRA, which changes a model: give the model",
    "input_blocks.": "it is a U-Net alone: give a file of the whole model",
    "transformer.text_model.": "it is a text encoder alone: give a file of the whole model",
    "down_blocks.": "it is one part of a model directory: give the directory",
    "encoder.": "it is one part of a model: give the whole model",
    "text_model.": "it is one part of a model directory: give the directory",
}

SOME_VAE = "stabilityai/sd-vae-ft-mse"  # on the hub; it fits both families

METADATA_KEY = "model_settings"
PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon"}  # by their names in a .yaml
MAX_YAML = 2**16  # bytes; Stability AI's files have 2 kB

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}

UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

SCHEDULER: Json = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def stable_diffusion_1() -> Settings:
    """Return the settings of Stable Diffusion 1.x."""
    return {
        "model_index": {**MODEL_INDEX, "scheduler": ["diffusers", "PNDMScheduler"]},
        "text_encoder": {
            **TEXT_ENCODER,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 49407,
            "projection_dim": 768,
        },
        "unet": {**UNET, "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "vae": {**VAE, "sample_size": 512},
        "scheduler": {**SCHEDULER, "_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    }


def stable_diffusion_2(prediction_type: str = "v_prediction") -> Settings:
    """Return the settings of Stable Diffusion 2.x: of the 768-pixel model for v_prediction, else the 512-pixel one."""
    size = 768 if prediction_type == "v_prediction" else 512
    return {
        "model_index": {**MODEL_INDEX, "scheduler": ["diffusers", "DDIMScheduler"]},
        "text_encoder": {
            **TEXT_ENCODER,
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "pad_token_id": 0,
            "projection_dim": 512,
        },
        "unet": {
            **UNET,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "sample_size": size // 8,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        "vae": {**VAE, "sample_size": 768},
        "scheduler": {**SCHEDULER, "_class_name": "DDIMScheduler", "prediction_type": prediction_type},
    }


def read_single_file(
    path: Path, networks: Mapping[str, type[nn.Module]], *, own_vae: bool = True
) -> tuple[Settings, dict[str, tuple[State, Path]]]:
    """Return a single file's settings, and each part's weights under a directory's names; no VAE unless `own_vae`.

    networks: the class of each part. Where the file does not say what its U-Net predicts, the U-Net is evaluated once,
    on the CPU in float32. Raises `ModelError` naming the file.
    """
    state = read_tensors(path)

    def probe(settings: Settings) -> str:
        config = ModelConfig.from_settings(settings)
        weights = KeyTable.of("unet", config, networks["unet"]).from_file(state, path)
        return prediction_type(build(networks["unet"], config.unet, weights, path), config.unet)

    settings = recognise(path, state, probe, own_vae=own_vae)
    try:
        config = ModelConfig.from_settings(settings)
        parts = [part for part in PARTS if own_vae or part != "vae"]
        return settings, {
            part: (KeyTable.of(part, config, networks[part]).from_file(state, path), path) for part in parts
        }
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def recognise(
    path: Path, state: Mapping[str, Tensor], probe: Callable[[Settings], str], *, own_vae: bool = True
) -> Settings:
    """Return the settings of the model in the single file `path`, whose tensors are `state`.

    The settings come from the file's metadata, which our converter writes, or else from the family with these shapes. A
    2.x model's prediction type comes from a .yaml of the same name beside the file, as Stability AI publishes them, or
    else from `probe`, which is called with the family's settings. Raises `ModelError` for any other model, and for one
    without a VAE if `own_vae`.
    """
    _refuse_parts(path, state, own_vae)
    carried = carried_settings(path)
    if carried is not None:
        return carried
    _refuse_others(path, state)
    context = [tensor.shape[-1] for name, tensor in state.items() if name.endswith(".attn2.to_k.weight")]
    if TEXT_2 in state and set(context) == {CONTEXT_2}:
        return stable_diffusion_2(_neighbouring_prediction_type(path) or probe(stable_diffusion_2()))
    return stable_diffusion_1()


@torch.no_grad()
def prediction_type(unet: nn.Module, config: UNetConfig) -> str:
    """Return what a U-Net was trained to predict, "epsilon" or "v_prediction", from one evaluation.

    At the last timestep alpha_T is 0.07, so x_T is nearly pure noise. A predicted epsilon is then about x_T; a velocity
    alpha eps - sigma x_0 (arXiv:2202.00512, appendix D) is nearly orthogonal to it. The projection
    <output, x_T> / <x_T, x_T> is therefore about 1 or 0, with a standard deviation of 0.03 (one over the root of the
    number of latents). The context hardly matters there and is zero.
    """
    noise = torch.randn(1, config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([SCHEDULER["num_train_timesteps"] - 1])
    read = cast(Callable[[Tensor], Tensor], unet.read)
    output: Tensor = unet(noise, last, read(torch.zeros(1, 1, config.cross_attention_dim)))
    return "epsilon" if (output * noise).sum() > 0.5 * noise.square().sum() else "v_prediction"


def carried_settings(path: Path) -> Settings | None:
    """Return the settings that our converter wrote into a file's metadata; raises `ModelError` if they are damaged."""
    text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        return None
    try:
        settings = parse_json(text, path)
        if settings.keys() == SETTINGS_FILES.keys() and all(isinstance(part, dict) for part in settings.values()):
            return settings
    except ConfigError:
        pass
    raise ModelError(f"{path} has damaged settings in its metadata: convert the model again")


def _refuse_parts(path: Path, state: Mapping[str, Tensor], own_vae: bool) -> None:
    """Raise `ModelError` for a file with only one or two parts of a model, which people share too."""
    held = [part for part, start in PREFIXES.items() if any(name.startswith(start) for name in state)]
    missing = [TITLES[part] for part in PREFIXES if part not in held and (own_vae or part != "vae")]
    if held and missing == [TITLES["vae"]]:
        raise ModelError(f"{path} lacks its VAE: name one as vae= or --vae, such as {SOME_VAE} or a NAME.vae.pt")
    if held and missing:
        raise ModelError(
            f"{path} holds only the {' and the '.join(TITLES[part] for part in held)} of a model, without the "
            f"{' and the '.join(missing)}: give a file of the whole model, or its directory"
        )


def _refuse_others(path: Path, state: Mapping[str, Tensor]) -> None:
    for start, reason in OTHERS.items():
        if any(name.startswith(start) for name in state):
            raise ModelError(f"{path} is not supported, {reason}; {ONLY_THESE}")
    if FIRST_CONVOLUTION not in state:
        raise ModelError(f"{path} does not hold a Stable Diffusion model: it lacks {FIRST_CONVOLUTION}; {ONLY_THESE}")
    channels = state[FIRST_CONVOLUTION].shape[1] if state[FIRST_CONVOLUTION].ndim == 4 else 0
    if channels in RELATIVES_BY_CHANNELS:
        raise ModelError(
            f"{path} is not supported, its U-Net takes {channels} channels: {RELATIVES_BY_CHANNELS[channels]}; "
            f"{ONLY_THESE}"
        )


def _neighbouring_prediction_type(path: Path) -> str | None:
    """Return the prediction type from `NAME.yaml` beside `NAME.safetensors`; None without that file."""
    beside = path.with_suffix(".yaml")
    if not beside.exists():
        return None
    text = read_text(beside, MAX_YAML)
    # Read line by line, because PyYAML would build gigabytes from a few hostile lines.
    kinds = set(re.findall(r"^ +parameterization: *[\"']?(\w+)", text, re.MULTILINE)) or {"eps"}
    described = all(re.search(rf"^ *{name}: *(#.*)?$", text, re.MULTILINE) for name in ("model", "params"))
    if not described or len(kinds) != 1 or not kinds <= PREDICTION_TYPES.keys():
        raise ModelError(f"{beside} does not have v or eps as model.params.parameterization: correct it, or remove it")
    return PREDICTION_TYPES[kinds.pop()]
