"""From a request to a stream of steps: the one place where text, schedule, sampler, networks and previews meet."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .guidance import Denoiser
from .images import fit_image, read_image, to_images, to_tensor
from .lora import LoRAs
from .model_loader import Models, load
from .preview import Preview
from .prompt import encode_prompts, tokenize
from .samplers import Plan, plan
from .schedule import NoiseSchedule

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Result:
    """A finished request: its pictures, the seed of the first (picture i has seed + i), and the final latents."""

    images: list[Image.Image]
    seed: int
    latents: Tensor


@dataclass(frozen=True)
class Step:
    """One evaluation of the network, as it happened.

    index counts 1 to total. latents is x_t, (N, C, H/8, W/8), that the evaluation saw, in sampler space, where
    x_t = alpha x_0 + sigma eps; sigma is the noise level there. denoised is the network's x_0, of the same shape.
    images are pictures of x_0, or None when no preview was due; on the last step they are the final pictures, decoded
    by the VAE, and `result` is set.
    """

    index: int
    total: int
    timestep: float
    alpha: float
    sigma: float
    latents: Tensor
    denoised: Tensor
    images: list[Image.Image] | None
    seed: int
    result: Result | None = None


class Pipeline:
    """Text-to-image and image-to-image over one set of models; `loras` merges LoRA files into them."""

    def __init__(self, models: Models):
        self.schedule = NoiseSchedule(models.scheduler)
        self.loras = LoRAs(models)

    @property
    def models(self) -> Models:
        """What a run that begins now works with: the model that was loaded, with the LoRA files merged by now."""
        return self.loras.models

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, *, device: str | None = None, dtype: torch.dtype | None = None
    ) -> Pipeline:
        """Load a model: None for the bundled one, a directory, a .safetensors or .ckpt file, or a hub id."""
        return cls(load(source, device=device, dtype=dtype))

    @property
    def default_size(self) -> int:
        """The side, in pixels, of the square pictures that the model was trained on."""
        return self.models.unet.config.sample_size * self.models.vae.config.downscale

    def __call__(self, prompt: str, **options: object) -> Result:
        """Run a request to its end; the options are those of `stream`, without previews unless asked for."""
        result = None
        for step in self.stream(prompt, **{"preview": "none", **options}):  # type: ignore[arg-type]
            result = step.result
        assert result is not None
        return result

    def plan(self, sampler: str, num_inference_steps: int, strength: float | None = None) -> Plan:
        """Which steps a request will take, without taking them."""
        return plan(sampler, self.schedule, num_inference_steps, strength)

    @torch.no_grad()
    def stream(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        image: Image.Image | str | Path | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        sampler: str = "ddpm",
        seed: int | None = None,
        num_images: int = 1,
        preview: str = "auto",
        preview_every: int = 1,
        prompt_syntax: str = "plain",
    ) -> Iterator[Step]:
        """Yield every step of a request as it happens; close the generator to stop.

        With `image`, image-to-image: it runs the last int(num_inference_steps * strength) steps (SDEdit,
        arXiv:2108.01073) from the image with noise; without height and width it keeps the image's size, rounded down to
        a multiple of 8. Picture i of `num_images` uses seed + i and is the one that a request of that seed alone gives.
        preview: auto, vae, linear or none, at every `preview_every`th step. Raises ValueError, naming the argument,
        before the first step. Text beyond the model's limit is dropped, with a warning that says which.
        prompt_syntax: plain, or weighted, which reads `(word:1.3)` and `[word]` in both prompts and drops nothing.
        """
        seed = resolve_seed(seed, num_images)
        photo = None if image is None else read_image(image)
        width, height = self._size(width, height, photo)
        _check("guidance_scale", guidance_scale, 0 <= guidance_scale <= 100, "in [0, 100]")
        _check("preview_every", preview_every, preview_every >= 1, "at least 1")
        run = self.plan(sampler, num_inference_steps, None if photo is None else strength)
        previews = Preview(self.models.vae, preview)
        denoise = self._denoiser(prompt, negative_prompt, guidance_scale, num_images, prompt_syntax)

        noise = self._noise_source(seed, num_images, height, width)
        x_0 = None if photo is None else self._encode(fit_image(photo, width, height), noise)
        sampling = run.run(run.start(noise(), x_0), noise)
        x, level = next(sampling)
        for index in range(1, run.evaluations + 1):
            denoised = denoise(x, level)
            step = Step(index, run.evaluations, level.timestep, level.alpha, level.sigma, x, denoised, None, seed)
            if index < run.evaluations:
                images = previews(denoised) if index % preview_every == 0 else None
                yield replace(step, images=images)
                x, level = sampling.send(denoised)
        try:
            sampling.send(denoised)
        except StopIteration as stop:
            latents = stop.value
        images = to_images(self.models.vae.decode_finite(latents))
        yield replace(step, images=images, result=Result(images, seed, latents))

    def _size(self, width: int | None, height: int | None, photo: Image.Image | None) -> tuple[int, int]:
        """Width and height asked for, checked; by default the photo's, or the model's own."""
        unit = self.models.vae.config.downscale
        default = (self.default_size,) * 2
        if photo is not None:
            default = tuple(max(unit, side - side % unit) for side in photo.size)
        size = default[0] if width is None else width, default[1] if height is None else height
        for name, side in zip(("width", "height"), size, strict=True):
            _check(name, side, side >= unit and side % unit == 0, f"a positive multiple of {unit}")
        return size

    def _denoiser(
        self, prompt: str, negative: str, guidance_scale: float, count: int, syntax: str = "plain"
    ) -> Denoiser:
        models = self.models
        for name, text in (("prompt", prompt), ("negative_prompt", negative)):
            dropped = tokenize(models.tokenizer, text).dropped
            if dropped and syntax == "plain":
                limit = models.tokenizer.model_max_length - 2
                warnings.warn(f"{name} is longer than {limit} tokens, dropped: {dropped!r}", stacklevel=3)
        context = encode_prompts(models.tokenizer, models.text_encoder, [prompt, negative], syntax)
        context, uncond = (half.expand(count, -1, -1) for half in context.chunk(2))
        return Denoiser(models.unet, context, uncond, guidance_scale, models.scheduler.prediction_type)

    def _noise_source(self, seed: int, count: int, height: int, width: int) -> Callable[[], Tensor]:
        """Standard normal draws (count, C, H/8, W/8), float32, a generator each, on the CPU: the same anywhere."""
        config = self.models.vae.config
        shape = (1, config.latent_channels, height // config.downscale, width // config.downscale)
        device = self.models.unet.conv_in.weight.device
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]

        def noise() -> Tensor:
            draws = [torch.randn(shape, generator=generator) for generator in generators]
            return torch.cat(draws).to(device)

        return noise

    def _encode(self, photo: Image.Image, noise: Callable[[], Tensor]) -> Tensor:
        """The photo's latents, sampled once for each picture; drawn before any other noise, as diffusers does."""
        draws = noise()
        weight = self.models.vae.quant_conv.weight
        posterior = self.models.vae.posterior(to_tensor([photo]).to(weight))
        latents = posterior.sample(draws.to(weight))  # one distribution, one draw of it for each picture
        return latents.float() * self.models.vae.config.scaling_factor


def resolve_seed(seed: int | None, num_images: int = 1) -> int:
    """The seed asked for, or a random one below 2^32 for None; ValueError where it, or num_images, is out of range."""
    _check("num_images", num_images, num_images >= 1, "at least 1")
    if seed is None:
        return secrets.randbelow(2**32)
    _check("seed", seed, 0 <= seed <= MAX_SEED - num_images, "between 0 and 2^63 - 1, or None for a random one")
    return seed


def _check(name: str, value: object, fine: bool, rule: str) -> None:
    if not fine:
        raise ValueError(f"{name} must be {rule}, got {value!r}")
