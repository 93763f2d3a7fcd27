"""Requests, settings in pictures and links, films: the page's own parts, without a model."""

from __future__ import annotations

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import pytest
import torch
from gradio.route_utils import delete_files_created_by_app
from PIL import Image

from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request, RequestError
from tests import tiny
from ui.api import Answer, answers
from ui.keep import history
from ui.keep.files import DAY, HOUR, NoRoom, keep, stem, sweep
from ui.keep.history import MAX_RUNS, FinishedRun, by_picture, keep_pictures, with_files
from ui.keep.link import PHOTOS, from_query, to_query
from ui.keep.metadata import read_infotext
from ui.keep.settings import SETTINGS
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.errors import NO_MEMORY, UNEXPECTED, errors_on_page, explain, page_error, titled
from ui.runs.message_rate import MessageRate
from ui.runs.models import LoadedModels
from ui.runs.visitors import Visitor
from ui.stage.film import FILMS, keep_film, read_film
from ui.stage.live import data_uri

REQUEST = Request(
    prompt="a red fox, noto style", negative_prompt="blue", num_inference_steps=12, guidance_scale=5.5, height=96,
    width=128, sampler="euler_a",
)  # fmt: skip


def test_the_settings_are_fields_of_a_request():
    assert {setting.name for setting in SETTINGS} <= set(vars(REQUEST))


@pytest.fixture
def lcm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModels:
    """A page's models, among them a tiny one that was distilled to few steps."""
    model = tiny.save_model(tmp_path / "models" / "lcm")
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "LCMScheduler"}))
    monkeypatch.setenv("SD_MODELS", str(model.parent))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    return LoadedModels(Catalogue(), device="cpu")


def last_answer(models: LoadedModels, request: Request) -> Answer:
    """The last of the answers that a program gets."""

    async def read() -> Answer:
        return [answer async for answer in answers(Local(models), MessageRate(), request, Visitor("somebody"))][-1]

    with ThreadPoolExecutor(1) as pool:  # where no loop runs: in this thread, the browser's driver may have one
        return pool.submit(asyncio.run, read()).result()


def test_a_programs_defaults_follow_the_model_that_it_names(lcm: LoadedModels):
    request = Request("a fox", model="lcm")
    files, step = last_answer(lcm, request)
    assert (step["total"], step["finished"]) == (4, True)
    settings = read_infotext(files[0])
    assert (settings["sampler"], settings["num_inference_steps"], settings["guidance_scale"]) == ("lcm", 4, 8.0)
    _, step = last_answer(lcm, replace(request, num_inference_steps=2))
    assert step["total"] == 2


def test_a_model_is_known_by_its_files_before_it_is_loaded(lcm: LoadedModels):
    before = lcm.defaults("lcm")
    lcm.pipeline("lcm")
    assert before == lcm.defaults("lcm")
    assert lcm.defaults().preview == "tiny"  # the bundled model has a decoder for that
    assert lcm.defaults() == replace(Pipeline.from_pretrained().defaults, own_size_only=True)
    assert Catalogue("somewhere/model.safetensors").configs() == [None] * 4


