"""Ours beside diffusers on this machine: same weights, same inputs, in turn, with how far the outputs are apart.

    python -m benchmarks.compare --rows bundled-step bundled-run --json table.json
    python -m benchmarks.compare --compiled

Each line has the median of the rounds with the fastest and the slowest, its ratio to diffusers in float32, and the
largest difference from what that answered. Full-size rows have the shapes of Stable Diffusion 1.5 and random weights.
--compiled adds torch.compile with frozen weights, a minute or two for each network; OpenVINO is added where it is
installed. Needs 16 GB of memory for the full-size rows.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import gc
import importlib.util
import json
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from stable_diffusion.diffusion import UNet
from stable_diffusion.inference import for_inference
from stable_diffusion.loading.checkpoints import outline
from stable_diffusion.loading.config import BUNDLED, UNetConfig, VAEConfig
from stable_diffusion.loading.files import read_json
from stable_diffusion.loading.single_file import stable_diffusion_1
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.vae import VAE

PROMPT = "a rocket, noto style, on a blue background"
OPTIONS = {"num_inference_steps": 20, "guidance_scale": 5.0}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Work = Callable[[], Tensor]
"""One contender's part: computes the output and gives it."""
Works = dict[str, Work]


@dataclass(frozen=True)
class Settings:
    """What is compared: in which precisions, how often, and whether compiled too."""

    dtypes: list[str]
    rounds: int
    compiled: bool


@dataclass(frozen=True)
class Line:
    """What one contender of a row took, in seconds, and how far its output is from that of diffusers in float32."""

    row: str
    contender: str
    median: float
    fastest: float
    slowest: float
    ratio: float
    difference: float

    def __str__(self) -> str:
        spread = f"{self.fastest:.3f} to {self.slowest:.3f}"
        return (
            f"{self.row:16} {self.contender:20} {self.median:8.3f} {spread:>16} "
            f"{self.ratio:6.2f} {self.difference:11.1e}"
        )


HEADING = f"{'row':16} {'contender':20} {'median s':>8} {'spread s':>16} {'ratio':>6} {'difference':>11}"


@torch.no_grad()
def measure(row: str, works: Works, rounds: int) -> list[Line]:
    """Time the contenders in turn, the first being what the others are compared with."""
    outputs = {name: work().float() for name, work in works.items()}  # this first turn also warms up
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    first = next(iter(works))
    base = statistics.median(times[first])
    return [
        Line(
            row,
            name,
            statistics.median(spent),
            min(spent),
            max(spent),
            statistics.median(spent) / base,
            (outputs[name] - outputs[first]).abs().max().item(),
        )
        for name, spent in times.items()
    ]


Ask = Callable[[Any, Tensor], Tensor]
"""Puts a question to a network, of theirs or ours, and gives its answer."""


def evaluations(theirs: nn.Module, ours: UNet | VAE, ask: Ask, size: tuple[int, ...], chosen: Settings) -> Works:
    """One evaluation of a network by each contender; the question is noise of that size."""
    question = torch.randn(size, generator=torch.Generator().manual_seed(0))
    works: Works = {"diffusers float32": partial(ask, theirs, question)}
    for name in chosen.dtypes:
        converted, network = theirs, ours
        if name != "float32":
            converted = copy.deepcopy(theirs).to(DTYPES[name])
            network = sharing(type(ours), ours.config, converted)
        asked = question.to(DTYPES[name])
        works[f"diffusers {name}"] = partial(ask, converted, asked)
        works[f"ours {name}"] = partial(answer_packed, ask, network, asked)
        if chosen.compiled:
            works[f"compiled {name}"] = partial(torch.compile(Asked(converted, ask), options={"freezing": True}), asked)
        if importlib.util.find_spec("openvino"):
            works[f"OpenVINO {name}"] = openvino(Asked(theirs, ask), question, name)
    return works


def answer_packed(ask: Ask, network: nn.Module, question: Tensor) -> Tensor:
    return ask(for_inference(network), question)


class Asked(nn.Module):
    """A network with its question put, for those who convert networks: one tensor in, one out."""

    def __init__(self, network: nn.Module, ask: Ask):
        super().__init__()
        self.network, self.ask = network, ask

    def forward(self, question: Tensor) -> Tensor:
        return self.ask(self.network, question)


def openvino(network: Asked, question: Tensor, precision: str) -> Work:
    """OpenVINO's conversion of a network in float32, to be computed in this precision."""
    import openvino

    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    converted = openvino.convert_model(network, example_input=question, input=[list(question.shape)])
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda: torch.from_numpy(compiled(question.numpy())[0])


def sharing(kind: type[nn.Module], config: Any, theirs: nn.Module) -> Any:
    """Our network of that configuration with the very weights of theirs."""
    ours = outline(kind, config)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours.eval().requires_grad_(False)


def unets(bundled: bool) -> tuple[nn.Module, UNet]:
    """Theirs and ours, of the bundled model or of full size."""
    theirs, values = reference("unet", diffusers.UNet2DConditionModel, bundled)
    return theirs, sharing(UNet, UNetConfig.from_dict(values), theirs)


def vaes(bundled: bool) -> tuple[nn.Module, VAE]:
    """Theirs and ours, of the bundled model or of full size."""
    theirs, values = reference("vae", diffusers.AutoencoderKL, bundled)
    return theirs, sharing(VAE, VAEConfig.from_dict(values), theirs)


