"""Replicas as a deployment of Ray Serve: how many, with what, and which calls they take."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ui.runs.limits import MAX_RUNNING, USUAL, Limits

from .replica import Replica
from .router import RunRouter

LINES_OVER = 15.0
"""Seconds over which the length of lines is averaged; it is told every ten."""
SCALE_AFTER, SHRINK_AFTER = 5.0, 600.0
"""Seconds for which that must be too long, or short enough, before replicas are added or taken away."""
LAST_RUNS = 300.0
"""Seconds that the runs of a replica have which is taken away; then they begin again on another."""
CHECK_EVERY = 5.0
"""Seconds from one health check to the next."""


def deploy(
    *arguments: Any,
    replicas: int,
    max_replicas: int,
    line: float,
    cpus: float,
    gpus: float = 0,
    kind: type = Replica,
    limits: Limits = USUAL,
    **options: Any,
) -> DeploymentHandle:
    """Start replicas on the Ray cluster that this process is connected to, and wait until they are there.

    From `replicas` to `max_replicas` of them, another one where on average more than `line` runs are under way or
    waiting at each; every one with its own cpus and gpus, and with the limits and arguments of `kind`. RuntimeError
    where they can't be started.
    """
    serve.start(proxy_location="Disabled")  # nothing is served over HTTP but the page, which is not Ray's
    deployment = serve.deployment(
        kind,
        name="replica",
        autoscaling_config={
            "min_replicas": replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": line,
            "upscale_delay_s": SCALE_AFTER,
            "look_back_period_s": LINES_OVER,
            "downscale_delay_s": SHRINK_AFTER,
        },
        # Twice: the engine says when its line is full, and to whom.
        max_ongoing_requests=2 * (MAX_RUNNING + limits.max_waiting),
        request_router_config=RequestRouterConfig(
            request_router_class=RunRouter, request_router_kwargs={"full": MAX_RUNNING}
        ),
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=CHECK_EVERY,
        graceful_shutdown_timeout_s=LAST_RUNS,
        max_constructor_retry_count=3,
    )
    quiet = LoggingConfig(enable_access_log=False)
    replica = deployment.bind(*arguments, limits=limits, **options)
    return serve.run(replica, name="live", route_prefix=None, logging_config=quiet)
