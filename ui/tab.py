"""What the two tabs have in common: Generate and Stop, the live view, and the pictures to keep."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from ui import live

from .controls import CHECKED, QUIET, Controls
from .files import keep, stem
from .film import animation, pictures, strip
from .history import History, Run, keep_run
from .models import ModelHolder
from .request import Request
from .run import dropped_text, run

QUEUE = "run"
"""The one line in which all runs wait, of both tabs and of programs."""

Values = dict[Component, Any]

COPY_LINK = """() => {
  const query = document.querySelector("#%s .live").dataset.link;
  if (!query) return;
  history.replaceState(null, "", "?" + query);
  navigator.clipboard?.writeText(location.href);
}"""


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
    """The `Run` that the tab shows, or None."""
    after: gr.Row
    """What can be done with it."""
    link: gr.Button
    save: gr.Button
    use: gr.Button
    files: gr.File


@dataclass
class Tab:
    """One tab's components, and what is going on in it."""

    kind: str
    controls: Controls
    view: View
    history: History
    stops: dict[str, threading.Event] = field(default_factory=dict)
    """For each visitor's session that runs or waits, what its Stop button sets."""

    def request(self, values: Values) -> Request:
        """The request that the controls ask for; ValueError where they can't be meant."""
        named = {name: values[component] for name, component in self.controls.items()}
        return Request(**{**named, "seed": read_seed(named["seed"])})

    @property
    def shown(self) -> list[Component]:
        """The components that `show` updates."""
        return [self.view.results, self.view.last, self.view.after, self.view.files]

    def show(self, run: Run) -> dict[Component, Any]:
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
    return View(*buttons, line, view, results, gr.State(None), after, link, save, use, files)


def connect(tab: Tab, holder: ModelHolder, reuse: gr.Button) -> None:
    """Make the tab's buttons work."""
    connect_run(tab, holder)
    view = tab.view
    reuse.click(lambda run: str(shown(run).request.seed), view.last, tab.controls["seed"], **CHECKED)
    view.save.click(save_film, view.last, view.files, show_progress="hidden", api_visibility="private")
    # The live view knows the link; the browser alone knows the page's own address.
    view.link.click(None, js=COPY_LINK % f"{tab.kind}-live", api_visibility="private")


def connect_run(tab: Tab, holder: ModelHolder) -> None:
    """Make Generate work: check at once, wait in line, run."""
    view, history = tab.view, tab.history

    def begin(values: Values, request: gr.Request) -> dict[Component, Any]:
        try:
            wanted = tab.request(values)
        except ValueError as error:
            raise clear_error(error) from None
        tab.stops[request.session_hash] = threading.Event()
        text = "Waiting for your turn…" if holder.ready(wanted.model) else "Loading the model…"
        return {
            view.live: live.waiting("next", text),
            view.generate: gr.Button(interactive=False),
            view.stop: gr.Button(interactive=True),
        }

    def generate(values: Values, request: gr.Request) -> Iterator[dict[Component, Any]]:
        stopped = tab.stops.setdefault(request.session_hash, threading.Event())
        run_id, film = live.new_run(), []
        try:
            wanted = tab.request(values)
            pipeline = holder.pipeline(wanted.model)
            wanted = wanted.for_side(pipeline.default_size)
            warn(dropped_text(pipeline, wanted))
            for event in run(pipeline, wanted, stopped.is_set):
                film.append(live.message(run_id, event))
                if event.images is None:
                    yield {view.live: film[-1]}
            done = keep_run(tab.kind, wanted, event, film)
            yield {
                view.live: live.last(film, done.link),
                **tab.show(done),
                **history.add(values[history.runs], done),
            }
        except ValueError as error:
            yield {view.live: live.failed(run_id, str(error))}
            raise clear_error(error) from None
        finally:
            tab.stops.pop(request.session_hash, None)

    inputs = {*tab.controls.values(), history.runs}
    started = view.generate.click(
        begin, inputs, [view.live, view.generate, view.stop], show_progress_on=view.line, **CHECKED
    )
    finished = started.success(
        generate,
        inputs,
        [view.live, *tab.shown, history.runs, history.gallery],
        concurrency_id=QUEUE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=view.line,
        api_visibility="private",
    )
    buttons = [view.generate, view.stop]

    def idle() -> tuple[gr.Button, gr.Button]:
        return gr.Button(interactive=True), gr.Button(interactive=False)

    # Not `then`: after a failure, Gradio 6.31 does not do that.
    finished.success(idle, None, buttons, **QUIET)
    finished.failure(idle, None, buttons, **QUIET)

    def halt(request: gr.Request) -> None:
        if event := tab.stops.get(request.session_hash):
            event.set()

    view.stop.click(halt, None, None, **QUIET)


def warn(dropped: dict[str, str]) -> None:
    """Say which words the model will not see."""
    for name, text in dropped.items():
        gr.Warning(f"{name} is too long for this model. Left out: “{html.escape(text[:300])}”", title="Shortened")


def shown(run: Run | None) -> Run:
    """The run that the tab shows; gr.Error where there is none yet."""
    if run is None:
        raise gr.Error(
            "There is no picture yet: press Generate first.", title="Nothing here yet", print_exception=False
        )
    return run


def save_film(run: Run | None) -> gr.File:
    """The run's animation and contact strip, as files."""
    frames = pictures(shown(run).film)
    if not frames:
        raise gr.Error("This run had no previews: choose a live preview.", print_exception=False)
    name = stem(run.request.prompt, run.request.seed)
    return gr.File([keep(f"{name}.webp", animation(frames)), keep(f"{name}-strip.png", strip(frames))], visible=True)


def read_seed(text: str | None) -> int | None:
    """The seed in the text box: empty for a random one; ValueError where it is no whole number."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"seed must be a whole number, got {text[:50]!r}: leave it empty for a random one") from None


def clear_error(error: ValueError) -> gr.Error:
    """A message on the page, which reads HTML, for what is wrong with a request."""
    return gr.Error(html.escape(str(error), quote=False), title="That did not work", print_exception=False)
