"""Stop 2: what the network sees in a picture that is hidden by noise, with its words and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stable_diffusion.request import Request

from ..recordings import counted, recording_of
from ..stop import Question, Show, Stop, picture_uri

if TYPE_CHECKING:
    from stable_diffusion.inspection import Inquiry
    from stable_diffusion.pipeline import Pipeline

TIMESTEPS = (200, 400, 500, 600, 650, 700, 750, 800, 850, 900, 950, 999)
"""Dense where the network loses the picture."""
SIDE, THUMB = 192, 96
TWICE = {"guidance_scale": 2.0, "fast": False}
"""Settings for answers with words and without; fast weights have both in one."""


def requests(question: Question, request: Request) -> list[Request]:
    """Return the request, and one with a step for each timestep."""
    return [request, request.with_values(num_inference_steps=len(TIMESTEPS), **TWICE)]


def view(question: Question, pipeline: Pipeline, requests: Sequence[Request], show: Show) -> Inquiry[None]:
    """Show the picture of a run with more and more noise, the guesses of it, and how much of it they see.

    Before, the steps of the run are shown by their number.
    """
    import torch

    from stable_diffusion.inspect.guesses import guesses, share_seen
    from stable_diffusion.inspection import rendered
    from stable_diffusion.preview import Renderer

    request = requests[0]
    assert request.seed is not None, "a view's requests are seeded"
    x_0 = (yield from recording_of(pipeline, request, counted(show))).final
    # The noise that the run began with would be no test: the picture was made from it.
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(request.seed + 1)).to(x_0)
    guided = request.with_values(negative_prompt="", **TWICE)
    render = Renderer(pipeline.models_for(request))
    last = pipeline.schedule.num_train_timesteps - 1
    [blind] = yield from guesses(pipeline, guided, x_0, [last], noise)
    for timestep in TIMESTEPS:
        [guess] = yield from guesses(pipeline, guided, x_0, [min(timestep, last)], noise)
        answers = [one for one in guess.answer[1:] if one is not None]
        pictures = yield from rendered(render, torch.cat(answers))
        [noisy] = render.coarse(guess.x_t, pictures.found)
        with_words, *without = [
            {
                "picture": picture_uri(picture, side),
                "seen": round(share_seen(answer, x_0, blind.answer.conditional).item(), 3),
            }
            for picture, answer, side in zip(pictures.images, answers, (SIDE, THUMB), strict=False)
        ]
        show(
            {
                "noise": guess.level.sigma**2,
                "noisy": picture_uri(noisy),
                "with": with_words,
                "without": without[0] if without else None,  # a distilled model answers with words alone
            }
        )


SEES = Stop(
    name="sees",
    title="It still sees it",
    sentence="Where you see only noise, the network still sees the picture.",
    part="network",
    formula="x̂<sub>0</sub> = √ᾱ<sub>t</sub> x<sub>t</sub> − √(1 − ᾱ<sub>t</sub>) v<sub>θ</sub>(x<sub>t</sub>, t, words)"
    " &nbsp; (Appendix D, arXiv:2202.00512)"
    "<br>seen = 1 − |x̂<sub>0</sub>(x<sub>t</sub>) − x<sub>0</sub>|² / |x̂<sub>0</sub>(x<sub>T</sub>) − x<sub>0</sub>|²,"
    " lost below ½",
    source="inspect/guesses.py:guesses",
    question=Question,
    view=view,
    requests=requests,
)
