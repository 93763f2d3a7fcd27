"""From a request to a run: the one place where text, schedule, sampler, networks and pictures meet."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor

from .adapters.lora import LoRAs
from .adapters.textual_inversion import Word, read_word, with_embeddings
from .compute.packed import for_inference
from .guidance import Denoiser
from .images import to_tensor
from .levels import Plan, plan
from .loading.model_defaults import defaults_for
from .mask import Mask, soften, with_pictures
from .model_loader import Models, load
from .preview import Renderer
from .prompt import Tokens, encode_tokens, tokenize, tokenize_request
from .request import Defaults, Request, RequestError, Settings, shown, without_loras
from .run import Conditioning, Result, Run, Step
from .schedule import NoiseSchedule
from .vae import VAE

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Pipeline:
    """Text-to-image and image-to-image with one set of models. `loras` merges LoRA files into them.

    A prompt with the tag `<lora:ink:0.8>` merges the file that `loras` knows by that name for its own run.
    """

    def __init__(self, models: Models):
        self.schedule = NoiseSchedule(models.scheduler)
        self.loras = LoRAs(models)
        self._loaded, self._words = models, tuple[Word, ...]()
        self._teaching = Lock()

    @property
    def models(self) -> Models:
        """The models of a run that begins now: the loaded ones, with the LoRA files that are merged into them.

        A prompt with LoRA tags merges further files for its own run.
        """
        return self.loras.models

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        vae: str | Path | None = None,
        device: str | None = None,
        dtype: torch.dtype | Literal["auto"] | None = None,
        safety_checker: bool = False,
    ) -> Pipeline:
        """Load a model: None for the bundled one, a directory, a .safetensors or .ckpt file, or a hub id.

        vae: source of another VAE than the model's own, of the same kinds. dtype: type that the networks compute in, by
        default float32 on a CPU, which is exact; "auto" for the fastest on this machine. safety_checker: check every
        picture with the model's own safety checker, if it has one, and blur those that it finds.
        """
        return cls(load(source, vae=vae, device=device, dtype=dtype, safety_checker=safety_checker))

    def add_embedding(self, file: str | Path) -> None:
        """Add a word to the prompt's vocabulary by textual inversion (arXiv:2208.01618): `my-cat.pt` adds `my-cat`.

        Reads the files of AUTOMATIC1111 (.pt) and of diffusers (.bin, .safetensors), with one vector or more; each is a
        token of the prompt. Runs under way keep their vocabulary. Raises `ModelError` where a file is damaged, belongs
        to another model, or has the name of a known word; then nothing changes.
        """
        word = read_word(Path(file).expanduser(), self._loaded)
        with self._teaching:
            self._teach((*self._words, word))

    def remove_embedding(self, name: str) -> None:
        """Remove a word that `add_embedding` added; ValueError for an unknown name."""
        with self._teaching:
            if name not in self.embeddings:
                raise ValueError(f"name must be one of {', '.join(self.embeddings) or 'none'}, got {name!r}")
            self._teach(tuple(word for word in self._words if word[0] != name))

    def _teach(self, words: tuple[Word, ...]) -> None:
        self.loras.change_base(lambda models: with_embeddings(models, self._loaded, words))
        self._words = words

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The words that `add_embedding` added."""
        return tuple(name for name, _ in self._words)

    @property
    def default_size(self) -> int:
        """Side, in pixels, of the square images that the model was trained on."""
        return self.models.unet.config.sample_size * self.models.vae.config.downscale

    @property
    def defaults(self) -> Defaults:
        """The settings of this model for requests that leave them open."""
        models = self.models
        scheduler = {**dataclasses.asdict(models.scheduler), "_class_name": models.scheduler.class_name}
        unet, vae, words = (dataclasses.asdict(one.config) for one in (models.unet, models.vae, models.text_encoder))
        return defaults_for(
            unet, vae, scheduler, words, tiny_vae=models.tiny_vae is not None, fast=models.turbo is not None
        )

    def __call__(self, prompt: str | Request = "", **settings: Unpack[Settings]) -> Result:
        """Run a request to its end; arguments and errors as in `stream`. There are no previews unless asked for."""
        if not isinstance(prompt, Request):
            settings = {"preview": "none", **settings}
        result = None
        for step in self.stream(prompt, **settings):
            result = step.result
        assert result is not None
        return result

    def stream(self, prompt: str | Request = "", **settings: Unpack[Settings]) -> Generator[Step, None, None]:
        """Yield every step of a request as it happens; closing the generator stops the run.

        prompt: the text, with `settings` named as the fields of `Request`; or a `Request`, which has them all. With an
        image the run takes the last int(num_inference_steps * strength) steps (SDEdit, arXiv:2108.01073), from the
        image with noise; with a mask it changes the white area and its edge, and at strength 1 starts from pure noise.
        Image i uses seed + i and is, up to rounding, the image that a request of that seed alone gives.
        Raises `RequestError`, naming the argument, before the first step. Text beyond the model's limit is dropped with
        a warning that quotes its beginning.
        """
        yield from self.begin(prompt, **settings).steps()

    @torch.no_grad()
    def begin(
        self, prompt: str | Request = "", *, conditioning: Conditioning | None = None, **settings: Unpack[Settings]
    ) -> Run:
        """Complete a request by the model's defaults, encode prompt and photo, and draw the first noise.

        Returns a run that waits for its first evaluation. Arguments and errors are those of `stream`. conditioning: the
        result of `condition` for a request with the same texts, to encode these once for several runs.
        """
        request = prompt if isinstance(prompt, Request) else Request(prompt, **settings)
        request = with_pictures(request, self.defaults).seeded()
        assert request.preview is not None
        self.models.decoder_for(request.preview)  # refused or fetched here, and not when the first preview is due
        photo, white = request.image, request.mask
        plan, conditioning = self.plan(request), conditioning or self.condition(request)
        assert request.then_at is not None
        if request.then and request.then_at > plan.evaluations:
            raise RequestError(
                f"then_at must be at most {plan.evaluations}, the number of steps of this run, got {request.then_at}"
            )
        draw = self.noise_source(request)
        # diffusers' order of draws: the photo's posterior, then the first noise, then the sampler's.
        if not isinstance(photo, Image.Image):
            return Run(request, plan, conditioning, plan.start(draw()), draw, Renderer(self.models))
        x_0, noise, mask = self._encode(photo, draw), draw(), None
        if isinstance(white, Image.Image):
            mask = Mask(soften(white, request.mask_blur), photo, x_0, noise)
            if isinstance(self.models.vae, VAE):
                draw()  # diffusers also draws the latents of the masked photo, which inpainting networks need
        start = plan.start(noise, None if plan.strength is None else x_0)
        return Run(request, plan, conditioning, start, draw, Renderer(self.models, mask))

    def plan(self, request: Request) -> Plan:
        """Return the steps that a request will take, without taking them."""
        request = self.defaults.complete(request)
        assert request.sampler is not None
        assert request.num_inference_steps is not None
        # With a mask nothing of the photo is left at strength 1: the run starts from pure noise, as in diffusers.
        whole = request.image is None or (request.mask is not None and request.strength == 1)
        strength = None if whole else request.strength
        return plan(request.sampler, self.schedule, request.num_inference_steps, strength, request.schedule)

    def tokenize(self, prompt: str, syntax: str = "plain") -> Tokens:
        """Return a prompt's tokens as this model reads them, with their number and the text that does not fit."""
        return tokenize(self.models.tokenizer, without_loras(prompt), syntax)

    def models_for(self, request: Request) -> Models:
        """Return the models of a complete request, with its LoRA files merged and the U-Net's weights ready.

        They stay so for as long as something holds them, and then `begin` need not wait for it.
        """
        models = self.loras.models_for(request.loras, self.models.turbo if request.fast else None)
        for_inference(models.unet, next(models.text_encoder.parameters()).dtype)
        return models

    @torch.no_grad()
    def condition(self, request: Request) -> Conditioning:
        """Encode prompt and negative prompt for each image of a request; the latter only for a guided run.

        At a guidance scale of 1 or less the negative prompt is not evaluated; a distilled model is told its scale.
        As in diffusers, clip_skip does not hold for the negative prompt.
        """
        request = self.defaults.complete(request)
        scale, then_at = request.guidance_scale, request.then_at
        assert scale is not None
        assert then_at is not None
        models = self.models_for(request)
        layers = models.text_encoder.config.num_hidden_layers
        if request.clip_skip >= layers:
            raise RequestError(
                f"clip_skip must be below the {layers} layers of this model's text encoder, got {request.clip_skip}"
            )
        tokens = tokenize_request(models.tokenizer, request)
        for name, read in tokens.items():
            if read.dropped:
                limit = models.tokenizer.model_max_length - 2
                warnings.warn(f"{name} is longer than {limit} tokens, dropped: {shown(read.dropped)}", stacklevel=2)
        features = encode_tokens(models.tokenizer, models.text_encoder, list(tokens.values()))
        if request.clip_skip:
            skipped = encode_tokens(models.tokenizer, models.text_encoder, list(tokens.values()), request.clip_skip)
            features = torch.cat([skipped[:1], features[1:2], skipped[2:]])
        # Keys and values stay the same for the run: they are computed here once, not at every step.
        keys_values = for_inference(models.unet, features.dtype).read(features)
        context, negative, *then = (one.expand(request.num_images, -1, -1) for one in keys_values.split(1))
        denoise = Denoiser(models.unet, models.scheduler.prediction_type)
        later = then[0] if then else context
        negative = negative if self.evaluates_twice(scale) else None
        return Conditioning(models, denoise, context, negative, scale, later, then_at)

    def evaluates_twice(self, guidance_scale: float) -> bool:
        """Whether a step with this guidance scale needs the network's answer with and without the words."""
        return guidance_scale > 1 and self.models.unet.config.time_cond_proj_dim is None

    def noise_source(self, request: Request) -> Callable[[], Tensor]:
        """Return a source of standard normal draws (count, C, h, w) of a complete request.

        Each image has a generator of its own, in float32 on the CPU: the draws are the same on every device.
        """
        assert request.seed is not None
        assert request.width is not None
        assert request.height is not None
        config = self.models.vae.config
        shape = (1, config.latent_channels, request.height // config.downscale, request.width // config.downscale)
        weight = self.models.unet.conv_in.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)  # latents are never less precise than that
        generators = [torch.Generator().manual_seed(request.seed + i) for i in range(request.num_images)]

        def noise() -> Tensor:
            draws = [torch.randn(shape, generator=generator) for generator in generators]
            return torch.cat(draws).to(weight.device, dtype)

        return noise

    def _encode(self, photo: Image.Image, noise: Callable[[], Tensor]) -> Tensor:
        """Return the photo's latents (count, C, h, w), sampled once for each image if the autoencoder samples."""
        vae = self.models.vae
        latents = for_inference(vae).encode(to_tensor([photo]).to(next(vae.parameters())), noise)
        return latents.to(torch.promote_types(latents.dtype, torch.float32))
