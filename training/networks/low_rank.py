"""Low-rank adapters of a U-Net, W + B A (Eq. 3, arXiv:2106.09685), as diffusers names them in files."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from stable_diffusion.diffusion import UNet

SMALLEST = 8  # rows or columns of a layer that is worth an adapter
TEXT = (".attn2.to_k", ".attn2.to_v")  # layers that see text: an adapter without them fits every text encoder


class LowRankAdapter(nn.Module):
    """The factors of every convolution and linear layer of `unet`, whose own weights stay as they are."""

    def __init__(self, unet: UNet, rank: int):
        super().__init__()
        self.unet = [unet]  # in a list, so that it is not trained, averaged and saved with the factors
        layers = {
            name: layer.weight
            for name, layer in unet.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
            and min(layer.weight.flatten(1).shape) > SMALLEST
            and not name.endswith(TEXT)
        }
        self.names = list(layers)
        matrices = [weight.flatten(1) for weight in layers.values()]
        ranks = [min(rank, *matrix.shape) for matrix in matrices]
        self.downs = nn.ParameterList(
            torch.randn(r, matrix.shape[1]) / math.sqrt(matrix.shape[1])
            for matrix, r in zip(matrices, ranks, strict=True)
        )
        self.ups = nn.ParameterList(torch.zeros(len(matrix), r) for matrix, r in zip(matrices, ranks, strict=True))

    def predict(self, x_t: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """`UNet.forward` with the adapter: x_t (B, C, h, w), t (B,), words (B, S, K) -> (B, C, h, w)."""
        [unet] = self.unet
        weights = {
            f"{name}.weight": unet.get_parameter(f"{name}.weight").detach()
            + (up @ down).view_as(unet.get_parameter(f"{name}.weight"))
            for name, down, up in zip(self.names, self.downs, self.ups, strict=True)
        }
        return functional_call(unet, weights, (x_t, t, words))

    def save(self, path: Path) -> None:
        """Write the factors in float16; of a convolution the first has its kernel, the second 1 x 1."""
        [unet] = self.unet
        state = {}
        for name, down, up in zip(self.names, self.downs, self.ups, strict=True):
            shape = unet.get_parameter(f"{name}.weight").shape
            state[f"unet.{name}.lora_A.weight"] = down.view(-1, *shape[1:])
            state[f"unet.{name}.lora_B.weight"] = up.view(*up.shape, *[1] * (len(shape) - 2))
        save_file({name: tensor.detach().half().contiguous() for name, tensor in state.items()}, path)

    def load(self, path: Path) -> None:
        """Take the factors from a file; layers that it has beside the adapter's own are left out.

        Of a file of a higher rank the largest singular values stay.
        """
        state = load_file(path)
        with torch.no_grad():
            for name, down, up in zip(self.names, self.downs, self.ups, strict=True):
                first, second = (state[f"unet.{name}.lora_{half}.weight"].float().flatten(1) for half in "AB")
                if len(first) != len(down):
                    left, values, right = torch.linalg.svd(second @ first, full_matrices=False)
                    roots = values[: len(down)].sqrt()
                    first, second = roots[:, None] * right[: len(down)], left[:, : len(down)] * roots
                down.copy_(first)
                up.copy_(second)
