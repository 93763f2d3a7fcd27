"""Serve the page: on your machine with `python app.py`, and on a Hugging Face Space, which starts this file too."""

from __future__ import annotations

import os

# Both before gradio is imported: nothing about a visit is sent anywhere.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import argparse
import importlib.util
import logging

import gradio as gr

from ui.limits import SESSIONS, UNHEARD
from ui.listeners import watched
from ui.models import ModelHolder
from ui.page import build_page, look


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; a Space is reached from outside, everything else only from this machine."""
    parser = argparse.ArgumentParser(
        description="Watch Stable Diffusion work: serve the page and open http://127.0.0.1:7860 in a browser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    host = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    parser.add_argument("--host", default=host, help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--share", action="store_true", help="also open a public link through Gradio's relay")
    parser.add_argument(
        "--model",
        help="directory in diffusers' layout, .safetensors or .ckpt file, or hub id; default: the bundled model",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps; default: the fastest one here")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the weights; default: float16 on CUDA, float32 elsewhere",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="also serve tools for language models; needs `pip install 'gradio[mcp]'`"
    )
    parser.add_argument(
        "--unheard",
        type=float,
        default=os.environ.get("SD_UNHEARD", UNHEARD),
        metavar="SECONDS",
        help="end a run that nobody has listened to for so long ($SD_UNHEARD)",
    )
    options = parser.parse_args(arguments)
    if options.mcp and importlib.util.find_spec("mcp") is None:
        parser.error("--mcp needs a package that is not here: pip install 'gradio[mcp]'")
    return options


def serve(options: argparse.Namespace, holder: ModelHolder) -> gr.Blocks:
    """Serve the page around a model; returns at once."""
    page = build_page(holder)
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        max_file_size="64mb",
        state_session_capacity=SESSIONS,
        mcp_server=options.mcp,
        app_kwargs={"lifespan": watched(options.unheard)},
        **look(),
    )
    return page


def main() -> None:
    """Serve the page, and load the model behind it."""
    options = parse_arguments()
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("ui").setLevel(logging.INFO)
    holder = ModelHolder(options.model, options.device, options.dtype)
    page = serve(options, holder)
    holder.ask()
    page.block_thread()


if __name__ == "__main__":
    main()
