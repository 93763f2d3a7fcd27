"""The controls that both tabs share, by the names of `Request`'s fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.events import Dependency

from stable_diffusion.request import (
    LORA_TAG,
    PREVIEW_LABELS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    Defaults,
    Request,
    RequestError,
)

from ..keep.settings import PAGE_MAX_GUIDANCE
from ..runs.adapter_files import can_be_named, find_files
from ..runs.limits import MAX_SLIDER_STEPS
from ..runs.models import LoadedModels
from .inputs import Dropdown, Slider

Controls = dict[str, Any]
"""Components by the setting that they hold; `Any`, because each class has its own events."""

Values = dict[Block, Any]
"""Values by component, as Gradio passes them to an event whose inputs are a set."""

Updates = dict[Block, Any]
"""New values or properties by component, as an event returns them."""

SIZED = ("width", "height")
SAMPLED = ("num_inference_steps", "guidance_scale", "sampler")
"""The settings that the choice of a model sets, beside the sizes."""
SWITCHED = (*SAMPLED, "then_at")
"""The settings that the switch of fast drawing sets."""

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Options of small events between components."""

CHECKED: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""Options of small events that may fail: Gradio shows a gr.Error only if the event was in the queue."""

SHOW_REFUSAL = "() => showRefusal()"
"""Show the message of the event that failed beside the field that it names (ui/keys.js)."""


class ModelSlider(gr.Slider):
    """A slider whose bounds change with the model; `Request` and the limits check its value.

    A value from before the change may still be on its way, and Gradio's own check would refuse it.
    """

    is_template = True  # the browser renders it as its base class

    def preprocess(self, payload: float) -> float:
        """Return the value unchecked."""
        return payload


def model_sliders(defaults: Defaults) -> dict[str, dict[str, Any]]:
    """Return, by setting, bounds and value of the sliders that depend on the model."""
    low, high, step = defaults.min_side, defaults.max_side, defaults.side_step
    side = {"minimum": low, "maximum": high, "step": step, "value": defaults.side}
    return {
        **dict.fromkeys(SIZED, side),
        "clip_skip": {"minimum": 0, "maximum": defaults.max_clip_skip, "step": 1, "value": 0},
    }


def request_of(controls: Controls, values: Values) -> Request:
    """Return the request that the controls hold; `RequestError` for a value that no model takes."""
    settings = {name: values[component] for name, component in controls.items()}
    return Request(**{**settings, "seed": read_seed(settings["seed"])})


def read_seed(text: str | None) -> int | None:
    """Return the seed of the text box, None if it is empty; `RequestError` if it is not a whole number."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"seed must be a whole number, got {text[:50]!r}: leave it empty for a random one") from None


def menu(
    labels: Mapping[str, str], value: str, label: str, info: str, elem_id: str, *, render: bool = True
) -> Dropdown:
    """Return a menu of the names in `labels`."""
    choices = [(text, name) for name, text in labels.items()]
    return Dropdown(choices, value=value, label=label, info=info, elem_id=elem_id, min_width=220, render=render)


def run_buttons(text: str, start_id: str, stop_id: str) -> tuple[gr.Button, gr.Button]:
    """Build the buttons that start and stop a run; ui/keys.js finds them by their classes."""
    with gr.Row(elem_classes="run-row"):
        start = gr.Button(text, variant="primary", elem_id=start_id, elem_classes="generate", scale=3)
        stop = gr.Button("Stop", interactive=False, elem_id=stop_id, elem_classes="stop", scale=1, min_width=90)
    return start, stop


LORA_INFO = "Adds its tag to the prompt"


def lora_menu(prompt: gr.Textbox, kind: str) -> None:
    """Build a menu of the LoRA files beside the models; a choice adds its tag to the prompt."""
    with gr.Row(visible=False) as row:
        menu = Dropdown([], value=None, label="LoRA", info=LORA_INFO, elem_id=f"{kind}-lora")
        weight = Slider(
            -2, 2, value=1, step=0.05, label="Weight", info="Of the LoRA chosen next", elem_id=f"{kind}-lora-weight"
        )

    def list_files() -> tuple[gr.Row, gr.Dropdown]:
        names = list(find_files("loras"))
        choices, others = ([name for name in names if can_be_named(name) is able] for able in (True, False))
        left_out = f"; a tag can't name {', '.join(others)}: rename the file" if others else ""
        return gr.Row(visible=bool(names)), Dropdown(choices, value=None, info=LORA_INFO + left_out)

    def add(text: str, name: str | None, weight: float) -> tuple[Any, None]:
        return with_lora(text or "", name, weight) if name else gr.skip(), None

    gr.on(None, list_files, None, [row, menu], **QUIET)
    menu.blur(add, [prompt, menu, weight], [prompt, menu], **QUIET)


def with_lora(prompt: str, name: str, weight: float) -> str:
    """Return the prompt with the tag of a LoRA, in place of earlier tags of the same LoRA."""
    others = LORA_TAG.sub(lambda tag: "" if tag["name"] == name else tag[0], prompt)
    return f"{others.rstrip()} <lora:{name}:{weight:g}>".lstrip()


FAST_INFO = "Four evaluations, with weights that were trained for it; no negative prompt"


