"""What can be asked for: one frozen value, checked once, with the names, limits and defaults that everybody asks here.

Free of torch, so that a page can offer all of it before the networks are loaded.
"""

from __future__ import annotations

import dataclasses
import math
import re
import secrets
from collections.abc import Container, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SAMPLER_LABELS: dict[str, str] = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
"""The samplers by name, and what other programs call them; `samplers.py` is what they do."""

SCHEDULE_LABELS: dict[str, str] = {
    "model": "Automatic",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "uniform": "Uniform",
}
"""How the noise levels of a run are spaced: as the model's scheduler says, or by name, as other programs call it."""

SPACED_SAMPLERS = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""The samplers whose levels can be spaced by name; the others visit what they were trained or distilled for."""

PREVIEW_LABELS: dict[str, str] = {
    "auto": "Automatic",
    "vae": "Sharp (VAE)",
    "tiny": "Sharp, fast (tiny VAE)",
    "linear": "Rough, fast (matrix)",
    "none": "None",
}
"""How the pictures of a run's steps are decoded; `preview.py` does it."""

FIT_LABELS: dict[str, str] = {"crop": "Crop", "pad": "Pad", "stretch": "Stretch"}
"""How a photo is brought to the size asked for; `images.fit_image` does it."""

SYNTAX_LABELS: dict[str, str] = {"plain": "Plain", "weighted": "Weighted"}
"""How a prompt is read; `prompt.py` tells."""

LORA_TAG = re.compile(r"<lora:(?P<name>[^:<>]*)(?::(?P<weight>[^<>]*))?>")
"""How a prompt names a LoRA file, as in AUTOMATIC1111's web UI."""

SIZE_UNIT = 8
MAX_SIDE = 4096
MAX_STEPS = 1000  # as many as there are trained timesteps; some samplers take a few less, and say so
MAX_GUIDANCE = 100.0
MAX_IMAGES = 1000
MAX_PROMPT = 20_000  # characters
MAX_CLIP_SKIP = 11  # of the 12 layers of CLIP's text tower; other towers refuse what they do not have
MAX_LORAS = 8
MAX_SEED = 2**63 - 1 - MAX_IMAGES  # picture i has seed + i
RANDOM_SEEDS = 2**32


