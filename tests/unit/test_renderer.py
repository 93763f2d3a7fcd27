"""One way from latents to what a person sees: the page decodes nothing itself, the safety checker sees everything."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stable_diffusion import Pipeline, preview
from stable_diffusion.inspect import look_inside
from stable_diffusion.inspection import conduct
from stable_diffusion.mask import with_pictures
from stable_diffusion.request import Request, RequestError
from ui.image2image import start_view
from ui.inside.laboratory.memory import memories
from ui.inside.laboratory.noise import noised
from ui.inside.laboratory.run import recordings
from ui.inside.laboratory.samplers import comparisons
from ui.inside.stop import Stop
from ui.inside.stops import STOPS
from ui.runs.backend import T, View
from ui.stage.frames import picture_of
from ui.stage.opening import PHOTOS

PAGE = Path(__file__).resolve().parents[2] / "ui"
DECODERS = re.compile(r"\b(decode_finite|to_images|linear_preview|latent_to_rgb)\b")


def test_the_page_decodes_nothing_itself() -> None:
    assert not [path for path in PAGE.rglob("*.py") if DECODERS.search(path.read_text(encoding="utf-8"))]


class FindsAll:
    """A safety checker that finds every picture."""

    def find(self, images: Sequence[Image.Image]) -> list[bool]:
        """Return True for every picture."""
        return [True] * len(images)


def blacken(images: Sequence[Image.Image], found: Sequence[bool]) -> list[Image.Image]:
    """Black in the place of pictures that were found, which is easier to tell than blur."""
    return [Image.new(image.mode, image.size) if hit else image for image, hit in zip(images, found, strict=True)]


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The bundled model with that checker."""
    for module in (preview, look_inside):
        monkeypatch.setattr(module, "blur", blacken)
    models = Pipeline.from_pretrained(device="cpu").models
    return Pipeline(dataclasses.replace(models, safety_checker=FindsAll()))


def pictures(value: Any) -> Iterator[Image.Image]:
    """All pictures in a view's value, apart from heat maps, which are PNGs."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from pictures(one)
    elif isinstance(value, str) and value.startswith("data:image/webp"):
        yield picture_of(value)


def contrasts(value: Any) -> list[int]:
    """The levels between darkest and brightest of each picture in a view's value: 0 where nothing can be seen."""
    return [max(high - low for low, high in picture.getextrema()) for picture in pictures(value)]


def prepared(pipeline: Pipeline) -> Request:
    """A complete request of two steps."""
    return pipeline.defaults.complete(Request("a cat", seed=1, num_inference_steps=2)).seeded()


def shown(view: View[T], pipeline: Pipeline, *requests: Request) -> list[T]:
    """The values of a view."""
    values = list[T]()
    conduct(view(pipeline, requests, values.append))
    return values


def photo(pipeline: Pipeline) -> Request:
    """A complete request with a photo as a picture."""
    return with_pictures(Request("a cat", image=PHOTOS / "cat.jpg", width=64, height=64, seed=1), pipeline.defaults)


def test_the_safety_checker_sees_the_noise_lab(strict: Pipeline) -> None:
    [value] = shown(partial(noised, 100), strict, photo(strict))
    assert contrasts(value) == [0] * 4


def test_the_safety_checker_sees_the_start_of_a_run(strict: Pipeline) -> None:
    [html] = shown(start_view, strict, photo(strict))
    [own, *others] = [contrasts(source) for source in re.findall(r'src="([^"]+)"', html)]
    assert own > [0]  # the photo itself
    assert others == [[0], [0]]


def test_the_safety_checker_sees_a_look_inside(strict: Pipeline) -> None:
    for recording in shown(recordings, strict, prepared(strict)):
        assert contrasts(dict(recording["frame"])) == [0] * 4


def test_the_safety_checker_sees_samplers_compared(strict: Pipeline) -> None:
    request = prepared(strict)
    *_, last = shown(comparisons, strict, *(request.with_values(sampler=name) for name in ("ddim", "euler")))
    assert contrasts(last) == [0] * 4


def test_the_safety_checker_sees_the_pictures_beside_training_drawings(strict: Pipeline) -> None:
    for value in shown(memories, strict, prepared(strict), prepared(strict).with_values(seed=2)):
        assert contrasts([row["src"] for row in value["rows"]]) == [0] * len(value["rows"])


def test_a_model_without_training_drawings_is_refused(folder: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(RequestError, match="model must bring its training drawings"):
        memories(pipeline, [], print)


@pytest.mark.parametrize("stop", STOPS, ids=[stop.name for stop in STOPS])
def test_the_safety_checker_sees_every_stop_of_the_tour(strict: Pipeline, stop: Stop) -> None:
    question = stop.question()
    requests = [strict.defaults.complete(one) for one in stop.requests(question, prepared(strict))]
    values = shown(partial(stop.view, question), strict, *requests)
    assert values
    assert all(contrast < 10 for contrast in contrasts(values)), "WebP leaves one colour nearly so"
