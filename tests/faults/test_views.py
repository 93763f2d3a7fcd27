"""The views of the tab Inside, and of a run's start, on a real server: nothing is computed past the engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from stable_diffusion.guidance import Denoiser, Query
from stable_diffusion.vae import Autoencoder
from tests.conftest import ROOT
from ui.inside.stops import STOPS

from .caller import Caller, served

CAT = ROOT / "assets" / "examples" / "cat.jpg"


def test_every_network_of_every_view_is_evaluated_in_the_engines_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its time is charged to the visitor, and where others have their turns."""
    threads: list[tuple[str, str]] = []
    predict, decode = Denoiser.predict, Autoencoder.decode_finite

    def noted_predict(self: Denoiser, queries: Sequence[Query], *maps: Any) -> Any:
        threads.append(("unet", threading.current_thread().name))
        return predict(self, queries, *maps)

    def noted_decode(self: Autoencoder, latents: Tensor) -> Tensor:
        threads.append(("vae", threading.current_thread().name))
        return decode(self, latents)

    with served() as page:
        caller = Caller(page.local_url)
        photo = {"path": caller.upload("cat.jpg", CAT.read_bytes()), "meta": {"_type": "gradio.FileData"}}
        monkeypatch.setattr(Denoiser, "predict", noted_predict)
        monkeypatch.setattr(Autoencoder, "decode_finite", noted_decode)
        for elem_id, values in (
            ("inside-noise", {"Photo": photo}),
            ("inside-run", {"Steps": 2}),
            ("inside-samplers", {"Evaluations of the network": 2}),
            ("inside-memory", {"Steps": 2}),
            ("i2i-start", {"Photo": photo}),
        ):
            threads.clear()
            [view] = [one for one, props in caller.components.items() if props.get("elem_id") == elem_id]
            [endpoint] = [one for one in caller.endpoints if one["outputs"][:1] == [view]]
            output = caller.ask(caller.filled(endpoint, values))
            assert output.get("data"), output
            assert {network for network, _ in threads} == {"unet", "vae"}, elem_id
            assert {thread for _, thread in threads} == {"engine"}, elem_id
        [tour] = [one for one, props in caller.components.items() if props.get("elem_id") == "inside-tour"]
        [endpoint] = [one for one in caller.endpoints if one["outputs"] == [tour] and len(one["inputs"]) == 3]
        for value, sentence in (
            (None, "stop must be one of"),
            ({"asked": 1, "stop": "looks", "question": {"word": "<&>"}}, "word must have a letter, got '<&>'"),
        ):
            data = [value if one == tour else caller.components[one].get("value") for one in endpoint["inputs"]]
            [answer] = caller.ask((endpoint["id"], data))["data"]
            assert sentence in answer["error"]  # as text, which the page's script shows as such
        for stop in STOPS:
            threads.clear()
            value = {"asked": 1, "stop": stop.name, "question": {}}
            data = [value if one == tour else caller.components[one].get("value") for one in endpoint["inputs"]]
            output = caller.ask((endpoint["id"], data))
            [answer] = output["data"]
            assert answer["over"], stop.name
            assert "error" not in answer, answer
            assert {thread for _, thread in threads} == {"engine"}, stop.name
