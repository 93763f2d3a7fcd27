"""Put a trained text encoder into a model directory: `python -m training.networks.export_text --out runs/model`.

The folder of `train_text_encoder` has the encoder, its tokenizer, and the U-Net's keys and values that belong to it.
Every other weight is that of `--model`. `--out` may be the same directory, which is then changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from stable_diffusion.loading.clip_config import CLIPTextConfig
from stable_diffusion.model_loader import load

from .export import WEIGHTS, text_json, write_json, write_weights
from .train_tokenizer import FILES


def export_text(text: Path, model: Path, out: Path) -> None:
    """Write the model directory `out`: `model` with the text encoder and the projections of the folder `text`."""
    unet = load(model, dtype=torch.float32).unet.state_dict() | load_file(
        text / "cross_attention_keys_values.safetensors"
    )
    if out.resolve() != model.resolve():
        shutil.copytree(model, out, dirs_exist_ok=True)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(out / part)
        (out / part).mkdir()
    config = CLIPTextConfig.from_dict(json.loads((text / "config.json").read_text(encoding="utf-8")))
    tokenizer = CLIPTokenizer.from_pretrained(str(text), local_files_only=True)
    write_json(out / "text_encoder" / "config.json", text_json(config, tokenizer))
    write_weights(out / "text_encoder", "model", load_file(text / "text_encoder.safetensors"))
    for name in FILES:
        shutil.copyfile(text / name, out / "tokenizer" / name)
    for path in (out / "unet").glob(f"{WEIGHTS}*"):
        path.unlink()
    write_weights(out / "unet", WEIGHTS, unet)


def main() -> None:
    """Put a text encoder into a model directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=Path("runs/text-encoder"))
    parser.add_argument("--model", type=Path, default=Path("assets/models/emoji"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    export_text(args.text, args.model, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
