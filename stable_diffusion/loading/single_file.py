"""Single files in the layout of CompVis and Stability AI: which model one holds, and what it leaves unsaid.

Such a file is weights alone. The settings of the two families that are published in it, Stable Diffusion 1.x and 2.x,
are therefore written down here, and only here; a file that our own converter wrote carries its settings along.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .checkpoints import read_metadata
from .config import ConfigError, ModelError
from .files import parse_json, read_text
from .model_config import ONLY_THESE, RELATIVES, RELATIVES_BY_CHANNELS, SETTINGS_FILES, Settings

# How the names of each part's weights begin in a file. What begins otherwise is the state of its training: averaged
# weights (model_ema), the noise schedule (betas and what follows from them), the loss.
PREFIXES = {"text_encoder": "cond_stage_model.", "unet": "model.diffusion_model.", "vae": "first_stage_model."}

TITLES = {"text_encoder": "text encoder", "unet": "U-Net", "vae": "VAE"}

# Weights within those parts that making pictures does not need, and that a model directory does not keep.
UNUSED = re.compile(
    r"first_stage_model\.(loss|model_ema)\."
    r"|cond_stage_model\.transformer\.((text_model\.)?embeddings\.position_ids|text_projection\.weight)$"
    r"|cond_stage_model\.logit_scale$"
    r"|cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)$"
)

# The layers of the OpenCLIP tower. Stable Diffusion 2.x takes the last but one layer's features, so that the file's
# last layer, which a directory does not have, is unused as well.
OPEN_CLIP_LAYER = re.compile(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\.")

TEXT_2, CONTEXT_2 = "cond_stage_model.model.ln_final.weight", 1024
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"

# What other files hold, by how one of their names begins.
OTHERS = {
    "conditioner.embedders.": RELATIVES["StableDiffusionXL"],
    "model.diffusion_model.joint_blocks.": RELATIVES["StableDiffusion3"],
    "joint_blocks.": RELATIVES["StableDiffusion3"],
    "model.diffusion_model.double_blocks.": RELATIVES["Flux"],
    "double_blocks.": RELATIVES["Flux"],
    "control_model.": RELATIVES["ControlNet"],
    "lora_": "it is a LoRA, a change to a model and no model",
    "input_blocks.": "it is a U-Net alone: give a file of the whole model",
    "transformer.text_model.": "it is a text encoder alone: give a file of the whole model",
    "down_blocks.": "it is one part of a model directory: give the directory",
    "encoder.": "it is one part of a model: give the whole model",
    "text_model.": "it is one part of a model directory: give the directory",
}

METADATA_KEY = "model_settings"
PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon"}  # by what a .yaml calls them
MAX_YAML = 2**16  # bytes; what Stability AI published has 2 kB

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

SCHEDULER = {
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
    """The settings of Stable Diffusion 1.x."""
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
    """The settings of Stable Diffusion 2.x: at 768 pixels where it predicts v, at 512 where it predicts epsilon."""
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


def recognise(path: Path, state: Mapping[str, Tensor]) -> Settings:
    """The settings of the model in the single file `path`, which holds `state`.

    In order: what our converter left in the file's metadata; the family that the shapes show, and for 2.x the
    prediction type of a .yaml of the same name beside the file, in the form that Stability AI publishes, or else
    v-prediction, as diffusers assumes. Raises `ModelError` for any other model.
    """
    _refuse_parts(path, state)
    carried = read_metadata(path).get(METADATA_KEY)
    if carried is not None:
        return _carried(path, carried)
    _refuse_others(path, state)
    context = [tensor.shape[-1] for name, tensor in state.items() if name.endswith(".attn2.to_k.weight")]
    if TEXT_2 in state and set(context) == {CONTEXT_2}:
        return stable_diffusion_2(_neighbouring_prediction_type(path) or "v_prediction")
    return stable_diffusion_1()


def _carried(path: Path, text: str) -> Settings:
    try:
        settings = parse_json(text, path)
        if settings.keys() == SETTINGS_FILES.keys() and all(isinstance(part, dict) for part in settings.values()):
            return settings
    except ConfigError:
        pass
    raise ModelError(f"{path} carries settings that are damaged: convert the model again")


def _refuse_parts(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` where a file holds a part or two of a model, which people share by themselves."""
    held = [part for part, start in PREFIXES.items() if any(name.startswith(start) for name in state)]
    missing = [TITLES[part] for part in PREFIXES if part not in held]
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
        raise ModelError(f"{path} holds no Stable Diffusion model: it lacks {FIRST_CONVOLUTION}; {ONLY_THESE}")
    channels = state[FIRST_CONVOLUTION].shape[1] if state[FIRST_CONVOLUTION].ndim == 4 else 0
    if channels in RELATIVES_BY_CHANNELS:
        raise ModelError(
            f"{path} is not supported, its U-Net takes {channels} channels: {RELATIVES_BY_CHANNELS[channels]}; "
            f"{ONLY_THESE}"
        )


def _neighbouring_prediction_type(path: Path) -> str | None:
    """What `NAME.yaml` beside `NAME.safetensors` says about the prediction type, if there is one."""
    beside = path.with_suffix(".yaml")
    if not beside.exists():
        return None
    text = read_text(beside, MAX_YAML)
    # By its lines, not parsed: of a few hostile ones PyYAML would make gigabytes.
    kinds = set(re.findall(r"^ +parameterization: *[\"']?(\w+)", text, re.MULTILINE)) or {"eps"}
    described = all(re.search(rf"^ *{name}: *(#.*)?$", text, re.MULTILINE) for name in ("model", "params"))
    if not described or len(kinds) != 1 or not kinds <= PREDICTION_TYPES.keys():
        raise ModelError(
            f"{beside} does not tell model.params.parameterization as v or eps: correct it, or take it away"
        )
    return PREDICTION_TYPES[kinds.pop()]
