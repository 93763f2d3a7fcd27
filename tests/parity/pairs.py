"""Run networks and pipelines twice, ours and that of diffusers or transformers, with equal weights and input.

Each function returns both answers. The tests bound their difference, `python -m benchmarks.parity` prints it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from stable_diffusion.clip import CLIPModel, CLIPTextEncoder
from stable_diffusion.diffusion import UNet
from stable_diffusion.levels import SAMPLERS
from stable_diffusion.loading.clip_config import CLIPConfig, CLIPTextConfig
from stable_diffusion.loading.config import TinyVAEConfig, UNetConfig, VAEConfig
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.tiny_vae import TinyVAE
from stable_diffusion.vae import VAE
from tests.tiny import TINY_VAE, configs, randomise

Pair = tuple[Tensor, Tensor]
BOUND = 1e-4


def difference(pair: Pair) -> float:
    """Return the largest difference, in units of the largest number where that is above one."""
    ours, theirs = (tensor.detach().double() for tensor in pair)
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    assert theirs.isfinite().all()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0)).item()


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def share_weights(ours: nn.Module, theirs: nn.Module, prefix: str = "") -> None:
    """Give both networks the same random weights; `prefix` starts our names but not theirs."""
    randomise(ours, torch.Generator().manual_seed(7))
    theirs.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in ours.state_dict().items()})
    theirs.eval().requires_grad_(False)


def prompt_tokens(settings: dict[str, Any], *ends: int) -> Tensor:
    """Return random tokens that end at `ends`, and padding behind."""
    words = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, settings["vocab_size"] - 2, (len(ends), 77), generator=words)
    for row, end in zip(tokens, ends, strict=True):
        row[0], row[end], row[end + 1 :] = settings["bos_token_id"], settings["eos_token_id"], settings["pad_token_id"]
    return tokens


def text_tower(kind: str) -> Pair:
    """Return the features of both text towers; `kind` is sd1, with quick_gelu, or sd2, with gelu."""
    settings = configs(kind)["text_encoder"]
    ours = CLIPTextEncoder(CLIPTextConfig.from_dict(settings))
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
    share_weights(ours, theirs, "text_model.")
    tokens = prompt_tokens(settings, 5, 76)
    return ours(tokens), theirs(tokens).last_hidden_state


def clip_settings(hidden_act: str, eos_token_id: int | None = None) -> dict[str, Any]:
    """Return `config.json` of a tiny CLIP model; `eos_token_id` is given where it differs from the tokenizer's."""
    text = dict(configs("sd1")["text_encoder"], hidden_act=hidden_act)
    if eos_token_id is not None:
        text["eos_token_id"] = eos_token_id
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": hidden_act,
    }
    return {"model_type": "clip", "projection_dim": 24, "text_config": text, "vision_config": vision}


def clip_models(settings: dict[str, Any]) -> tuple[CLIPModel, transformers.CLIPModel]:
    ours = CLIPModel(CLIPConfig.from_dict(settings))
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**settings))
    share_weights(ours, theirs)
    return ours, theirs


def image_tower(hidden_act: str) -> Pair:
    """Return the pictures' embeddings, of length 1."""
    ours, theirs = clip_models(clip_settings(hidden_act))
    pixels = gaussian(2, 3, 32, 32)
    embedded = theirs.get_image_features(pixels).pooler_output
    return ours.embed_images(pixels), embedded / embedded.norm(dim=-1, keepdim=True)


def vaes(**options: Any) -> tuple[VAE, diffusers.AutoencoderKL]:
    settings = {**configs("sd1")["vae"], **options}
    ours, theirs = VAE(VAEConfig.from_dict(settings)), diffusers.AutoencoderKL.from_config(settings)
    share_weights(ours, theirs)
    return ours, theirs


def vae_encoder(size: tuple[int, int] = (48, 64), **options: Any) -> Pair:
    """Return the posterior's mean and the logarithm of its variance."""
    ours, theirs = vaes(**options)
    pictures = gaussian(2, 3, *size).clamp(-1, 1)
    posterior, expected = ours.posterior(pictures), theirs.encode(pictures).latent_dist
    return torch.cat([posterior.mean, posterior.logvar]), torch.cat([expected.mean, expected.logvar])


def vae_decoder(size: tuple[int, int] = (6, 8), **options: Any) -> Pair:
    ours, theirs = vaes(**options)
    latents = gaussian(2, 4, *size)
    return ours.decode(latents * ours.config.scaling_factor), theirs.decode(latents).sample


def tiny_vaes(**options: Any) -> tuple[TinyVAE, diffusers.AutoencoderTiny]:
    settings = {**TINY_VAE, **options}
    ours, theirs = TinyVAE(TinyVAEConfig.from_dict(settings)), diffusers.AutoencoderTiny.from_config(settings)
    share_weights(ours, theirs)
    return ours, theirs


def tiny_vae_encoder(**options: Any) -> Pair:
    ours, theirs = tiny_vaes(**options)
    pictures = gaussian(2, 3, 43, 61).clamp(-1, 1)
    return ours.encode(pictures) / ours.config.scaling_factor, theirs.encode(pictures).latents


