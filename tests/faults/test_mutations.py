"""Mutated model files are loaded or refused in a sentence; no code runs, and the model in use stays."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

from stable_diffusion.loading.config import ModelError
from stable_diffusion.model_converter import convert
from stable_diffusion.pipeline import Pipeline
from stable_diffusion.vae import NotFinite
from tests.tiny import save_model

from .test_checkpoints import MEMORY, PROCESSES, SECONDS
from .test_settings import OTHERS, mutated

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
NAMES = ("", "x", "\n", "\x1b[2J", "n" * 1_000_000, "model.diffusion_model.x", "lora_unet_x.alpha", "../../x", "é")
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64)
TYPES = ("F32", "F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "X", "", 3, None)
NUMBERS = (0, 1, -1, 2**31, 2**53, 2**64, 10**400, 0.5, "1", None, [], True)


class Code:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


# Changes to the bytes of a weight file.


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return content with a few bytes changed, most of them at the start, and perhaps the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 20))):
        changed[chance.randrange(min(len(changed), chance.choice((8, 400, 10**6))))] = chance.randrange(256)
    return bytes(changed[: chance.choice((None, None, chance.randrange(len(changed))))])


def with_header(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with one entry of its header changed."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = chance.choice([name for name in header if name != "__metadata__"])
    entry = header[key]
    match chance.randrange(6):
        case 0:
            entry["dtype"] = chance.choice(TYPES)
        case 1:
            entry["shape"] = chance.choice(([], [0], entry["shape"][::-1], [*entry["shape"], chance.choice(NUMBERS)]))
        case 2:
            entry["data_offsets"] = [chance.choice((*NUMBERS, offset)) for offset in entry["data_offsets"]]
        case 3:
            header[chance.choice(NAMES)] = header.pop(key)
        case 4:
            header[key] = chance.choice(OTHERS)
        case 5:
            header["__metadata__"] = chance.choice(({chance.choice(NAMES): chance.choice(NAMES)}, OTHERS, {"a": 1}))
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def with_tensors(content: bytes, chance: random.Random, marker: Path) -> bytes:
    """Return a safetensors file, or a pickle, with another tensor or object in the place of one tensor."""
    state: dict[Any, Any] = load(content)
    key = chance.choice(list(state))
    tensor = state[key]
    pickled = chance.random() < 0.5
    kinds: list[Callable[[], Any]] = [
        lambda: tensor.to(chance.choice(DTYPES)),
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor.new_zeros(0),
        lambda: torch.full_like(tensor, chance.choice((float("nan"), float("inf"), 1e38))),
        lambda: tensor.new_ones(chance.choice(((3,), (2, 2), (1, 2, 3, 4, 5), ()))),
    ]
    others: list[Callable[[], Any]] = [
        *(lambda: Code(marker), lambda: {"a": state}, lambda: [tensor], lambda: "x", lambda: 7, lambda: None),
        *(lambda: tensor.to_sparse(), lambda: tensor.to("meta"), lambda: torch.zeros(1).expand(2**33)),
        lambda: torch.nn.Parameter(tensor),
    ]
    state[key] = chance.choice(kinds + others * pickled)()
    if chance.random() < 0.3:
        state[chance.choice((*NAMES, *[3, None, (1, 2)] * pickled))] = state.pop(key)
    if not pickled:
        return save({name: one.contiguous() for name, one in state.items()})
    file = io.BytesIO()
    if chance.random() < 0.2:
        pickle.dump(state, file, protocol=2)
    else:
        wrapped = {"state_dict": state} if chance.random() < 0.3 else state
        torch.save(wrapped, file, _use_new_zipfile_serialization=chance.random() < 0.7)
    return file.getvalue()


def changed(content: bytes, chance: random.Random, marker: Path) -> bytes:
    return chance.choice((damaged, with_header, lambda *given: with_tensors(*given, marker)))(content, chance)


# One more mutated model, LoRA or embedding.

Case = tuple[str, Path]
"""How the library takes it, and where it is."""


def models(original: Path, folder: Path, chance: random.Random, marker: Path) -> Case:
    """Make a model directory with one file changed."""
    shutil.copytree(original, folder)
    file = chance.choice([*sorted(folder.glob("*/*.json")), folder / "model_index.json", folder / UNET, folder / TEXT])
    if file.suffix == ".json":
        file.write_text(json.dumps(mutated(json.loads(file.read_text()), chance)))
        if chance.random() < 0.2:
            file.write_bytes(damaged(file.read_bytes(), chance))
    else:
        content = changed(file.read_bytes(), chance, marker)
        if content[:1] in (b"P", b"\x80"):
            file.unlink()
            file = file.with_name("pytorch_model.bin") if file.name == "model.safetensors" else file.with_suffix(".bin")
        file.write_bytes(content)
    return "load", folder


def singles(original: Path, folder: Path, chance: random.Random, marker: Path) -> Case:
    """Make a single file with changed content or settings."""
    folder.mkdir()
    file = folder / "one.safetensors"
    if chance.random() < 0.3:
        settings = json.dumps({"unet": {"layers_per_block": chance.choice(OTHERS)}}, default=str)
        save_file(load_file(original.with_name("one.safetensors")), file, {"stable_diffusion": settings})
        return "load", file
    content = changed(original.with_name("one.safetensors").read_bytes(), chance, marker)
    file = file.with_suffix(".ckpt" if content[:1] in (b"P", b"\x80") else ".safetensors")
    file.write_bytes(content)
    return "load", file


def loras(original: Path, folder: Path, chance: random.Random, marker: Path) -> Case:
    """Make a LoRA file with changed content or settings."""
    folder.mkdir()
    weight = load_file(original / UNET)["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    down, up = torch.ones(2, weight.shape[1]), torch.ones(weight.shape[0], 2)
    state = {f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up, f"{LAYER}.alpha": torch.ones(())}
    settings: dict[str, Any] = {"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 3}}
    if chance.random() < 0.4:
        del state[f"{LAYER}.alpha"]
        written = json.dumps(mutated(settings, chance))
        save_file(state, folder / "ink.safetensors", {"lora_adapter_metadata": written})
        return "lora", folder / "ink.safetensors"
    content = changed(save(state), chance, marker)
    file = folder / f"ink{'.pt' if content[:1] in (b'P', bytes([128])) else '.safetensors'}"
    file.write_bytes(content)
    return "lora", file


def embeddings(original: Path, folder: Path, chance: random.Random, marker: Path) -> Case:
    """Make an embedding with changed content."""
    folder.mkdir()
    width = json.loads((original / "text_encoder/config.json").read_text())["hidden_size"]
    content = changed(save({"emb_params": torch.ones(2, width)}), chance, marker)
    name = chance.choice(("zub", "zub", "fox", "<b>", " ", "a" * 200))
    file = folder / f"{name}{'.pt' if content[:1] in (b'P', bytes([128])) else '.safetensors'}"
    file.write_bytes(content)
    return "embedding", file


MAKERS = (models, singles, loras, embeddings)


def read(pipeline: Pipeline, kind: str, path: Path) -> None:
    """Have the library read a file and draw with it; ModelError where it refuses the file."""
    base, words = pipeline.models, list(pipeline.embeddings)
    try:
        if kind == "lora":
            pipeline.loras.merge(path)
        elif kind == "embedding":
            pipeline.add_embedding(path)
        else:
            pipeline = Pipeline.from_pretrained(path, device="cpu")
    except ModelError:
        assert pipeline.models is base, "the model in use is another one"
        assert list(pipeline.embeddings) == words
        raise
    with suppress(NotFinite):
        assert drawn(pipeline).isfinite().all(), "it draws what is not finite"


def drawn(pipeline: Pipeline) -> torch.Tensor:
    return pipeline("a zub fox", num_inference_steps=1, width=32, height=32, seed=0).latents


def _read_all(original: str, cases: list[tuple[str, str]], answer: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipeline = Pipeline.from_pretrained(original, device="cpu")
    before = drawn(pipeline)
    for kind, path in cases:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        answer.send(path)
        try:
            read(pipeline, kind, Path(path))
            said = None
        except BaseException as error:
            said = (type(error).__name__, str(error))
        pipeline.loras.unmerge()
        for word in pipeline.embeddings:
            pipeline.remove_embedding(word)
        answer.send(said)
    answer.send(bool(torch.equal(drawn(pipeline), before)))


def answers(original: Path, cases: list[Case]) -> Iterator[tuple[Path, tuple[str, str] | None]]:
    """Yield each case's error, None where it draws, from a process of little time and memory."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    sent = [(kind, str(path)) for kind, path in cases]
    process = PROCESSES.Process(target=_read_all, args=(str(original), sent, theirs))
    process.start()
    theirs.close()
    path = "the first"
    try:
        for _ in cases:
            path = ours.recv()
            assert ours.poll(6 * SECONDS), f"{path} never ends"
            yield Path(path), ours.recv()
        assert ours.recv(), "the model in use draws another picture than before"
    except EOFError:
        process.join()
        pytest.fail(f"{path} ended the process: {process.exitcode}")
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.soak)])
def test_mutated_files(tmp_path: Path, count: int) -> None:
    original = save_model(tmp_path / "tiny")
    convert(original, tmp_path / "one.safetensors")
    chance, marker = random.Random(count), tmp_path / "it-ran"
    for start in range(0, count, 50):
        cases = [
            MAKERS[number % len(MAKERS)](original, tmp_path / f"case-{number}", chance, marker)
            for number in range(start, min(start + 50, count))
        ]
        for path, said in answers(original, cases):
            if said is not None:
                kind, sentence = said
                assert kind in ("ModelError", "ConfigError"), f"{path}: {kind}: {sentence[:2000]}"
                assert len(sentence) < 1500, f"{path}: {sentence[:2000]}"
                assert sentence.isprintable(), f"{path}: {sentence}"
                files = [path, *path.rglob("*")]
                assert any(file.stem in sentence for file in files), sentence
                assert re.search(": |; only ", sentence), sentence  # and what to do about it
            assert not marker.exists(), f"code of {path} ran"
            shutil.rmtree(path if path.is_dir() else path.parent)