def sampling_controls(defaults: Defaults, kind: str) -> Controls:
    """Return steps, guidance, the switch of fast drawing, for models that have it, and seed."""
    with gr.Row():
        steps = steps_control(defaults, f"{kind}-steps", info="More steps: slower, often finer", min_width=220)
        guidance = guidance_control(defaults, f"{kind}-guidance", info="How closely to follow it", min_width=220)
    fast = gr.Checkbox(False, label="Fast", info=FAST_INFO, elem_id=f"{kind}-fast", visible=defaults.fast)
    with gr.Row(elem_classes="seed-row"):
        seed = gr.Textbox(  # a gr.Number can't be empty: it would show 0
            label="Seed",
            placeholder="random",
            info="The same seed and settings give the same picture",
            elem_id=f"{kind}-seed",
            scale=3,
            min_width=220,
        )
        with gr.Column(scale=2, min_width=200), gr.Row():
            dice = gr.Button("Random", size="sm", elem_id=f"{kind}-dice", min_width=90)
            reuse = gr.Button("Reuse last", size="sm", elem_id=f"{kind}-reuse", min_width=90)
    dice.click(lambda: "", outputs=seed, **QUIET)
    return {**steps, **guidance, "fast": fast, "seed": seed, "_reuse": reuse}


def connect_fast(controls: Controls, model: gr.Dropdown, models: LoadedModels) -> None:
    """Set steps, guidance and sampler to those of fast drawing when its switch goes on, and to the model's when off.

    So the form shows the settings that are drawn. They can be changed: a run whose settings the fast weights do not
    allow is refused beside the field, and so is one with a negative prompt, which stays in the form.
    """
    given = [controls[name] for name in ("fast", "image", "strength") if name in controls]

    def suit(name: str, *values: Any) -> list[Any]:
        return switched(models.defaults(name), *values)

    # `input` comes from the visitor alone: a link, a file or the history brings its own settings.
    controls["fast"].input(suit, [model, *given], [controls[one] for one in SWITCHED], **QUIET)


def keep_fast(
    changed: Callable[..., Dependency], controls: Controls, model: gr.Dropdown, models: LoadedModels
) -> Dependency:
    """Set the steps of fast drawing again after an event that changes the photo or its strength.

    At a lower strength, fewer evaluations would be left of them.
    """

    def again(name: str, fast: bool, photo: str | None, strength: float) -> Any:
        return switched(models.defaults(name), fast, photo, strength)[0] if fast else gr.skip()

    given = [model, *(controls[name] for name in ("fast", "image", "strength"))]
    return changed(again, given, controls["num_inference_steps"], trigger_mode="always_last", **QUIET)


def switched(defaults: Defaults, fast: bool, photo: str | None = None, strength: float | None = None) -> list[Any]:
    """Return the values of `SWITCHED` that suit a model with these defaults."""
    request = defaults.complete(Request(fast=fast, image=photo, strength=strength))
    return [getattr(request, setting) for setting in SWITCHED]


def steps_control(defaults: Defaults, elem_id: str, **look: Any) -> Controls:
    """Return the number of steps; `look` holds arguments of the slider."""
    look = {"maximum": MAX_SLIDER_STEPS, "value": defaults.num_inference_steps, **look}
    return {"num_inference_steps": Slider(1, step=1, label="Steps", elem_id=elem_id, **look)}


def guidance_control(defaults: Defaults, elem_id: str, **look: Any) -> Controls:
    """Return the guidance scale; `look` holds arguments of the slider."""
    value = defaults.guidance_scale
    return {"guidance_scale": Slider(0, PAGE_MAX_GUIDANCE, value, step=0.5, label="Guidance", elem_id=elem_id, **look)}


def own_size_button(width: gr.Slider, height: gr.Slider, model: gr.Dropdown, models: LoadedModels, kind: str) -> None:
    """Build a button that appears where a model draws no other size well than its own, and goes back to that."""
    button = gr.Button(visible=False, size="sm", elem_id=f"{kind}-own-size")

    def tell(width: float, height: float, name: str) -> gr.Button:
        defaults = models.defaults(name)
        own = f"{defaults.side} x {defaults.side}"
        text = f"This model draws {own} well; other sizes fall apart. Back to {own}"
        return gr.Button(text, visible=defaults.own_size_only and (width, height) != (defaults.side, defaults.side))

    gr.on([one.change for one in (width, height, model)], tell, [width, height, model], button, **QUIET)
    button.click(lambda name: (models.defaults(name).side,) * 2, model, [width, height], **QUIET)


def more_controls(
    defaults: Defaults, kind: str, prompts: Controls, model: gr.Dropdown, models: LoadedModels
) -> Controls:
    """Return the other settings, folded away, and render the negative prompt and the syntax of `prompts` there."""
    sliders = model_sliders(defaults)
    with gr.Accordion("More settings", open=False):
        prompts["negative_prompt"].render()
        prompts["prompt_syntax"].render()
        with gr.Row():
            sampler = menu(
                SAMPLER_LABELS, defaults.sampler, "Sampler", "The recipe that removes the noise", f"{kind}-sampler"
            )
            preview = menu(
                PREVIEW_LABELS, defaults.preview, "Live preview", "How each step is drawn", f"{kind}-preview"
            )
        with gr.Row():
            schedule = menu(SCHEDULE_LABELS, "model", "Schedule", "How the noise levels are spaced", f"{kind}-schedule")
            clip_skip = ModelSlider(
                **sliders["clip_skip"],
                label="CLIP skip",
                info="Layers of the text encoder left out; many drawing models want 1",
                elem_id=f"{kind}-clip-skip",
                min_width=220,
            )
        with gr.Row():
            width = ModelSlider(**sliders["width"], label="Width", elem_id=f"{kind}-width", min_width=220)
            height = ModelSlider(**sliders["height"], label="Height", elem_id=f"{kind}-height", min_width=220)
        own_size_button(width, height, model, models, kind)
        lora_menu(prompts["prompt"], kind)
        count = Slider(1, models.limits.max_images, value=1, step=1, label="Pictures", elem_id=f"{kind}-count")
    return {
        "sampler": sampler,
        "preview": preview,
        "schedule": schedule,
        "clip_skip": clip_skip,
        "width": width,
        "height": height,
        "num_images": count,
    }