def tiny_vae_decoder(**options: Any) -> Pair:
    ours, theirs = tiny_vaes(**options)
    latents = 4 * gaussian(2, 4, 6, 8)
    return ours.decode(latents * ours.config.scaling_factor), theirs.decode(latents).sample


def unets(kind: str, **options: Any) -> tuple[UNet, diffusers.UNet2DConditionModel]:
    settings = {**configs(kind)["unet"], **options}
    ours, theirs = UNet(UNetConfig.from_dict(settings)), diffusers.UNet2DConditionModel.from_config(settings)
    share_weights(ours, theirs)
    return ours, theirs


def unet(kind: str, size: tuple[int, int] = (8, 8), **options: Any) -> Pair:
    """Return both predictions; `options` are settings of the U-Net, and a distilled one gets a guidance embedding."""
    ours, theirs = unets(kind, **options)
    latents, context = gaussian(2, 4, *size), gaussian(2, 77, ours.config.cross_attention_dim, seed=1)
    timesteps = torch.tensor([3.0, 981.0])
    channels = ours.config.time_cond_proj_dim
    guidance = None if channels is None else gaussian(2, channels, seed=2)
    return (
        ours(latents, timesteps, ours.read(context), guidance=guidance),
        theirs(latents, timesteps, context, timestep_cond=guidance).sample,
    )


class Pipelines:
    """One model directory in our pipeline and in those of diffusers, with the same requests."""

    PROMPT, NEGATIVE, GUIDANCE, SEED, COUNT = "a red fox on the moon", "blue", 4.0, 5, 2

    def __init__(self, folder: Path):
        self.folder = folder
        self.ours = Pipeline.from_pretrained(folder)
        self.text2image = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, local_files_only=True
        )
        self.image2image = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(
            self.text2image, vae=self.text2image.vae
        )  # it takes over an AutoencoderKL only, unless it is told
        self.inpaint = diffusers.StableDiffusionInpaintPipeline.from_pipe(self.text2image, vae=self.text2image.vae)
        # For clip_skip diffusers asks for `text_encoder.text_model`, in newer transformers the encoder itself.
        if not hasattr(self.text2image.text_encoder, "text_model"):
            object.__setattr__(self.text2image.text_encoder, "text_model", self.text2image.text_encoder)
        for pipe in (self.text2image, self.image2image, self.inpaint):
            pipe.set_progress_bar_config(disable=True)

    def use_scheduler(self, name: str, **settings: Any) -> None:
        """Use a sampler's scheduler class, made from the model's own file and `settings`."""
        index = json.loads((self.folder / "model_index.json").read_text())
        own = getattr(diffusers, index["scheduler"][1]).from_pretrained(self.folder, subfolder="scheduler")
        options = settings | ({"algorithm_type": "sde-dpmsolver++"} if name == "dpmpp_2m_sde" else {})
        scheduler = getattr(diffusers, SAMPLERS[name].scheduler).from_config(own.config, **options)
        self.text2image.scheduler = self.image2image.scheduler = self.inpaint.scheduler = scheduler

    def latents(
        self, name: str, steps: int, strength: float | None = None, schedule: str = "model", clip_skip: int = 0
    ) -> Pair:
        """Return the final latents of a guided request for two pictures; with a strength, image-to-image."""
        self.use_scheduler(name, **({} if schedule == "model" else {f"use_{schedule}_sigmas": True}))
        pipe = self.text2image if strength is None else self.image2image
        options: dict[str, Any] = {} if strength is None else {"image": photo(), "strength": strength}
        options |= {"num_inference_steps": steps, "guidance_scale": self.GUIDANCE, "negative_prompt": self.NEGATIVE}
        theirs = pipe(
            self.PROMPT,
            num_images_per_prompt=self.COUNT,
            generator=self.generators(),
            output_type="latent",
            clip_skip=clip_skip or None,
            **options,
        )
        options |= {"num_images": self.COUNT, "seed": self.SEED, "schedule": schedule, "clip_skip": clip_skip}
        ours = self.ours(self.PROMPT, sampler=name, **options)
        return ours.latents, theirs.images

    def inpainted(self, name: str, steps: int, strength: float) -> Pair:
        """Return the latents inside a mask of a photo, given twice, since diffusers samples each photo once.

        Both sides agree where a mask has whole latents: of the others, diffusers looks at the first pixel alone.
        """
        self.use_scheduler(name)
        options = {"strength": strength, "num_inference_steps": steps, "guidance_scale": self.GUIDANCE}
        theirs = self.inpaint(
            self.PROMPT,
            image=[photo()] * self.COUNT,
            mask_image=mask(),
            height=photo().height,
            width=photo().width,
            num_images_per_prompt=self.COUNT,
            generator=self.generators(),
            output_type="latent",
            **options,
        )
        options |= {"image": photo(), "mask": mask(), "mask_blur": 0, "num_images": self.COUNT, "seed": self.SEED}
        return self.ours(self.PROMPT, sampler=name, **options).latents, theirs.images

    def generators(self) -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(self.SEED + i) for i in range(self.COUNT)]


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask() -> Image.Image:
    """Return black and white, in blobs as large as latents."""
    white = np.random.default_rng(1).random((8, 12)) < 0.5
    return Image.fromarray(white).convert("L").resize(photo().size, Image.Resampling.NEAREST)
