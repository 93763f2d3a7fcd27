"""The controls that both tabs share, by the names of `Request`'s fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.blocks import Block

from stable_diffusion.request import (
    LORA_TAG,
    MAX_PROMPT,
    PREVIEW_LABELS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    SYNTAX_LABELS,
    Defaults,
    Request,
    RequestError,
)

from ..keep.settings import MAX_GUIDANCE
from ..runs.adapter_files import add_files, find_files
from ..runs.limits import MAX_SLIDER_STEPS, Limits
from ..runs.models import LoadedModels
from .inputs import Dropdown, Slider
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

Controls = dict[str, Any]
"""Components by the setting that they hold; `Any`, because each class has its own events."""

Values = dict[Block, Any]
"""Values by component, as Gradio passes them to an event whose inputs are a set."""

Updates = dict[Block, Any]
"""New values or properties by component, as an event returns them."""

SIZED = ("width", "height")
SAMPLED = ("num_inference_steps", "guidance_scale", "sampler")
"""The settings that the choice of a model sets, beside the sizes."""

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Options of small events between components."""

CHECKED: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""Options of small events that may fail: Gradio shows a gr.Error only if the event was in the queue."""

NEARLY_FULL = 3 / 4
"""Share of the model's token limit from which on the form shows the number of tokens."""


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


def prompt_controls(placeholder: str, model: gr.Dropdown, models: LoadedModels, kind: str) -> Controls:
    """Return prompt, negative prompt and syntax, with notes on the prompt. `kind` prefixes the tab's element ids."""
    prompt = gr.Textbox(label="Prompt", placeholder=placeholder, lines=2, max_lines=6, elem_id=f"{kind}-prompt")
    syntax = Dropdown(
        [(label, name) for name, label in SYNTAX_LABELS.items()],
        value="plain",
        label="Prompt syntax",
        info="Weighted: (more:1.3), [less], and of any length",
        elem_id=f"{kind}-syntax",
        render=False,  # rendered by `more_controls`, as is the next
    )
    negative = gr.Textbox(
        label="Negative prompt",
        placeholder="What to keep out of the picture (optional)",
        lines=1,
        max_lines=4,
        elem_id=f"{kind}-negative",
        render=False,
    )
    connect_prompt_note(prompt, syntax, model, models, kind)
    connect_embeddings_note(model, models, kind)
    return {"prompt": prompt, "negative_prompt": negative, "prompt_syntax": syntax}


def connect_embeddings_note(model: gr.Dropdown, models: LoadedModels, kind: str) -> None:
    """Show below the prompt which words the embeddings beside the models add to it."""

    def note_embeddings(name: str | None = None) -> gr.Markdown:
        files, pipeline = find_files("embeddings"), models.loaded(name)
        if pipeline is not None:
            add_files(pipeline)
        words = [f"`{word}`" for word in (files if pipeline is None else pipeline.embeddings)]
        text = f"Words of your embeddings: {', '.join(words) or 'none that this model can take'}"
        return gr.Markdown(text, visible=bool(files))

    note = gr.Markdown(visible=False, elem_id=f"{kind}-embeddings", elem_classes="note")
    gr.on(None, note_embeddings, None, note, **QUIET)
    model.change(note_embeddings, model, note, **QUIET)


def lora_menu(prompt: gr.Textbox, kind: str) -> None:
    """Build a menu of the LoRA files beside the models; a choice adds its tag to the prompt."""
    with gr.Row(visible=False) as row:
        menu = Dropdown([], value=None, label="LoRA", info="Adds its tag to the prompt", elem_id=f"{kind}-lora")
        weight = Slider(
            -2, 2, value=1, step=0.05, label="Weight", info="Of the LoRA chosen next", elem_id=f"{kind}-lora-weight"
        )

    def list_files() -> tuple[gr.Row, gr.Dropdown]:
        names = list(find_files("loras"))
        return gr.Row(visible=bool(names)), Dropdown(names, value=None)

    def add(text: str, name: str | None, weight: float) -> tuple[Any, None]:
        return with_lora(text or "", name, weight) if name else gr.skip(), None

    gr.on(None, list_files, None, [row, menu], **QUIET)
    menu.blur(add, [prompt, menu, weight], [prompt, menu], **QUIET)


def with_lora(prompt: str, name: str, weight: float) -> str:
    """Return the prompt with the tag of a LoRA, in place of earlier tags of the same LoRA."""
    others = LORA_TAG.sub(lambda tag: "" if tag["name"] == name else tag[0], prompt)
    return f"{others.rstrip()} <lora:{name}:{weight:g}>".lstrip()


