"""The common part of the two tabs: Generate and Stop, the live view, and the finished pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from gradio.events import Dependency

from stable_diffusion.request import Picture, Request
from ui.stage import live

from .form.controls import CHECKED, QUIET, SHOW_REFUSAL, Controls, Updates, Values, request_of
from .keep.files import NoRoom
from .keep.history import FinishedRun, History
from .runs.backend import Backend
from .runs.errors import errors_on_page, explain, in_words_of, page_error, titled, without_folders
from .runs.events import Event, Started, Waiting
from .runs.match import closest
from .runs.message_rate import MessageRate
from .runs.models import LoadedModels
from .runs.prepare import check
from .runs.registry import PageRun, Registry
from .runs.visitors import Visitor, visitor_of
from .stage.film import finish, save_film, save_strip, with_final_picture
from .stage.opening import FILMS, example

BLURRED = (
    "The model's safety checker found something that is not for everybody, and it errs at times: "
    "try another prompt or another seed."
)
CLOSEST = "closest to your words"
NOT_KEPT = "The picture stays on the stage until you draw the next one: save it from there."

PAUSE = 0.1
"""Seconds between two answers: Gradio's page may skip the first of two that follow each other quickly."""

PRESS = '() => document.querySelector("#%s-generate").click()'

COPY_LINK = """async () => {
  const live = document.querySelector("#%s .live");
  if (!live.dataset.link) return;
  if (live.dataset.link.length > 30000) {
    live.querySelector(".status").textContent =
      "The prompt is too long for a link: the downloaded picture carries all settings.";
    return;
  }
  history.replaceState(null, "", "?" + live.dataset.link);
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  const settings = new URLSearchParams(live.dataset.link);
  const without = settings.has("strength") && !settings.has("photo") ? " Your photo is not in it." : "";
  const done = copied ? "The link is copied." : `Copy this link: ${location.href}`;
  live.querySelector(".status").textContent = done + without;
}"""
"""Copy the run's link, which also becomes the page's address: a browser may forbid copying. A server takes addresses of
64 kB at most, with the other headers of a request."""

TELL = '() => { document.querySelector("#%s .status").textContent = "%s"; }'
"""Write a sentence under the stage."""

TAKE = """async (address) => {
  const link = Object.assign(document.createElement("a"), {href: address, download: address.split("/").at(-1)});
  const status = document.querySelector("#%s .status");
  status.textContent = "";
  if (matchMedia("(pointer: coarse)").matches && navigator.canShare) {
    const content = await fetch(address).then((answer) => answer.blob());
    const files = [new File([content], link.download, {type: content.type})];
    const sent = () => navigator.share({files}).then(() => true, (error) => error.name === "AbortError");
    if (navigator.canShare({files}) && (await sent())) return;
  }
  link.click();
  status.textContent = `Saved as ${link.download}`;
}"""
"""Download a file that the server has just made. On a phone offer it to other apps; a browser may forbid that where the
press was seconds ago."""


@dataclass(frozen=True)
class Services:
    """The services of the page: the models, the backend that draws runs, the registry of runs, and the rate of their
    messages."""

    models: LoadedModels
    backend: Backend
    registry: Registry
    rate: MessageRate


@dataclass
class SketchState:
    """A visitor's newest sketch (ui/sketch.py); changes in place."""

    run_id: str = ""
    drawn: list[Any] = field(default_factory=list)
    """The form that was drawn last, as a sketch or in full."""
    files: tuple[Any, ...] = ()
    """The files of photo and mask, with fit and size, from which its pictures were read."""
    photo: Picture | None = None
    mask: Picture | None = None
    seed: int | None = None
    """The seed of the sketch on the stage, if there is one."""
    rests_until: float = 0.0
    """Time (`time.monotonic`) before which no sketch is drawn, to leave room for other visitors."""


@dataclass(frozen=True)
class View:
    """The right side of a tab: buttons, live view, finished pictures and their tools."""

    generate: gr.Button
    stop: gr.Button
    live: gr.HTML
    results: gr.Gallery
    last: gr.State
    """The `FinishedRun` that the tab shows, or None."""
    after: gr.Row
    """The row of tools: the buttons that follow."""
    download: gr.DownloadButton
    use: gr.Button
    inside: gr.Button
    link: gr.Button
    save: gr.Button
    strip: gr.Button
    saved: gr.Textbox
    """The address of the film or strip that was saved last, hidden."""
    run_id: gr.State
    """The name of the tab's newest run, which Stop ends."""
    sketch: gr.State
    """The visitor's `SketchState`."""


