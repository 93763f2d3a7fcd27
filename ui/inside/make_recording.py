"""Record what the stops of the tour show before a visitor has a picture: `python -m ui.inside.make_recording`."""

from __future__ import annotations

import json

from stable_diffusion import Pipeline
from stable_diffusion.inspection import conduct

from .stop import Value, picture_uri
from .stops import STOPS
from .tour import RECORDED, request_about

MOST_BYTES = 400_000


def record(pipe: Pipeline) -> dict[str, object]:
    """Return the values of each stop's first question, with prompt and picture of the run."""
    request = request_about(None, "").with_values(width=pipe.default_size, height=pipe.default_size)
    recorded: dict[str, object] = {"prompt": request.prompt, "picture": picture_uri(pipe(request).images[0])}
    for stop in STOPS:
        question, values = stop.question(), list[Value]()
        requests = [pipe.defaults.complete(one, None).seeded() for one in stop.requests(question, request)]
        conduct(stop.view(question, pipe, requests, values.append))
        recorded[stop.name] = values
        print(f"{stop.name}: {len(json.dumps(values)) / 1000:.0f} kB")
    return recorded


def main() -> None:
    """Write the recording."""
    text = json.dumps(record(Pipeline.from_pretrained()))
    assert len(text) <= MOST_BYTES, f"{len(text)} bytes: send smaller pictures"
    RECORDED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
