"""Many at once, and for long: everybody's own picture, nothing lost, and nothing left of those who went."""

from __future__ import annotations

import asyncio
import io
from itertools import cycle, islice

import httpx
import numpy as np
from PIL import Image

from stable_diffusion import Pipeline
from stable_diffusion.request import SAMPLER_LABELS, Request
from tests.conftest import awaited
from tests.faults.caller import Caller

from .server import Call, Message, Process, Program, all_of, calling, connection

PROMPTS = ("a red fox", "a photo of the moon", "the sun", "a tree")
CLIENTS, ASKS = 50, 10
LEAVE = 500
AT_ONCE = 32
LONG = 400
"""Steps of a run that ends only if nobody ends it: a second, for the tiny model alone."""


def request(number: int) -> Request:
    """One of many requests, no two of which give the same picture."""
    return Request(
        PROMPTS[number % len(PROMPTS)],
        seed=number * 10,
        sampler=list(SAMPLER_LABELS)[number % len(SAMPLER_LABELS)],
        num_inference_steps=1 + number % 5,
        num_images=1 + number % 7 // 6,
        guidance_scale=(1.0, 5.0)[number % 2],
        preview=("none", "linear", "vae")[number % 3],
    )


def call(caller: Caller, asked: Request) -> Call:
    """The call that asks for it."""
    names = ("prompt", "seed", "sampler", "num_inference_steps", "num_images", "guidance_scale", "preview")
    return caller.public("text2image", **{name: getattr(asked, name) for name in names})


def expect_drawn(pipe: Pipeline, asked: Request, files: list[bytes]) -> None:
    """The pictures are those of the library, alone: in batches float32 sums in another order, for one level of 255."""
    pictures = [np.asarray(Image.open(io.BytesIO(file)), dtype=int) for file in files]
    expected = [np.asarray(image, dtype=int) for image in pipe(asked).images]
    np.testing.assert_allclose(pictures, expected, rtol=0, atol=1)


def test_everybody_in_a_crowd_gets_the_own_picture_and_none_is_lost(server: Process, pipe: Pipeline, share: float):
    clients = max(8, round(CLIENTS * share))
    asks = max(2, round(ASKS * share))
    requests = [request(number) for number in range(clients * asks)]

    async def visit(caller: Caller, http: httpx.AsyncClient, own: list[Request]) -> list[list[bytes]]:
        program = Program(caller, http)
        return [await program.files(await program.ask(call(caller, one))) for one in own]

    async def crowd(caller: Caller) -> list[list[bytes]]:
        async with connection(server.url) as http:
            parts = [requests[i::clients] for i in range(clients)]
            given = await asyncio.gather(*(visit(caller, http, part) for part in parts))
        return [given[number % clients][number // clients] for number in range(len(requests))]

    before = server.ends()
    with calling(server.url) as caller:
        given = awaited(crowd(caller))
    for asked, files in zip(requests, given, strict=True):
        expect_drawn(pipe, asked, files)
    assert server.ends() - before == {"finished": len(requests)}
    assert (server.going(), server.waiting()) == (0, 0)
    plain = {np.asarray(Image.open(io.BytesIO(files[0]))).tobytes() for files in given}
    assert len(plain) == len(requests), "two requests have one picture, so that a mistaken one would not be seen"


def test_in_a_long_line_all_are_told_their_place_and_others_get_their_answers(server: Process):
    """Longer than Gradio's own would be, in which nobody is told anything."""
    count = 70

    async def crowd(caller: Caller) -> list[Message]:
        long = caller.public("text2image", prompt="a", num_inference_steps=LONG, preview="none")
        told, over = [], asyncio.Event()

        async def wait() -> None:
            program = Program(caller, http)
            await program.join(long)
            async for message in program.listen():
                if message["msg"] == "process_generating":
                    told.append(message["output"]["data"][1])
                    await over.wait()
                    break

        async with connection(server.url) as http:
            waiting = asyncio.gather(*(wait() for _ in range(count)))
            while len(told) < count and not waiting.done():  # done, if somebody was refused
                await asyncio.sleep(0.05)
            assert server.going() > 40
            answer = await Program(caller, http).ask(caller.public("text2image", prompt="a", sampler="none"))
            over.set()
            await waiting
        return [*told, answer]

    with calling(server.url) as caller:
        *told, answer = awaited(crowd(caller))
    assert all(one["total"] == LONG or one["position"] for one in told)
    assert "sampler must be one of" in answer["error"]


async def hangs_up_at_once(program: Program, long: Call) -> None:
    await program.join(long)
    async for _ in program.listen():
        break


async def hangs_up_in_mid_run(program: Program, long: Call) -> None:
    await program.join(long)
    async for message in program.listen():
        if message["msg"] == "process_generating":
            break


async def cancels(program: Program, long: Call) -> None:
    """As Gradio's clients do."""
    event = await program.join(long)
    async for message in program.listen():
        if message["msg"] == "process_generating":
            body = {"session_hash": program.session, "fn_index": long[0], "event_id": event}
            (await program.http.post("gradio_api/cancel", json=body)).raise_for_status()


async def never_listens(program: Program, long: Call) -> None:
    await program.join(long)


async def stops(program: Program, _: Call) -> None:
    """As the page's button does."""
    caller, told = program.caller, ""
    await program.join(caller.private("t2i-generate", "click", Prompt="a red fox", Steps=LONG // 4, Pictures=4))
    number, data = caller.private("t2i-stop", "click")
    body = {"fn_index": number, "data": data, "session_hash": program.session}
    async for message in program.listen():
        told += str(message)
        if "'index'" in str(message):  # of a step
            (await program.http.post("gradio_api/run/predict", json=body)).raise_for_status()
    assert "Stopped at step" in told


WAYS = (hangs_up_at_once, hangs_up_in_mid_run, cancels, never_listens, stops)


def test_who_hangs_up_and_who_stops_leaves_nothing_that_computes(server: Process, pipe: Pipeline, share: float):
    count = round(LEAVE * share)

    async def crowd(caller: Caller) -> None:
        long = caller.public("text2image", prompt="a", num_inference_steps=LONG, preview="linear")
        async with connection(server.url) as http:
            ways = islice(cycle(WAYS), count)
            await all_of([way(Program(caller, http), long) for way in ways], AT_ONCE)

    asked, before = request(1), server.ends()
    with calling(server.url) as caller:
        awaited(crowd(caller))
        server.wait_until(lambda: (server.going(), server.waiting()) == (0, 0))
        ends = server.ends() - before
        assert not ends.keys() - {"left", "stopped", "finished"}
        # Of those who never listen some may, when the server has little else to do.
        assert ends["finished"] <= count / len(WAYS), "too many ended by themselves: ask for more steps"
        # A run would take all of a core it can get; a server that rests looks at its line and at its visitors' times.
        server.wait_until(lambda: server.computes() < 0.2)
        [number, data] = call(caller, asked)

        async def afterwards() -> list[bytes]:
            async with connection(server.url) as http:
                program = Program(caller, http)
                return await program.files(await program.ask((number, data)))

        expect_drawn(pipe, asked, awaited(afterwards()))
    assert "Traceback" not in server.log.read_text()
