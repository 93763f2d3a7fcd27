"""Stop 10: a hidden picture clears up, and the visitor and CLIP guess what it becomes; then the end of the tour."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import Field

from stable_diffusion.loading.config import BUNDLED
from stable_diffusion.request import Request

from ...runs.match import clip_for
from ...words.lexicon import read_lexicons
from ..recordings import recording_of
from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from torch import Tensor

    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

Shares = list[tuple[str, float]]
"""Names, and how sure CLIP is of each, from the surest on."""
Judge = Callable[[Image.Image], Shares]

NAMES = (
    "a clown face", "a ghost", "a skull", "a robot", "an alien", "a red heart", "a fire", "a star", "a sun",
    "a crescent moon", "a rainbow", "a cloud", "a snowflake", "a snowman", "a lightning bolt", "a cat", "a dog",
    "a rabbit", "a fox", "a bear", "a panda", "a lion", "a cow", "a pig", "a horse", "a monkey", "an elephant",
    "a mouse", "a frog", "a penguin", "an owl", "a chick", "a fish", "a whale", "an octopus", "a turtle", "a snake",
    "a bee", "a butterfly", "a ladybug", "a snail", "a rose", "a sunflower", "a tulip", "a cactus", "a palm tree",
    "a pine tree", "a mushroom", "a red apple", "a banana", "a strawberry", "a lemon", "a watermelon", "grapes",
    "a pineapple", "a carrot", "a slice of pizza", "a hamburger", "french fries", "an ice cream cone", "a donut",
    "a birthday cake", "a cup of coffee", "a glass of beer", "a fried egg", "a loaf of bread", "a car", "a bus",
    "a train", "a truck", "a bicycle", "a rocket", "an airplane", "a helicopter", "a sailboat", "a house", "a castle",
    "a tent", "a hospital", "an umbrella", "a clock", "a key", "a light bulb", "a guitar", "a soccer ball",
)  # fmt: skip
"""The names among which CLIP guesses."""
RIDDLES = (
    ("an owl", 100, ""),
    ("a hamburger", 101, "burger"),
    ("a rocket", 102, ""),
    ("a snail", 103, ""),
    ("a cactus", 104, ""),
    ("a castle", 105, "palace"),
    ("a pig", 106, "piglet"),
    ("an umbrella", 107, "parasol"),
    ("a guitar", 108, "electric guitar"),
    ("a frog", 109, ""),
    ("a birthday cake", 110, "cake"),
    ("a crescent moon", 111, "moon"),
    ("a fox", 112, "fox face"),
    ("a sailboat", 113, "boat, ship"),
    ("a snowman", 114, ""),
    ("a butterfly", 115, ""),
    ("a slice of pizza", 116, "pizza"),
    ("a robot", 117, "robot face"),
    ("an elephant", 118, ""),
    ("a strawberry", 119, ""),
    ("a key", 120, ""),
    ("a penguin", 121, ""),
    ("a bus", 122, "coach"),
    ("a mushroom", 123, "toadstool"),
    ("a ghost", 124, ""),
    ("a turtle", 125, "tortoise"),
    ("a donut", 126, ""),
    ("a house", 127, "home"),
    ("a panda", 128, "bear"),
    ("a rainbow", 129, ""),
    ("a snake", 130, ""),
    ("a cup of coffee", 131, "coffee, mug, cup, tea"),
    ("a star", 132, ""),
    ("a cow", 133, "ox"),
    ("a light bulb", 134, "bulb, lamp"),
    ("a palm tree", 135, "palm, tree"),
    ("an octopus", 136, ""),
    ("grapes", 137, ""),
    ("a car", 138, "automobile"),
    ("a horse", 139, "pony"),
    ("an ice cream cone", 140, "ice cream"),
    ("a skull", 141, "skeleton"),
    ("a ladybug", 142, "ladybird, bug, beetle"),
    ("a fried egg", 143, "egg, frying pan, pan"),
    ("a monkey", 144, ""),
    ("a watermelon", 145, "melon"),
    ("an alien", 146, "extraterrestrial"),
    ("a lion", 147, "lion face"),
    ("a rose", 148, "flower"),
    ("a dog", 150, "puppy"),
    ("a snowflake", 151, ""),
    ("a sun", 152, ""),
    ("french fries", 153, "fries, chips"),
    ("a clown face", 154, "clown"),
    ("a bear", 155, "teddy bear, teddy"),
)
"""Prompts with a seed each, and other words that are right too: things that the bundled model draws well.

CLIP takes some for something else to the end."""
STEPS = 16
BEST = 5
"""Number of CLIP's guesses that are shown."""
FILM_SIDE = 128
"""Pixels of a picture of the run that is shown again."""


