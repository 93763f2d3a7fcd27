"""Networks for inference: on the CPU, copies whose layers keep their weights packed in the order of the kernels.

PyTorch's libraries for convolutions and linear layers pack the weights of an ordinary layer at every call, which for
small pictures takes as long as the computation itself.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from threading import Lock
from typing import TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from ..blocks import UpsamplingConv2d
from ..loading.checkpoints import check_finite

Network = TypeVar("Network", bound=nn.Module)

# Below these numbers of pixels and channels a group, PyTorch's group normalisation of a bfloat16 map in channels_last
# is slower than two changes of the memory format.
SMALL_MAP, NARROW_GROUP = 1024, 20


def for_inference(network: Network, dtype: torch.dtype | None = None) -> Network:
    """Return the network to evaluate in place of `network` without gradients; it sums in another order.

    Where `packs` is true this is a copy with packed layers that computes in `dtype`, by default the type of the
    weights; every call returns the same copy as long as `network` lives. Elsewhere, and in training mode, it is
    `network` itself. The weights of `network` must not change afterwards, because the copy would keep the old ones.
    Raises `ModelError` if weights to be packed are not finite.

    Memory: one packed copy of the weights of convolutions and linear layers, made at their first use. The unpacked
    ones, into which LoRA files are merged, stay; if they are a mapped file, the system can drop them from memory.
    Layers that two networks share, as before and after a merge, are packed once.
    """
    weight = next(network.parameters())
    dtype = dtype or weight.dtype
    if network.training or not packs(weight.device, dtype):
        return network
    packed = _networks.get(network, {}).get(dtype)
    if packed is None:
        with _packing:  # so that two threads do not both pack
            known = _networks.setdefault(network, {})
            packed = known[dtype] = known.get(dtype) or _pack(network, dtype)
    return cast(Network, packed)


def set_inference_network(network: nn.Module, dtype: torch.dtype, other: nn.Module) -> None:
    """Make `for_inference` return `other` for this network in `dtype` from now on."""
    _networks.setdefault(network, {})[dtype] = other


_networks: WeakKeyDictionary[nn.Module, dict[torch.dtype, nn.Module]] = WeakKeyDictionary()
_layers: WeakValueDictionary[tuple[int, torch.dtype], nn.Module] = WeakValueDictionary()
"""Packed layers by the id of the unpacked weight, which they keep alive, and the dtype of computation."""
_packing = Lock()


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether packed layers work and are faster: on a CPU with AVX2 in float32, or in bfloat16 where the CPU has
    instructions for it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(network: Network, dtype: torch.dtype) -> Network:
    """Return a copy of `network` with packed layers; it shares all other tensors that are in `dtype` already."""
    memo: dict[int, object] = {}  # deepcopy takes its entries as copies made already
    unpacked: dict[str, nn.Module] = {}
    for name, layer in network.named_modules():
        if type(layer) not in PACKED:
            memo |= {id(tensor): _cast(tensor, dtype) for tensor in (*layer.parameters(False), *layer.buffers(False))}
        elif (packed := _layers.get((id(layer.weight), dtype))) is not None:
            memo[id(layer)] = packed
        else:
            unpacked[name] = layer
    check_finite(
        {f"{name}.weight": layer.get_parameter("weight") for name, layer in unpacked.items()}, type(network).__name__
    )
    for layer in unpacked.values():
        # Layers that share a weight become one layer.
        memo[id(layer)] = _layers.setdefault((id(layer.weight), dtype), PACKED[type(layer)](layer, dtype))
    return copy.deepcopy(network, memo)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor itself if it has that type, else a parameter converted to it."""
    return tensor if tensor.dtype == dtype else nn.Parameter(tensor.to(dtype), requires_grad=False)


