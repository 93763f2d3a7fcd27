"""One page in front, replicas of the model behind it: `python -m serving --replicas 2`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal

import app
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels

STORE = 2**28
"""Bytes of shared memory for photos and pictures on their way between processes."""


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Read the command line: the options of the replicas, and those of the page, which are app.py's."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="One page in front, replicas of the model behind it. Takes the options of app.py too.",
    )
    parser.add_argument("--replicas", type=int, default=1, help="the least number of replicas; default: %(default)s")
    parser.add_argument(
        "--max-replicas", type=int, help="the largest number, reached when queues are long; default: that of --replicas"
    )
    parser.add_argument(
        "--line",
        type=float,
        default=16,
        metavar="RUNS",
        help="start another replica when each has this many runs, drawn or waiting; default: %(default)s",
    )
    parser.add_argument("--cpus", type=float, help="processor cores of each; default: an equal part of this machine's")
    parser.add_argument(
        "--gpus", type=float, default=0, help="GPUs of each; a fraction shares one; default: %(default)s"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster to start them on; default: this machine")
    mine, others = parser.parse_known_args(arguments)
    if mine.max_replicas is None:
        mine.max_replicas = mine.replicas
    if not 1 <= mine.replicas <= mine.max_replicas:
        parser.error(f"--replicas must be from 1 to --max-replicas, got {mine.replicas} and {mine.max_replicas}")
    if mine.cpus is None:
        mine.cpus = max(1, (os.cpu_count() or 1) // mine.max_replicas)
    return mine, app.parse_arguments(others)


def main() -> None:
    """Start the replicas, then the page, whose own process has an engine for the tab Inside."""
    options, page = parse_arguments()
    if not options.cluster:  # before Ray is imported: a Ray that starts no clusters listens on loopback alone
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    from .backend import Remote
    from .deploy import deploy

    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("ui").setLevel(logging.INFO)
    if options.cluster:
        ray.init(options.cluster)
    else:
        cores = math.ceil(options.cpus * options.max_replicas)
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=STORE)
    # As at Ctrl-C; Ray's own handler aborts with a stack.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    models = {"device": page.device, "dtype": page.dtype, "vae": page.vae, "limits": page.limits}
    models["safety_checker"] = page.safety_checker == "on"
    catalogue = Catalogue(page.model, page.models, public=page.public)
    handle = deploy(
        catalogue,
        **models,
        replicas=options.replicas,
        max_replicas=options.max_replicas,
        line=options.line,
        cpus=options.cpus,
        gpus=options.gpus,
    )
    here = LoadedModels(catalogue, **models)
    app.open_page(page, here, Remote(handle, here)).block_thread()


if __name__ == "__main__":
    main()
