"""How an error ends an event: its traceback goes to the server's log, one sentence to the visitor or the program."""

from __future__ import annotations

import html
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

log = logging.getLogger(__name__)

NO_MEMORY_SIGNS = ("out of memory", "not enough memory", "can't allocate memory")
"""What torch's errors say: the first on an accelerator, the others on a processor."""
NO_MEMORY = "There is not enough memory for this: choose a smaller size or fewer pictures."
UNEXPECTED = "Something went wrong on the server: try again. Its log tells more."


def explain(error: Exception) -> str:
    """Log an error, and say in a sentence what went wrong.

    A ValueError is somebody's to mend who asked, and its text says how: it takes one line of the log, with the place
    that refused, so that a thousand calls don't fill it. What else there is, nobody foresaw.
    """
    if isinstance(error, ValueError):
        log.info("refused at %s: %s", where(error), error)
        return str(error)
    log.error("unforeseen", exc_info=error)
    return NO_MEMORY if is_out_of_memory(error) else UNEXPECTED


def where(error: BaseException) -> str:
    """The place that raised an error, for a line of the log."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: as Python says it, or torch."""
    text = str(error)
    return isinstance(error, MemoryError) or any(sign in text for sign in NO_MEMORY_SIGNS)


def titled(title: str, text: str) -> str:
    """The HTML of a message with its title: Gradio 6.31's page shows none that a gr.Error, or its like, is given."""
    return f"<b>{title}.</b> {html.escape(text, quote=False)}"


def page_error(text: str) -> gr.Error:
    """A message on the page that something went wrong. It reads HTML."""
    return gr.Error(html.escape(text, quote=False), print_exception=False)


@contextmanager
def told_on_the_page() -> Iterator[None]:
    """End what is inside with a message on the page, whatever goes wrong."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise page_error(explain(error)) from None


@contextmanager
def told_to_programs() -> Iterator[None]:
    """End what is inside with plain text, whatever goes wrong: Gradio hides all errors but its own."""
    try:
        yield
    except Exception as error:
        raise gr.Error(explain(error), print_exception=False) from None
