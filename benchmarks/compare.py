"""Time our networks and diffusers' in turn, with the same weights and inputs, and print how far their outputs differ.

    python -m benchmarks.compare --json table.json
    python -m benchmarks.compare --rows bundled-step bundled-run --compiled

Each line holds the median, fastest and slowest round in seconds, the ratio of the median to that of the row's first
contender (diffusers in float32, unless the row says otherwise), and the largest difference from its output. Full-size
rows have the shapes of Stable Diffusion 1.5 and random weights, and need 16 GB of memory. --compiled adds torch.compile
with frozen weights, which compiles for a minute or two a network. OpenVINO takes part if it is installed.
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
    """One contender's seconds, and the difference of its output from the row's first contender."""

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
    """Time the contenders of a row in turn, and compare each with the first."""
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
    """Measure the rows that the command line names, and print each as soon as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="precisions")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender is timed")
    parser.add_argument("--compiled", action="store_true", help="add diffusers through torch.compile")
    parser.add_argument("--json", type=Path, help="file for the table")
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
        gc.collect()  # free this row's networks before the next row loads its own
    if args.json is not None:
        table = {"machine": machine(), "lines": [asdict(line) for line in lines]}
        args.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """Return the processor, its threads and the versions in one line."""
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
