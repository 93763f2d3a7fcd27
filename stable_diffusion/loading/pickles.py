"""Weight files of PyTorch: pickles, which are examined before PyTorch reads them.

PyTorch executes no code from a file (`weights_only`), but a file can still request more than weights need:
`bytearray(10**12)`, a text that a codec doubles many times, or a key that is a pair of equal pairs, nested forty times.
A file of a few bytes could exhaust memory, or take a year to read. This module therefore lists the names that a pickle
may contain, and counts the work of reading it.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .config import ModelError, one_line

ORDERED_DICT = "collections OrderedDict"
# The names in pickled weights, as "module name": their container, dtypes, kinds of storage and constructors. Quantised
# weights can't be used, but they are harmless and get a better error once they are read.
ALLOWED = re.compile(
    rf"{ORDERED_DICT}|torch (Size|device|(u?int|b?float|complex|bool|q?u?int|per_)\w*|\w+Storage)"
    r"|torch\.storage UntypedStorage"
    r"|torch\._utils _rebuild_(tensor(_v[23])?|parameter|qtensor|meta_tensor_no_storage)"
)
# For all pickles of a file together.
MAX_PICKLE = 4 * 2**20  # bytes, without the numbers; a checkpoint with optimiser state has 1 MB
MAX_WORK = 10**7  # visits of objects; a pickle of 4 MB has a million objects, each visited a few times
WRAPPERS = ("state_dict", "string_to_param")  # of checkpoints, and of AUTOMATIC1111's embeddings
BEFORE_PYTORCH_1_6 = 5  # pickles in a row: magic number, version, system, tensors, names of storages
SHARED = 4  # bytes of described tensors for each byte of the file; tied weights are described twice


@dataclass
class Budget:
    """The bytes and the work that are left to the pickles of a file."""

    size: int = MAX_PICKLE
    work: int = MAX_WORK


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file, flat or in one of its `WRAPPERS`, without other entries.

    Raises `ModelError` for a damaged or compressed file, and one that requests more than tensors.
    """
    try:
        zipped = zipfile.is_zipfile(path)  # files from before PyTorch 1.6 are not
        if zipped:
            _check_archive(path)
        else:
            budget = Budget()
            with path.open("rb") as file:
                for _ in range(BEFORE_PYTORCH_1_6):
                    _check_pickle(file, budget)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except ModelError:
        raise
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} is damaged, or holds more than weights, such as Python code, which is never run: "
            "use the model's .safetensors file"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelError(f"{path} is damaged or cut short ({one_line(error)}): download it again") from None
    if isinstance(content, Mapping):
        content = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__} instead of named tensors: it is not a model")
    state = {name: t for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}
    described = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if described > SHARED * path.stat().st_size:
        raise ModelError(
            f"{path} describes {described:,} bytes of weights that it does not hold: it is damaged, download it again"
        )
    return state


def _check_archive(path: Path) -> None:
    """Raise unless all entries are stored uncompressed and the pickle passes `_check_pickle`."""
    budget = Budget()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ModelError(f"{path} is compressed, as PyTorch never writes it: use the model's .safetensors file")
            if entry.filename.lower().endswith("data.pkl"):  # PyTorch's reader ignores the case
                with archive.open(entry) as file:
                    _check_pickle(file, budget)


def _check_pickle(file: IO[bytes], budget: Budget) -> None:
    """Raise `UnpicklingError` for a pickle whose names or work exceed the needs of weights; take both off the budget.

    This interprets the pickle with sizes in place of objects. The size of a tuple is that of all its contents, which
    its hash visits; any other object counts 1, because no allowed callable looks into it.
    """
    stack: list[int | str] = []  # the size of an object, or the name of a callable
    marks: list[int] = []
    memo: dict[int, int | str] = {}
    start = file.tell()
    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif operation.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif operation.name == "MARK":
            marks.append(len(stack))
        elif operation.name == "GLOBAL":
            if not ALLOWED.fullmatch(argument):
                raise pickle.UnpicklingError(argument)
            stack.append(argument)
        else:
            taken = _take(operation, stack, marks)
            if taken[:1] == [ORDERED_DICT] and taken[1:] != [1] and operation.name in ("REDUCE", "NEWOBJ"):
                raise pickle.UnpicklingError("an OrderedDict of something")
            size = 1 + sum(one if isinstance(one, int) else 1 for one in taken)
            budget.work -= size
            stack += [size if operation.name.startswith("TUPLE") else 1] * len(operation.stack_after)
        if budget.work < 0 or file.tell() - start > budget.size:
            raise pickle.UnpicklingError("too large")
    budget.size -= file.tell() - start


def _take(operation: pickletools.OpcodeInfo, stack: list[int | str], marks: list[int]) -> list[int | str]:
    """Pop an operation's arguments off the stack: a number of objects, and for some all objects above the last mark."""
    before = operation.stack_before
    count = before.index(pickletools.markobject) if pickletools.markobject in before else len(before)
    bottom = (marks.pop() if count < len(before) else len(stack)) - count
    if bottom < 0:
        raise pickle.UnpicklingError("stack underflow")
    taken = stack[bottom:]
    del stack[bottom:]
    return taken
