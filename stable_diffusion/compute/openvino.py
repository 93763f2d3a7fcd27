"""OpenVINO's kernels for a U-Net on a CPU: an optional package, `pip install openvino`, and faster on many machines.

They are compiled for the shapes of one guided picture of the model's own size; kernels compiled for all shapes are not
faster than ours. Our layers evaluate all other shapes. A U-Net is converted once, in ten seconds for the bundled model,
and kept in the user's cache folder. In memory its weights are a second copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion import UNet
from ..loading.checkpoints import outline
from .packed import for_inference, set_inference_network
from .precision import ROUNDS, WORTHWHILE

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "stable-diffusion-live", "openvino")
HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""The largest difference from our output, relative to its norm."""


def use_where_faster(unet: UNet, dtype: torch.dtype, cache: Path = CACHE) -> bool:
    """Make `for_inference` return OpenVINO's network for `unet` in `dtype` if it is right and faster; return whether.

    Faster means at most 0.9 of the time, measured here. False without the package openvino. Raises OpenVINO's errors.
    """
    usable = dtype in HINTS and unet.conv_in.weight.device.type == "cpu"
    if not usable or importlib.util.find_spec("openvino") is None:
        return False
    ours = for_inference(unet, dtype)
    theirs = OpenVINOUNet(unet, ours, dtype, cache)
    latents, time_embedding, keys_values = (tensor.to(dtype) for tensor in _example(unet))
    outputs: list[Tensor] = []
    seconds: dict[UNet, list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for network, times in seconds.items():
            started = time.perf_counter()
            outputs.append(network.evaluate(latents, time_embedding, keys_values).float())
            times.append(time.perf_counter() - started)
    right = (outputs[-1] - outputs[-2]).norm() <= AGREEMENT[dtype] * outputs[-2].norm()
    if right and min(seconds[theirs]) < WORTHWHILE * min(seconds[ours]):
        set_inference_network(unet, dtype, theirs)
    return for_inference(unet, dtype) is theirs


class OpenVINOUNet(UNet):
    """The network `packed`, except that OpenVINO evaluates it for one guided picture of the model's own size.

    Our layers embed the timesteps: OpenVINO in bfloat16 would take their sines in bfloat16, an error of a fifth.
    """

    def __init__(self, unet: UNet, packed: UNet, dtype: torch.dtype, cache: Path = CACHE):
        import openvino

        nn.Module.__init__(self)
        self.__dict__.update(packed.__dict__)  # the same layers
        settings = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(converted(unet, cache), "CPU", settings)
        self._shapes = [tuple(port.shape) for port in compiled.inputs]
        self._request, self._lock = compiled.create_infer_request(), threading.Lock()

    def evaluate(self, latents: Tensor, time: Tensor, keys_values: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """See `UNet.evaluate`."""
        inputs = latents, time, keys_values
        if maps is not None or [tensor.shape for tensor in inputs] != self._shapes:
            return super().evaluate(*inputs, maps)
        with self._lock:  # a request evaluates one input at a time
            output = self._request.infer([tensor.float().numpy() for tensor in inputs])[0]
        return torch.from_numpy(output).to(latents.dtype)


def converted(unet: UNet, cache: Path = CACHE) -> Path:
    """Return the file of a U-Net in OpenVINO's format, named by weights and version; convert it if it is missing."""
    import openvino

    example = _example(unet)
    shapes = [list(tensor.shape) for tensor in example]
    folder, digest = cache.expanduser(), hashlib.sha256(repr((openvino.__version__, unet.config, shapes)).encode())
    for weight in unet.parameters():
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().data)
    file = folder / f"{digest.hexdigest()}.xml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unpacked = outline(UNet, unet.config).eval().requires_grad_(False)
        unpacked.load_state_dict({name: weight.float() for name, weight in unet.state_dict().items()}, assign=True)
        model = openvino.convert_model(_Predict(unpacked), example_input=example, input=shapes)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            openvino.save_model(model, Path(made, file.name), compress_to_fp16=False)
            for name in (file.with_suffix(".bin").name, file.name):  # in this order: the .xml says that both are there
                os.replace(Path(made, name), folder / name)
    return file


class _Predict(nn.Module):
    """`UNet.evaluate` as the forward of a network, for tracing."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, time: Tensor, keys_values: Tensor) -> Tensor:
        return self.unet.evaluate(latents, time, keys_values)


def _example(unet: UNet) -> tuple[Tensor, Tensor, Tensor]:
    """Return random latents, time embedding, keys and values of one guided picture."""
    generator, config = torch.Generator().manual_seed(0), unet.config
    width = unet.read(torch.zeros(1, 1, config.cross_attention_dim, dtype=unet.conv_in.weight.dtype)).shape[2]
    latents = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    time = torch.randn(1, 4 * config.block_out_channels[0], generator=generator)
    return latents, time, torch.randn(2, 77, width, generator=generator)
