"""Networks for inference: on the CPU, a network whose layers keep their weights packed in the order that kernels read.

The libraries that PyTorch computes convolutions and linear layers with pack the weights of a plain layer anew at every
call; for small pictures that takes as long as the sums themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from threading import Lock
from typing import TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)

# Where PyTorch's group normalisation of a bfloat16 map in channels_last is slower than two changes of format: it takes
# one group of one pixel after the other.
SMALL_MAP, NARROW_GROUP = 1024, 20


def for_inference(network: Network) -> Network:
    """The network to evaluate without gradients where `network` is asked for: the same weights, sums in another order.

    On a CPU with AVX2, in float32, or in bfloat16 where it has instructions for it, a copy with packed layers, the same
    one at every call for as long as `network` lives; elsewhere, in other precisions and in training `network` itself,
    which stays as it is in any case. Its weights must not be changed any more: the copy would not know.

    Memory: one packed copy of the weights of convolutions and linear layers, once they were used. The plain ones, which
    LoRA files are merged into, stay beside them. Where they are the mapped file of a model they are cache that the
    system may take back; where loading converted them to another type they are not. Layers that two networks share, as
    before and after such a merge, are packed once.
    """
    if not _packable(network):
        return network
    packed = _networks.get(network)
    if packed is None:
        with _packing:  # of two threads at once the second waits, instead of packing it all again
            packed = _networks.get(network)
            if packed is None:
                packed = _networks[network] = _pack(network)
    return cast(Network, packed)


_networks: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
_layers: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
"""By the identity of the plain layer's weight, which each of these keeps alive."""
_packing = Lock()


def _packable(network: nn.Module) -> bool:
    """Whether packed layers compute what this network's plain ones do, and faster."""
    weight = next(network.parameters())
    if network.training or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _pack(network: Network) -> Network:
    """A copy of `network` with packed layers that shares everything else with it."""
    # deepcopy takes what it finds in its memo for copied.
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for layer in network.modules():
        if type(layer) in PACKED:
            key = id(layer.weight)
            memo[id(layer)] = _layers.get(key) or _layers.setdefault(key, PACKED[type(layer)](layer))
    return copy.deepcopy(network, memo)


class PackedConv2d(nn.Module):
    """A convolution with its weights packed for the height and width of the last input.

    Which packing is read varies with them; one for other sizes would be changed at each call, by slower code than a
    plain layer's. So an input of another size makes the layer pack its weights again, from the plain ones.
    """

    def __init__(self, plain: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.settings = plain.padding, plain.stride, plain.dilation, plain.groups
        self._packed: tuple[Size, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), in the memory format channels_last."""
        packed, size = self._packed, x.shape[2:]
        if packed is None or packed[0] != size:
            packed = size, torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.settings, x.shape)
            self._packed = packed  # size and weights in one assignment: other threads see a pair that fits
        return torch.ops.mkldnn._convolution_pointwise(x, packed[1], self.bias, *self.settings, "none", [], "")


class PackedLinear(nn.Module):
    """A linear layer with its weights packed; how long the input is makes no difference."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class GroupNormOfChannelsLast(nn.Module):
    """A group normalisation of what packed convolutions give, which is in channels_last."""

    def __init__(self, plain: nn.GroupNorm):
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.num_groups, self.eps = plain.num_groups, plain.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        small = x.shape[2:].numel() < SMALL_MAP and x.shape[1] < NARROW_GROUP * self.num_groups
        if x.dtype == torch.bfloat16 and small:
            x = x.contiguous()
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


PACKED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    nn.Linear: PackedLinear,
    nn.GroupNorm: GroupNormOfChannelsLast,
}
