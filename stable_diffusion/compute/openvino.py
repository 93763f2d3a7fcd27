"""OpenVINO's kernels for a U-Net on a processor: an optional package, `pip install openvino`, and faster on many.

They are compiled for one question, that of a run of one guided picture of the model's own size: compiled for any, they
gain nothing. Ours answer all others. A U-Net is converted once, in ten seconds for the bundled model, and kept in the
user's cache folder. In memory it has its weights beside ours.
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
from .packed import for_inference, prefer
from .precision import GAIN, ROUNDS

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "stable-diffusion-live", "openvino")
HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How far its answer may be from ours, as a share of its length."""


def use_where_faster(unet: UNet, dtype: torch.dtype, cache: Path = CACHE) -> bool:
    """Have `for_inference` give OpenVINO's network for `unet` in `dtype`, if OpenVINO is here and its network is right
    and takes less than 0.9 of the time; answers whether it does. Raises what OpenVINO raises.
    """
    usable = dtype in HINTS and unet.conv_in.weight.device.type == "cpu"
    if not usable or importlib.util.find_spec("openvino") is None:
        return False
    ours = for_inference(unet, dtype)
    theirs = OpenVINOUNet(unet, ours, dtype, cache)
    at, latents, words = (tensor.to(dtype) for tensor in _question(unet))
    answers: list[Tensor] = []
    taken: dict[UNet, list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for network, times in taken.items():
            started = time.perf_counter()
            answers.append(network.predict_at(at, latents, words).float())
            times.append(time.perf_counter() - started)
    right = (answers[-1] - answers[-2]).norm() <= AGREEMENT[dtype] * answers[-2].norm()
    if right and min(taken[theirs]) < GAIN * min(taken[ours]):
        prefer(unet, dtype, theirs)
    return for_inference(unet, dtype) is theirs


class OpenVINOUNet(UNet):
    """Ours, `packed`, but for what is asked at the model's own size, which OpenVINO answers.

    Timesteps are embedded by ours: in bfloat16 OpenVINO takes their sines in it too, and errs by a fifth.
    """

    def __init__(self, unet: UNet, packed: UNet, dtype: torch.dtype, cache: Path = CACHE):
        import openvino

        nn.Module.__init__(self)
        self.__dict__.update(packed.__dict__)  # the same layers
        settings = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(converted(unet, cache), "CPU", settings)
        self._shapes = [tuple(port.shape) for port in compiled.inputs]
        self._request, self._busy = compiled.create_infer_request(), threading.Lock()

    def predict_at(self, time: Tensor, latents: Tensor, words: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """See `UNet.predict_at`."""
        question = time, latents, words
        if maps is not None or [tensor.shape for tensor in question] != self._shapes:
            return super().predict_at(*question, maps)
        with self._busy:  # a request answers one question at a time
            answer = self._request.infer([tensor.float().numpy() for tensor in question])[0]
        return torch.from_numpy(answer).to(latents.dtype)


def converted(unet: UNet, cache: Path = CACHE) -> Path:
    """The file of a U-Net as OpenVINO has it, under a name for weights and version; made if it is not there yet."""
    import openvino

    question = _question(unet)
    shapes = [list(tensor.shape) for tensor in question]
    folder, digest = cache.expanduser(), hashlib.sha256(repr((openvino.__version__, unet.config, shapes)).encode())
    for weight in unet.parameters():
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().data)
    file = folder / f"{digest.hexdigest()}.xml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        plain = outline(UNet, unet.config).eval().requires_grad_(False)
        plain.load_state_dict({name: weight.float() for name, weight in unet.state_dict().items()}, assign=True)
        model = openvino.convert_model(_Predict(plain), example_input=question, input=shapes)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            openvino.save_model(model, Path(made, file.name), compress_to_fp16=False)
            for name in (file.with_suffix(".bin").name, file.name):  # who finds the second finds both
                os.replace(Path(made, name), folder / name)
    return file


class _Predict(nn.Module):
    """`UNet.predict_at` as a network of its own, as tracing wants it."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, time: Tensor, latents: Tensor, words: Tensor) -> Tensor:
        return self.unet.predict_at(time, latents, words)


def _question(unet: UNet) -> tuple[Tensor, Tensor, Tensor]:
    """Time, latents and words, of noise, as of one guided picture."""
    generator, config = torch.Generator().manual_seed(0), unet.config
    width = unet.read(torch.zeros(1, 1, config.cross_attention_dim, dtype=unet.conv_in.weight.dtype)).shape[2]
    latents = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    time = torch.randn(1, 4 * config.block_out_channels[0], generator=generator)
    return time, latents, torch.randn(2, 77, width, generator=generator)
