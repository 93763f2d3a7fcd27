"""Serve the page: on your machine with `python app.py`, and on a Hugging Face Space, which starts this file too."""

from __future__ import annotations

import os

# Set before gradio is imported: nothing about a visit is sent anywhere.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# /monitoring is closed: otherwise Gradio would keep 10,000 events for it, and read all of them at each event.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
# Uvicorn would believe any X-Forwarded-For that reaches it through this machine: --address-header decides.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")

import argparse
import dataclasses
import importlib.util
import logging
import socket
import sys
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from ui.form.model_menu import subjects
from ui.keep.credentials import check_credentials
from ui.keep.files import sweep
from ui.page import PROMISE, build_page
from ui.runs.backend import Backend, Local
from ui.runs.catalogue import Catalogue
from ui.runs.limits import MAX_RUNNING, SMALL_EVENTS, Limits
from ui.runs.measured import Measured
from ui.runs.models import LoadedModels
from ui.runs.zero import SPEED_UP, ZERO_GPU, Zero
from ui.theme import look
from ui.web.bodies import BodyCheck, unreadable_body, unwritten_upload
from ui.web.calls import CallCheck
from ui.web.connections import bound_connections
from ui.web.headers import IN_A_SPACE, NOWHERE, SecurityHeaders
from ui.web.health import health, metrics
from ui.web.hosts import THIS_MACHINE, HostCheck, is_loopback
from ui.web.link_card import link_card
from ui.web.listeners import lifespan_with
from ui.web.proxies import ProxyAddress

log = logging.getLogger("ui")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line. Only this machine reaches the page by default; in a Space everybody does."""
    parser = argparse.ArgumentParser(
        description="Watch Stable Diffusion work: serve the page and open http://127.0.0.1:7860 in a browser.",
    )
    host = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    parser.add_argument(
        "--host", default=host, help="address to listen on; 0.0.0.0 lets other machines in; default: %(default)s"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; default: %(default)s")
    parser.add_argument("--share", action="store_true", help="also open a public link through Gradio's relay")
    parser.add_argument(
        "--model",
        default=os.environ.get("SD_MODEL"),
        help="directory in diffusers' layout, .safetensors or .ckpt file, or hub id ($SD_MODEL); "
        "default: the bundled model",
    )
    parser.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="MODEL",
        help="another model that visitors may choose, or a folder of models; may be given again, and goes with the "
        "places in $SD_MODELS. A local page also offers the bundled model, those in models/ and some of the hub; a "
        "public page offers no others, and the hub only by id",
    )
    parser.add_argument(
        "--vae", help="another VAE for that model, or one for a file without a VAE: directory, file, or hub id"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps; default: the fastest one here")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number type of the networks; auto: float16 on CUDA, bfloat16 on processors that are faster in it; "
        "float32 gives the exact pictures; default: %(default)s",
    )
    parser.add_argument(
        "--safety-checker",
        choices=("on", "off"),
        default=os.environ.get("SD_SAFETY_CHECKER"),
        help="blur the pictures that the safety checker in the model's directory finds ($SD_SAFETY_CHECKER); "
        "default: on for a public page, otherwise off",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="also serve tools for language models; needs `pip install 'gradio[mcp]'`"
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="count runs, waits and failures at /metrics, for Prometheus; needs `pip install prometheus-client`",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the page answers to, for one behind a proxy; may be given again",
    )
    parser.add_argument(
        "--address-header",
        default=os.environ.get("SD_ADDRESS_HEADER"),
        metavar="NAME",
        help="header in which your proxy passes a visitor's address on, such as X-Forwarded-For, of which the last "
        "address counts ($SD_ADDRESS_HEADER); default: none, the address of the connection counts",
    )
    for one in dataclasses.fields(Limits):
        name, default, public = f"SD_{one.name.upper()}", one.default, one.metadata["public"]
        told = f"{default:.4g}" + (f", and {public:g} for a public page" if public != default else "")
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=type(default),
            default=os.environ.get(name),
            metavar="NUMBER",
            help=f"{one.metadata['help']} (${name}); default: {os.environ.get(name, told).replace('%', '%%')}",
        )
    options = parser.parse_args(arguments)
    options.public = options.share or "SPACE_ID" in os.environ or not is_loopback(options.host)
    if options.safety_checker is None:
        options.safety_checker = "on" if options.public else "off"
    if options.safety_checker not in ("on", "off"):  # argparse does not check a default against the choices
        parser.error(f"SD_SAFETY_CHECKER must be on or off, got {options.safety_checker!r}")
    limits: dict[str, Any] = {}
    for one in dataclasses.fields(Limits):
        chosen = getattr(options, one.name)
        suited = one.metadata["public"] if options.public else one.default
        limits[one.name] = suited if chosen is None else chosen
    try:
        options.limits = Limits(**limits)
    except ValueError as error:
        parser.error(f"--{str(error).replace('_', '-')}")
    for flag, package, name in (("mcp", "mcp", "'gradio[mcp]'"), ("metrics", "prometheus_client", "prometheus-client")):
        if getattr(options, flag) and importlib.util.find_spec(package) is None:
            parser.error(f"--{flag} needs a package that is not here: pip install {name}")
    try:
        check_credentials()
    except ValueError as error:
        parser.error(str(error))
    return options


def guards(options: argparse.Namespace) -> list[Middleware]:
    """Return the middleware before the page; a public page whose names are not known answers to every name."""
    headers = Middleware(SecurityHeaders, frame_ancestors=IN_A_SPACE if "SPACE_ID" in os.environ else NOWHERE)
    hosts = [] if options.public and not options.allow_host else [*THIS_MACHINE, *options.allow_host]
    checks = [Middleware(HostCheck, hosts=hosts)] if hosts else []
    addresses = [Middleware(ProxyAddress, header=options.address_header)] if options.address_header else []
    return [headers, *checks, *addresses, Middleware(CallCheck), Middleware(BodyCheck)]


def serve(options: argparse.Namespace, models: LoadedModels, backend: Backend) -> gr.Blocks:
    """Serve the page and return at once.

    OSError if a file can't be written, or, without a number, if nothing can listen at the address.
    """
    card = link_card(f"{PROMISE} {subjects(models)}")
    routes = [health(models.catalogue.first, lambda: backend.status), card]
    if options.metrics:
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()
        backend = Measured(backend, registry)
        routes.append(metrics(registry))
    page = build_page(models, backend)
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size=f"{options.limits.max_upload}mb",
        state_session_capacity=options.limits.sessions,
        # Enough workers for all runs: an event that waits in Gradio's own queue gets no news.
        max_threads=MAX_RUNNING + options.limits.max_waiting + SMALL_EVENTS,
        mcp_server=options.mcp,
        app_kwargs={
            "routes": routes,
            "middleware": guards(options),
            "exception_handlers": {RequestValidationError: unreadable_body, OSError: unwritten_upload},
            "lifespan": lifespan_with(options.limits.unheard, sweep),
        },
        **look(),
    )
    bound_connections(page.server.config)
    return page


def why_deaf(host: str, port: int) -> str:
    """Return why nothing can listen at an address: Gradio's error, which has no number, does not tell."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port)[0]
        with socket.socket(family) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
            return "it is free now"
    except OSError as error:
        return error.strerror or str(error)


