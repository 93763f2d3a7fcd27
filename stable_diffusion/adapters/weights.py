"""A network with other weights, while everybody else goes on with the network as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def with_weights(network: Network, weights: Mapping[str, Tensor]) -> Network:
    """A copy of `network` that has these weights under their names and shares all others with it.

    `torch.func.functional_call` does not serve here: for the time of the call it puts the weights into the network
    itself, where other threads find them.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    replaced = {
        id(network.get_parameter(name)): nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()
    }
    # deepcopy takes what it finds in its memo for copied.
    return copy.deepcopy(network, shared | replaced)
