"""Watch it learn: the same seeds by each version of the bundled network's weights, recorded."""

from __future__ import annotations

import gradio as gr

from stable_diffusion.loading.files import read_json

from ...stage.live import address
from ...stage.opening import ASSETS
from .view import HERE, formula, inside_view

RECORDED = ASSETS / "learning"
"""The pictures of all versions on one sheet, and their index; `training.judging.watch_it_learn` writes them."""
TEXT = "**Watch it learn.** The same four seeds, drawn by the included network at six moments of its training."
FORMULA = """
Training shows the network a picture x<sub>0</sub> with noise ε and the words c, and makes its guess of the velocity
v = √ᾱ<sub>t</sub> ε − √(1 − ᾱ<sub>t</sub>) x<sub>0</sub> better: E ‖v − v<sub>θ</sub>(x<sub>t</sub>, t, c)‖² falls
(arXiv:2202.00512, Appendix D). With few examples the guess is a mean of nearly everything, which is a blot.

Each version is drawn with its own text encoder and decoder, in 16 steps of DDIM with guidance 4. The latents have one
size, so that a seed is the same first noise for all. The number of examples is from the model card of each version, and
its commit is in `training/judging/watch_it_learn.py`.
"""


def watch_it_learn() -> None:
    """Build the section, which needs no network."""
    gr.set_static_paths([RECORDED])
    gr.Markdown(TEXT)
    index = read_json(RECORDED / "index.json")
    value = {
        "sheet": address(RECORDED / "pictures.webp"),
        "prompts": [{"prompt": prompt, "seed": seed} for prompt, seed in index["prompts"]],
        "steps": index["steps"],
        "versions": index["versions"],
    }
    inside_view("learning", (HERE / "learning.js").read_text(encoding="utf-8"), value=value)
    formula(FORMULA)
