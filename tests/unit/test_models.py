"""The page's models: who waits for one keeps nobody from another, and memory holds no more than it should."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stable_diffusion.loading.config import ModelError
from stable_diffusion.request import RequestError
from tests.conftest import awaited
from ui.runs.catalogue import BUNDLED_NAME, HUB, Catalogue
from ui.runs.models import LoadedModels

PATIENCE = 30


@dataclass
class Loader:
    """A loader whose models are their sources' names: slow until released, and failing where told to."""

    slow: dict[str, threading.Event] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    vaes: dict[str, str | None] = field(default_factory=dict)
    beginnings: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(
        self,
        source: str | None,
        vae: str | None,
        device: str | None,
        dtype: str | None,
        tell: Callable[[str, float], None],
    ) -> str:
        name = Path(str(source)).name
        self.vaes[name] = vae
        self.begun.append(name)
        self.beginnings.release()
        tell(f"Fetching {name}", 0.5)
        if name in self.slow:
            assert self.slow[name].wait(PATIENCE)
        if name in self.broken:
            raise ModelError(f"{source}/unet/config.json is not valid JSON: download it again")
        return name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models a, b and c."""
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    monkeypatch.setenv("SD_MODELS", str(tmp_path))
    return tmp_path


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns, in time."""
    return awaited(asyncio.wait_for(coroutine, PATIENCE))


def gathered(holder: LoadedModels, name: str) -> list[tuple[str, float]]:
    """What somebody is told who waits for a model."""

    async def wait() -> list[tuple[str, float]]:
        return [progress async for progress in holder.wait(name)]

    return run(wait())


def test_while_one_waits_for_a_slow_model_others_get_theirs(folder: Path):
    loader = Loader(slow={"a": threading.Event()})
    holder = LoadedModels(Catalogue(), load=loader)
    slow = holder.start("a")
    assert holder.pipeline("b") == "b"
    assert holder.loaded("b") == "b"
    assert holder.loaded("a") is None
    assert not slow.future.done()
    loader.slow["a"].set()
    assert holder.pipeline("a") == "a"


def test_all_who_ask_for_a_model_share_one_loading(folder: Path):
    loader = Loader(slow={"a": threading.Event()})
    holder = LoadedModels(Catalogue(), load=loader)
    assert holder.start("a") is holder.start("a")
    loader.slow["a"].set()
    assert holder.pipeline("a") == "a"
    assert loader.begun == ["a"]


def test_who_waits_is_told_how_far_it_is_and_takes_no_thread(folder: Path):
    loader = Loader(slow={"a": threading.Event()})
    holder = LoadedModels(Catalogue(), load=loader)

    visitors: list[list[tuple[str, float]]] = [[], []]

    async def wait(told: list[tuple[str, float]]) -> None:
        async for progress in holder.wait("a"):
            told.append(progress)
            if all(("Fetching a", 0.5) in each for each in visitors):
                loader.slow["a"].set()

    async def both() -> None:
        await asyncio.gather(*map(wait, visitors))

    run(both())  # ends when both have been told
    assert gathered(holder, "a") == []


def test_a_failed_load_is_a_sentence_for_all_who_wait_and_the_next_ask_tries_again(folder: Path):
    loader = Loader(slow={"a": threading.Event()}, broken={"a"})
    holder = LoadedModels(Catalogue(), load=loader)
    first, second = holder.start("a"), holder.start("a")
    loader.slow["a"].set()
    for waiting in (first, second):
        with pytest.raises(RequestError, match=r"^The model 'a' could not be loaded: a/unet/config\.json is not"):
            waiting.future.result(PATIENCE)
    with pytest.raises(RequestError, match="could not be loaded"):
        gathered(holder, "a")
    loader.broken.clear()
    assert holder.pipeline("a") == "a"
    assert holder.pipeline("b") == "b"


def in_memory(holder: LoadedModels) -> str:
    """The models that are ready, of the first and a, b, c."""
    return "".join(name for name in (holder.catalogue.first, *"abc") if holder.loaded(name))


