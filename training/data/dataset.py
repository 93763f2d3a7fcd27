"""The built emoji data set: memory-mapped pictures and the rows that describe them.

`training.data.build_dataset` writes `pictures.npy` (uint8 (N, 128, 128, 4), RGBA, straight alpha) and `index.json`, and
when asked the same pictures at other sizes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.grammar import nouns

DEFAULT_ROOT = Path("data/emoji")
SIDE = 128  # of the pictures that are built first, in pixels


@dataclass(frozen=True)
class Dataset:
    """Pictures, uint8 (N, S, S, 4) RGBA with straight alpha, with a row of facts each (`build_dataset.describe`)."""

    pictures: np.ndarray
    rows: list[dict]

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or self.pictures.shape[-1] != 4 or self.pictures.dtype != np.uint8:
            raise ValueError(f"pictures must be uint8 (N, S, S, 4), got {self.pictures.dtype} {self.pictures.shape}")
        if len(self.pictures) != len(self.rows):
            raise ValueError(
                f"rows must be as many as pictures ({len(self.pictures)}), got {len(self.rows)}: build again"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def load(cls, root: Path | str = DEFAULT_ROOT, side: int = SIDE) -> Dataset:
        """Open the data set under `root`, pictures `side` pixels wide, without reading them into memory.

        Raises:
            FileNotFoundError: nothing was built there, or not of this size.
        """
        root = Path(root)
        command = f"python -m training.data.build_dataset --out {root}"
        if not (root / "index.json").exists():
            raise FileNotFoundError(f"no data set in root={root}: run `{command}`")
        if not pictures_file(root, side).exists():
            raise FileNotFoundError(f"no pictures of side={side} in root={root}: run `{command} --size {side}`")
        rows = json.loads((root / "index.json").read_text(encoding="utf-8"))
        return cls(np.load(pictures_file(root, side), mmap_mode="r"), rows)


def pictures_file(root: Path, side: int) -> Path:
    """Return the path of the pictures of one size."""
    return root / ("pictures.npy" if side == SIDE else f"pictures-{side}.npy")


def recolourable(row: dict) -> bool:
    """Return whether an object has one main colour that can be changed while its name stays true."""
    return row["group"] != "people-body" and row["chroma"] > 0.4 and row["unity"] > 0.7


def simple(row: dict) -> bool:
    """Return whether a row is a thing with a short name, which stays readable at half size."""
    noun = nouns(row["label"])[0]
    return row["group"] not in ("people-body", "symbols") and len(noun.split()) <= 2 and row["skin_tone"] == "default"
