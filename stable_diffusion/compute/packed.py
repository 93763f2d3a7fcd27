"""Networks for inference: on the CPU, a network whose layers keep their weights packed in the order that kernels read.

The libraries that PyTorch computes convolutions and linear layers with pack the weights of a plain layer anew at every
call; for small pictures that takes as long as the sums themselves.
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

# Where PyTorch's group normalisation of a bfloat16 map in channels_last is slower than two changes of format: it takes
# one group of one pixel after the other.
SMALL_MAP, NARROW_GROUP = 1024, 20


def for_inference(network: Network, dtype: torch.dtype | None = None) -> Network:
    """The network to evaluate without gradients where `network` is asked for: the same weights, sums in another order.

    Where `packs` says so, a copy with packed layers that computes in `dtype`, by default that of the weights; the same
    one at every call for as long as `network` lives. Elsewhere, and in training, `network` itself, which stays as it is
    in any case. Its weights must not be changed any more: the copy would not know. Raises `ModelError` where weights
    that are to be packed are not finite.

    Memory: one packed copy of the weights of convolutions and linear layers, once they were used. The plain ones, which
    LoRA files are merged into, stay beside them: cache that the system may take back, where they are the mapped file of
    a model. Layers that two networks share, as before and after such a merge, are packed once.
    """
    weight = next(network.parameters())
    dtype = dtype or weight.dtype
    if network.training or not packs(weight.device, dtype):
        return network
    packed = _networks.get(network, {}).get(dtype)
    if packed is None:
        with _packing:  # of two threads at once the second waits, instead of packing it all again
            known = _networks.setdefault(network, {})
            packed = known[dtype] = known.get(dtype) or _pack(network, dtype)
    return cast(Network, packed)


def set_inference_network(network: nn.Module, dtype: torch.dtype, other: nn.Module) -> None:
    """Make `for_inference` return `other` for this network in `dtype` from now on."""
    _networks.setdefault(network, {})[dtype] = other


_networks: WeakKeyDictionary[nn.Module, dict[torch.dtype, nn.Module]] = WeakKeyDictionary()
_layers: WeakValueDictionary[tuple[int, torch.dtype], nn.Module] = WeakValueDictionary()
"""By the identity of the plain layer's weight, which each of these keeps alive, and what it computes in."""
_packing = Lock()


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed layers compute what plain ones do, and faster: on a CPU with AVX2, in float32, or in bfloat16
    where it has instructions for it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack(network: Network, dtype: torch.dtype) -> Network:
    """A copy of `network` with packed layers that shares with it everything else that is in `dtype` already."""
    memo: dict[int, object] = {}  # deepcopy takes what it finds there for copied
    unpacked: dict[str, nn.Module] = {}
    for name, layer in network.named_modules():
        if type(layer) not in PACKED:
            memo |= {id(tensor): _in(tensor, dtype) for tensor in (*layer.parameters(False), *layer.buffers(False))}
        elif (packed := _layers.get((id(layer.weight), dtype))) is not None:
            memo[id(layer)] = packed
        else:
            unpacked[name] = layer
    check_finite(
        {f"{name}.weight": layer.get_parameter("weight") for name, layer in unpacked.items()}, type(network).__name__
    )
    for layer in unpacked.values():
        # Layers that share a weight are one here.
        memo[id(layer)] = _layers.setdefault((id(layer.weight), dtype), PACKED[type(layer)](layer, dtype))
    return copy.deepcopy(network, memo)


def _in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself where it has that type; a network's parameters in another type are parameters too."""
    return tensor if tensor.dtype == dtype else nn.Parameter(tensor.to(dtype), requires_grad=False)


class _Convolution:
    """Convolves with weights that are packed for the height and width of the last input.

    Which packing is read varies with them; one for other sizes would be changed at each call, by slower code than a
    plain layer's. So an input of another size makes it pack the weights again, from the plain ones.
    """

    def __init__(
        self,
        plain: nn.Conv2d,
        bias: Tensor | None,
        dtype: torch.dtype,
        kernels: Callable[[Tensor], Tensor] | None = None,
    ):
        """kernels makes of the plain weights what is packed instead of them."""
        self.weight, self.bias, self.dtype, self.kernels = plain.weight, bias, dtype, kernels
        self.settings = plain.padding, plain.stride, plain.dilation, plain.groups
        self._packed: tuple[Size, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        packed, size = self._packed, x.shape[2:]
        if packed is None or packed[0] != size:
            weight = (self.weight if self.kernels is None else self.kernels(self.weight)).to(self.dtype)
            packed = size, torch.ops.mkldnn._reorder_convolution_weight(weight, *self.settings, x.shape)
            self._packed = packed  # size and weights in one assignment: other threads see a pair that fits
        return torch.ops.mkldnn._convolution_pointwise(x, packed[1], self.bias, *self.settings, "none", [], "")


class PackedConv2d(nn.Module):
    """A convolution with its weights packed."""

    def __init__(self, plain: nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        self.weight = plain.weight
        self.bias = None if plain.bias is None else _in(plain.bias, dtype)
        self._convolve = _Convolution(plain, self.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), in the memory format channels_last."""
        return self._convolve(x)


class PackedUpsamplingConv2d(PackedConv2d):
    """Doubling and 3x3 convolution as one 2x2 convolution of the small map, four times as wide (arXiv:1609.07009).

    A pixel of the large map sees two by two of the small one: taps that fall on the same are added beforehand, and of
    36 products for each small pixel 16 are left. With 512 channels that takes half of the time, and Stable Diffusion's
    decoder a tenth less.
    """

    def __init__(self, plain: UpsamplingConv2d, dtype: torch.dtype):
        super().__init__(plain, dtype)
        bias = None if self.bias is None else self.bias.repeat(4)
        self._convolve_small = _Convolution(plain, bias, dtype, _of_four_pixels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size), in the memory format channels_last."""
        height, width = x.shape[2:]
        if size not in (None, (2 * height, 2 * width)):
            return super().forward(F.interpolate(x, size=size, mode="nearest"))
        # Padded by one all round, it has one row and one column too many: each of the four leaves out its own.
        four = self._convolve_small(x).unflatten(1, (2, 2, -1))
        shape = (*x.shape[:2], 2 * height, 2 * width)
        large = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        for row, column in itertools.product((0, 1), repeat=2):
            large[:, :, row::2, column::2] = four[:, row, column, :, row : row + height, column : column + width]
        return large


def _of_four_pixels(weight: Tensor) -> Tensor:
    """The 2x2 kernels (4 C_out, C_in, 2, 2) of the pixels above on the left and right, and below, of one of (3, 3)."""
    above, below = _pairs(weight, dim=2)
    return torch.cat([*_pairs(above, dim=3), *_pairs(below, dim=3)])


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The three taps of a dimension as two, for the first and the second of two pixels that were one."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)


class PackedLinear(nn.Module):
    """A linear layer with its weights packed; how long the input is makes no difference."""

    def __init__(self, plain: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = plain.weight
        self.bias = None if plain.bias is None else _in(plain.bias, dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class GroupNormOfChannelsLast(nn.Module):
    """A group normalisation of what packed convolutions give, which is in channels_last."""

    def __init__(self, plain: nn.GroupNorm, dtype: torch.dtype):
        super().__init__()
        self.weight, self.bias = _in(plain.weight, dtype), _in(plain.bias, dtype)
        self.num_groups, self.eps = plain.num_groups, plain.eps

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