def test_the_first_model_is_never_displaced_and_another_only_when_its_successor_is_ready(folder: Path):
    first = Catalogue().first
    loader = Loader(slow={"b": threading.Event()}, broken={"c"})
    holder = LoadedModels(Catalogue(), load=loader)
    holder.pipeline()
    holder.pipeline("a")
    with pytest.raises(RequestError, match="could not be loaded"):
        holder.pipeline("c")
    waiting = holder.start("b").future
    assert in_memory(holder) == f"{first}a"
    loader.slow["b"].set()
    assert waiting.result(PATIENCE) == "b"
    assert in_memory(holder) == f"{first}b"
    assert holder.status == "ready"


def test_beside_what_is_loading_memory_holds_two_models(folder: Path):
    held: list[int] = []
    loader = Loader()

    def load(*arguments: object) -> str:
        held.append(len(in_memory(holder)))
        return loader(*arguments)

    holder = LoadedModels(Catalogue(), load=load)
    for name in "abacab":
        assert holder.pipeline(name) == name
    assert loader.begun == ["a", "b", "c", "b"]  # a was asked for last when c came, c was not when b came again
    assert max(held) == 2


def test_a_fourth_model_waits_while_three_are_being_loaded(folder: Path):
    (folder / "d").mkdir()
    (folder / "d" / "model_index.json").write_text("{}")
    loader = Loader(slow={name: threading.Event() for name in "abc"})
    holder = LoadedModels(Catalogue(), load=loader)
    waiting = [holder.start(name).future for name in "abc"]
    for _ in waiting:
        assert loader.beginnings.acquire(timeout=PATIENCE)
    waiting.append(holder.start("d").future)
    assert not loader.beginnings.acquire(timeout=0.2)
    for name, future in zip("abc", waiting, strict=False):
        loader.slow[name].set()
        assert future.result(PATIENCE) == name
    assert waiting[3].result(PATIENCE) == "d"


def test_a_public_page_offers_the_models_that_its_deployer_names(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert {"a", "b", "c", *HUB} < set(Catalogue(public=False).sources)
    assert set(Catalogue(public=True).sources) == {BUNDLED_NAME, "a", "b", "c"}
    assert set(Catalogue("somebody/model", public=True).sources) == {"model", "a", "b", "c"}
    monkeypatch.delenv("SD_MODELS")
    monkeypatch.setattr("ui.runs.catalogue.MODELS", folder)
    monkeypatch.setattr("ui.runs.adapter_files.MODELS", folder)
    assert {"a", "b", "c", *HUB} < set(Catalogue(public=False).sources)
    assert set(Catalogue(public=True).sources) == {BUNDLED_NAME}
    one, hub = str(folder / "a"), "nota-ai/bk-sdm-tiny-2m"
    named = Catalogue(None, [one, hub, "somebody/model", str(folder / "missing")], public=True)
    sources = {"a": one, "BK-SDM tiny (from the hub)": hub, "model": "somebody/model"}
    assert named.sources == {BUNDLED_NAME: None, **sources}
    for name in HUB.keys() - named.sources.keys():
        with pytest.raises(RequestError, match="model must be one of"):
            LoadedModels(named, load=Loader()).start(name)


def test_an_unknown_model_is_named(folder: Path):
    holder = LoadedModels(Catalogue(), load=Loader())
    for ask in (holder.start, holder.pipeline, holder.defaults):
        with pytest.raises(RequestError, match=r"model must be one of .*'a', 'b', 'c'.*, got 'd'"):
            ask("d")


def test_the_vae_is_the_first_models_alone(folder: Path):
    loader = Loader()
    holder = LoadedModels(Catalogue(str(folder / "b")), vae="better.vae.pt", load=loader)
    for name in "abc":
        holder.pipeline(name)
    assert loader.vaes == {"a": None, "b": "better.vae.pt", "c": None}
