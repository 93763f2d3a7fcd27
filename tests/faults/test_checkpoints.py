"""Files made to never end: each is refused with one sentence, within seconds and within the memory that it could need.

Each case loads in a process of its own, of limited memory. Every day tries one file of a kind, `make soak` all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickletools
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
from stable_diffusion.loading.pickles import read_pickle
from stable_diffusion.loading.single_file import METADATA_KEY
from stable_diffusion.model_converter import convert
from stable_diffusion.model_loader import load

SECONDS = 10
MEMORY = 512 * 2**20  # bytes; the files are at most a few MB
TERABYTE = 2**40
UNET = "unet/diffusion_pytorch_model"
INDEX = f"{UNET}.safetensors.index.json"
DEEP = 100_000

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["stable_diffusion.model_loader"])  # imported once


def refusal(source: Path) -> str:
    """Return the message of the `ModelError` that loading `source` raises; fail on anything else."""
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
    """Write `start` and a terabyte of zeros, which take no room on the disk."""
    path.write_bytes(start)
    os.truncate(path, TERABYTE)


def soak(*cases: Any) -> list[Any]:
    """Mark cases as those of `make soak`."""
    return [pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.soak) for case in cases]


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What no pickler of weights writes: pickles that end with an object on the stack.


def archive(path: Path, code: bytes) -> None:
    """Write a PyTorch file that holds {"weights": the object of the pickle `code`}."""
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
    """Return a pickle of a letter encoded in hexadecimal again and again."""
    code = call("_codecs.encode", text("a") + text("latin1") + b"\x86")
    for _ in range(times):
        code = call("_codecs.encode", code + text("hex") + b"\x86")
    return code


def pairs(times: int) -> bytes:
    """Return a pickle of a pair of twice the same pair, and so on."""
    return b")" + b"".join(b"q%ch%c\x86" % (memo, memo) for memo in range(times))


def lists(times: int) -> bytes:
    """Return a pickle of numbers, a list of twice those, a list of twice that, and so on, the last in the memo."""
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


EVERY_DAY = ("a key of pairs", "a tensor of lists", "a list copied again and again")


@pytest.mark.parametrize("name", [*EVERY_DAY, *soak(*(name for name in PICKLES if name not in EVERY_DAY))])
def test_pickles_that_ask_for_more_than_weights(name: str, tmp_path: Path) -> None:
    archive(tmp_path / "file.ckpt", PICKLES[name])
    message = (
        "file.ckpt is damaged, or holds more than weights, such as Python code, which is never run: use the model's"
    )
    assert message in refusal(tmp_path / "file.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_pickles_of_a_file_share_one_bound(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of five may take most of it alone, and the second is refused."""
    read, genops = [], pickletools.genops
    monkeypatch.setattr(pickletools, "genops", lambda file: read.append(file) or genops(file))
    code = b"\x80\x02" + pairs(20) + b"."
    file = tmp_path / "five.ckpt"
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            for i in range(5):
                archive.writestr(f"{i}/data.pkl", code)
    else:
        file.write_bytes(5 * code)
    with pytest.raises(ModelError, match=r"five.ckpt is damaged, or holds more than weights"):
        read_pickle(file)
    assert len(read) == 2


def test_those_pickles_are_what_they_say(tmp_path: Path) -> None:
    """PyTorch reads them where they repeat a few times."""
    for code, expected in (
        (pairs(2), (((), ()), ((), ()))),
        (hexadecimal(2), b"3631"),
        (lists(1) + b"e", [[1] * 64, [[1] * 64] * 2]),
    ):
        archive(tmp_path / "file.ckpt", code)
        assert torch.load(tmp_path / "file.ckpt", weights_only=True)["weights"] == expected