class _Convolution:
    """A convolution with weights packed for the height and width of the last input.

    The packed order depends on them: weights in another order would be repacked at every call, by slower code than an
    ordinary layer's. So an input of another size packs the weights again.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        bias: Tensor | None,
        dtype: torch.dtype,
        kernels: Callable[[Tensor], Tensor] | None = None,
    ):
        """kernels, if given, is applied to the weights before packing."""
        self.weight, self.bias, self.dtype, self.kernels = layer.weight, bias, dtype, kernels
        self.settings = layer.padding, layer.stride, layer.dilation, layer.groups
        self._packed: tuple[Size, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        packed, size = self._packed, x.shape[2:]
        if packed is None or packed[0] != size:
            weight = (self.weight if self.kernels is None else self.kernels(self.weight)).to(self.dtype)
            packed = size, torch.ops.mkldnn._reorder_convolution_weight(weight, *self.settings, x.shape)
            self._packed = packed  # one assignment, so that other threads see a matching pair
        return torch.ops.mkldnn._convolution_pointwise(x, packed[1], self.bias, *self.settings, "none", [], "")


class PackedConv2d(nn.Module):
    """A convolution with packed weights."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        self.weight = layer.weight
        self.bias = None if layer.bias is None else _cast(layer.bias, dtype)
        self._convolve = _Convolution(layer, self.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), in the memory format channels_last."""
        return self._convolve(x)


class PackedUpsamplingConv2d(PackedConv2d):
    """Doubling and 3x3 convolution as one 2x2 convolution of the small map, four times as wide (arXiv:1609.07009).

    A pixel of the large map depends on 2x2 pixels of the small one. Adding the taps of equal pixels beforehand leaves
    16 of 36 products for each small pixel. With 512 channels this halves the time; Stable Diffusion's decoder takes a
    tenth less.
    """

    def __init__(self, layer: UpsamplingConv2d, dtype: torch.dtype):
        super().__init__(layer, dtype)
        bias = None if self.bias is None else self.bias.repeat(4)
        self._convolve_small = _Convolution(layer, bias, dtype, _of_four_pixels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size), in the memory format channels_last."""
        height, width = x.shape[2:]
        if size not in (None, (2 * height, 2 * width)):
            return super().forward(F.interpolate(x, size=size, mode="nearest"))
        # The padding on all sides gives one row and one column too many: each of the four parts drops its own.
        four = self._convolve_small(x).unflatten(1, (2, 2, -1))
        shape = (*x.shape[:2], 2 * height, 2 * width)
        large = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        for row, column in itertools.product((0, 1), repeat=2):
            large[:, :, row::2, column::2] = four[:, row, column, :, row : row + height, column : column + width]
        return large


def _of_four_pixels(weight: Tensor) -> Tensor:
    """Return the 2x2 kernels (4 C_out, C_in, 2, 2) of the upper left, upper right and lower pixels, from a 3x3 one."""
    above, below = _pairs(weight, dim=2)
    return torch.cat([*_pairs(above, dim=3), *_pairs(below, dim=3)])


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the three taps of a dimension as two, for the first and for the second copy of a doubled pixel."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)


class PackedLinear(nn.Module):
    """A linear layer with packed weights, for inputs of any length."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = layer.weight
        self.bias = None if layer.bias is None else _cast(layer.bias, dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class GroupNormOfChannelsLast(nn.Module):
    """A group normalisation for the output of packed convolutions, which is in channels_last."""

    def __init__(self, layer: nn.GroupNorm, dtype: torch.dtype):
        super().__init__()
        self.weight, self.bias = _cast(layer.weight, dtype), _cast(layer.bias, dtype)
        self.num_groups, self.eps = layer.num_groups, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        small = x.shape[2:].numel() < SMALL_MAP and x.shape[1] < NARROW_GROUP * self.num_groups
        if x.dtype == torch.bfloat16 and small:
            x = x.contiguous()
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


PACKED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    UpsamplingConv2d: PackedUpsamplingConv2d,
    nn.Linear: PackedLinear,
    nn.GroupNorm: GroupNormOfChannelsLast,
}
