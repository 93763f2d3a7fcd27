"""Stop 8: where in the picture the network looks for each word, and the picture without a word."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stable_diffusion.request import Request, RequestError, without_loras

from ..recordings import recording_of
from ..stop import Question, Show, Stop, Value, evenly, picture_uri

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.inspect.heat_maps import Word
    from stable_diffusion.inspect.recording import Recording, Told
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline
    from stable_diffusion.run import Step

EMPTY = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "beside", "by", "for", "from", "her", "his", "in", "into", "is", "it",
    "its", "next", "near", "of", "on", "onto", "or", "over", "same", "style", "that", "the", "their", "this", "to",
    "two", "under", "very", "with",
})  # fmt: skip
"""Words that stand for nothing in a picture."""
STEPS = 6
"""Steps of a run, evenly spaced, at which the attention is looked at: their mean is close to that of all steps."""
MAP_SIDE = 32
"""Heat is sent with at most so many rows and columns; the script enlarges it smoothly."""
SMALL = 64
"""Pixels of a picture of a run under way."""


class Looks(Question):
    """A question about all words of the prompt, about another word, or about the picture without one.

    word: the other word, which the prompt need not have. without: the number of the prompt's word that is left out.
    """

    word: str = Field("", max_length=40)
    without: int | None = Field(None, ge=0, le=1000)


def view(question: Looks, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show a run's picture and the heat of its words, the heat of another word, or the picture without a word."""
    from stable_diffusion.inspect.heat_maps import crossed_out, with_text
    from stable_diffusion.inspect.look_inside import absent_heat, recorded_heat
    from stable_diffusion.inspection import rendered

    [request] = requests
    words = spoken(pipeline, text_of(request))
    about: Value = {}
    if question.without is not None:
        if question.without >= len(words):
            raise RequestError(
                f"without must be below {len(words)}, the number of words of this prompt, got {question.without}"
            )
        about = {"without": question.without}
        request = crossed_out(request, words[question.without])
    elif question.word and not spoken(pipeline, question.word):
        raise RequestError(f"word must have a letter, got {question.word!r}")
    recording = yield from recording_of(pipeline, request, teller(about, show))
    plain = with_text(recording.request, text_of(recording.request)).with_values(prompt_syntax="plain")

    def heat(step: int) -> Inquiry[Tensor]:
        if question.word:
            return (yield from absent_heat(pipeline, recording, step, question.word))
        return (yield from recorded_heat(pipeline, recording, step, plain, words))[0]

    if question.word:
        yield from show_heat(heat, recording, {"asked": question.word}, show)
        return
    pictures = yield from rendered(pipeline.begin(request).render, recording.final)
    show(about | {"picture": picture_uri(pictures.images[0])})
    if question.without is None:
        show({"words": [{"text": word.text, "empty": word.text.lower() in EMPTY} for word in words]})
        if words:
            yield from show_heat(heat, recording, {}, show)


def text_of(request: Request) -> str:
    """Return the prompt's text, in which its words have their places, with spaces for the signs of weights."""
    from stable_diffusion.prompt import without_weights

    text = without_loras(request.prompt)
    return without_weights(text) if request.prompt_syntax == "weighted" else text


def spoken(pipeline: Pipeline, text: str) -> list[Word]:
    """Return the words of a text without its signs."""
    from stable_diffusion.inspect.heat_maps import prompt_words

    words = prompt_words(pipeline.models.tokenizer, text)
    return [word for word in words if any(map(str.isalnum, word.text))]


def teller(about: Value, show: Show) -> Told:
    """Return a function that shows a small picture of each step of a run, as far as previews take little time."""
    from stable_diffusion.preview import Preview

    previews: list[Preview] = []

    def tell(step: Step) -> None:
        previews[:] = previews or [Preview(step.render)]
        pictures = previews[0](step.answer.conditional)
        if pictures is not None and step.final is None:
            show(about | {"step": step.index, "total": step.total, "small": picture_uri(pictures.images[0], SMALL)})

    return tell


def show_heat(heat: Callable[[int], Inquiry[Tensor]], recording: Recording, about: Value, show: Show) -> Inquiry[None]:
    """Show heat maps (W, h, w), which `heat` returns for a step of a recorded run: the mean of more and more steps."""
    total: Tensor | None = None
    for count, step in enumerate(evenly(STEPS, len(recording.latents)), 1):
        found = yield from heat(step)
        total = found if total is None else total + found
        show(about | shades(total / count))


def shades(maps: Tensor) -> Value:
    """Return heat maps (W, h, w) for the script: bytes in base64, row by row, from 0, a map's least heat, to 255."""
    import torch
    from torch.nn import functional as F

    height, width = (min(side, MAP_SIDE) for side in maps.shape[1:])
    small = F.adaptive_avg_pool2d(maps, (height, width)).cpu()
    low, high = (bound(dim=(1, 2), keepdim=True) for bound in (small.amin, small.amax))
    shares = (small - low) / (high - low).clamp(min=1e-8)
    heat = [base64.b64encode(one.numpy().tobytes()).decode("ascii") for one in (255 * shares).round().to(torch.uint8)]
    return {"heat": heat, "width": width, "height": height}


LOOKS = Stop(
    name="looks",
    title="Where it looks",
    sentence="Press a word, and see where in the picture the network looks for it.",
    part="words",
    formula="softmax(QKᵀ / √d) &nbsp; (Eq. 1, arXiv:1706.03762; heat maps as in arXiv:2210.04885)",
    source="attention.py:attention_map",
    question=Looks,
    view=view,
)
