"""What the two tabs have in common: Generate and Stop, the live view, and the pictures to keep."""

from __future__ import annotations

import html
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block

from ui import live

from .controls import CHECKED, QUIET, Controls, Updates, Values, settings_of
from .errors import explain, page_error, told_on_the_page
from .files import keep, stem
from .film import animation, pictures, read_film, strip
from .history import History, Kept, keep_run
from .limits import check, check_work, prepare
from .models import ModelHolder
from .run import dropped_text, run

QUEUE = "run"
"""The one line in which all visitors' runs wait, of every tab."""

TURN = "Waiting for your turn…"

COPY_LINK = """() => {
  const query = document.querySelector("#%s .live").dataset.link;
  if (!query) return;
  history.replaceState(null, "", "?" + query);
  navigator.clipboard?.writeText(location.href);
}"""


LEAVE = """() => {
  const state = document.querySelector("#%s-live .live").dataset.state;
  if (state === "waiting") document.querySelector("#%s-leave").click();
}"""
"""Stop, before the first step has come: out of the line."""

WAIT_NO_MORE = '(shown) => (shown.state === "waiting" ? {state: "idle"} : shown)'
"""What the live view shows once nothing is waited for."""


@dataclass(frozen=True)
class View:
    """The right side of a tab: buttons, live view, the pictures to keep, and what can be done with them."""

    generate: gr.Button
    stop: gr.Button
    line: gr.Markdown
    """Where Gradio says how many runs are ahead."""
    live: gr.HTML
    results: gr.Gallery
    last: gr.State
    """The `Kept` run that the tab shows, or None."""
    after: gr.Row
    """What can be done with it."""
    link: gr.Button
    save: gr.Button
    use: gr.Button
    files: gr.File
    stopping: gr.State
    """The `threading.Event` of the visitor's run, which Stop sets; None before the first one."""
    leave: gr.Button
    """Never seen: it takes a run that waits out of the line."""


@dataclass(frozen=True)
class Tab:
    """One tab's components."""

    kind: str
    controls: Controls
    view: View
    history: History

    def settings(self, values: Values) -> dict[str, Any]:
        """What the controls ask for; ValueError where that can't be meant, whatever the model."""
        settings = settings_of(self.controls, values)
        check(settings)
        return settings

    @property
    def shown(self) -> list[Block]:
        """The components that `show` updates."""
        return [self.view.results, self.view.last, self.view.after, self.view.files]

    def show(self, run: Kept) -> Updates:
        """The updates that show a run that is over, apart from its film."""
        view = self.view
        return {
            view.results: gr.Gallery(list(run.files), visible=True),
            view.last: run,
            view.after: gr.Row(visible=True),
            view.files: gr.File(visible=False),
        }


def run_buttons(kind: str) -> tuple[gr.Button, gr.Button]:
    """Generate and Stop."""
    with gr.Row(elem_classes="run-row"):
        generate = gr.Button(
            "Generate", variant="primary", elem_id=f"{kind}-generate", elem_classes="generate", scale=3
        )
        stop = gr.Button("Stop", interactive=False, elem_id=f"{kind}-stop", elem_classes="stop", scale=1, min_width=90)
    return generate, stop


def run_view(kind: str, buttons: tuple[gr.Button, gr.Button]) -> View:
    """The live view, and under it the pictures to keep."""
    line = gr.Markdown(elem_id=f"{kind}-line", elem_classes="line")
    view = live.live_view(f"{kind}-live")
    results = gr.Gallery(
        label="Your pictures",
        format="png",
        columns=4,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
        elem_id=f"{kind}-results",
        elem_classes="results",
        visible=False,
    )
    with gr.Row(visible=False) as after:
        use = gr.Button("Use as photo", size="sm", elem_id=f"{kind}-use", min_width=110)
        save = gr.Button("Save the film", size="sm", elem_id=f"{kind}-save", min_width=110)
        link = gr.Button("Copy link", size="sm", elem_id=f"{kind}-link", min_width=110)
    files = gr.File(label="Animation and contact strip", file_count="multiple", visible=False, elem_id=f"{kind}-files")
    leave = gr.Button(visible="hidden", elem_id=f"{kind}-leave")
    last, stopping = gr.State(None), gr.State(None)
    return View(*buttons, line, view, results, last, after, link, save, use, files, stopping, leave)


