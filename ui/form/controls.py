"""The controls that both tabs share, named as in `Request`."""

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
)

from ..runs.adapter_files import bring, find_files
from ..runs.limits import MAX_GUIDANCE, MAX_SLIDER_STEPS, Limits
from ..runs.models import ModelHolder
from .inputs import Dropdown, Slider

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

Controls = dict[str, Any]
"""Argument name -> the component that holds its value; `Any`, for each kind has its own events."""

Values = dict[Block, Any]
"""Component -> its value, as an event gets them whose inputs are a set."""

Updates = dict[Block, Any]
"""Component -> its new value or its new properties, as an event answers."""

SIZED = ("width", "height")
SAMPLED = ("num_inference_steps", "guidance_scale", "sampler")
"""What the choice of a model sets, beside the sizes."""

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For the small events between components."""

CHECKED: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""For small events that may fail: Gradio shows the message of a gr.Error only where the event was in the queue."""

NEARLY_FULL = 3 / 4
"""The share of the tokens that a model reads, from which on they are counted."""


class ModelSlider(gr.Slider):
    """A slider whose bounds are the model's; `Request` and the model check its value.

    Its bounds change with the model, and a value from before that change may still be on its way: Gradio's own check
    would answer it with an error.
    """

    is_template = True  # drawn as its base class is

    def preprocess(self, payload: float) -> float:
        """The value as it came."""
        return payload


def of_the_model(defaults: Defaults) -> dict[str, dict[str, Any]]:
    """By setting, the bounds and values of the sliders that a model with these defaults sets."""
    low, high, step = defaults.min_side, defaults.max_side, defaults.side_step
    side = {"minimum": low, "maximum": high, "step": step, "value": defaults.side}
    return {
        **dict.fromkeys(SIZED, side),
        "clip_skip": {"minimum": 0, "maximum": defaults.max_clip_skip, "step": 1, "value": 0},
    }


def settings_of(controls: Controls, values: Values) -> dict[str, Any]:
    """The settings that the controls hold, by their names in `Request`; ValueError where one can't be read."""
    settings = {name: values[component] for name, component in controls.items()}
    return {**settings, "seed": read_seed(settings["seed"])}


def read_seed(text: str | None) -> int | None:
    """The seed in the text box: empty for a random one; ValueError where it is no whole number."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"seed must be a whole number, got {text[:50]!r}: leave it empty for a random one") from None


def prompt_controls(placeholder: str, model: gr.Dropdown, holder: ModelHolder, kind: str) -> Controls:
    """Prompt and negative prompt, for the model that is chosen. `kind` tells the tabs' element ids apart."""
    prompt = gr.Textbox(label="Prompt", placeholder=placeholder, lines=2, max_lines=6, elem_id=f"{kind}-prompt")
    syntax = Dropdown(
        [(label, name) for name, label in SYNTAX_LABELS.items()],
        value="plain",
        label="Prompt syntax",
        info="Weighted: (more:1.3), [less], and of any length",
        elem_id=f"{kind}-syntax",
        render=False,  # this and the next have their place among the settings that are folded away
    )
    negative = gr.Textbox(
        label="Negative prompt",
        placeholder="What to keep out of the picture (optional)",
        lines=1,
        max_lines=4,
        elem_id=f"{kind}-negative",
        render=False,
    )
    judge_prompt(prompt, syntax, model, holder, kind)
    name_embeddings(prompt, model, holder, kind)
    return {"prompt": prompt, "negative_prompt": negative, "prompt_syntax": syntax}


def name_embeddings(prompt: gr.Textbox, model: gr.Dropdown, holder: ModelHolder, kind: str) -> None:
    """Under a prompt: the words that files bring, of those that there are the ones that the model can take."""

    def name(model: str | None = None) -> gr.Markdown:
        files, pipeline = find_files("embeddings"), holder.loaded(model)
        if pipeline is not None:
            bring(pipeline)
        words = [f"`{word}`" for word in (files if pipeline is None else pipeline.embeddings)]
        text = f"Words of your embeddings: {', '.join(words) or 'none that this model can take'}"
        return gr.Markdown(text, visible=bool(files))

    note = gr.Markdown(visible=False, elem_id=f"{kind}-embeddings", elem_classes="note")
    gr.on(None, name, None, note, **QUIET)
    model.change(name, model, note, **QUIET)


