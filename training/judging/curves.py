"""Plot learning curves, one line for each log and named by its file: `python -m training.judging.curves [LOG ...]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure


def read_log(log: Path) -> tuple[list[float], list[float]]:
    """Return the examples seen, in thousands, and the loss at every line that `networks.fit` logged.

    Lines beyond the checkpoint that a restart went on from are dropped.
    """
    points: list[tuple[float, float]] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        seen = record["samples"] / 1000
        points = [point for point in points if point[0] < seen] + [(seen, record["loss"])]
    return [seen for seen, _ in points], [loss for _, loss in points]


def plot(logs: list[Path]) -> Figure:
    """Plot the loss by examples seen, a line for each log."""
    figure = Figure(figsize=(7.2, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for log in logs:
        axes.plot(*read_log(log), label=log.stem, linewidth=1.5)
    axes.set(xlabel="examples seen, thousands", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Plot the logs and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", type=Path, nargs="*", default=[Path("runs/unet/log.jsonl")])
    parser.add_argument("--out", type=Path, default=Path("assets/models/emoji/learning_curves.png"))
    args = parser.parse_args()
    plot(args.logs).savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
