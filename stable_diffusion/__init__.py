"""Stable Diffusion 1.x and 2.x, written from scratch in PyTorch.

>>> from stable_diffusion import Pipeline
>>> Pipeline.from_pretrained()("a rocket, noto style, on a blue background").images[0]
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import Pipeline, Result, Step

__all__ = ["Pipeline", "Result", "Step"]


def __getattr__(name: str) -> object:
    # On first use, not on import: reading a picture or a schedule should not wait for the tokenizer's library.
    if name in __all__:
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