def connect_prompt_note(
    prompt: gr.Textbox, syntax: gr.Dropdown, model: gr.Dropdown, models: LoadedModels, kind: str
) -> None:
    """Show below the prompt which of its words the model does not know, and what exceeds its limit."""
    note = gr.Markdown(visible=False, elem_id=f"{kind}-words", elem_classes="note")

    def check_prompt(text: str, syntax: str, name: str) -> gr.Markdown:
        pipeline, vocabulary = models.loaded(name), read_vocabulary(models.catalogue.path(name))
        sentences = []
        if text and vocabulary is not None:
            embeddings = () if pipeline is None else {word.lower() for word in pipeline.embeddings}
            sentences.append(vocabulary.sentence(text, embeddings))
        if text and pipeline is not None:
            sentences.append(room_left(text, syntax, pipeline))
        shown = " ".join(filter(None, sentences))
        return gr.Markdown(shown, visible=bool(shown))

    changes = [component.change for component in (prompt, syntax, model)]
    gr.on(changes, check_prompt, [prompt, syntax, model], note, trigger_mode="always_last", **QUIET)


def room_left(text: str, syntax: str, pipeline: Pipeline) -> str:
    """Return a sentence about a prompt near or beyond the model's token limit, else an empty string."""
    if len(text) > MAX_PROMPT:
        return f"It is too long: at most {MAX_PROMPT:,} characters are read."
    tokens, limit = pipeline.tokenize(text, syntax), pipeline.models.tokenizer.model_max_length - 2
    if tokens.dropped:
        # The text goes into a code span, where Markdown and HTML mean nothing.
        left_out = tokens.dropped[:200].replace("`", "")
        return f"It is too long, {tokens.count} of {limit} tokens: the model will not read `{left_out}`"
    if len(tokens.ids) > 1:
        return f"{tokens.count} tokens, in {len(tokens.ids)} parts of {limit}."
    return f"{tokens.count} of {limit} tokens." if tokens.count > NEARLY_FULL * limit else ""


def sampling_controls(defaults: Defaults, kind: str) -> Controls:
    """Return steps, guidance and seed."""
    with gr.Row():
        steps = steps_control(defaults, f"{kind}-steps", info="More steps: slower, often finer", min_width=220)
        guidance = guidance_control(defaults, f"{kind}-guidance", info="How closely to follow it", min_width=220)
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
    return {**steps, **guidance, "seed": seed, "_reuse": reuse}


def steps_control(defaults: Defaults, elem_id: str, **look: Any) -> Controls:
    """Return the number of steps; `look` holds arguments of the slider."""
    look = {"maximum": MAX_SLIDER_STEPS, "value": defaults.num_inference_steps, **look}
    return {"num_inference_steps": Slider(1, step=1, label="Steps", elem_id=elem_id, **look)}


def guidance_control(defaults: Defaults, elem_id: str, **look: Any) -> Controls:
    """Return the guidance scale; `look` holds arguments of the slider."""
    value = defaults.guidance_scale
    return {"guidance_scale": Slider(0, MAX_GUIDANCE, value, step=0.5, label="Guidance", elem_id=elem_id, **look)}


def more_controls(defaults: Defaults, kind: str, prompts: Controls, limits: Limits) -> Controls:
    """Return the other settings, folded away, and render the negative prompt and the syntax of `prompts` there."""
    sliders = model_sliders(defaults)
    with gr.Accordion("More settings", open=False):
        prompts["negative_prompt"].render()
        prompts["prompt_syntax"].render()
        with gr.Row():
            sampler = Dropdown(
                [(label, name) for name, label in SAMPLER_LABELS.items()],
                value=defaults.sampler,
                label="Sampler",
                info="The recipe that removes the noise",
                elem_id=f"{kind}-sampler",
            )
            preview = Dropdown(
                [(label, name) for name, label in PREVIEW_LABELS.items()],
                value=defaults.preview,
                label="Live preview",
                info="How each step is drawn",
                elem_id=f"{kind}-preview",
            )
        with gr.Row():
            schedule = Dropdown(
                [(label, name) for name, label in SCHEDULE_LABELS.items()],
                value="model",
                label="Schedule",
                info="How the noise levels are spaced",
                elem_id=f"{kind}-schedule",
            )
            clip_skip = ModelSlider(
                **sliders["clip_skip"],
                label="CLIP skip",
                info="Layers of the text tower left out; many drawing models want 1",
                elem_id=f"{kind}-clip-skip",
                min_width=220,
            )
        with gr.Row():
            width = ModelSlider(**sliders["width"], label="Width", elem_id=f"{kind}-width", min_width=220)
            height = ModelSlider(**sliders["height"], label="Height", elem_id=f"{kind}-height", min_width=220)
        lora_menu(prompts["prompt"], kind)
        count = Slider(1, limits.max_images, value=1, step=1, label="Pictures", elem_id=f"{kind}-count")
    return {
        "sampler": sampler,
        "preview": preview,
        "schedule": schedule,
        "clip_skip": clip_skip,
        "width": width,
        "height": height,
        "num_images": count,
    }