def offer_loras(prompt: gr.Textbox, kind: str) -> None:
    """A menu of the LoRA files that are there when the page opens: the one chosen gets its tag in the prompt."""
    with gr.Row(visible=False) as row:
        menu = Dropdown([], value=None, label="LoRA", info="Adds its tag to the prompt", elem_id=f"{kind}-lora")
        weight = Slider(
            -2, 2, value=1, step=0.05, label="Weight", info="Of the LoRA chosen next", elem_id=f"{kind}-lora-weight"
        )

    def look() -> tuple[gr.Row, gr.Dropdown]:
        names = list(find_files("loras"))
        return gr.Row(visible=bool(names)), Dropdown(names, value=None)

    def add(text: str, name: str | None, weight: float) -> tuple[Any, None]:
        return with_lora(text or "", name, weight) if name else gr.skip(), None

    gr.on(None, look, None, [row, menu], **QUIET)
    menu.blur(add, [prompt, menu, weight], [prompt, menu], **QUIET)


def with_lora(prompt: str, name: str, weight: float) -> str:
    """The prompt with the tag of a LoRA, in the place of those that it has for the same one."""
    others = LORA_TAG.sub(lambda tag: "" if tag["name"] == name else tag[0], prompt)
    return f"{others.rstrip()} <lora:{name}:{weight:g}>".lstrip()


def judge_prompt(prompt: gr.Textbox, syntax: gr.Dropdown, model: gr.Dropdown, holder: ModelHolder, kind: str) -> None:
    """Under a prompt, where there is something to say: words that the model doesn't know, and what is too long."""
    note = gr.Markdown(visible=False, elem_id=f"{kind}-words", elem_classes="note")

    def judge(text: str, syntax: str, name: str) -> gr.Markdown:
        pipeline, vocabulary, said = holder.loaded(name), holder.vocabulary(name), []
        if text and vocabulary is not None:
            embeddings = () if pipeline is None else {word.lower() for word in pipeline.embeddings}
            said.append(vocabulary.told(text, embeddings))
        if text and pipeline is not None:
            said.append(room_left(text, syntax, pipeline))
        sentences = " ".join(filter(None, said))
        return gr.Markdown(sentences, visible=bool(sentences))

    changes = [component.change for component in (prompt, syntax, model)]
    gr.on(changes, judge, [prompt, syntax, model], note, trigger_mode="always_last", **QUIET)


def room_left(text: str, syntax: str, pipeline: Pipeline) -> str:
    """How much of a prompt the model can read, and what it can't; empty where it is far from the limit."""
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
    """Steps, guidance and seed, always in view."""
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
    """The number of steps; `look` is for the slider, and may lower its maximum or change its value."""
    look = {"maximum": MAX_SLIDER_STEPS, "value": defaults.num_inference_steps, **look}
    return {"num_inference_steps": Slider(1, step=1, label="Steps", elem_id=elem_id, **look)}


def guidance_control(defaults: Defaults, elem_id: str, **look: Any) -> Controls:
    """How closely to follow the prompt; `look` is for the slider."""
    value = defaults.guidance_scale
    return {"guidance_scale": Slider(0, MAX_GUIDANCE, value, step=0.5, label="Guidance", elem_id=elem_id, **look)}


def more_controls(defaults: Defaults, kind: str, prompts: Controls, limits: Limits) -> Controls:
    """Sampler, size, number of pictures and preview, folded away, with the rest of `prompts`."""
    sliders = of_the_model(defaults)
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
        offer_loras(prompts["prompt"], kind)
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
