"""What the two tabs have in common: Generate and Stop, the live view, and the pictures to keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.events import Dependency

from ui.stage import live

from .form.controls import CHECKED, QUIET, Controls, Updates, Values, settings_of
from .keep.files import NoRoom
from .keep.history import History, Kept, keep_run
from .runs.backend import Backend
from .runs.errors import explain, page_error, titled, told_on_the_page
from .runs.events import Started, Waiting
from .runs.limits import check, check_work
from .runs.models import ModelHolder
from .runs.registry import Runs, Watched
from .stage.film import save
from .stage.opening import proven

BLURRED = (
    "The model's safety checker found something that is not for everybody, and it errs at times: "
    "try another prompt or another seed."
)
UNKEPT = "The picture stays on the stage until you draw the next one: save it from there."

SETTLED = 0.1
"""Seconds after which an answer is drawn for certain, even where the next one follows."""

COPY_LINK = """async () => {
  const live = document.querySelector("#%s .live");
  if (!live.dataset.link) return;
  history.replaceState(null, "", "?" + live.dataset.link);
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  live.querySelector(".status").textContent = copied ? "The link is copied." : `Copy this link: ${location.href}`;
}"""
"""The browser may forbid to copy: then the address is there to be read."""


@dataclass(frozen=True)
class Drawing:
    """What draws behind the page: the models to choose from, where their runs are drawn, and the runs there were."""

    holder: ModelHolder
    backend: Backend
    runs: Runs


@dataclass
class Sketch:
    """A visitor's newest sketch (ui/stage/sketch.py), which changes in place."""

    run_id: str = ""
    drawn: tuple[Any, ...] = ()
    """What it draws: the values of the controls that are sketched when they change."""
    seed: int | None = None
    """That of the sketch on the stage; None where there is none."""
    rests_until: float = 0.0
    """Until when (`time.monotonic`) nothing is sketched, for others' sake."""


@dataclass(frozen=True)
class View:
    """The right side of a tab: buttons, live view, the pictures to keep, and what can be done with them."""

    generate: gr.Button
    stop: gr.Button
    live: gr.HTML
    results: gr.Gallery
    last: gr.State
    """The `Kept` run that the tab shows, or None."""
    after: gr.Row
    """What can be done with it: the buttons that follow."""
    download: gr.DownloadButton
    use: gr.Button
    inside: gr.Button
    link: gr.Button
    save: gr.Button
    files: gr.File
    run_id: gr.State
    """The name of the run that the tab asked for last, which Stop ends."""
    sketched: gr.State
    """The visitor's `Sketch`."""


