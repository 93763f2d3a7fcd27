"""Stable Diffusion 1.x and 2.x, written from scratch in PyTorch.

>>> from stable_diffusion import Pipeline
>>> Pipeline.from_pretrained()("a rocket, noto style, on a blue background").images[0]
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import Pipeline
    from .run import Result, Step

__all__ = ["Pipeline", "Result", "Step"]


def __getattr__(name: str) -> object:
    # Imported on first use, so that reading a picture or a schedule does not wait for the tokenizer's library.
    if name in __all__:
        from . import pipeline, run

        return getattr(pipeline if name == "Pipeline" else run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