class Guess(Question):
    """A question for a riddle, or for the film of the visitor's run.

    riddle: its number from 1, 0 for today's. side: pixels of its pictures.
    """

    riddle: int = Field(1, ge=0, le=len(RIDDLES))
    side: int = Field(88, ge=32, le=256)
    film: bool = False

    @property
    def number(self) -> int:
        """The riddle's number; today's goes by the date."""
        return self.riddle or 1 + date.today().toordinal() % len(RIDDLES)


def requests(question: Guess, request: Request) -> list[Request]:
    """Return the request of a riddle, with the model of the run that the tour is about, or the run's own."""
    if question.film:
        return [request]
    prompt, seed, _ = RIDDLES[question.number - 1]
    return [Request(prompt, seed=seed, num_inference_steps=STEPS, model=request.model)]


def view(question: Guess, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show a riddle, or the visitor's run again. CLIP and the words are read here, and not in the engine's turns."""
    [request] = requests
    if question.film:
        return film(pipeline, request, show)
    judge = judge_of(Path(pipeline.models.source), str(pipeline.models.unet.conv_in.weight.device))
    secret = json.dumps({"name": RIDDLES[question.number - 1][0], "answers": answers(question.number)})
    show(
        {
            "riddle": question.number,
            "riddles": len(RIDDLES),
            "total": pipeline.plan(request).evaluations + 1,
            "hidden": base64.b64encode(secret.encode()).decode("ascii"),  # so that no glance at a message tells
        }
    )
    return riddle(pipeline, request, judge, question.side, show)


def riddle(pipeline: Pipeline, request: Request, judge: Judge | None, side: int, show: Show) -> Inquiry[None]:
    """Show x_t before each step of a run, and its picture, with CLIP's guesses at each."""
    from stable_diffusion.inspection import Question as Asked
    from stable_diffusion.inspection import rendered

    def frame(latents: Tensor) -> Inquiry[None]:
        [image] = (yield from rendered(run.render, latents)).images
        show({"picture": picture_uri(image, side), "guesses": None if judge is None else judge(image)})

    run, final = pipeline.begin(request), None
    while (query := run.query) is not None:
        yield from frame(query.x / query.level.scale)
        final = run.answer((yield Asked(query, run.denoise))).final
    assert final is not None, "a run has a step"
    yield from frame(final)


def film(pipeline: Pipeline, request: Request, show: Show) -> Inquiry[None]:
    """Show the guess of each step of a run, small, and its picture."""
    from stable_diffusion.inspection import rendered

    recording = yield from recording_of(pipeline, request)
    render = pipeline.begin(request).render
    for latents in [*(answer.x_0 for answer in recording.answers[:-1]), recording.final]:
        [image] = (yield from rendered(render, latents)).images
        show({"film": picture_uri(image, FILM_SIDE)})


@lru_cache(maxsize=2)
def judge_of(model: Path, device: str) -> Judge | None:
    """Return a function that tells CLIP's best guesses at a picture; None for a model without CLIP."""
    clip = clip_for(model, NAMES[0], device)
    if clip is None:
        return None
    texts, scale = clip.embed_texts(NAMES), clip.model.logit_scale.exp()

    def judge(image: Image.Image) -> Shares:
        shares = (scale * clip.embed_images([image]) @ texts.T).softmax(dim=-1)[0]
        best = shares.topk(BEST)
        return [
            (NAMES[i], round(share, 3)) for share, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    return judge


@cache
def answers(number: int) -> list[str]:
    """Return the right answers to a riddle: its thing in all languages of the bundled model's vocabulary."""
    lexicons = read_lexicons(BUNDLED)
    assert lexicons is not None, "the bundled model has a vocabulary"
    prompt, _, also = RIDDLES[number - 1]
    nouns = {prompt.removeprefix("a ").removeprefix("an "), *filter(None, also.split(", "))}
    things = {lexicons.names[noun].thing for noun in nouns if noun in lexicons.names}
    names = {name for name, one in lexicons.names.items() if one.thing in things}
    phrases = {
        phrase
        for lexicon in lexicons.lexicons.values()
        for phrase, entry in lexicon.entries.items()
        if (entry.kind == "things" and entry.value in names) or entry.also in names
    }
    return sorted(nouns | phrases)


GUESS = Stop(
    name="guess",
    title="Guess",
    sentence="What will it be? Type it, before the computer knows.",
    part="picture",
    formula="p(name | picture) = softmax(τ · cos(picture, name)) &nbsp; (Fig. 3, arXiv:2103.00020)",
    source="clip.py:CLIP.similarity",
    question=Guess,
    view=view,
    requests=requests,
)