@dataclass(frozen=True)
class Tab:
    """One tab's components."""

    kind: str
    controls: Controls
    view: View
    history: History
    sketch: gr.Checkbox
    """The switch of drawing while the form changes."""
    fill: gr.Button
    """Restores the settings of a text in the prompt; visible for such a text alone."""

    def request(self, values: Values) -> Request:
        """Return the request of the form; `RequestError` for a value that no model takes."""
        return request_of(self.controls, values)

    def form(self, values: Values) -> list[Any]:
        """Return the values of all controls, to compare with those of another moment."""
        return [values[control] for control in self.controls.values()]

    def example(self, values: Values) -> Updates:
        """Return an example for an empty prompt, and its seed if that is empty too; nothing if there is a prompt."""
        prompt, seed = self.controls["prompt"], self.controls["seed"]
        if (values[prompt] or "").strip():
            return {}
        text, its_seed = example(values[self.controls["image"]] or "" if "image" in self.controls else None)
        return {prompt: text} | ({} if its_seed is None or values[seed] else {seed: str(its_seed)})

    @property
    def finished_outputs(self) -> list[Block]:
        """The components that `show` updates."""
        return [self.view.results, self.view.last, self.view.after, self.view.download]

    @property
    def run_outputs(self) -> list[Block]:
        """The components that `follow` updates."""
        return [self.view.live, self.view.run_id, *self.finished_outputs]

    def show(self, run: FinishedRun) -> Updates:
        """Return the updates that show a finished run, apart from its film; the stage shows a single picture."""
        view, alone = self.view, len(run.files) == 1
        return {
            view.results: gr.Gallery([] if alone else captioned(run), visible=not alone),
            view.last: run,
            view.after: gr.Row(visible=True),
            view.download: gr.DownloadButton(value=run.files[0], visible=alone),
        }


def captioned(run: FinishedRun) -> list[tuple[str, str | None]]:
    """Return the pictures of a run for a gallery, the one that matches the prompt best with a mark."""
    return [(file, CLOSEST if place == run.best else None) for place, file in enumerate(run.files)]


def run_view(kind: str, buttons: tuple[gr.Button, gr.Button], edge: Sequence[Component] = ()) -> View:
    """Return the live view with its tools, and the gallery below it for several pictures.

    edge: components to render directly under the stage.
    """
    with live.live_view(f"{kind}-live", FILMS[kind]) as view:
        for part in edge:
            part.render()
        with gr.Row(equal_height=True, visible=False, elem_classes="tools") as after:
            download = gr.DownloadButton("Download", **tool(kind, "download"))
            use = gr.Button("Use as photo", **tool(kind, "use"))
            inside = gr.Button("Look inside", **tool(kind, "inside"))
            link = gr.Button("Copy link", **tool(kind, "link"))
            save = gr.Button("Save film", **tool(kind, "save"))
            strip = gr.Button("Save strip", **tool(kind, "strip"))
    saved = gr.Textbox(visible=False)
    results = gr.Gallery(
        label="Your pictures",
        format="png",
        columns=2,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
        elem_id=f"{kind}-results",
        elem_classes="results",
        visible=False,
    )
    last, run_id, sketch = gr.State(None), gr.State(""), gr.State(SketchState())
    return View(*buttons, view, results, last, after, download, use, inside, link, save, strip, saved, run_id, sketch)


def tool(kind: str, name: str) -> dict[str, Any]:
    """Return the arguments that buttons under the stage share."""
    return {"size": "sm", "min_width": 0, "elem_id": f"{kind}-{name}", "elem_classes": ["tool", f"tool-{name}"]}


def connect(tab: Tab, services: Services, reuse: gr.Button) -> None:
    """Connect the tab's buttons."""
    view, registry, backend = tab.view, services.registry, services.backend

    async def generate(values: Values, visitor: gr.Request) -> AsyncIterator[Updates]:
        sketch: SketchState = values[view.sketch]
        backend.stop(sketch.run_id, pictures=False)
        with errors_on_page(tab.controls):
            example = tab.example(values)
            request = tab.request({**values, **example})
            if request.seed is None and sketch.seed is not None:  # the sketch is drawn in full
                request = request.with_values(seed=sketch.seed)
            await asyncio.to_thread(check, services.models, request)
        if supersede(values[view.run_id]):
            await asyncio.sleep(PAUSE)  # until the run before has left its place
        asker = visitor_of(visitor)
        run = PageRun(tab.kind, request, asker.address)
        sketch.run_id, sketch.seed, sketch.drawn = "", None, tab.form({**values, **example})
        if example:
            yield example
            await asyncio.sleep(PAUSE)
        async with aclosing(follow(tab, services, run, asker)) as updates:
            async for update in updates:
                yield update

    def stop(run_id: str) -> None:
        run = registry.get(run_id)
        if run is not None:
            run.stopped = True
            backend.stop(run_id)

    def supersede(run_id: str) -> bool:
        """End the tab's run without pictures, if one still goes on: Generate was pressed again."""
        run = registry.get(run_id)
        if run is None or run.finished is not None:
            return False
        run.page, run.stopped = None, True
        backend.stop(run_id, pictures=False)
        registry.forget(run)
        return True

    outputs = [*tab.run_outputs, tab.controls["prompt"], tab.controls["seed"]]
    inputs = {*tab.controls.values(), view.sketch, view.run_id}
    pressed = view.generate.click(generate, inputs, outputs, trigger_mode="multiple", **CHECKED)
    pressed.failure(None, js=SHOW_REFUSAL, api_visibility="private")
    keep_in_history(tab, pressed)
    view.stop.click(stop, view.run_id, None, **QUIET)
    reuse.click(lambda run: str(finished(run).request.seed), view.last, tab.controls["seed"], **CHECKED)
    for button, make in ((view.save, save_film), (view.strip, save_strip)):
        connect_save(f"{tab.kind}-live", button, make, view)
    # The live view has the link's query; only the browser knows the page's address.
    view.link.click(None, js=COPY_LINK % f"{tab.kind}-live", api_visibility="private")


