"""A run: one request between its first noise and its last picture, one evaluation of the network at a time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from .guidance import Answer, Denoiser, Query
from .levels import Plan
from .loading.checkpoints import finite
from .model_loader import Models
from .preview import Pictures, Preview, Renderer
from .request import Request
from .samplers import Sampling
from .schedule import CLEAN, Level
from .vae import unet_not_finite


@dataclass(frozen=True)
class Result:
    """A finished request: its images, the seed of the first (image i has seed + i), and the final latents.

    found: which images the model's safety checker found; they are blurred. Empty for a model without one.
    """

    images: list[Image.Image]
    seed: int
    latents: Tensor
    found: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Step:
    """One evaluation of the network.

    index: 1 to total.
    latents: x_t (N, C, h, w), the input at the noise `level`, in sampler space: x_t = alpha x_0 + sigma eps.
    answer: the network's x_0, of the same shape: guided, by the prompt alone, and by the negative prompt alone.
    images: pictures of the prompt's own x_0, before guidance; None where no preview was due. On the last step they are
    the final images, by the VAE.
    found: which images the model's safety checker found; they are blurred.
    final, result: set on the last step: the latents that the run ends with, and the result.
    """

    index: int
    total: int
    level: Level
    latents: Tensor
    answer: Answer
    seed: int
    render: Renderer = field(repr=False)
    images: list[Image.Image] | None = None
    found: tuple[bool, ...] = ()
    final: Tensor | None = None
    result: Result | None = None

    @property
    def denoised(self) -> Tensor:
        """The guided x_0, from which the sampler goes on."""
        return self.answer.x_0

    @property
    def timestep(self) -> float:
        """Timestep of the trained schedule; may be fractional."""
        return self.level.timestep

    @property
    def alpha(self) -> float:
        """Scale of the picture in x_t."""
        return self.level.alpha

    @property
    def sigma(self) -> float:
        """Scale of the noise in x_t, in the sampler's own space."""
        return self.level.sigma

    @property
    def precision(self) -> str:
        """Name of the type that the networks compute in: float32, bfloat16 or float16."""
        return str(next(self.render.models.vae.parameters()).dtype).removeprefix("torch.")

    def noisy(self) -> list[Image.Image]:
        """Return pictures of x_t, the noisy latents that the network receives: a pixel for each latent."""
        return self.render.coarse(self.latents / self.level.scale, self.found)

    def coarse(self, x_0: Tensor) -> list[Image.Image]:
        """Return pictures of one of the answer's x_0: a pixel for each latent."""
        return self.render.coarse(x_0, self.found)

    def previewed(self, preview: Preview) -> Step:
        """Return the step with the pictures of `preview` or, for the last step, with final images and result."""
        if self.final is None:
            return self._with(preview(self.answer.conditional))
        step = self.decoded()
        assert step.images is not None
        return replace(step, result=Result(step.images, self.seed, self.final, step.found))

    def decoded(self) -> Step:
        """Return the step with pictures by the VAE: of its guided x_0 or, for the last step, of the final latents."""
        return self._with(self.render(self.denoised if self.final is None else self.final))

    def _with(self, pictures: Pictures | None) -> Step:
        return self if pictures is None else replace(self, images=pictures.images, found=pictures.found)


@dataclass(frozen=True)
class Conditioning:
    """The prompt's part of a run: keys and values of the cross-attention, and the network.

    models: the model with the LoRA files of the prompt, which stay merged for as long as something holds it.
    context, negative and then are (N, S, K), as `UNet.read` gives them; negative is None for a run without guidance.
    then: takes the place of context from step `then_at` on, counted from 1.
    """

    models: Models
    denoise: Denoiser
    context: Tensor
    negative: Tensor | None
    guidance_scale: float
    then: Tensor
    then_at: int


