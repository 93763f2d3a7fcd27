"""Tiny random models on disk, in the shape of Stable Diffusion 1.x and 2.x, made without the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIPTextEncoder
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.loading.config import TinyVAEConfig, UNetConfig, VAEConfig
from stable_diffusion.loading.model_config import TURBO_FILE
from stable_diffusion.tiny_vae import TinyVAE
from stable_diffusion.vae import VAE

KINDS = ("sd1", "sd2")
SMALL = {
    "bk_small": {
        "mid_block_type": None,
        "layers_per_block": 1,
        "block_out_channels": [8, 16, 24, 24],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
    "bk_tiny": {
        "mid_block_type": None,
        "layers_per_block": 1,
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    },
    "sdxs": {
        "mid_block_type": None,
        "layers_per_block": 1,
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    },
}
"""What sets the U-Nets of small models apart, otherwise as in SD 1.x: BK-SDM (arXiv:2305.15798), SDXS (2403.16627)."""

TINY_VAE = {
    "_class_name": "AutoencoderTiny", "act_fn": "relu", "force_upcast": False, "in_channels": 3, "out_channels": 3,
    "block_out_channels": [12] * 4, "decoder_block_out_channels": [12] * 4, "encoder_block_out_channels": [8] * 4,
    "num_decoder_blocks": [2, 1, 2, 1], "num_encoder_blocks": [1, 2, 1, 1], "latent_channels": 4, "latent_magnitude": 3,
    "latent_shift": 0.5, "scaling_factor": 1.0, "shift_factor": 0.0, "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
}  # fmt: skip
WORDS = ("a", "red", "blue", "fox", "cat", "sun", "moon", "photo", "of", "the")


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return a byte-level vocabulary with a few whole words, and its merges; "!" is 0, as in CLIP's."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces[:2] = [pieces[0] + pieces[1]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges


def configs(kind: str) -> dict[str, dict[str, Any]]:
    """Return the JSON of each component of a tiny model; `kind` is "sd1", "sd2" or one of `SMALL`."""
    if kind in SMALL:
        base = configs("sd1")
        vae = TINY_VAE if kind == "sdxs" else base["vae"]
        return {**base, "unet": {**base["unet"], **SMALL[kind]}, "vae": vae}
    two = kind == "sd2"
    vocab_size = len(vocabulary()[0])
    text_encoder = {
        "_class_name": "CLIPTextModel", "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
        "hidden_size": 64 if two else 32, "intermediate_size": 128 if two else 64, "num_hidden_layers": 2,
        "num_attention_heads": 1 if two else 2, "vocab_size": vocab_size, "max_position_embeddings": 77,
        "hidden_act": "gelu" if two else "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 64 if two else 32,
        "bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": 0 if two else vocab_size - 1,
    }  # fmt: skip
    unet = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": [1, 2] if two else 2,
        "block_out_channels": [8, 16], "center_input_sample": False, "cross_attention_dim": 64 if two else 32,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": True,
        "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
        "norm_num_groups": 4, "out_channels": 4, "sample_size": 8,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "use_linear_projection": two,
    }  # fmt: skip
    vae = {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [8, 16, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 1,
        "norm_num_groups": 4, "out_channels": 3, "sample_size": 64, "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    scheduler = {
        "_class_name": "DDIMScheduler" if two else "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if two else "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None,
    }  # fmt: skip
    return {"text_encoder": text_encoder, "unet": unet, "vae": vae, "scheduler": scheduler}


def networks(kind: str, seed: int = 0) -> dict[str, nn.Module]:
    """Return the three networks of a tiny model with random weights, in float32 and evaluation mode."""
    settings = configs(kind)
    tiny = settings["vae"]["_class_name"] == "AutoencoderTiny"
    made: dict[str, nn.Module] = {
        "text_encoder": CLIPTextEncoder(CLIPTextConfig.from_dict(settings["text_encoder"])),
        "unet": UNet(UNetConfig.from_dict(settings["unet"])),
        "vae": (
            TinyVAE(TinyVAEConfig.from_dict(settings["vae"])) if tiny else VAE(VAEConfig.from_dict(settings["vae"]))
        ),
    }
    generator = torch.Generator().manual_seed(seed)
    for network in made.values():
        randomise(network, generator)
    return made


def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Give a network random weights and evaluation mode; scales keep activations near one, norms near their usual."""
    for name, tensor in network.state_dict().items():
        if "norm" in name and name.endswith("weight"):
            tensor.copy_(1 + 0.1 * torch.randn(tensor.shape, generator=generator))
        else:
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 100
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    network.eval().requires_grad_(False)


def save_tokenizer(folder: Path, kind: str) -> None:
    """Save a CLIP tokenizer over `vocabulary()`; SD 2.x pads with "!", SD 1.x with the end of text."""
    vocab, merges = vocabulary()
    pad = "!" if kind == "sd2" else "<|endoftext|>"
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges], pad_token=pad, model_max_length=77
    )
    tokenizer.save_pretrained(str(folder))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def save_model(folder: Path, kind: str = "sd1", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny random model as a diffusers directory and return it; `kind` as in `configs`."""
    settings = configs(kind)
    for part, network in networks(kind, seed).items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        state = {name: tensor.to(dtype).contiguous() for name, tensor in network.state_dict().items()}
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(state, folder / part / f"{stem}.safetensors", metadata={"format": "pt"})
        (folder / part / "config.json").write_text(json.dumps(settings[part], indent=2))
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings["scheduler"], indent=2))
    save_tokenizer(folder / "tokenizer", kind)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", settings["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", settings["vae"]["_class_name"]],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def save_turbo(folder: Path, seed: int = 1) -> Path:
    """Write a random adapter for fast requests into the directory of a tiny model, and return its file."""
    generator, rank, state = torch.Generator().manual_seed(seed), 2, dict[str, torch.Tensor]()
    for key, weight in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        if weight.ndim > 1 and ("attn" in key or ".conv1" in key):
            stem, up = f"unet.{key.removesuffix('.weight')}", (len(weight), rank, *[1] * (weight.ndim - 2))
            state[f"{stem}.lora_A.weight"] = 0.3 * torch.randn(rank, *weight.shape[1:], generator=generator)
            state[f"{stem}.lora_B.weight"] = 0.3 * torch.randn(up, generator=generator)
    file = folder / TURBO_FILE
    file.parent.mkdir()
    save_file(state, file)
    return file
