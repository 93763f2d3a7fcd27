"""Write the trained networks as a model directory in diffusers' layout: `python -m training.networks.export`.

Weights are float16; the U-Net is cut into shards under 10 MB, since a plain git push to a model hub takes no larger
file. `diffusers.StableDiffusionPipeline.from_pretrained` and `stable_diffusion.Pipeline.from_pretrained` both read it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from stable_diffusion.clip import CLIP
from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.loading.config import SchedulerConfig, TinyVAEConfig, UNetConfig, VAEConfig
from stable_diffusion.tiny_vae import TinyVAE
from stable_diffusion.vae import VAE

from .train_clip import load_clip
from .train_tiny_vae import load_tiny
from .train_tokenizer import FILES as TOKENIZER_FILES
from .train_unet import SCHEDULER, TextToLatents, load_unet
from .train_vae_256 import load_vae_256

SHARD_BYTES = 9_500_000
DIFFUSERS_VERSION = "0.36.0"  # any since 0.20 reads the directory; the field says who would have written it
WEIGHTS = "diffusion_pytorch_model"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as sorted JSON, and make the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_weights(folder: Path, stem: str, state: dict[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write one component's weights in float16: one file, or shards under `shard_bytes` with their index."""
    state = {name: tensor.to(torch.float16, memory_format=torch.contiguous_format) for name, tensor in state.items()}
    pattern = stem + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=shard_bytes)
    for filename, names in split.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """`unet/config.json`."""
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **dataclasses.asdict(config),
        "act_fn": "silu",
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
    }


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """`vae/config.json`."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        **dataclasses.asdict(config),
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def tiny_json(config: TinyVAEConfig) -> dict[str, Any]:
    """`vae_tiny/config.json`."""
    return {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": DIFFUSERS_VERSION,
        **dataclasses.asdict(config),
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }


def text_json(config: CLIPTextConfig, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """`text_encoder/config.json`."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "float32",
        **dataclasses.asdict(config),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def scheduler_json(config: SchedulerConfig) -> dict[str, Any]:
    """`scheduler/scheduler_config.json`."""
    values = dataclasses.asdict(config)
    return {
        "_class_name": values.pop("class_name"),
        "_diffusers_version": DIFFUSERS_VERSION,
        **values.pop("others"),
        **values,
        "thresholding": False,
    }


def index_json(scheduler: SchedulerConfig) -> dict[str, Any]:
    """`model_index.json`: which class reads each component; there is no safety checker."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "_own_size_only": True,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler.class_name],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def export(out: Path, model: TextToLatents, vae: VAE, tokenizer_dir: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a model directory; `vae` must give the standardised latents that `model` knows."""
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_dir), local_files_only=True)
    text_encoder, unet = model.text_encoder, model.unet
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)  # shards of an earlier, larger model would stay behind
    write_json(out / "model_index.json", index_json(SCHEDULER))
    write_json(out / "scheduler" / "scheduler_config.json", scheduler_json(SCHEDULER))
    write_json(out / "unet" / "config.json", unet_json(unet.config))
    write_json(out / "vae" / "config.json", vae_json(vae.config))
    write_json(out / "text_encoder" / "config.json", text_json(text_encoder.config, tokenizer))
    write_weights(out / "unet", WEIGHTS, unet.state_dict(), shard_bytes)
    write_weights(out / "vae", WEIGHTS, vae.state_dict(), shard_bytes)
    write_weights(out / "text_encoder", "model", text_encoder.state_dict(), shard_bytes)
    (out / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_dir / name, out / "tokenizer" / name)


def export_tiny(out: Path, vae: TinyVAE) -> None:
    """Write the tiny autoencoder beside the model, as diffusers' `AutoencoderTiny` reads it."""
    shutil.rmtree(out, ignore_errors=True)
    write_json(out / "config.json", tiny_json(vae.config))
    write_weights(out, WEIGHTS, vae.state_dict())


def export_clip(out: Path, clip: CLIP, tokenizer_dir: Path) -> None:
    """Write the CLIP beside the model, as transformers' `CLIPModel` and `CLIPProcessor` read it."""
    shutil.rmtree(out, ignore_errors=True)
    config, images = clip.model.config, clip.images
    towers = {
        "text_config": text_json(config.text, clip.tokenizer),
        "vision_config": {"model_type": "clip_vision_model", **dataclasses.asdict(config.vision)},
    }
    shared = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.projection_dim}
    write_json(out / "config.json", {**shared, **towers})
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": images.shortest_edge},
        "crop_size": dict(zip(("height", "width"), images.crop_size, strict=True)),
        **{name: getattr(images, name) for name in ("image_mean", "image_std", "rescale_factor", "resample")},
        **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
    }
    write_json(out / "preprocessor_config.json", settings)
    write_weights(out, "model", clip.model.state_dict())
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_dir / name, out / name)


def main() -> None:
    """Export the checkpoints as a model directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unet", type=Path, default=Path("runs/unet/checkpoint.pt"))
    parser.add_argument("--encoder", type=Path, default=Path("runs/vae-256-encoder/checkpoint.pt"))
    parser.add_argument("--decoder", type=Path, default=Path("runs/vae-256-decoder/checkpoint.pt"))
    parser.add_argument("--tiny", type=Path, default=Path("runs/vae-tiny/checkpoint.pt"))
    parser.add_argument("--clip", type=Path, default=Path("runs/clip/checkpoint.pt"), help="left out if not there")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("assets/models/emoji"))
    args = parser.parse_args()
    tokenizer = CLIPTokenizer.from_pretrained(str(args.tokenizer), local_files_only=True)
    vae = load_vae_256(args.encoder, args.decoder)
    export(args.out, load_unet(args.unet, tokenizer), vae, args.tokenizer)
    export_tiny(args.out / "vae_tiny", load_tiny(args.tiny))
    if args.clip.exists():
        export_clip(args.out / "clip", load_clip(args.clip, tokenizer), args.tokenizer)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
