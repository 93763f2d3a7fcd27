"""The event loop only waits: no call, with the worst file that is allowed, keeps it from other visitors' streams."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import sys
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from gradio.routes import App
from PIL import Image

import app
from stable_diffusion.request import MAX_PROMPT
from ui.runs.errors import UNEXPECTED
from ui.web.listeners import lifespan_with

from .caller import Caller, served
from .test_server import photo_calls

MOST = 0.05
"""Seconds that the loop's thread may compute without a break."""


class Watch:
    """Measure the processor time of the loop's thread between two turns of the loop.

    Not the time on the clock, of which a busy machine gives a part to others. `stack` is where the thread was when it
    had computed for half of `MOST`.
    """

    def __init__(self) -> None:
        self.worst, self.stack, self._now = 0.0, "", ""
        self._last, self._thread = 0.0, 0

    async def run(self) -> None:
        """Note each turn of the loop that this is called in, until the server ends."""
        self._thread, self._last = threading.get_ident(), time.thread_time()
        threading.Thread(target=self._look, daemon=True).start()
        while True:
            await asyncio.sleep(0.002)
            now = time.thread_time()
            if now - self._last > self.worst:
                self.worst, self.stack = now - self._last, self._now
            self._last, self._now = now, ""

    def _look(self) -> None:
        """Note where the loop's thread is while it computes for long."""
        clock = time.pthread_getcpuclockid(self._thread)
        while (frame := sys._current_frames().get(self._thread)) is not None:
            if time.clock_gettime(clock) - self._last > MOST / 2:
                self._now = "".join(traceback.format_stack(frame)[-12:])
            time.sleep(0.005)

    def take(self) -> tuple[float, str]:
        """Return the longest time since the last call, and where it was spent."""
        worst, stack = self.worst, self.stack
        self.worst, self.stack = 0.0, ""
        return worst, stack


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def caller(watch: Watch) -> Iterator[Caller]:
    """A caller of a page whose loop is watched."""

    def watched(*args: Any) -> Callable[[App], AbstractAsyncContextManager[None]]:
        own = lifespan_with(*args)

        @asynccontextmanager
        async def lifespan(server: App) -> AsyncIterator[None]:
            task = asyncio.create_task(watch.run())
            async with own(server):
                yield
            task.cancel()

        return lifespan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "lifespan_with", watched)
        with served() as page:
            yield Caller(page.local_url)


def photo() -> bytes:
    """Return a PNG of 40 megapixels."""
    buffer = io.BytesIO()
    noise = Image.effect_noise((730, 540), 80).convert("RGB")
    noise.resize((7300, 5400), Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def mask() -> bytes:
    """Return a PNG of 20,000 x 2,000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (20_000, 2_000), "white").save(buffer, "PNG")
    return buffer.getvalue()


def drive(caller: Caller, call: tuple[int, list[Any]], visit: str, **more: Any) -> dict[str, Any]:
    """Return the answer to a call, in the queue or past it as the page itself sends it."""
    number, data = call
    if next(one["queue"] for one in caller.endpoints if one["id"] == number):
        return caller.ask(call, visit, **more)
    return caller.post("run/predict", {"fn_index": number, "data": data, "session_hash": visit, **more}).json()


def filled(caller: Caller, endpoint: dict[str, Any], values: dict[str, Any]) -> tuple[int, list[Any]]:
    """Return a call of an endpoint, with those of the values that it has inputs for."""
    labels = (str(caller.components[one].get("label")) for one in endpoint["inputs"])
    names = {label.split(";")[0].split(":")[0] for label in labels}
    return caller.filled(endpoint, {name: values[name] for name in values.keys() & names})


def test_no_call_keeps_the_loop_from_others(caller: Caller, watch: Watch) -> None:
    """Each endpoint with a photo of 40 megapixels, a mask of 20,000 x 2,000, long prompts, a long film."""
    visit, slow = uuid.uuid4().hex, list[str]()
    large_file, wide_file = photo(), mask()
    words = ("cat " * MAX_PROMPT)[:MAX_PROMPT]

    def look(name: object) -> None:
        seconds, stack = watch.take()
        if seconds > MOST:
            slow.append(f"{name}: {1000 * seconds:.0f} ms\n{stack}")

    caller.ask(caller.public("text2image", prompt="a", num_inference_steps=1))  # imports what is imported once
    watch.take()
    large, wide = (
        {"path": caller.upload(name, content), "meta": {"_type": "gradio.FileData"}}
        for name, content in (("large.png", large_file), ("wide.png", wide_file))
    )
    for path in ("", "config", "gradio_api/info"):
        caller.http.get(path)
    look("the page")
    form = {"Prompt": "a", "Steps": 1, "Seed": "1", "Photo": large}
    form |= {"Mask": "data:image/png;base64," + base64.b64encode(wide_file).decode()}
    program = {"prompt": "a", "num_inference_steps": 1, "image": large, "mask": wide}
    for endpoint in caller.endpoints:
        assert drive(caller, filled(caller, endpoint, form | program), visit).get("error") != UNEXPECTED
        look((endpoint["api_name"], endpoint["targets"][0][1]))
    camera = {"url": "data:image/png;base64," + base64.b64encode(large_file).decode()}
    for name, call in photo_calls(caller, camera).items():
        assert "error" not in drive(caller, call, visit)
        look(f"{name}, from a camera")
    for call in (
        caller.private("t2i-prompt", "change", Prompt=words),
        caller.private("t2i-generate", "click", Prompt=words, Steps=1, **{"Negative prompt": words}),
        caller.public("text2image", prompt=words, negative_prompt=words, num_inference_steps=1),
    ):
        assert "error" not in drive(caller, call, visit)
        look("a long prompt")
    for text in ("x" * 3_900_000, "," * 90_000):
        assert drive(caller, caller.private("t2i-generate", "click", Prompt=text), visit)["error"]
    assert caller.post("queue/join", {"data": [0] * 90_000, "session_hash": visit}).status_code == 413
    look("a large call")
    film = drive(caller, caller.private("t2i-generate", "click", Prompt="a", Steps=150), visit)
    look("a long run")
    [run] = set(re.findall(r'"run": "(\w{32})"', json.dumps(film)))
    [gallery] = (one for one, props in caller.components.items() if props.get("elem_id") == "history")
    add = next(one for one in caller.endpoints if gallery in one["outputs"])
    drive(caller, filled(caller, add, {}), visit)
    again = drive(caller, caller.private("history", "select"), visit, event_data={"index": 0, "value": None})
    resume = next(one for one in caller.endpoints if one["api_name"] == "resume")
    number, [_, *others] = filled(caller, resume, {})
    resumed = drive(caller, (number, [json.dumps({"run": run, "link": ""}), *others]), uuid.uuid4().hex)
    assert all('"frames"' in json.dumps(one) for one in (film, again, resumed))
    look("a long film")
    assert not slow, "\n".join(slow)
