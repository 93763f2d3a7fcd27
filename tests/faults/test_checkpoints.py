"""Files made to never end: each is refused with one sentence, within seconds and within the memory that it could need.

A case is loaded in a process of its own, whose memory is limited to what it has once everything is imported, and a
little more: what such a file would take must not reach the tests, nor may the limit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stable_diffusion.loading.config import ModelError
from stable_diffusion.loading.model_config import SETTINGS_FILES
from stable_diffusion.loading.single_file import METADATA_KEY
from stable_diffusion.model_converter import convert
from stable_diffusion.model_loader import load
from tests.tiny import save_model

SECONDS = 10
MEMORY = 512 * 2**20  # bytes; the files are at most a few MB
TERABYTE = 2**40
UNET = "unet/diffusion_pytorch_model"
DEEP = 100_000

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stable_diffusion.model_loader"])  # imported once


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def refusal(source: Path) -> str:
    """The sentence of the `ModelError` that loading `source` ends in; anything else, or nothing at all, fails."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_load, args=(str(source), theirs))
    process.start()
    theirs.close()
    try:
        # A busy machine may take longer; what waits for ever, takes no time at all.
        assert ours.poll(6 * SECONDS), f"{source} never ends"
        kind, message = ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f"{source} ended the process by signal {-(process.exitcode or 0)}; {signal.SIGXCPU} is time")
    finally:
        process.kill()
        process.join()
    assert kind == "ModelError", f"{kind}: {message[:500]}"
    assert len(message) < 1500
    return message


