"""Which replica a call goes to."""

from __future__ import annotations

from collections import OrderedDict

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

REMEMBERED = 10_000
"""Of how many runs the replica is known, the last ones."""


class RunRouter(RequestRouter):
    """To the replica that has the run already, else to the shortest line, where the model is in memory if it can be.

    A call's session is the name of its run: so Stop finds the run, and so does a page that was loaded again. Lives in
    the front; Ray Serve reads it from there by value, so it needs nothing else of this package.
    """

    def initialize_state(self, full: int) -> None:
        """full is how many runs a replica may have before others than those with the model in memory are asked too."""
        self._full = full
        self._homes: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in ranks; of the first rank that takes the call, the one with the shortest line gets it."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # or where all are full they are asked without a pause
        call = pending_request.metadata
        home = self._homes.get(call.session_id)
        at_home = [replica for replica in candidate_replicas if replica.replica_id == home]
        lines = self.replica_queue_len_cache
        ready = [
            replica
            for replica in candidate_replicas
            if call.multiplexed_model_id in replica.multiplexed_model_ids
            and (lines.get(replica.replica_id) or 0) < self._full
        ]
        return [rank for rank in (at_home, ready, candidate_replicas) if rank]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Remember where a run went."""
        call = pending_request.metadata
        if call.is_streaming:
            self._homes[call.session_id] = replica_id
            self._homes.move_to_end(call.session_id)
            if len(self._homes) > REMEMBERED:
                self._homes.popitem(last=False)