def connect_save(stage: str, button: gr.Button, make: Callable[[FinishedRun], str], view: View) -> None:
    """Have a button make a file of the tab's run, which the browser then takes without another press."""
    button.click(None, js=TELL % (stage, "The file is being made."), api_visibility="private")
    made = button.click(
        partial(address_of, make), view.last, view.saved, show_progress="hidden", api_visibility="private"
    )
    made.success(None, view.saved, js=TAKE % stage, api_visibility="private")
    made.failure(None, js=TELL % (stage, ""), api_visibility="private")


def keep_in_history(tab: Tab, ended: Dependency) -> None:
    """Add a finished run to the visit's pictures in a second event: the list may have grown during the run."""
    history = tab.history
    ended.success(history.add, [history.runs, tab.view.last], [history.runs, history.gallery], **QUIET)


async def follow(tab: Tab, services: Services, run: PageRun, owner: Visitor) -> AsyncGenerator[Updates]:
    """Yield the page's updates for a run until it ends, or another page takes it over.

    Steps that come faster than messages are due travel with the next message.
    """
    view, backend, registry, page = tab.view, services.backend, services.registry, object()
    registry.show(run, page)
    film, ended, unsent = live.steps(run.run_id, run.film), False, list[live.Message]()
    try:
        yield {view.live: live.so_far(run.run_id, film, run.link), view.run_id: run.run_id}
        if film:
            await asyncio.sleep(PAUSE)
        with services.rate.stream(PAUSE) as due:
            async with aclosing(backend.stream(run.run_id, run.request or run.asked, owner)) as stream:
                async for news in stream:
                    if run.page is not page:
                        return
                    if run.stopped:  # Stop was pressed before the backend had the run
                        backend.stop(run.run_id)
                    if isinstance(news, Started):
                        run.request = news.request
                        warn(tab.controls, news.dropped)
                        yield {view.live: live.waiting(run.run_id, "", run.link)}
                    elif isinstance(news, Waiting):
                        yield {view.live: live.waiting(run.run_id, news.text, run.link)}
                    elif news.images is None:
                        run.add(news)
                        unsent.append(live.step(run.run_id, news))
                        if due():
                            yield {view.live: live.newest(unsent)}
                            unsent = []
                    else:
                        ended = True
                        yield await end(tab, services.models, run, news)
        if run.page is page and not ended:
            registry.forget(run)
            yield {view.live: live.idle()}
    except Exception as error:
        sentence = without_folders(explain(error))
        if run.page is page:
            registry.forget(run)
        yield {view.live: live.failed(run.run_id, in_words_of(tab.controls, sentence))}
        raise page_error(sentence, tab.controls) from None
    finally:
        if run.page is page:
            run.page = None


async def end(tab: Tab, models: LoadedModels, run: PageRun, last: Event) -> Updates:
    """Keep a run's files after its last event, and return the updates that show them."""
    assert run.request is not None, "a run starts before it has steps"
    run.add(last)
    film = await asyncio.to_thread(live.steps, run.run_id, run.film, run.request.image)
    try:
        finished = await asyncio.to_thread(finish, tab.kind, run.asked, run.request, last, film)
        best = await asyncio.to_thread(closest, models.catalogue.path(run.request.model), run.request, finished.files)
    except NoRoom as error:
        gr.Warning(titled("Not kept", f"{explain(error)} {NOT_KEPT}"))
        return {tab.view.live: live.last(film, run.link)}
    finished = replace(finished, best=best)
    run.finish(finished)
    if film and finished.film is None:
        gr.Warning(titled("Film not kept", "The server has no room for this run's film. Its pictures are kept."))
    if last.blurred:
        gr.Warning(titled("Blurred", BLURRED))
    return {tab.view.live: live.last(with_final_picture(film, finished), finished.link), **tab.show(finished)}


def warn(controls: Controls, dropped: dict[str, str]) -> None:
    """Show the text that exceeds the model's limit, by field."""
    for name, text in dropped.items():
        gr.Warning(titled("Shortened", f"{controls[name].label} is too long for this model. Left out: “{text[:300]}”"))


def finished(run: FinishedRun | None) -> FinishedRun:
    """Return the run that the tab shows; gr.Error if there is none yet."""
    if run is None:
        raise page_error("There is no picture yet: press Generate first.")
    return run


def address_of(make: Callable[[FinishedRun], str], run: FinishedRun | None) -> str:
    """Return the address of a file that is made of the run that the tab shows."""
    with errors_on_page():
        return live.address(make(finished(run)))
