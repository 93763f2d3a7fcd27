"""Errors that say that memory ran out."""

from __future__ import annotations

PHRASES = ("out of memory", "not enough memory", "can't allocate memory")
"""Texts of torch's errors: the first on an accelerator, the others on a processor, which has no class of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, Python's or torch's, says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(one in text for one in PHRASES))
