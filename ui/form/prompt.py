"""Prompt and negative prompt, with notes on their words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import gradio as gr

from stable_diffusion.request import SYNTAX_LABELS, Request, RequestError

from ..keep.infotext import holds_settings
from ..runs.adapter_files import add_files, find_files
from ..runs.limits import MAX_SLIDER_STEPS
from ..runs.models import LoadedModels
from .chips import chip_values, chips, knows_words, read_text, style_row
from .controls import QUIET, Controls, menu, run_buttons
from .inputs import Slider

if TYPE_CHECKING:
    from stable_diffusion.pipeline import Pipeline

DRAW_WHILE_TYPING = "Draw while I type"
OTHER = {"read": ("plain", "Draw it as typed"), "plain": ("read", "Draw what is known of it")}
"""By the syntax of a prompt, the other one and the button that chooses it."""
NEARLY_FULL = 3 / 4
"""Share of the model's token limit from which on the form shows the number of tokens."""


def prompt_controls(placeholder: str, model: gr.Dropdown, models: LoadedModels, kind: str) -> Controls:
    """Return prompt, later prompt, negative prompt and syntax, with notes, and the button for a text with settings.

    With them come the buttons Generate and Stop, above the notes, which would push them away from under the pointer,
    and the switch of sketches, which is off and disabled until the speed of the model is known.

    `kind` prefixes the tab's element ids.
    """
    with gr.Column(elem_classes="prompt-box"):
        prompt = gr.Textbox(label="Prompt", placeholder=placeholder, lines=2, max_lines=6, elem_id=f"{kind}-prompt")
        sketch = gr.Checkbox(
            False,
            label=DRAW_WHILE_TYPING,
            container=False,
            interactive=False,
            elem_id=f"{kind}-sketch",
            elem_classes="sketch",
        )
    buttons = run_buttons("Generate", f"{kind}-generate", f"{kind}-stop")
    info = "Weighted: (more:1.3), [less], and several times as long"
    # `more_controls` renders this and the next.
    syntax = menu(SYNTAX_LABELS, "read", "Prompt syntax", info, f"{kind}-syntax", render=False)
    negative = gr.Textbox(
        label="Negative prompt",
        placeholder="What to keep out of the picture (optional)",
        lines=1,
        max_lines=4,
        elem_id=f"{kind}-negative",
        render=False,
    )
    fill = gr.Button("Fill the form with the settings in this text", size="sm", visible=False, elem_id=f"{kind}-fill")
    connect_prompt_note(prompt, syntax, model, fill, models, kind)
    with gr.Accordion("Change its mind during the run", open=False, elem_id=f"{kind}-change"):
        then = gr.Textbox(label="Then", placeholder="Other words, for example: a red heart", elem_id=f"{kind}-then")
        info = "The first step that hears the other words"
        then_at = Slider(1, MAX_SLIDER_STEPS, 10, step=1, label="From step", info=info, elem_id=f"{kind}-then-at")
    connect_embeddings_note(model, models, kind)
    prompts = {"prompt": prompt, "negative_prompt": negative, "prompt_syntax": syntax}
    return {**prompts, "then": then, "then_at": then_at, "_fill": fill, "_sketch": sketch, "_run": buttons}


def connect_embeddings_note(model: gr.Dropdown, models: LoadedModels, kind: str) -> None:
    """Show below the prompt which words the embeddings beside the models add to it."""

    def note_embeddings(name: str | None = None) -> str:
        files, pipeline = find_files("embeddings"), models.loaded(name)
        if not files:
            return ""
        if pipeline is not None:
            add_files(pipeline)
        words = files if pipeline is None else pipeline.embeddings
        text = f"Words of your embeddings: {listed(words) or 'none that this model can take'}"
        others = files.keys() - words
        return f"{text}; not for this model: {listed(sorted(others))}" if words and others else text

    # An update of more than its text would make Gradio 6.31 put the page's first values in once more.
    note = gr.Markdown(note_embeddings(), elem_id=f"{kind}-embeddings", elem_classes="note if-any")
    gr.on(None, note_embeddings, None, note, **QUIET)
    model.change(note_embeddings, model, note, **QUIET)


