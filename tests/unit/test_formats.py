"""Pictures are read in a list of formats, whoever opens them: no file of a stranger's starts another program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import base64, sys
from PIL import Image
import gradio as gr
from gradio.data_classes import ImageData
from ui.form.photo import photo_input
from stable_diffusion.images import ImageError, read_few_formats, read_image

read_few_formats()
postscript = b"%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 10 10\\n%%EndComments\\nshowpage\\n"
url = "data:image/png;base64," + base64.b64encode(postscript).decode()
try:
    read_image(photo_input().preprocess(ImageData(url=url)))
except ImageError as error:
    print(error)
try:
    gr.Image(type="pil").preprocess(ImageData(url=url))
except Exception as error:
    print(type(error).__name__)
"""


def test_postscript_in_a_photo_starts_no_interpreter(tmp_path: Path) -> None:
    """Gradio opens some pictures before any code of ours, and Pillow would hand PostScript to Ghostscript."""
    interpreter, started = tmp_path / "gs", tmp_path / "started"
    interpreter.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    interpreter.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert not started.exists()
    assert "image 'image' is not a picture that can be read" in run.stdout
    assert "UnidentifiedImageError" in run.stdout
