"""From a request to a stream of steps: the one place where text, schedule, sampler, networks and previews meet."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from .adapters.lora import LoRAs
from .adapters.textual_inversion import Word, read_word, with_embeddings
from .compute.packed import for_inference
from .guidance import Denoiser, Query
from .images import fit_image, read_image, to_images, to_tensor
from .loading.checkpoints import finite
from .mask import Mask, read_mask
from .model_loader import Models, load
from .preview import Preview, linear_preview
from .prompt import Tokens, encode_tokens, tokenize
from .request import Defaults, Request, defaults_for, without_loras
from .safety import SafetyChecker, blur
from .samplers import Plan, plan
from .schedule import CLEAN, Level, NoiseSchedule
from .vae import VAE, Autoencoder, unet_not_finite


@dataclass(frozen=True)
class Result:
    """A finished request: its pictures, the seed of the first (picture i has seed + i), and the final latents.

    found says which pictures the model's safety checker found; they are blurred. Empty where there is none.
    """

    images: list[Image.Image]
    seed: int
    latents: Tensor
    found: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Step:
    """One evaluation of the network, as it happened.

    index counts 1 to total. latents is x_t, (N, C, H/8, W/8), that the evaluation saw at the noise `level`, in sampler
    space, where x_t = alpha x_0 + sigma eps. denoised is the network's x_0, of the same shape; final, on the last step
    alone, the latents that the run ends with. images are pictures of x_0, or None when no preview was due; on the last
    step they are the final pictures, decoded by the VAE, and `result` is set. Those that the model's safety checker
    finds are blurred; `found` says which.
    """

    index: int
    total: int
    level: Level
    latents: Tensor
    denoised: Tensor
    seed: int
    vae: Autoencoder = field(repr=False)
    mask: Mask | None = field(default=None, repr=False)
    safety_checker: SafetyChecker | None = field(default=None, repr=False)
    images: list[Image.Image] | None = None
    found: tuple[bool, ...] = ()
    final: Tensor | None = None
    result: Result | None = None

    @property
    def timestep(self) -> float:
        """Where on the trained schedule the evaluation was; may be fractional."""
        return self.level.timestep

    @property
    def alpha(self) -> float:
        """The share of the picture in x_t."""
        return self.level.alpha

    @property
    def sigma(self) -> float:
        """The noise in x_t, in the sampler's own scale."""
        return self.level.sigma

    @property
    def precision(self) -> str:
        """What the networks compute in: float32, bfloat16 or float16."""
        return str(next(self.vae.parameters()).dtype).removeprefix("torch.")

    def noisy(self) -> list[Image.Image]:
        """Pictures of x_t, in the variance-preserving scale and by the matrix: noise, as the network is shown it."""
        pictures = to_images(linear_preview(self.vae, self.latents / self.level.scale))
        return blur(pictures, self.found) if self.found else pictures

    def painted(self, preview: Preview) -> Step:
        """The step with its pictures: those of `preview` or, on the last one, the VAE's, and the result."""
        if self.final is None:
            return self._with(preview(self.denoised))
        step = self.decoded()
        assert step.images is not None
        return replace(step, result=Result(step.images, self.seed, self.final, step.found))

    def decoded(self) -> Step:
        """The step with pictures by the VAE: of its x_0 and, on the last step, of what the run ends with."""
        return self._with(to_images(self.vae.decode_finite(self.denoised if self.final is None else self.final)))

    def _with(self, pictures: list[Image.Image] | None) -> Step:
        """The step with these pictures of its x_0, as they may be shown."""
        if pictures is None:
            return self
        if self.mask is not None:
            pictures = self.mask.paste(pictures)
        if self.safety_checker is None:
            return replace(self, images=pictures)
        found = self.safety_checker.find(pictures)
        return replace(self, images=blur(pictures, found), found=tuple(found))