def test_a_program_that_asks_for_the_impossible_waits_for_no_model(lcm: LoadedModels):
    with pytest.raises(RequestError, match="num_images must be at most 4 here, got 9: choose a smaller number"):
        last_answer(lcm, Request("a fox", model="lcm", num_images=9))
    assert lcm.loaded("lcm") is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RequestError("width must be a multiple of 8"), "width must be a multiple of 8"),
        (ValueError("not enough values to unpack"), UNEXPECTED),
        (MemoryError(), NO_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), NO_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), NO_MEMORY),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), UNEXPECTED),
    ],
)
def test_every_error_is_a_sentence_and_where_nobody_foresaw_it_a_traceback_in_the_log(
    error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(type(error)) as raised:
        raise error
    with caplog.at_level("INFO", "ui"):
        assert explain(raised.value) == sentence
    assert ("Traceback" in caplog.text) is not isinstance(error, RequestError)
    assert str(error) in caplog.text
    assert __file__ in caplog.text  # where it was raised


def test_a_processor_without_memory_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert explain(raised.value) == NO_MEMORY


def test_a_message_on_the_page_is_never_read_as_html():
    with pytest.raises(gr.Error, match="&lt;b&gt;"), errors_on_page():
        raise RequestError("<b>")


def test_a_message_is_one_line_whatever_the_names_in_it():
    name = "a\nb\x1b[2J\u202e\u2028\ud800\x9b\u200dc"
    line = "a b [2J    \u200dc"
    assert explain(RequestError(name)) == str(page_error(name).message) == line
    assert titled("T", name) == f"<b>T.</b> {line}"


def test_a_refusal_on_the_page_speaks_of_the_form_and_names_the_field():
    form = {name: gr.Textbox(label=label, elem_id=f"t2i-{label}") for name, label in (("then_at", "At"), ("seed", "S"))}
    assert (
        page_error("then_at must be < seed", form).message == '<span class="refusal t2i-At">At must be &lt; seed</span>'
    )
    assert page_error("8 of then_at", form).message == "8 of At"


def test_a_link_carries_every_setting():
    settings = from_query(dict(parse_qsl(to_query(replace(REQUEST, prompt="a & b = ü?", seed=42)))))
    assert settings["prompt"] == "a & b = ü?"
    again = Request(**settings)
    assert again == replace(REQUEST, prompt="a & b = ü?", seed=42)


def test_a_link_says_that_there_was_a_mask_and_carries_none():
    run = replace(REQUEST, image="photo.png", mask="/tmp/mask.png", seed=42)
    assert "tmp" not in to_query(run)
    assert from_query(dict(parse_qsl(to_query(run))))["mask"] == "painted"
    assert "mask=" not in to_query(replace(run, mask=None))


def test_a_link_names_an_example_photo_and_no_other():
    flower, others = str(PHOTOS / "flower.jpg"), ("/tmp/gradio/1/flower.jpg", Image.new("RGB", (8, 8)))
    link = to_query(replace(REQUEST, image=flower, seed=42))
    assert "photo=flower" in link
    assert from_query(dict(parse_qsl(link)))["image"] == flower
    for photo in others:
        assert "photo" not in to_query(replace(REQUEST, image=photo, seed=42))
    for name in ("none", "../cat", "/etc/passwd", ""):
        assert from_query({"photo": name}) == {}


def test_a_broken_link_is_read_as_far_as_it_goes():
    assert from_query({"prompt": "x", "seed": "many", "evil": "1"}) == {"prompt": "x", "others": {"seed": "many"}}


def film(count: int) -> list[dict]:
    shades = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(count)]
    return [{"x0": data_uri(shade), "xt": None} for shade in shades]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Gradio keeps files during the test."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def test_a_film_is_one_file_until_the_cache_is_emptied(cache: Path):
    path = keep_film(film(3))
    assert read_film(path) == film(3)
    page = gr.Blocks()
    page.temp_file_sets.append(FILMS)
    delete_files_created_by_app(page, age=None)
    assert not FILMS
    with pytest.raises(ValueError, match="This run's film is gone: films are kept for a day"):
        read_film(path)


def test_what_is_a_day_old_is_swept_and_nothing_else(cache: Path):
    kept, old = Path(keep("fox.png", b"")), Path(keep("cat.png", b""))
    (cache / "tmpnow").write_bytes(b"half")
    (cache / "tmpcut").write_bytes(b"half")
    ages = {kept.parent: DAY - 60, old.parent: DAY, cache / "tmpnow": HOUR - 60, cache / "tmpcut": HOUR}
    for path, age in ages.items():
        os.utime(path, (time.time() - age,) * 2)
    sweep()
    assert sorted(cache.rglob("*")) == sorted([cache / "kept", kept.parent, kept, cache / "tmpnow"])


def test_what_can_t_be_kept_is_said_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file"))
    with pytest.raises(NoRoom, match=r"The server can't keep a file \(Not a directory\): try again later"):
        keep("fox.png", b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_of_pictures_that_do_not_all_fit_none_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch):
    room = iter([True, True, False])
    monkeypatch.setattr(history, "keep", lambda name, content: keep(name, content) if next(room) else full())

    def full() -> str:
        raise NoRoom("The server can't keep a file (No space left on device): try again later.")

    with pytest.raises(NoRoom, match="No space left"):
        keep_pictures(replace(REQUEST, seed=1), [b"a", b"b", b"c"])
    assert list((cache / "kept").iterdir()) == []


def test_history_finds_the_run_of_a_picture_and_forgets_those_whose_files_are_gone(cache: Path):
    files = [keep(f"{name}.png", b"") for name in "abc"]
    first, second = FinishedRun("t2i", REQUEST, (files[0],), None), FinishedRun("t2i", REQUEST, tuple(files[1:]), None)
    assert by_picture([first, second]) == [first, second, second]
    assert with_files([first, second] * MAX_RUNS) == [first, second] * (MAX_RUNS // 2)
    Path(files[2]).unlink()
    assert with_files([first, second]) == [first]


def test_file_names_are_plain():
    assert stem("../../A red, <b>fox</b>!", 7) == "a-red-b-fox-b-7"
    assert stem("狐", 7) == "picture-7"