def reference(part: str, kind: Any, bundled: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Theirs, with trained or random weights, and its chosen."""
    if bundled:
        theirs, values = kind.from_pretrained(BUNDLED / part), read_json(BUNDLED / part / "config.json")
    else:
        values = stable_diffusion_1()[part]
        torch.manual_seed(0)
        theirs = kind.from_config(values)
    return theirs.eval().requires_grad_(False), values


def guided_step(bundled: bool, pixels: int, chosen: Settings) -> Works:
    """The U-Net on latents of one picture, with and without its words."""
    theirs, ours = unets(bundled)
    config = ours.config
    context = torch.randn(2, 77, config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([501, 501])

    words = ours.read(context)  # which a run of ours does once

    def ask(network: Any, latents: Tensor) -> Tensor:
        if isinstance(network, UNet):
            return network.predict(latents, timesteps, words.to(latents.dtype))
        return network(latents, timesteps, context.to(latents.dtype)).sample

    return evaluations(theirs, ours, ask, (2, config.in_channels, pixels // 8, pixels // 8), chosen)


def decoding(bundled: bool, pixels: int, chosen: Settings) -> Works:
    """The VAE from latents to one picture."""
    theirs, ours = vaes(bundled)

    def ask(vae: Any, latents: Tensor) -> Tensor:
        if isinstance(vae, VAE):
            return vae.decode(latents * vae.config.scaling_factor)
        return vae.decode(latents).sample

    return evaluations(theirs, ours, ask, (1, ours.config.latent_channels, pixels // 8, pixels // 8), chosen)


def encoding(bundled: bool, pixels: int, chosen: Settings) -> Works:
    """The VAE from one picture to the mean of its latents."""
    theirs, ours = vaes(bundled)

    def ask(vae: Any, pictures: Tensor) -> Tensor:
        if isinstance(vae, VAE):
            return vae.posterior(pictures).mean
        return vae.encode(pictures).latent_dist.mean

    return evaluations(theirs, ours, ask, (1, 3, pixels, pixels), chosen)


def reference_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True, dtype=dtype
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def whole_run(chosen: Settings) -> Works:
    """20 guided steps of DDIM with the bundled model, from prompt to picture in [0, 1]."""
    works: Works = {}
    for name in dict.fromkeys(["float32", *chosen.dtypes]):
        theirs, ours = reference_pipeline(BUNDLED, DTYPES[name]), Pipeline.from_pretrained(dtype=DTYPES[name])
        works[f"diffusers {name}"] = partial(draw_theirs, theirs)
        if name in chosen.dtypes:
            works[f"ours {name}"] = partial(draw_ours, ours)
    return works


def draw_theirs(pipe: Any) -> Tensor:
    return as_tensor(pipe(PROMPT, generator=torch.Generator().manual_seed(1), **OPTIONS).images[0])


def draw_ours(pipe: Pipeline) -> Tensor:
    return as_tensor(pipe(PROMPT, seed=1, sampler="ddim", **OPTIONS).images[0])


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def loading(folder: Path) -> Works:
    """From a model's directory to networks in memory; the output is one weight, for something to compare."""
    return {
        "diffusers float32": lambda: reference_pipeline(folder).unet.conv_in.weight,
        "ours float32": lambda: load(folder, dtype=torch.float32).unet.conv_in.weight,
    }


def loading_full_size(chosen: Settings) -> Works:
    """`loading` of the bundled model's directory with networks of full size in the place of its own."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    pipe, values = reference_pipeline(BUNDLED), stable_diffusion_1()["text_encoder"]
    pipe.text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**values))
    pipe.unet, pipe.vae = unets(bundled=False)[0], vaes(bundled=False)[0]
    pipe.save_pretrained(folder)
    return loading(folder)


ROWS: dict[str, Callable[[Settings], Works]] = {
    "bundled-step": lambda chosen: guided_step(True, 128, chosen),
    "bundled-decode": lambda chosen: decoding(True, 128, chosen),
    "bundled-encode": lambda chosen: encoding(True, 128, chosen),
    "bundled-run": whole_run,
    "bundled-load": lambda chosen: loading(BUNDLED),
    "full-step-256": lambda chosen: guided_step(False, 256, chosen),
    "full-step-512": lambda chosen: guided_step(False, 512, chosen),
    "full-decode-256": lambda chosen: decoding(False, 256, chosen),
    "full-decode-512": lambda chosen: decoding(False, 512, chosen),
    "full-encode-512": lambda chosen: encoding(False, 512, chosen),
    "full-load": loading_full_size,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="precisions")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--compiled", action="store_true", help="diffusers through torch.compile too")
    parser.add_argument("--json", type=Path, help="where to keep the table")
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    chosen, lines = Settings(args.dtypes, args.rounds, args.compiled), []
    print(machine(), HEADING, sep="\n", flush=True)
    for row in args.rows:
        measured = measure(row, ROWS[row](chosen), chosen.rounds)
        print(*measured, sep="\n", flush=True)
        lines += measured
        gc.collect()  # one row's networks leave before the next one's come
    if args.json is not None:
        table = {"machine": machine(), "lines": [asdict(line) for line in lines]}
        args.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """The processor and the versions, in one line."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        processor = names[0] if names else processor
    return (
        f"{processor}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    )


if __name__ == "__main__":
    main()