class Run:
    """A request under way, between two evaluations of the network; what it wants evaluated next is its `query`.

    Previews of its steps are decoded by its `decoder`. Whoever drives it evaluates the query, alone or together with
    those of other runs, and answers:

        while run.query is not None:
            [x_0] = run.denoise([run.query])
            step = run.answer(x_0)
    """

    def __init__(
        self,
        request: Request,
        plan: Plan,
        words: Words,
        x: Tensor,
        noise: Callable[[], Tensor],
        models: Models,
        mask: Mask | None = None,
    ):
        self.request, self.denoise, self.mask = request, words.denoise, mask
        self.decoder = models.decoder_for(request.preview)
        self._words, self._total, self._models = words, plan.evaluations, models
        self._index = 0
        self._sampling = plan.run(x, noise)
        self.query: Query | None = self._ask(*next(self._sampling))

    def answer(self, x_0: Tensor) -> Step:
        """Go on with the x_0 that the network gave for `query`; returns what happened, without pictures.

        Afterwards `query` is the next one, or None: the run is over, and the step has its `final` latents. Raises
        `NotFinite` where these are no picture.
        """
        assert self.query is not None, "a run that is over has no question to answer"
        assert self.request.seed is not None, "a run's request is seeded"
        query, self._index, final = self.query, self._index + 1, None
        try:
            x, level = self._sampling.send(x_0)
            self.query = self._ask(self._blend(x, level), level)
        except StopIteration as stop:
            self.query, final = None, self._blend(stop.value, CLEAN)
            if not finite(final):
                raise unet_not_finite(self._models.unet.conv_in.weight.dtype) from None
        vae, checker = self._models.vae, self._models.safety_checker
        step = Step(self._index, self._total, query.level, query.x, x_0, self.request.seed, vae, self.mask, checker)
        return replace(step, final=final)

    def close(self) -> None:
        """End the run where it is."""
        self._sampling.close()
        self.query = None

    def steps(self, denoise: Callable[[Sequence[Query]], list[Tensor]] | None = None) -> Generator[Step, None, None]:
        """Drive the run to its end and give each step with its pictures; closing the iterator closes the run.

        denoise: what answers instead of the run's own denoiser, for whoever wants to look on.
        """
        denoise = denoise or self.denoise
        previews = Preview(self.decoder, self.request.preview)
        try:
            while self.query is not None:
                [x_0] = denoise([self.query])
                step = self.answer(x_0)
                due = step.final is not None or step.index % self.request.preview_every == 0
                yield step.painted(previews) if due else step
        finally:
            self.close()

    def _blend(self, x: Tensor, level: Level) -> Tensor:
        return x if self.mask is None else self.mask.blend(x, level)

    def _ask(self, x: Tensor, level: Level) -> Query:
        words = self._words
        return Query(x, level, words.context, words.negative, words.guidance_scale)


@dataclass(frozen=True)
class Words:
    """What conditions a run, and the network that was conditioned by it: both as they were when the run began."""

    denoise: Denoiser
    context: Tensor
    negative: Tensor | None
    guidance_scale: float


