"""Ours beside diffusers on this machine: same weights, same inputs, in turn, with how far the outputs are apart.

    python -m benchmarks.compare --json table.json
    python -m benchmarks.compare --rows bundled-step bundled-run --compiled

Each line has the median of the rounds with the fastest and the slowest, its ratio to the first of its row, which is
diffusers in float32 or as named, and the largest difference from what that answered. Full-size rows have the shapes of
Stable Diffusion 1.5 and random weights. --compiled adds torch.compile with frozen weights, a minute or two for each
network; OpenVINO is added where it is installed. Needs 16 GB of memory for the full-size rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import torch
import transformers

from .rows import DTYPES, ROWS, Settings, Works


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
            f"{self.row:16} {self.contender:22} {self.median:8.3f} {spread:>16} "
            f"{self.ratio:6.2f} {self.difference:11.1e}"
        )


HEADING = f"{'row':16} {'contender':22} {'median s':>8} {'spread s':>16} {'ratio':>6} {'difference':>11}"


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
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # OpenVINO traces networks
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
