"""The choice of a replica for each call."""

from __future__ import annotations

from collections import OrderedDict

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

REMEMBERED = 10_000
"""Number of newest runs whose replica is remembered."""


class RunRouter(RequestRouter):
    """Sends a call to the replica that has its run, else to the shortest queue, if possible with the model in memory.

    A call's session is the name of its run, so that Stop finds the run, and so does a page that is loaded again. It
    lives in the page's process; Ray Serve pickles it by value, so it imports nothing else of this package.
    """

    def initialize_state(self, full: int) -> None:
        """full: number of runs from which on a replica with the model in memory is no longer preferred."""
        self._full = full
        self._homes: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return replicas in ranks: of the first rank that takes the call, the one with the shortest queue gets it."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # otherwise full replicas are asked without a pause
        call = pending_request.metadata
        home = self._homes.get(call.session_id)
        at_home = [replica for replica in candidate_replicas if replica.replica_id == home]
        queues = self.replica_queue_len_cache
        ready = [
            replica
            for replica in candidate_replicas
            if call.multiplexed_model_id in replica.multiplexed_model_ids
            and (queues.get(replica.replica_id) or 0) < self._full
        ]
        return [rank for rank in (at_home, ready, candidate_replicas) if rank]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Remember a run's replica."""
        call = pending_request.metadata
        if call.is_streaming:
            self._homes[call.session_id] = replica_id
            self._homes.move_to_end(call.session_id)
            if len(self._homes) > REMEMBERED:
                self._homes.popitem(last=False)