class Pipeline:
    """Text-to-image and image-to-image over one set of models; `loras` merges LoRA files into them.

    A prompt that says `<lora:ink:0.8>` has the file that was offered to `loras` by that name merged for its own run.
    """

    def __init__(self, models: Models):
        self.schedule = NoiseSchedule(models.scheduler)
        self.loras = LoRAs(models)
        self._bare, self._words = models, tuple[Word, ...]()
        self._teaching = Lock()

    @property
    def models(self) -> Models:
        """What a run that begins now works with: the model that was loaded, with the LoRA files merged by now.

        A prompt that names more of them has them for its own run.
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

        vae: another one than the model's own, from the same kinds of places. dtype: what the networks compute in, by
        default float32 on a CPU, which is exact; "auto" for what is fastest here. safety_checker: have the model's own
        look at all pictures, where it has one, and blur what it finds.
        """
        return cls(load(source, vae=vae, device=device, dtype=dtype, safety_checker=safety_checker))

    def add_embedding(self, file: str | Path) -> None:
        """Teach the prompt a word by textual inversion (arXiv:2208.01618): the file's name, in any case, `my-cat.pt`.

        It takes the files of AUTOMATIC1111 (.pt), diffusers (.bin, .safetensors) and their like, of one vector or more,
        each a token of the prompt. Runs under way keep what they have. Raises `ModelError` where a file is damaged, of
        another model, or has the name of a word that is there; then nothing changes.
        """
        word = read_word(Path(file).expanduser(), self._bare)
        with self._teaching:
            self._teach((*self._words, word))

    def remove_embedding(self, name: str) -> None:
        """Take a word out again that `add_embedding` taught; ValueError where there is none of that name."""
        with self._teaching:
            if name not in self.embeddings:
                raise ValueError(f"name must be one of {', '.join(self.embeddings) or 'none'}, got {name!r}")
            self._teach(tuple(word for word in self._words if word[0] != name))

    def _teach(self, words: tuple[Word, ...]) -> None:
        self.loras.rebase(lambda models: with_embeddings(models, self._bare, words))
        self._words = words

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The words that files brought."""
        return tuple(name for name, _ in self._words)

    @property
    def default_size(self) -> int:
        """The side, in pixels, of the square pictures that the model was trained on."""
        return self.models.unet.config.sample_size * self.models.vae.config.downscale

    @property
    def defaults(self) -> Defaults:
        """What suits this model where a request leaves it open."""
        models = self.models
        scheduler = {**dataclasses.asdict(models.scheduler), "_class_name": models.scheduler.class_name}
        unet, vae, words = (dataclasses.asdict(one.config) for one in (models.unet, models.vae, models.text_encoder))
        return defaults_for(unet, vae, scheduler, words, tiny_vae=models.tiny_vae is not None)

    def __call__(self, request: Request | str, **settings: object) -> Result:
        """Run a request to its end; arguments are those of `stream`, without previews unless asked for."""
        if isinstance(request, str):
            settings = {"preview": "none", **settings}
        result = None
        for step in self.stream(request, **settings):
            result = step.result
        assert result is not None
        return result

    def stream(self, request: Request | str, **settings: object) -> Generator[Step, None, None]:
        """Yield every step of a request as it happens; close the generator to stop.

        request is a `Request`, or its prompt with `settings` under the names of `Request`'s fields. With an image it
        runs the last int(num_inference_steps * strength) steps (SDEdit, arXiv:2108.01073) from the image with noise,
        and with a mask changes only what is white in it, which at strength 1 starts from noise alone.
        Picture i uses seed + i and is, up to rounding, the one that a request of that seed alone gives. Raises
        ValueError, naming the argument, before the first step. Text beyond the model's limit is dropped, with a warning
        that says which.
        """
        yield from self.begin(request, **settings).steps()

    @torch.no_grad()
    def begin(self, request: Request | str, **settings: object) -> Run:
        """Read words and photo, draw the first noise: a run that waits for its first evaluation.

        Arguments and errors are those of `stream`.
        """
        if isinstance(request, str):
            request = Request(request, **settings)  # type: ignore[arg-type]
        request = request.seeded()
        photo = None if request.image is None else read_image(request.image)
        width, height = self._size(request, photo)
        steps = self.plan(request)
        words = self.read_words(request)
        draw = self._noise_source(request, height, width)
        # diffusers' order of draws: the photo's posterior, then the first noise, then the sampler's.
        if photo is None:
            return Run(request, steps, words, steps.start(draw()), draw, self.models)
        fitted = fit_image(photo, width, height, request.fit)
        x_0, noise, mask = self._encode(fitted, draw), draw(), None
        if request.mask is not None:
            mask = Mask(read_mask(request.mask, photo, width, height, request.fit), fitted, x_0, noise)
            if isinstance(self.models.vae, VAE):
                draw()  # diffusers also draws the latents of the masked photo, which inpainting networks look at
        start = steps.start(noise, None if steps.strength is None else x_0)
        return Run(request, steps, words, start, draw, self.models, mask)

    def plan(self, request: Request) -> Plan:
        """Which steps a request will take, without taking them."""
        # In a mask nothing of the photo is left at strength 1: the run starts as if there were none, as in diffusers.
        whole = request.image is None or (request.mask is not None and request.strength == 1)
        strength = None if whole else request.strength
        return plan(request.sampler, self.schedule, request.num_inference_steps, strength, request.schedule)

    def read_prompt(self, prompt: str, syntax: str = "plain") -> Tokens:
        """A prompt as this model reads it: its tokens, how many it took, and the text that it has no room for."""
        return tokenize(self.models.tokenizer, without_loras(prompt), syntax)

    @torch.no_grad()
    def read_words(self, request: Request) -> Words:
        """Prompt and negative prompt as `UNet.read` gives them, for each picture; the latter where the run is guided.

        At a guidance scale of 1 or less the negative prompt is not evaluated; a distilled model is told its scale.
        clip_skip is the prompt's alone, as in diffusers.
        """
        models = self.loras.using(request.loras)
        layers = models.text_encoder.config.num_hidden_layers
        if request.clip_skip >= layers:
            raise ValueError(
                f"clip_skip must be below the {layers} layers of this model's text encoder, got {request.clip_skip}"
            )
        texts = {"prompt": without_loras(request.prompt), "negative_prompt": request.negative_prompt}
        tokens = {name: tokenize(models.tokenizer, text, request.prompt_syntax) for name, text in texts.items()}
        for name, read in tokens.items():
            if read.dropped:
                limit = models.tokenizer.model_max_length - 2
                warnings.warn(f"{name} is longer than {limit} tokens, dropped: {read.dropped!r}", stacklevel=2)
        features = encode_tokens(models.tokenizer, models.text_encoder, list(tokens.values()))
        if request.clip_skip:
            skipped = encode_tokens(models.tokenizer, models.text_encoder, list(tokens.values()), request.clip_skip)
            features = torch.cat([skipped[:1], features[1:]])
        # Keys and values stay the same for the run: here they are computed once, not at every step.
        words = for_inference(models.unet, features.dtype).read(features)
        context, negative = (half.expand(request.num_images, -1, -1) for half in words.chunk(2))
        guided = request.guidance_scale > 1.0 and models.unet.config.time_cond_proj_dim is None
        denoise = Denoiser(models.unet, models.scheduler.prediction_type)
        return Words(denoise, context, negative if guided else None, request.guidance_scale)

    def _size(self, request: Request, photo: Image.Image | None) -> tuple[int, int]:
        """Width and height asked for, or else the photo's, in whole latents, or the model's own."""
        unit = self.models.vae.config.downscale
        default = (self.default_size,) * 2
        if photo is not None:
            default = (max(unit, photo.width - photo.width % unit), max(unit, photo.height - photo.height % unit))
        size = request.width or default[0], request.height or default[1]
        for name, side in zip(("width", "height"), size, strict=True):
            if side % unit:
                near = max(1, round(side / unit)) * unit
                raise ValueError(f"{name} must be a multiple of {unit} with this model, got {side}: try {near}")
        return size

    def _noise_source(self, request: Request, height: int, width: int) -> Callable[[], Tensor]:
        """Standard normal draws (count, C, h, w), a generator each, in float32 on the CPU: the same anywhere."""
        assert request.seed is not None
        config = self.models.vae.config
        shape = (1, config.latent_channels, height // config.downscale, width // config.downscale)
        weight = self.models.unet.conv_in.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)  # latents are never less precise than that
        generators = [torch.Generator().manual_seed(request.seed + i) for i in range(request.num_images)]

        def noise() -> Tensor:
            draws = [torch.randn(shape, generator=generator) for generator in generators]
            return torch.cat(draws).to(weight.device, dtype)

        return noise

    def _encode(self, photo: Image.Image, noise: Callable[[], Tensor]) -> Tensor:
        """The photo's latents, sampled once for each picture where the autoencoder samples."""
        vae = self.models.vae
        latents = for_inference(vae).encode(to_tensor([photo]).to(next(vae.parameters())), noise)
        return latents.to(torch.promote_types(latents.dtype, torch.float32))