@dataclass(frozen=True)
class Tab:
    """One tab's components."""

    kind: str
    controls: Controls
    view: View
    history: History
    sketch: gr.Checkbox
    """Whether the form is drawn while it changes."""

    def settings(self, values: Values) -> dict[str, Any]:
        """What the controls ask for; ValueError where that can't be meant, whatever the model."""
        settings = settings_of(self.controls, values)
        check(settings)
        return settings

    @property
    def shown(self) -> list[Block]:
        """The components that `show` updates."""
        return [self.view.results, self.view.last, self.view.after, self.view.download, self.view.files]

    @property
    def watched(self) -> list[Block]:
        """The components that `watch` updates."""
        return [self.view.live, self.view.generate, self.view.stop, self.view.run_id, *self.shown]

    def show(self, run: Kept) -> Updates:
        """The updates that show a run that is over, apart from its film. One picture alone is on the stage already."""
        view, alone = self.view, len(run.files) == 1
        return {
            view.results: gr.Gallery([] if alone else list(run.files), visible=not alone),
            view.last: run,
            view.after: gr.Row(visible=True),
            view.download: gr.DownloadButton(value=run.files[0], visible=alone),
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
    """The live view with what can be done with its picture, and under it the pictures to keep where they are many."""
    view = live.live_view(f"{kind}-live", film=kind == "t2i")
    with view, gr.Row(equal_height=True, visible=False, elem_classes="tools") as after:
        download = gr.DownloadButton("Download", **tool(kind, "download"))
        use = gr.Button("Use as photo", **tool(kind, "use"))
        inside = gr.Button("Look inside", visible=kind == "t2i", **tool(kind, "inside"))  # there is no photo
        link = gr.Button("Copy link", **tool(kind, "link"))
        save = gr.Button("Save film", **tool(kind, "save"))
    files = gr.File(label="Animation and contact strip", file_count="multiple", visible=False, elem_id=f"{kind}-files")
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
    last, run_id, sketched = gr.State(None), gr.State(""), gr.State(Sketch())
    return View(*buttons, view, results, last, after, download, use, inside, link, save, files, run_id, sketched)


def tool(kind: str, name: str) -> dict[str, Any]:
    """How a button under the stage looks."""
    return {"size": "sm", "min_width": 0, "elem_id": f"{kind}-{name}", "elem_classes": ["tool", f"tool-{name}"]}


def connect(tab: Tab, drawing: Drawing, reuse: gr.Button) -> None:
    """Make the tab's buttons work."""
    connect_run(tab, drawing)
    view = tab.view
    reuse.click(lambda run: str(shown(run).request.seed), view.last, tab.controls["seed"], **CHECKED)
    view.save.click(save_film, view.last, view.files, show_progress="hidden", api_visibility="private")
    # The live view knows the link; the browser alone knows the page's own address.
    view.link.click(None, js=COPY_LINK % f"{tab.kind}-live", api_visibility="private")


def connect_run(tab: Tab, drawing: Drawing) -> None:
    """Make Generate and Stop work."""

    async def generate(values: Values, visitor: gr.Request) -> AsyncIterator[Updates]:
        sketch: Sketch = values[tab.view.sketched]
        drawing.backend.stop(sketch.run_id)
        with told_on_the_page():
            filled = proven(tab.controls, values)
            settings = tab.settings({**values, **filled})
            if settings["seed"] is None:  # what was sketched is drawn in full
                settings["seed"] = sketch.seed
            check_work(drawing.holder, settings)
            run = drawing.runs.add(tab.kind, settings)
        sketch.run_id, sketch.seed = "", None
        if filled:
            yield filled
            await asyncio.sleep(SETTLED)
        async with aclosing(watch(tab, drawing.backend, run, visitor.session_hash)) as updates:
            async for update in updates:
                yield update

    def stop(run_id: str) -> None:
        run = drawing.runs.get(run_id)
        if run is not None:
            run.stopped = True
            drawing.backend.stop(run_id)

    inputs = {*tab.controls.values(), tab.view.sketched}
    outputs = [*tab.watched, tab.controls["prompt"], tab.controls["seed"]]
    begun = tab.view.generate.click(generate, inputs, outputs, **CHECKED)
    keep_in_history(tab, begun)
    tab.view.stop.click(stop, tab.view.run_id, None, **QUIET)


def keep_in_history(tab: Tab, over: Dependency) -> None:
    """Once a run is over, add it to the visit's pictures: an event of its own, for the visit may have more by then."""
    history = tab.history
    over.success(history.add, [history.runs, tab.view.last], [history.runs, history.gallery], **QUIET)


async def watch(tab: Tab, backend: Backend, run: Watched, owner: str | None) -> AsyncGenerator[Updates]:
    """The updates of a run that goes on; where another page takes it over, it ends here."""
    view, page = tab.view, object()
    run.page = page
    idle: Updates = {view.generate: gr.Button(interactive=True), view.stop: gr.Button(interactive=False)}
    # Told again with every step: of two answers in quick succession, Gradio 6.31's page may draw the second alone.
    busy: Updates = {view.generate: gr.Button(interactive=False), view.stop: gr.Button(interactive=True)}
    yield {view.live: live.so_far(run.run_id, run.film, run.link), view.run_id: run.run_id, **busy}
    if run.film:
        await asyncio.sleep(SETTLED)
    try:
        async with aclosing(backend.stream(run.run_id, run.settings, owner or run.run_id)) as stream:
            async for news in stream:
                if run.page is not page:
                    return
                if run.stopped:  # by now the backend has the run
                    backend.stop(run.run_id)
                if isinstance(news, Started):
                    run.request = news.request
                    run.settings = {**run.settings, "seed": news.request.seed}  # should it have to begin again
                    warn(news.dropped)
                    yield {view.live: live.waiting(run.run_id, "", run.link), **busy}
                elif isinstance(news, Waiting):
                    yield {view.live: live.waiting(run.run_id, news.text, run.link), **busy}
                elif news.images is None:
                    yield {view.live: run.add(live.message(run.run_id, news)), **busy}
                else:
                    assert run.request is not None, "a run starts before it has steps"
                    run.add(live.message(run.run_id, news))
                    film = run.film
                    try:
                        run.done = await asyncio.to_thread(keep_run, tab.kind, run.request, news, film)
                    except NoRoom as error:
                        gr.Warning(titled("Not kept", f"{explain(error)} {UNKEPT}"))
                        yield {view.live: live.last(film, run.link), **idle}
                        return
                    run.film = []
                    if news.blurred:
                        gr.Warning(titled("Blurred", BLURRED))
                    yield {view.live: live.last(run.done.shown(film), run.done.link), **tab.show(run.done), **idle}
    except Exception as error:
        sentence = explain(error)
        yield {view.live: live.failed(run.run_id, sentence), **idle}
        raise page_error(sentence) from None
    finally:
        if run.page is page:
            run.page = None
    if run.done is None:
        yield {view.live: live.idle(), **idle}


def warn(dropped: dict[str, str]) -> None:
    """Say which words the model will not see."""
    for name, text in dropped.items():
        gr.Warning(titled("Shortened", f"{name} is too long for this model. Left out: “{text[:300]}”"))


def shown(run: Kept | None) -> Kept:
    """The run that the tab shows; gr.Error where there is none yet."""
    if run is None:
        raise page_error("There is no picture yet: press Generate first.")
    return run


def save_film(run: Kept | None) -> gr.File:
    """The run's animation and contact strip, as files."""
    with told_on_the_page():
        over = shown(run)
        return gr.File(save(over.film, over.request, over.files[0]), visible=True)