def connect(tab: Tab, holder: ModelHolder, reuse: gr.Button) -> None:
    """Make the tab's buttons work."""
    connect_run(tab, holder)
    view = tab.view
    reuse.click(lambda run: str(shown(run).request.seed), view.last, tab.controls["seed"], **CHECKED)
    view.save.click(save_film, view.last, view.files, show_progress="hidden", api_visibility="private")
    # The live view knows the link; the browser alone knows the page's own address.
    view.link.click(None, js=COPY_LINK % f"{tab.kind}-live", api_visibility="private")


def connect_run(tab: Tab, holder: ModelHolder) -> None:
    """Make Generate work: check at once, wait for the model, then in line, then run; and Stop, in all of that."""
    view, history = tab.view, tab.history

    def begin(values: Values) -> Updates:
        with told_on_the_page():
            check_work(holder, tab.settings(values))
        return {
            view.live: live.waiting("next", TURN),
            view.generate: gr.Button(interactive=False),
            view.stop: gr.Button(interactive=True),
            view.stopping: threading.Event(),
        }

    async def load(model: str, stopping: threading.Event) -> AsyncIterator[live.Message]:
        try:
            async for text, _ in holder.wait(model):
                if not stopping.is_set():
                    yield live.waiting("next", f"{text}…")
            yield live.waiting("next", TURN)
        except Exception as error:
            sentence = explain(error)
            yield live.failed("next", sentence)
            raise page_error(sentence) from None

    def generate(values: Values) -> Iterator[Updates]:
        stopping, run_id, film = values[view.stopping], live.new_run(), []
        if stopping.is_set():
            yield {view.live: live.idle()}
            return
        try:
            pipeline, wanted = prepare(holder, tab.settings(values))
            warn(dropped_text(pipeline, wanted))
            for event in run(pipeline, wanted, stopping.is_set):
                film.append(live.message(run_id, event))
                if event.images is None:
                    yield {view.live: film[-1]}
            done = keep_run(tab.kind, wanted, event, film)
            yield {
                view.live: live.last(film, done.link),
                **tab.show(done),
                **history.add(values[history.runs], done),
            }
        except Exception as error:
            sentence = explain(error)
            yield {view.live: live.failed(run_id, sentence)}
            raise page_error(sentence) from None

    inputs: set[Block] = {*tab.controls.values(), history.runs, view.stopping}
    buttons = [view.generate, view.stop]
    begun = view.generate.click(
        begin, inputs, [view.live, *buttons, view.stopping], show_progress_on=view.line, **CHECKED
    )
    loaded = begun.success(load, [tab.controls["model"], view.stopping], view.live, **CHECKED)
    finished = loaded.success(
        generate,
        inputs,
        [view.live, *tab.shown, history.runs, history.gallery],
        concurrency_id=QUEUE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=view.line,
        api_visibility="private",
    )

    def idle() -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    # Not `then`: after a failure, Gradio 6.31 does not do that. What is cancelled has failed, too.
    finished.success(idle, None, buttons, **QUIET)
    for event in (loaded, finished):
        event.failure(None, view.live, view.live, js=WAIT_NO_MORE, api_visibility="private")
        event.failure(idle, None, buttons, **QUIET)

    def halt(stopping: threading.Event | None) -> None:
        if stopping is not None:
            stopping.set()

    # A run in progress ends itself, and keeps its picture; one that waits is cancelled.
    view.stop.click(halt, view.stopping, None, **QUIET)
    view.stop.click(None, js=LEAVE % (tab.kind, tab.kind), api_visibility="private")
    view.leave.click(None, cancels=[loaded, finished], queue=False, api_visibility="private")


def warn(dropped: dict[str, str]) -> None:
    """Say which words the model will not see."""
    for name, text in dropped.items():
        gr.Warning(f"{name} is too long for this model. Left out: “{html.escape(text[:300])}”", title="Shortened")


def shown(run: Kept | None) -> Kept:
    """The run that the tab shows; gr.Error where there is none yet."""
    if run is None:
        raise gr.Error(
            "There is no picture yet: press Generate first.", title="Nothing here yet", print_exception=False
        )
    return run


def save_film(run: Kept | None) -> gr.File:
    """The run's animation and contact strip, as files."""
    with told_on_the_page():
        request = shown(run).request
        frames = pictures(read_film(shown(run).film))
        if not frames:
            raise ValueError("This run had no previews: choose a live preview.")
        assert request.seed is not None, "a run that is over has its seed"
        name = stem(request.prompt, request.seed)
        return gr.File(
            [keep(f"{name}.webp", animation(frames)), keep(f"{name}-strip.png", strip(frames))], visible=True
        )
