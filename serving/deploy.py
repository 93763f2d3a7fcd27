"""The deployment of replicas on Ray Serve: their number, resources and settings."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ui.runs.limits import LOCAL_LIMITS, MAX_RUNNING, Limits

from .replica import Replica
from .router import RunRouter

QUEUE_WINDOW = 15.0
"""Seconds over which the length of queues is averaged; replicas report it every ten."""
SCALE_AFTER, SHRINK_AFTER = 5.0, 600.0
"""Seconds for which queues must be long, or short, before replicas are added or removed."""
GRACE = 300.0
"""Seconds until the runs of a removed replica begin again on another."""
HEALTH_CHECK_EVERY = 5.0
"""Seconds between health checks."""


def deploy(
    *arguments: Any,
    replicas: int,
    max_replicas: int,
    line: float,
    cpus: float,
    gpus: float = 0,
    kind: type = Replica,
    limits: Limits = LOCAL_LIMITS,
    **options: Any,
) -> DeploymentHandle:
    """Start replicas on the Ray cluster that this process is connected to, and wait until they are there.

    replicas, max_replicas: least and largest number. line: runs per replica, drawn or waiting, from which on another
    is started. cpus, gpus: of each replica. kind: its class, which takes the other arguments. RuntimeError if they
    can't be started.
    """
    serve.start(proxy_location="Disabled")  # Ray serves nothing over HTTP
    deployment = serve.deployment(
        kind,
        name="replica",
        autoscaling_config={
            "min_replicas": replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": line,
            "upscale_delay_s": SCALE_AFTER,
            "look_back_period_s": QUEUE_WINDOW,
            "downscale_delay_s": SHRINK_AFTER,
        },
        # Twice as many as fit: the engine refuses the others with its own message.
        max_ongoing_requests=2 * (MAX_RUNNING + limits.max_waiting),
        request_router_config=RequestRouterConfig(
            request_router_class=RunRouter, request_router_kwargs={"full": MAX_RUNNING}
        ),
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=HEALTH_CHECK_EVERY,
        graceful_shutdown_timeout_s=GRACE,
        max_constructor_retry_count=3,
    )
    quiet = LoggingConfig(enable_access_log=False)
    replica = deployment.bind(*arguments, limits=limits, **options)
    return serve.run(replica, name="live", route_prefix=None, logging_config=quiet)