@pytest.mark.parametrize("zipped", [True, *soak(False)])
def test_file_that_holds_itself(zipped: bool, model: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    torch.save(state, tmp_path / "endless.ckpt", _use_new_zipfile_serialization=zipped)
    assert "endless.ckpt does not hold a Stable Diffusion model" in refusal(tmp_path / "endless.ckpt")
    (model / f"{UNET}.safetensors").unlink()
    shutil.copy(tmp_path / "endless.ckpt", model / f"{UNET}.bin")
    assert f"{UNET}.bin lacks weights of the UNet" in refusal(model)


@pytest.mark.parametrize("zipped", [*soak(True), False])
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


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (110_000, r"file.safetensors does not hold a Stable Diffusion model"),  # as many as are read
        *soak((1_000_000, r"is damaged or cut short \(a header of \d\d,\d+,\d+ bytes\)")),
    ],
)
def test_tensors_without_number(count: int, message: str, tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{index}": empty for index in range(count)}).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert re.search(message, refusal(path))


# Networks that no file could fill.


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("text_encoder", "num_hidden_layers", 1_000_000),
        ("unet", "block_out_channels", [8] * 1_000_000),
        ("unet", "cross_attention_dim", 10**15),
        *soak(
            ("vae", "layers_per_block", 1_000_000),
            ("unet", "down_block_types", ["DownBlock2D"] * 200_000),
            ("text_encoder", "vocab_size", 10**12),
        ),
    ],
)
def test_networks_beyond_all_measure(part: str, setting: str, value: Any, model: Path) -> None:
    change_json(model / part / "config.json", **{setting: value})
    start = f"tiny: {part.replace('_', ' ')}: {setting}="
    assert re.search(rf"{start}.{{,110}} must (be|have) .*: correct it", refusal(model))


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
    [
        *((fifo, FILES[0]), (fifo, FILES[-3]), (fifo, FILES[-2]), (Path.mkdir, FILES[1]), (device, FILES[2])),
        *soak(*((fifo, file) for file in (*FILES[1:-3], FILES[-1])), (device, FILES[-3])),
    ],
)
def test_paths_that_are_not_regular_files(make: Callable[[Path], None], file: str, model: Path) -> None:
    (model / file).unlink()
    make(model / file)
    assert f"{file} is not a regular file: put the model's own file in its place" in refusal(model)


@pytest.mark.parametrize("file", [FILES[-3], FILES[-2], *soak(FILES[-1], f"{UNET}.bin", INDEX)])
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


def nested(brackets: str) -> str:
    return '{"a": ' + brackets[:-1] * DEEP + "1" + brackets[-1] * DEEP + "}"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", nested('{"":}'), "unet/config.json is not valid JSON"),
        ("tokenizer/tokenizer_config.json", nested("[]"), "holds a damaged tokenizer"),
        (INDEX, '{"weight_map": ' + "[" * DEEP + "]" * DEEP + "}", "index.json is not an index of shards"),
        ("unet/config.json", '{"layers_per_block": ' + "9" * 5_000 + "}", "unet/config.json is not valid JSON"),
        *soak(
            ("model_index.json", nested("[]"), "model_index.json is not valid JSON"),
            ("unet/config.json", '{"layers_per_block": ' + "9" * 1_000_000 + "}", "unet/config.json is not valid JSON"),
        ),
    ],
    ids=lambda value: value[:40],
)
def test_json_without_end(file: str, content: str, message: str, model: Path) -> None:
    if file == INDEX:
        (model / f"{UNET}.safetensors").unlink()
    (model / file).write_text(content)
    assert message in refusal(model)


@pytest.mark.parametrize("name", ["one.ckpt", *soak("one.safetensors")])
def test_fifo_as_a_model(name: str, tmp_path: Path) -> None:
    fifo(tmp_path / name)
    assert f"{name} is not a regular file" in refusal(tmp_path / name)


def test_nested_settings_in_a_single_file(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "one.safetensors")
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "one.safetensors", {METADATA_KEY: "[" * DEEP})
    assert "one.safetensors has damaged settings in its metadata" in refusal(tmp_path / "one.safetensors")


LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize("text", [LAUGHS, *soak("[" * DEEP, "[" * 5_000)], ids=["merged", "too long", "nested"])
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