@dataclass(frozen=True)
class Request:
    """One request. Building one raises ValueError, naming argument, value and remedy, where it can't be meant.

    image is the picture that image-to-image starts from, or its path, and None for text-to-image; fit says how it is
    brought to width x height, and strength, in (0, 1], how much of it is given up. mask, a picture or its path, lies
    over the photo: what is white there is drawn anew, what is black stays. None for height and width means the photo's
    own size, or the model's; for seed, as -1, a random one. Picture i of num_images has seed + i. clip_skip is how many
    of the text tower's last layers the prompt does not go through. model names the one of several models that draws;
    who runs the request has it already.
    """

    prompt: str = ""
    _: KW_ONLY
    negative_prompt: str = ""
    image: Image.Image | str | Path | None = None
    mask: Image.Image | str | Path | None = None
    strength: float = 0.8
    fit: str = "crop"
    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    sampler: str = "ddpm"
    schedule: str = "model"
    clip_skip: int = 0
    seed: int | None = None
    num_images: int = 1
    preview: str = "auto"
    preview_every: int = 1
    prompt_syntax: str = "plain"
    model: str | None = None

    def __post_init__(self) -> None:
        checked = {
            "prompt": _text("prompt", self.prompt),
            "negative_prompt": _text("negative_prompt", self.negative_prompt),
            "strength": _strength(self.strength),
            "num_inference_steps": _whole("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS),
            "guidance_scale": _number("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE),
            "height": _side("height", self.height),
            "width": _side("width", self.width),
            "clip_skip": _whole("clip_skip", self.clip_skip, 0, MAX_CLIP_SKIP),
            "num_images": _whole("num_images", self.num_images, 1, MAX_IMAGES),
            "preview_every": _whole("preview_every", self.preview_every, 1, MAX_STEPS),
        }
        if self.seed == -1:
            checked["seed"] = None
        elif self.seed is not None:
            checked["seed"] = _whole("seed", self.seed, 0, MAX_SEED, "or leave it empty for a random one")
        for name in ("image", "mask"):
            if not isinstance(getattr(self, name), (Image.Image, str, Path, type(None))):
                raise ValueError(f"{name} must be a picture or the path of one, got {shown(getattr(self, name))}")
        if self.mask is not None and self.image is None:
            raise ValueError(
                f"mask must come with an image, got {shown(self.mask)} alone: it says what to draw anew in it"
            )
        for name, choices in (
            ("sampler", SAMPLER_LABELS),
            ("preview", PREVIEW_LABELS),
            ("fit", FIT_LABELS),
            ("prompt_syntax", SYNTAX_LABELS),
        ):
            _choice(name, getattr(self, name), choices)
        check_schedule(self.sampler, self.schedule)
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen, and this is its birth
        if len(self.loras) > MAX_LORAS:
            raise ValueError(f"prompt may name at most {MAX_LORAS} LoRAs, got {len(self.loras)}: take some out")

    @property
    def steps(self) -> int:
        """How many steps a run takes: all of them, or from a photo the last ones, by strength."""
        if self.image is None:
            return self.num_inference_steps
        return steps_for_strength(self.num_inference_steps, self.strength)

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """The LoRA files that the prompt names, with their weights: `<lora:name:weight>`, or `<lora:name>` for 1."""
        return tuple((tag["name"], _lora_weight(tag)) for tag in LORA_TAG.finditer(self.prompt))

    def seeded(self) -> Request:
        """The same request with a seed: its own or, where it names none, a random one below 2^32."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbelow(RANDOM_SEEDS))


def without_loras(prompt: str) -> str:
    """A prompt without the names of LoRA files: the text that is read."""
    return LORA_TAG.sub("", prompt)


def _lora_weight(tag: re.Match[str]) -> float:
    text = tag["weight"] or "1"
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"the weight of a LoRA must be a number, got {shown(tag[0])}: write <lora:{tag['name']}:0.8>")
    return weight


def check_schedule(sampler: str, schedule: str) -> None:
    """Raise ValueError unless `schedule` is known and `sampler` has it."""
    _choice("schedule", schedule, SCHEDULE_LABELS)
    if schedule not in ("model", "uniform") and sampler not in SPACED_SAMPLERS:
        raise ValueError(
            f"schedule must be model or uniform for the sampler {sampler}, got {schedule!r}: choose one of those, "
            f"or a sampler of {', '.join(SPACED_SAMPLERS)}"
        )


def steps_for_strength(num_inference_steps: int, strength: float) -> int:
    """How many of n steps an image-to-image run takes: int(n * strength), but at least one.

    The run takes the last steps of the grid, so that a lower strength starts from less noise. Truncation, not
    rounding, is what diffusers does: int(50 * 0.58) is 28. Raises ValueError unless strength is in (0, 1].
    """
    return max(1, int(num_inference_steps * _strength(strength)))


@dataclass(frozen=True)
class Defaults:
    """What suits a model where a request leaves it open, and the sizes that it can draw."""

    side: int = 512
    """The side of the square pictures that the model was trained on, in pixels."""
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    strength: float = 0.7
    preview: str = "auto"
    max_clip_skip: int = MAX_CLIP_SKIP

    @property
    def min_side(self) -> int:
        """The smallest side worth asking for."""
        return self.side // 2

    @property
    def max_side(self) -> int:
        """The largest: beyond twice the trained one, pictures repeat themselves."""
        return self.side * 2

    @property
    def side_step(self) -> int:
        """From one size to the next: an eighth of the trained side, and always a multiple of 8."""
        return max(SIZE_UNIT, self.side // 8 // SIZE_UNIT * SIZE_UNIT)

    def request(self, **settings: Any) -> Request:
        """A request of the `settings` given, with these defaults for what is missing or None.

        Raises ValueError as `Request` does, and for sizes that are too large for the model.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        names = {one.name for one in dataclasses.fields(Request)}
        usual = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        request = Request(**{**usual, "height": self.side, "width": self.side, **given})
        for name in ("width", "height"):
            if getattr(request, name) > self.max_side:
                raise ValueError(
                    f"{name} must be at most {self.max_side} with this model, got {getattr(request, name)}: "
                    "choose a smaller size"
                )
        return request


DISTILLED: dict[str, dict[str, Any]] = {
    "lcm": {"num_inference_steps": 4, "guidance_scale": 8.0, "sampler": "lcm"},
    "turbo": {"num_inference_steps": 2, "guidance_scale": 0.0, "sampler": "euler"},
}
"""What models that were distilled to few steps want: latent consistency (arXiv:2310.04378), and adversarial diffusion
distillation (arXiv:2311.17042), which has its guidance inside."""


Json = Mapping[str, Any]


def defaults_for(
    unet: Json | None,
    vae: Json | None,
    scheduler: Json | None,
    text_encoder: Json | None = None,
    *,
    tiny_vae: bool = False,
) -> Defaults:
    """Defaults by the settings in a model's JSON files; the usual ones where they can't be read.

    tiny_vae: whether the model has a tiny autoencoder of its own.
    """
    sharp = "tiny" if tiny_vae else "vae"
    defaults, layers = _defaults_for(unet, vae, scheduler, sharp), (text_encoder or {}).get("num_hidden_layers")
    if not isinstance(layers, int) or layers < 1:
        return defaults
    return dataclasses.replace(defaults, max_clip_skip=min(layers - 1, MAX_CLIP_SKIP))


def _defaults_for(unet: Json | None, vae: Json | None, scheduler: Json | None, sharp: str) -> Defaults:
    """A small model is fast enough for a sharp preview of every step, by the decoder of that name."""
    size, vae = (unet or {}).get("sample_size"), vae or {}
    widths = vae.get("decoder_block_out_channels", vae.get("block_out_channels"))  # the first is an AutoencoderTiny's
    if not isinstance(size, int) or not isinstance(widths, (list, tuple)) or not 0 < len(widths) <= 10:
        return Defaults()  # what a loader would refuse is not looked at any closer here
    side = size * 2 ** (len(widths) - 1)
    distilled = _distillation(unet or {}, scheduler or {})
    if distilled is not None:
        return Defaults(side, **DISTILLED[distilled])
    if side <= 256:
        return Defaults(side, num_inference_steps=20, guidance_scale=4.0, preview=sharp)
    return Defaults(side)


def _distillation(unet: Json, scheduler: Json) -> str | None:
    """How a model was distilled to few steps, as far as its JSON tells; None for all others."""
    if unet.get("time_cond_proj_dim") or scheduler.get("_class_name") == "LCMScheduler":
        return "lcm"
    # SD-Turbo has no mark of its own, but no other Stable Diffusion comes with Euler on a trailing grid.
    euler = str(scheduler.get("_class_name")).startswith("Euler")
    zero_snr = scheduler.get("rescale_betas_zero_snr")
    return "turbo" if euler and scheduler.get("timestep_spacing") == "trailing" and not zero_snr else None


def _text(name: str, value: object) -> str:
    text = "" if value is None else value
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text, got {shown(value)}")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"{name} must be at most {MAX_PROMPT:,} characters long, got {len(text):,}: shorten it")
    return text


def _number(name: str, value: object, low: float, high: float, remedy: str = "") -> float:
    limit = f"{high:,g}" if high < 1e6 else f"{high}"
    tail = f": choose a number in that range{', ' + remedy if remedy else ''}"
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fine:  # NaN is not between any two numbers either
        raise ValueError(f"{name} must be between {low:g} and {limit}, got {shown(value)}{tail}")
    return value  # type: ignore[return-value]


def _strength(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"strength must be in (0, 1], got {shown(value)}: low stays close to the photo")
    return value


def _whole(name: str, value: object, low: int, high: int, remedy: str = "") -> int:
    number = _number(name, value, low, high, remedy)
    if number != math.floor(number):
        raise ValueError(f"{name} must be a whole number, got {value!r}: try {round(number)}")
    return int(number)


def _side(name: str, value: object) -> int | None:
    if value is None:
        return None
    side = _whole(name, value, SIZE_UNIT, MAX_SIDE)
    if side % SIZE_UNIT:
        nearest = side // SIZE_UNIT * SIZE_UNIT
        raise ValueError(
            f"{name} must be a multiple of {SIZE_UNIT}, got {side}: try {nearest} or {nearest + SIZE_UNIT}"
        )
    return side


def _choice(name: str, value: object, choices: Container[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")  # type: ignore[arg-type]


def shown(value: object) -> str:
    """A refused value, as short as a message needs."""
    try:
        text = repr(value)
    except ValueError:  # integers of thousands of digits have no text
        return "a number that is too long to show"
    return text if len(text) <= 100 else f"{text[:100]}…"
