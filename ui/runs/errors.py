"""Log an error, and turn it into one sentence for the visitor or the program."""

from __future__ import annotations

import html
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import gradio as gr
from gradio.components import Component

from stable_diffusion.compute.memory import is_out_of_memory
from stable_diffusion.request import RequestError

log = logging.getLogger(__name__)

NO_MEMORY = "There is not enough memory for this: choose a smaller size or fewer pictures."
UNEXPECTED = "Something went wrong on the server: try again. Its log tells more."
CONTROL_LETTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Letters that break a line, turn its direction, move a terminal's cursor, or are half of a surrogate pair."""
ARGUMENT = re.compile(r"^\w+|\b[a-z]+_\w+")
NO_FORM: Mapping[str, Component] = {}
FOLDERS = re.compile(r"(?<![\w:/.~-])/(?:[^\s/]+/)+(?=[^\s/])")
"""The folders of an absolute path, but not those of a web address."""


def explain(error: Exception) -> str:
    """Log an error and return a sentence about it for the caller.

    A `RequestError` is the caller's mistake and its text names the remedy: it takes one line of the log, with the place
    that raised it, so that a thousand bad requests do not fill it. Any other exception is our mistake: the log gets its
    traceback.
    """
    if isinstance(error, RequestError):
        text = one_line(str(error))
        log.info("refused at %s: %s", where(error), text)
        return text
    log.error("unforeseen", exc_info=error)
    return NO_MEMORY if is_out_of_memory(error) else UNEXPECTED


def one_line(text: str) -> str:
    """Return a text with a space for each of its control letters: names of files and models may hold any."""
    return CONTROL_LETTERS.sub(" ", text)


def without_folders(text: str) -> str:
    """Return a text with the names of files but not their folders on this machine, for callers on others."""
    return FOLDERS.sub("", text)


def where(error: BaseException) -> str:
    """Return file and line that raised an error, for a line of the log."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def titled(title: str, text: str) -> str:
    """Return the HTML of a message with a title: Gradio 6.31's page ignores the title of gr.Error and gr.Warning."""
    return f"<b>{title}.</b> {html.escape(one_line(text), quote=False)}"


def in_words_of(form: Mapping[str, Component], text: str) -> str:
    """Return a refusal with a form's labels in place of arguments: of its first word, and of names like clip_skip."""
    return ARGUMENT.sub(lambda name: str(form[name[0]].label) if name[0] in form else name[0], text)


def page_error(text: str, form: Mapping[str, Component] = NO_FORM) -> gr.Error:
    """Return an error whose text the page shows; the page reads it as HTML, so it is escaped.

    form: components by argument; the page shows the error beside the one that its first word names.
    """
    shown = html.escape(one_line(in_words_of(form, without_folders(text))), quote=False)
    field = form.get(text.partition(" ")[0])
    return gr.Error(f'<span class="refusal {field.elem_id}">{shown}</span>' if field else shown, print_exception=False)


@contextmanager
def errors_on_page(form: Mapping[str, Component] = NO_FORM) -> Iterator[None]:
    """Turn any exception of the block into a message on the page, in the words of a form."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise page_error(explain(error), form) from None


@contextmanager
def errors_as_text() -> Iterator[None]:
    """Turn any exception of the block into plain text for programs: Gradio hides all errors but its own."""
    try:
        yield
    except Exception as error:
        raise gr.Error(without_folders(explain(error)), print_exception=False) from None