def listed(words: Iterable[str]) -> str:
    """Return words as code in Markdown."""
    return ", ".join(f"`{word}`" for word in words)


def connect_prompt_note(
    prompt: gr.Textbox, syntax: gr.Dropdown, model: gr.Dropdown, fill: gr.Button, models: LoadedModels, kind: str
) -> None:
    """Show below the prompt what the model reads in it, and what exceeds its limit.

    For a text with settings, such as one copied from a picture's page, show the button `fill` instead.
    """
    styles = style_row(f"{kind}-styles", visible=knows_words(models, None))
    note = gr.Markdown(visible=False, elem_id=f"{kind}-words", elem_classes="note")
    things = chips(f"{kind}-chips")
    other = gr.Button(visible=False, size="sm", elem_id=f"{kind}-other")

    def check_prompt(text: str, syntax: str, name: str) -> tuple[gr.Markdown, gr.HTML, gr.HTML, gr.Button, gr.Button]:
        if holds_settings(text or ""):
            hidden = gr.Markdown(visible=False), gr.HTML(visible=False), gr.HTML(value=""), gr.Button(visible=False)
            return *hidden, gr.Button(visible=True)
        pipeline = models.loaded(name)
        read = read_text(models, name, text) if text else None
        reading = read if syntax in OTHER else None
        differs = reading is not None and reading.told and bool(reading.caption)
        sentences, drawn = [], text
        if reading is not None and syntax == "read":
            sentences, drawn = [reading.sentence], reading.caption or text
        elif reading is not None and differs:
            sentences = [f"I draw this as typed. Read, it would be: {reading.chips[0].label}."]
        if text and pipeline is not None:
            sentences.append(room_left(drawn, syntax, pipeline))
        shown, choices = " ".join(filter(None, sentences)), chip_values(reading)
        return (
            gr.Markdown(shown, visible=bool(shown)),
            gr.HTML(value=choices, visible=bool(choices)),
            gr.HTML(value=read.style if read else "", visible=knows_words(models, name)),
            gr.Button(OTHER[syntax][1], visible=True) if differs else gr.Button(visible=False),
            gr.Button(visible=False),
        )

    outputs = [note, things, styles, other, fill]
    changes = [component.change for component in (prompt, syntax, model)]
    gr.on(changes, check_prompt, [prompt, syntax, model], outputs, trigger_mode="always_last", **QUIET)
    other.click(lambda syntax: OTHER[syntax][0], syntax, syntax, **QUIET)


def room_left(text: str, syntax: str, pipeline: Pipeline) -> str:
    """Return a sentence about a prompt near or beyond the model's token limit or refused, else an empty string."""
    from stable_diffusion.prompt import max_chunks

    try:
        Request(text)
    except RequestError as error:
        return f"It can't be drawn: {error}."
    tokens, limit = pipeline.tokenize(text, syntax), pipeline.models.tokenizer.model_max_length - 2
    if tokens.dropped:
        # The text goes into a code span, where Markdown and HTML mean nothing.
        left_out = tokens.dropped[:200].replace("`", "")
        return f"It is too long, {tokens.count} of {limit} tokens: the model will not read `{left_out}`"
    most = max_chunks(pipeline.models.tokenizer)
    if len(tokens.ids) > most:
        return f"It is too long, {len(tokens.ids)} parts of {limit} tokens: at most {most} are drawn."
    if len(tokens.ids) > 1:
        return f"{tokens.count} tokens, in {len(tokens.ids)} parts of {limit}."
    return f"{tokens.count} of {limit} tokens." if tokens.count > NEARLY_FULL * limit else ""
