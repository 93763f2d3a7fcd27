"""Define the rows of `compare`: contenders, ours and theirs, with the same weights and inputs."""

from __future__ import annotations

import atexit
import copy
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from stable_diffusion.compute.openvino import OpenVINOUNet
from stable_diffusion.compute.packed import for_inference
from stable_diffusion.diffusion import UNet
from stable_diffusion.loading.checkpoints import outline
from stable_diffusion.loading.config import BUNDLED, UNetConfig, VAEConfig
from stable_diffusion.loading.files import read_json
from stable_diffusion.loading.single_file import stable_diffusion_1
from stable_diffusion.model_loader import load
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.request import Request
from stable_diffusion.vae import VAE

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a rocket, noto style, on a blue background"
OPTIONS: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 5.0}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BARE_PAGE = "import gradio as gr\nwith gr.Blocks() as page:\n    gr.Textbox()\npage.launch(server_port={port})"

Work = Callable[[], Tensor]
"""A contender: a function that computes the output."""
Works = dict[str, Work]


@dataclass(frozen=True)
class Settings:
    """How to measure: in which precisions, for how many rounds, and whether with torch.compile."""

    dtypes: list[str]
    rounds: int
    compiled: bool


Ask = Callable[[Any, Tensor], Tensor]
"""Evaluate a network, theirs or ours, for one input tensor."""


def evaluations(theirs: nn.Module, ours: UNet | VAE, ask: Ask, size: tuple[int, ...], chosen: Settings) -> Works:
    """Return contenders that evaluate a network once, for noise of `size`."""
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
            if isinstance(network, UNet) and isinstance(ours, UNet):
                backend = OpenVINOUNet(ours, for_inference(network), DTYPES[name], scratch())
                works[f"ours OpenVINO {name}"] = partial(ask, backend, asked)
    return works


def answer_packed(ask: Ask, network: nn.Module, question: Tensor) -> Tensor:
    """Evaluate our network with its weights packed, as a pipeline does."""
    return ask(for_inference(network), question)


class Asked(nn.Module):
    """A network with one input and one output tensor, as torch.compile and OpenVINO need it."""

    def __init__(self, network: nn.Module, ask: Ask):
        super().__init__()
        self.network, self.ask = network, ask

    def forward(self, question: Tensor) -> Tensor:
        """Evaluate the network for `question`."""
        return self.ask(self.network, question)


def openvino(network: Asked, question: Tensor, precision: str) -> Work:
    """Convert a float32 network with OpenVINO, and return a contender that computes it in `precision`."""
    import openvino

    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    converted = openvino.convert_model(network, example_input=question, input=[list(question.shape)])
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda: torch.from_numpy(compiled(question.numpy())[0])


def sharing(kind: type[nn.Module], config: Any, theirs: nn.Module) -> Any:
    """Return our network of class `kind` with the weights of `theirs`, shared and not copied."""
    ours = outline(kind, config)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours.eval().requires_grad_(False)


def unets(bundled: bool) -> tuple[nn.Module, UNet]:
    """Return their network and ours, of the bundled model or of full size."""
    theirs, values = reference("unet", diffusers.UNet2DConditionModel, bundled)
    return theirs, sharing(UNet, UNetConfig.from_dict(values), theirs)


def vaes(bundled: bool) -> tuple[nn.Module, VAE]:
    """Return their network and ours, of the bundled model or of full size."""
    theirs, values = reference("vae", diffusers.AutoencoderKL, bundled)
    return theirs, sharing(VAE, VAEConfig.from_dict(values), theirs)