def open_page(options: argparse.Namespace, models: LoadedModels, backend: Backend) -> gr.Blocks:
    """Serve the page and log its limits; end the program with a sentence if that fails, or if mcp is too new."""
    try:
        page = serve(options, models, backend)
    except OSError as error:
        if error.errno is not None:
            sys.exit(
                f"the page can't write to {get_upload_folder()} ({error.strerror}): "
                "make room there, or name another folder as GRADIO_TEMP_DIR"
            )
        at, reason = f"port {options.port} of {options.host}", why_deaf(options.host, options.port)
        sys.exit(f"{at} is taken, or not this machine's ({reason}): choose another with --port or --host")
    if options.mcp and not page.mcp_server:  # Gradio serves the page without tools, and prints why
        page.close(verbose=False)
        sys.exit(f"--mcp needs another version of the package mcp ({page.mcp_error}): pip install 'gradio[mcp]'")
    log.info("%s on port %d, safety checker %s", models.catalogue.first, options.port, options.safety_checker)
    log.info("limits: %s", options.limits)
    if options.public and "SPACE_ID" not in os.environ:
        log.warning("open to others: anybody who reaches this address can use the page without a password")
    return page


def load_models(options: argparse.Namespace, device: str | None, limits: Limits) -> LoadedModels:
    """Return the models that the options name, none of them loaded yet."""
    return LoadedModels(
        Catalogue(options.model, options.models, public=options.public),
        device,
        options.dtype,
        vae=options.vae,
        limits=limits,
        safety_checker=options.safety_checker == "on",
    )


def main() -> None:
    """Serve the page, and load the model behind it."""
    options = parse_arguments()
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("ui").setLevel(logging.INFO)
    if "SD_MAX_WORK" in os.environ:
        log.warning("SD_MAX_WORK has no effect any more: SD_MAX_SECONDS limits requests in seconds")
    backend: Local
    if ZERO_GPU:
        # Estimated at the processor's pace; the process with the GPU checks the limit itself at the GPU's.
        generous = dataclasses.replace(options.limits, max_seconds=SPEED_UP * options.limits.max_seconds)
        models = load_models(options, "cpu", generous)
        backend = Zero(models, load_models(options, options.device or "cuda", options.limits))
    else:
        models = load_models(options, options.device, options.limits)
        backend = Local(models)
    page = open_page(options, models, backend)
    models.start()
    page.block_thread()


if __name__ == "__main__":
    main()