@dataclass
class Progress:
    """The state of a run between two evaluations: a few latents.

    asked: x_t and its noise level, of which the network is asked next; None when the run is over.
    """

    total: int
    sampling: Sampling
    asked: tuple[Tensor, Level] | None
    index: int = 0


class Run:
    """A request under way. `query` is the next question to the network, None when the run is over.

    The caller evaluates the query, alone or together with those of other runs, and hands over the answer:

        while run.query is not None:
            [answer] = run.denoise([run.query])
            step = run.answer(answer)

    request: the request, complete and with its seed. conditioning: None while the run is parked (`conditioned`).
    """

    def __init__(
        self,
        request: Request,
        plan: Plan,
        conditioning: Conditioning,
        x: Tensor,
        noise: Callable[[], Tensor],
        render: Renderer,
    ):
        self.request, self.render = request, render
        self.conditioning: Conditioning | None = conditioning
        sampling = plan.run(x, noise)
        self._progress = Progress(plan.evaluations, sampling, next(sampling))

    @property
    def denoise(self) -> Denoiser:
        """The network that answers the run's queries."""
        assert self.conditioning is not None, "a parked run is conditioned again before it goes on"
        return self.conditioning.denoise

    @property
    def query(self) -> Query | None:
        """The next question to the network; None when the run is over."""
        if self._progress.asked is None:
            return None
        given = self.conditioning
        assert given is not None, "a parked run is conditioned again before it goes on"
        context = given.context if self._progress.index + 1 < given.then_at else given.then
        return Query(*self._progress.asked, context, given.negative, given.guidance_scale)

    @property
    def is_over(self) -> bool:
        """Whether the run has its last step, or was closed."""
        return self._progress.asked is None

    def conditioned(self, conditioning: Conditioning | None) -> Run:
        """Return the same run, at the same step, with another conditioning; None while it is parked.

        Both runs go on together. Keys and values are the largest part of a run, and its request gives them again.
        """
        other = copy.copy(self)
        other.conditioning = conditioning
        return other

    def preview(self, clock: Callable[[], float] = time.perf_counter) -> Preview:
        """Return the decoder of this run's previews; `clock` gives seconds."""
        assert self.request.preview is not None, "a run's request is complete"
        return Preview(self.render, self.request.preview, clock)

    def answer(self, answer: Answer) -> Step:
        """Continue with the network's answer to `query` and return the step, without pictures.

        Afterwards `query` is the next question, or None: then the step has the run's `final` latents. Raises
        `NotFinite` where these hold numbers that are not finite.
        """
        query, progress, final = self.query, self._progress, None
        assert query is not None, "a run that is over has no question to answer"
        assert self.request.seed is not None, "a run's request is seeded"
        progress.index += 1
        try:
            x, level = progress.sampling.send(answer.x_0)
            progress.asked = self._blend(x, level), level
        except StopIteration as stop:
            progress.asked, final = None, self._blend(stop.value, CLEAN)
            if not finite(final):
                raise unet_not_finite(query.context.dtype) from None
        step = Step(progress.index, progress.total, query.level, query.x, answer, self.request.seed, self.render)
        return replace(step, final=final)

    def close(self) -> None:
        """End the run where it is."""
        self._progress.sampling.close()
        self._progress.asked = None

    def steps(self, denoise: Callable[[Sequence[Query]], list[Answer]] | None = None) -> Generator[Step, None, None]:
        """Run to the end and yield each step with its pictures; closing the iterator closes the run.

        denoise: answers the queries in place of the run's own denoiser, for callers that observe it.
        """
        denoise, preview = denoise or self.denoise, self.preview()
        try:
            while self.query is not None:
                [answer] = denoise([self.query])
                step = self.answer(answer)
                due = step.final is not None or step.index % self.request.preview_every == 0
                yield step.previewed(preview) if due else step
        finally:
            self.close()

    def _blend(self, x: Tensor, level: Level) -> Tensor:
        mask = self.render.mask
        return x if mask is None else mask.blend(x, level)