def reference(part: str, kind: Any, bundled: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Return their network, with the bundled or with random weights, and its settings."""
    if bundled:
        theirs, values = kind.from_pretrained(BUNDLED / part), read_json(BUNDLED / part / "config.json")
    else:
        values = stable_diffusion_1()[part]
        torch.manual_seed(0)
        theirs = kind.from_config(values)
    return theirs.eval().requires_grad_(False), values


def guided_step(bundled: bool, side: int, chosen: Settings) -> Works:
    """Evaluate the U-Net on side x side latents of one picture, with and without its prompt."""
    theirs, ours = unets(bundled)
    config = ours.config
    context = torch.randn(2, 77, config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([501])

    words = ours.read(context)  # once a run, so outside the measurement

    def ask(network: Any, latents: Tensor) -> Tensor:
        if isinstance(network, UNet):
            return network(latents, timestep, words.to(latents.dtype))
        return network(torch.cat([latents] * 2), timestep, context.to(latents.dtype)).sample

    return evaluations(theirs, ours, ask, (1, config.in_channels, side, side), chosen)


def decoding(bundled: bool, side: int, chosen: Settings) -> Works:
    """Decode side x side latents to one picture by the VAE."""
    theirs, ours = vaes(bundled)

    def ask(vae: Any, latents: Tensor) -> Tensor:
        if isinstance(vae, VAE):
            return vae.decode(latents * vae.config.scaling_factor)
        return vae.decode(latents).sample

    return evaluations(theirs, ours, ask, (1, ours.config.latent_channels, side, side), chosen)


def encoding(bundled: bool, pixels: int, chosen: Settings) -> Works:
    """Encode one picture of pixels x pixels to the mean of its latents by the VAE."""
    theirs, ours = vaes(bundled)

    def ask(vae: Any, pictures: Tensor) -> Tensor:
        if isinstance(vae, VAE):
            return vae.posterior(pictures).mean
        return vae.encode(pictures).latent_dist.mean

    return evaluations(theirs, ours, ask, (1, 3, pixels, pixels), chosen)


def reference_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return diffusers' pipeline of a model directory, without its safety checker and progress bar."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True, dtype=dtype
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def whole_run(chosen: Settings) -> Works:
    """Draw a picture with the bundled model, 20 guided steps of DDIM; the output is in [0, 1]."""
    works: Works = {}
    for name in dict.fromkeys(["float32", *chosen.dtypes]):
        theirs, ours = reference_pipeline(BUNDLED, DTYPES[name]), Pipeline.from_pretrained(dtype=DTYPES[name])
        works[f"diffusers {name}"] = partial(draw_theirs, theirs)
        if name in chosen.dtypes:
            works[f"ours {name}"] = partial(draw_ours, ours)
    return works


def draw_theirs(pipe: Any) -> Tensor:
    """Draw `PROMPT` with diffusers."""
    return as_tensor(pipe(PROMPT, generator=torch.Generator().manual_seed(1), **OPTIONS).images[0])


def draw_ours(pipe: Pipeline, preview: str = "none") -> Tensor:
    """Draw `PROMPT` with our pipeline."""
    return as_tensor(pipe(Request(PROMPT, seed=1, sampler="ddim", preview=preview, **OPTIONS)).images[0])


def as_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as a tensor (H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def scratch() -> Path:
    """Return a new folder, which is removed when the program ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


def previewed_runs(chosen: Settings) -> Works:
    """Draw with our pipeline and a preview of every step, of each kind, beside a run without previews."""
    works: Works = {}
    for name in chosen.dtypes:
        pipe = Pipeline.from_pretrained(dtype=DTYPES[name])
        kinds = ["none", "linear", "auto", *sharp(pipe)]
        works |= {f"{kind} {name}": partial(draw_ours, pipe, preview=kind) for kind in kinds}
    return works


def sharp(pipe: Pipeline) -> list[str]:
    """Return the kinds of sharp previews that a model has."""
    return ["vae"] if pipe.models.tiny_vae is None else ["vae", "tiny"]


def first_preview(chosen: Settings) -> Works:
    """Draw up to the first preview. Ours is of x_0; theirs, decoded in a callback, is of x_t."""
    works: Works = {}
    for name in dict.fromkeys(["float32", *chosen.dtypes]):
        theirs, ours = reference_pipeline(BUNDLED, DTYPES[name]), Pipeline.from_pretrained(dtype=DTYPES[name])
        works[f"diffusers {name}"] = partial(preview_theirs, theirs)
        if name in chosen.dtypes:
            works |= {f"ours {kind} {name}": partial(preview_ours, ours, kind) for kind in sharp(ours)}
    return works


def preview_theirs(pipe: Any) -> Tensor:
    """Decode the latents after diffusers' first step, and stop there."""
    pictures: list[Image.Image] = []

    def show(pipe: Any, step: int, timestep: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        decoded = pipe.vae.decode(values["latents"] / pipe.vae.config.scaling_factor).sample
        pictures.extend(pipe.image_processor.postprocess(decoded))
        pipe._interrupt = True  # skip the remaining steps
        return values

    pipe(PROMPT, generator=torch.Generator().manual_seed(1), callback_on_step_end=show, output_type="latent", **OPTIONS)
    return as_tensor(pictures[0])


def preview_ours(pipe: Pipeline, preview: str) -> Tensor:
    """Return the first preview of our run, and stop there."""
    steps = pipe.stream(Request(PROMPT, seed=1, sampler="ddim", preview=preview, **OPTIONS))
    images = next(steps).images
    steps.close()
    assert images is not None
    return as_tensor(images[0])


def pages(chosen: Settings) -> Works:
    """Start a page's process, and wait for its first answer."""
    return {
        "bare Gradio page": lambda: served("-c", BARE_PAGE),
        "ours": lambda: served("app.py", "--port", "{port}"),
    }


def served(*command: str) -> Tensor:
    """Run Python with `command`, in which {port} is replaced, until it answers; the output is a constant."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.format(port=port) if "{port}" in word else word for word in command]
    server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    return torch.zeros(1)
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{' '.join(words)} ended with {server.returncode} before it answered")
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def loading(folder: Path) -> Works:
    """Load a model directory; the output is one weight."""
    return {
        "diffusers float32": lambda: reference_pipeline(folder).unet.conv_in.weight,
        "ours float32": lambda: load(folder, dtype=torch.float32).unet.conv_in.weight,
    }


def loading_full_size(chosen: Settings) -> Works:
    """Load a directory of full-size networks, with the bundled model's tokenizer and scheduler."""
    folder = scratch()
    pipe, values = reference_pipeline(BUNDLED), stable_diffusion_1()["text_encoder"]
    pipe.text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**values))
    pipe.unet, pipe.vae = unets(bundled=False)[0], vaes(bundled=False)[0]
    pipe.save_pretrained(folder)
    return loading(folder)


ROWS: dict[str, Callable[[Settings], Works]] = {
    "bundled-step": lambda chosen: guided_step(True, 16, chosen),
    "bundled-decode": lambda chosen: decoding(True, 16, chosen),
    "bundled-encode": lambda chosen: encoding(True, 256, chosen),
    "bundled-run": whole_run,
    "bundled-previews": previewed_runs,
    "bundled-first": first_preview,
    "bundled-load": lambda chosen: loading(BUNDLED),
    "full-step-256": lambda chosen: guided_step(False, 32, chosen),
    "full-step-512": lambda chosen: guided_step(False, 64, chosen),
    "full-decode-256": lambda chosen: decoding(False, 32, chosen),
    "full-decode-512": lambda chosen: decoding(False, 64, chosen),
    "full-encode-512": lambda chosen: encoding(False, 512, chosen),
    "full-load": loading_full_size,
    "page": pages,
}