def _load(source: str, answer: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    torch.set_num_threads(1)
    try:
        load(source, device="cpu")
        answer.send(("nothing", "it was loaded"))
    except ModelError as error:
        answer.send(("ModelError", str(error)))
    except BaseException as error:
        answer.send((type(error).__name__, str(error)))


def sparse(path: Path, start: bytes = b"") -> None:
    """A file of a terabyte of zeros, after `start`, that takes no room on the disk."""
    path.write_bytes(start)
    os.truncate(path, TERABYTE)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What no pickler of weights writes: pickles that end with an object on the stack.


def archive(path: Path, code: bytes) -> None:
    """A PyTorch file that holds {"weights": what `code` makes}."""
    torch.save({"weights": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as whole:
        entries = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as changed:
        for name, content in entries.items():
            pickled = b"\x80\x02}" + text("weights") + code + b"s."
            changed.writestr(name, pickled if name.endswith("data.pkl") else content)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def call(name: str, arguments: bytes) -> bytes:
    module, _, name = name.rpartition(".")
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def hexadecimal(times: int) -> bytes:
    """A letter, as bytes, written in hexadecimal, that written in hexadecimal, and so on."""
    code = call("_codecs.encode", text("a") + text("latin1") + b"\x86")
    for _ in range(times):
        code = call("_codecs.encode", code + text("hex") + b"\x86")
    return code


def pairs(times: int) -> bytes:
    """A pair of twice the same pair, which is a pair of twice the same, and so on."""
    return b")" + b"".join(b"q%ch%c\x86" % (memo, memo) for memo in range(times))


def lists(times: int) -> bytes:
    """Numbers, a list of twice those, a list of twice that, and so on; in a list, and the last is in the memo."""
    code = b"](](" + b"K\x01" * 64 + b"eq\x00"
    for memo in range(times):
        code += b"](h%ch%ceq%c" % (memo, memo, memo + 1)
    return code


PICKLES = {
    "bytes by number": call("__builtin__.bytearray", b"J" + (2**31 - 1).to_bytes(4, "little") + b"\x85"),
    "text in hexadecimal": hexadecimal(36),
    "a key of pairs": b"}" + pairs(60) + b"K\x01s",
    "a tensor of lists": lists(26) + call("torch.FloatTensor", b"h\x1a\x85") + b"e",
    "a list copied again and again": (
        b"](]("
        + b"K\x01K\x02\x86" * 200_000
        + b"eq\x01"
        + call("collections.OrderedDict", b"h\x01\x85") * 20_000
        + b"e"
    ),
    "a text of 6 MB": text(" " * 6 * 2**20),
    "more taken than there is": b"\x87\x87\x87",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_more_than_weights(name: str, tmp_path: Path) -> None:
    archive(tmp_path / "file.ckpt", PICKLES[name])
    message = (
        "file.ckpt is damaged, or holds more than weights, such as Python code, which is never run: use the model's"
    )
    assert message in refusal(tmp_path / "file.ckpt")


def test_those_pickles_are_what_they_say(tmp_path: Path) -> None:
    """A few times over, PyTorch reads them."""
    for code, expected in (
        (pairs(2), (((), ()), ((), ()))),
        (hexadecimal(2), b"3631"),
        (lists(1) + b"e", [[1] * 64, [[1] * 64] * 2]),
    ):
        archive(tmp_path / "file.ckpt", code)
        assert torch.load(tmp_path / "file.ckpt", weights_only=True)["weights"] == expected


@pytest.mark.parametrize("zipped", [True, False])
def test_file_that_holds_itself(zipped: bool, model: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    torch.save(state, tmp_path / "endless.ckpt", _use_new_zipfile_serialization=zipped)
    assert "endless.ckpt does not hold a Stable Diffusion model" in refusal(tmp_path / "endless.ckpt")
    (model / f"{UNET}.safetensors").unlink()
    shutil.copy(tmp_path / "endless.ckpt", model / f"{UNET}.bin")
    assert f"{UNET}.bin lacks weights of the UNet" in refusal(model)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_in_a_pickle_of_the_old_format(zipped: bool, tmp_path: Path) -> None:
    torch.save({"weights": bytearray(3)}, tmp_path / "file.ckpt", _use_new_zipfile_serialization=zipped)
    assert "file.ckpt is damaged, or holds more than weights" in refusal(tmp_path / "file.ckpt")


def test_weights_by_strides_of_zero_in_the_shape_asked_for(model: Path) -> None:
    """A configuration of 2^24 words, and a file of one number for each channel."""
    change_json(model / "text_encoder" / "config.json", vocab_size=2**24)
    state = load_file(model / "text_encoder" / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    state[name] = state[name][:1].expand(2**24, -1)
    (model / "text_encoder" / "model.safetensors").unlink()
    torch.save(state, model / "text_encoder" / "pytorch_model.bin")
    assert "pytorch_model.bin describes 2,1" in refusal(model)


def test_a_million_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{index}": empty for index in range(1_000_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert re.search(r"is damaged or cut short \(a header of \d\d,\d+,\d+ bytes\)", refusal(path))


def test_as_many_tensors_as_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{index}": empty for index in range(110_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "file.safetensors does not hold a Stable Diffusion model" in refusal(path)


# Networks that no file could fill.


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("text_encoder", "num_hidden_layers", 1_000_000),
        ("vae", "layers_per_block", 1_000_000),
        ("unet", "block_out_channels", [8] * 1_000_000),
        ("unet", "down_block_types", ["DownBlock2D"] * 200_000),
        ("unet", "cross_attention_dim", 10**15),
        ("text_encoder", "vocab_size", 10**12),
    ],
)
def test_networks_beyond_all_measure(part: str, setting: str, value: Any, model: Path) -> None:
    change_json(model / part / "config.json", **{setting: value})
    assert re.search(rf"tiny: {part.replace('_', ' ')}: {setting}=.{{,110}} must be .*: correct it", refusal(model))


def test_the_largest_networks_that_are_described(model: Path) -> None:
    """All counts at their limits at once: the file is told that it does not hold such a network."""
    change_json(model / "unet" / "config.json", layers_per_block=32)
    assert "lacks weights of the UNet" in refusal(model)
    change_json(model / "text_encoder" / "config.json", num_hidden_layers=128)
    assert "lacks weights of the CLIPTextEncoder" in refusal(model)


# Files of another kind.

FILES = (*SETTINGS_FILES.values(), f"{UNET}.safetensors", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "file"),
    [*((fifo, file) for file in FILES), (Path.mkdir, FILES[1]), (device, FILES[2]), (device, FILES[-3])],
)
def test_paths_that_are_not_regular_files(make: Callable[[Path], None], file: str, model: Path) -> None:
    (model / file).unlink()
    make(model / file)
    assert f"{file} is not a regular file: put the model's own file in its place" in refusal(model)


def test_fifo_as_a_model(tmp_path: Path) -> None:
    for name in ("one.safetensors", "one.ckpt"):
        fifo(tmp_path / name)
        assert f"{name} is not a regular file" in refusal(tmp_path / name)


@pytest.mark.parametrize("file", [*FILES[-3:], f"{UNET}.bin", f"{UNET}.safetensors.index.json"])
def test_terabyte(file: str, model: Path) -> None:
    if file.startswith(UNET):
        (model / f"{UNET}.safetensors").unlink()
    sparse(model / file)
    assert re.search(rf"{file} has 1,099,511,627,776 bytes, more than .* such a file can need", refusal(model))


def test_terabyte_of_weights_in_the_shape_asked_for(model: Path) -> None:
    path = model / "text_encoder" / "model.safetensors"
    change_json(model / "text_encoder" / "config.json", vocab_size=2**24, hidden_size=2**14)
    tensor = {"dtype": "F32", "shape": [2**24, 2**14], "data_offsets": [0, TERABYTE]}
    header = json.dumps({"text_model.embeddings.token_embedding.weight": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + TERABYTE)
    change_json(model / "unet" / "config.json", cross_attention_dim=2**14)
    assert re.search(r"text_encoder/model.safetensors has 1,099,\d+,\d+,\d+ bytes, more than", refusal(model))


@pytest.mark.parametrize(
    ("brackets", "file"),
    [("[]", "model_index.json"), ('{"":}', "unet/config.json"), ("[]", "tokenizer/tokenizer_config.json")],
)
def test_nested_json(brackets: str, file: str, model: Path) -> None:
    opening, closing = brackets[:-1], brackets[-1]
    (model / file).write_text('{"a": ' + opening * DEEP + "1" + closing * DEEP + "}")
    message = refusal(model)
    assert "holds a damaged tokenizer" in message if "tokenizer" in file else f"{file} is not valid JSON" in message


def test_nested_index_of_shards(model: Path) -> None:
    (model / f"{UNET}.safetensors").unlink()
    (model / f"{UNET}.safetensors.index.json").write_text('{"weight_map": ' + "[" * DEEP + "]" * DEEP + "}")
    assert "index.json is not an index of shards" in refusal(model)


@pytest.mark.parametrize("digits", [5_000, 1_000_000])
def test_numbers_of_endless_digits(digits: int, model: Path) -> None:
    (model / "unet" / "config.json").write_text('{"layers_per_block": ' + "9" * digits + "}")
    assert "unet/config.json is not valid JSON" in refusal(model)


def test_nested_settings_in_a_single_file(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "one.safetensors")
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "one.safetensors", {METADATA_KEY: "[" * DEEP})
    assert "one.safetensors has damaged settings in its metadata" in refusal(tmp_path / "one.safetensors")


LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize("text", ["[" * DEEP, "[" * 5_000, LAUGHS], ids=["too long", "nested", "merged"])
def test_yaml_that_never_ends(text: str, tmp_path: Path) -> None:
    names = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 1024),
        "cond_stage_model.model.ln_final.weight": (1024,),
        "first_stage_model.quant_conv.bias": (8,),
    }
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "two.safetensors")
    (tmp_path / "two.yaml").write_text(text)
    assert "two.yaml" in refusal(tmp_path / "two.safetensors")
