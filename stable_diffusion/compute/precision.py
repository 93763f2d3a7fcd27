"""The fastest precision of this machine, by measurement."""

from __future__ import annotations

import time
from functools import cache

import torch

from ..diffusion import UNet
from ..loading.checkpoints import outline
from ..loading.config import PLAIN_DOWN, PLAIN_UP, UNetConfig
from .packed import for_inference

PROBE = UNetConfig(
    block_out_channels=(96, 192),
    cross_attention_dim=256,
    attention_head_dim=6,
    sample_size=16,
    layers_per_block=1,
    down_block_types=(PLAIN_DOWN, "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", PLAIN_UP),
)
"""A U-Net with layers like the bundled model's, which gains least: a gain here is larger in larger networks."""
WORTHWHILE = 0.9
"""The largest share of float32's time that makes a less exact precision worthwhile."""
ROUNDS = 5


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return float16 on CUDA, bfloat16 on a CPU where it takes less than 0.9 of float32's time, else float32.

    The measurement takes a fraction of a second. Some CPUs with instructions for bfloat16 do not gain by them, and CPUs
    without them are slower.
    """
    if device.type == "cuda":
        return torch.float16
    if device.type != "cpu":
        return torch.float32
    steps = {dtype: _Step(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in steps}
    for _ in range(ROUNDS):
        for dtype, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[dtype].append(time.perf_counter() - started)
    best = {dtype: min(times) for dtype, times in seconds.items()}  # other work on the machine only adds time
    return torch.bfloat16 if best[torch.bfloat16] < WORTHWHILE * best[torch.float32] else torch.float32


class _Step:
    """A guided step of the probe; the constructor evaluates it once to warm up."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        network = outline(UNet, PROBE).to_empty(device=device).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.zero_()
        self.network = network.to(dtype)
        side = PROBE.sample_size
        self.latents = torch.zeros(2, PROBE.in_channels, side, side, device=device, dtype=dtype)
        context = torch.zeros(2, 77, PROBE.cross_attention_dim, device=device, dtype=dtype)
        self.keys_values = self.network.read(context)
        self.timesteps = torch.zeros(2, device=device)
        self()

    @torch.no_grad()
    def __call__(self) -> None:
        for_inference(self.network)(self.latents, self.timesteps, self.keys_values)
