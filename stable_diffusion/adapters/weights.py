"""Copies of a network with other weights, while other threads use the network itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def with_weights(network: Network, weights: Mapping[str, Tensor]) -> Network:
    """Return a copy of `network` with these weights by name; it shares all other weights.

    `torch.func.functional_call` would put the weights into the network itself during the call, where other threads
    would use them.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    replaced = {
        id(network.get_parameter(name)): nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()
    }
    # deepcopy takes entries of its memo as copies made already.
    return copy.deepcopy(network, shared | replaced)
