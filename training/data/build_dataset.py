"""Build the emoji data set: `python -m training.data.build_dataset [--out data/emoji]`, once more with `--size 256`.

Writes, under `--out`:
- `pictures.npy`: uint8 (N, 128, 128, 4), RGBA with straight alpha; memory-map it with `np.load(path, mmap_mode="r")`;
- `index.json`: N rows, row i describing picture i (fields: see `describe`);
- `manifest.json`: counts by style and group, packages with their licences, and a hash of the pixels.
With `--size 256` only `pictures-256.npy`: the drawings that `index.json` lists, in its order, at that size.

Rewrites `training/data/heldout.json` as well, with the same choice as long as the pictures are the same.

Needs `npm` and `resvg-py`. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from training.data import heldout
from training.data.artwork import Drawing, draw, read_drawings, read_names, sources
from training.data.dataset import SIDE, pictures_file

KEPT_TONES = {0: "default", 1: "light", 5: "dark"}
NEAR_DUPLICATE = 2.5  # root mean square difference, in 8-bit levels, of 32-pixel thumbnails


def matches(patterns: list[str], text: str) -> bool:
    """Return whether one of the patterns is found in the text."""
    return any(re.search(pattern, text) for pattern in patterns)


def wanted(drawing: Drawing) -> bool:
    """Return whether a drawing belongs in the set: a named thing in a kept skin tone, under the set's licence."""
    drop, name = sources()["drop"], drawing.name
    if name.group in drop["groups"] or name.subgroup in drop["subgroups"] or name.tone not in KEPT_TONES:
        return False
    if drawing.style.startswith("fluent") and matches(drop["microsoft"], name.label):
        return False
    return not matches(drop["patterns"], name.label)


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """(N, S, S, 4) RGBA -> (N, 4096) float32 premultiplied 32-pixel thumbnails in 8-bit levels."""
    n, size = pictures.shape[:2]
    cell = size // 32
    out = np.empty((n, 32, 32, 4), np.float32)
    for start in range(0, n, 256):
        part = pictures[start : start + 256].astype(np.float32)
        part[..., :3] *= part[..., 3:] / 255
        out[start : start + 256] = part.reshape(-1, 32, cell, 32, cell, 4).mean(axis=(2, 4))
    return out.reshape(n, -1)


def duplicates(thumbs: np.ndarray, threshold: float = NEAR_DUPLICATE) -> np.ndarray:
    """(N, D) -> (N,) bool: rows within `threshold` (root mean square) of an earlier row that stays."""
    squares = (thumbs**2).mean(axis=1)
    distance = squares[:, None] + squares[None] - 2 * (thumbs @ thumbs.T) / thumbs.shape[1]
    close = np.tril(distance < threshold**2, k=-1)
    gone = np.zeros(len(thumbs), bool)
    for row in np.flatnonzero(close.any(axis=1)):
        gone[row] = bool((close[row] & ~gone).any())
    return gone


def describe(drawing: Drawing, picture: np.ndarray) -> dict:
    """Return the index row of a picture.

    `concept` is the code points without a skin tone, shared by all styles; `hue` (degrees), `chroma` (share of the
    opaque area that has a clear colour) and `unity` (0..1, how far that area agrees on one hue) tell what may be
    recoloured; `flip` whether the mirrored picture still is what the label says.
    """
    name, fixed = drawing.name, sources()["no_flip"]
    hue, chroma, unity = dominant_hue(picture[::2, ::2])
    return {
        "id": identity(drawing),
        "concept": name.concept,
        "label": name.label,
        "tags": list(name.tags),
        "keywords": list(name.keywords),
        "group": name.group,
        "subgroup": name.subgroup,
        "style": drawing.style,
        "source": sources()["styles"][drawing.style]["package"],
        "skin_tone": KEPT_TONES[name.tone],
        "hue": round(hue, 1),
        "chroma": round(chroma, 3),
        "unity": round(unity, 3),
        "flip": name.subgroup not in fixed["subgroups"] and not matches(fixed["patterns"], name.label),
    }


def identity(drawing: Drawing) -> str:
    """Return a drawing's name in the index: 'fluent-flat/1f98a', with '_2' behind it for a second one."""
    variant = f"_{drawing.variant}" if drawing.variant else ""
    return f"{drawing.style.replace(' ', '-')}/{drawing.name.code}{variant}"


def dominant_hue(picture: np.ndarray) -> tuple[float, float, float]:
    """(S, S, 4) uint8 -> hue in degrees, chromatic share of the opaque area, and agreement on that hue, 0..1."""
    rgb = picture[..., :3].astype(np.float32) / 255
    alpha = picture[..., 3].astype(np.float32) / 255
    spread = rgb.max(-1) - rgb.min(-1)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    weight = alpha * spread
    total = float(weight.sum())
    chroma = float((alpha * (spread > 0.2)).sum() / max(float(alpha.sum()), 1.0))
    if total < 1e-6:
        return 0.0, chroma, 0.0
    # The mode, not the mean: an apple is red although its leaf is green
    bins = np.zeros(72)
    np.add.at(bins, (np.rad2deg(angle) % 360 // 5).astype(int) % 72, weight)
    peak = np.convolve(np.concatenate([bins[-3:], bins, bins[:3]]), np.ones(7), "valid").argmax() * 5 + 2.5
    near = weight * (np.abs((np.rad2deg(angle) - peak + 180) % 360 - 180) < 35)
    mean = np.arctan2((near * np.sin(angle)).sum(), (near * np.cos(angle)).sum())
    return float(np.rad2deg(mean) % 360), chroma, float(near.sum() / total)


def build(out: Path, cache_dir: Path, workers: int = 2) -> dict:
    """Fetch, draw, filter and write the data set; returns its manifest."""
    drawings = wanted_drawings(cache_dir)
    out.mkdir(parents=True, exist_ok=True)
    pictures = np.empty((len(drawings), SIDE, SIDE, 4), np.uint8)
    with Pool(workers) as pool:
        for i, picture in enumerate(pool.imap(draw, drawings, chunksize=16)):
            pictures[i] = picture
    keep = select(drawings, pictures)
    drawings = [drawings[i] for i in keep]
    kept = write_pictures(out, SIDE, (pictures[i] for i in keep), len(keep))
    rows = [describe(drawing, picture) for drawing, picture in zip(drawings, kept, strict=True)]
    write_json(out / "index.json", rows)
    manifest = {
        "pictures": len(rows),
        "shape": list(kept.shape),
        "concepts": len({row["concept"] for row in rows}),
        "styles": dict(Counter(row["style"] for row in rows)),
        "groups": dict(Counter(row["group"] for row in rows)),
        "sources": sources()["styles"],
        "names": sources()["names"],
        "sha256": hashlib.sha256(kept.data).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def wanted_drawings(cache_dir: Path) -> list[Drawing]:
    """Return all drawings that belong in the set, style by style, each in its package's form."""
    names, slugs = read_names(cache_dir)
    return [d for style in sources()["styles"] for d in read_drawings(style, cache_dir, names, slugs) if wanted(d)]


def draw_again(out: Path, cache_dir: Path, size: int, workers: int = 2) -> None:
    """Draw what `index.json` lists at another size, for `Dataset.load(out, size)`."""
    by_id = {identity(drawing): drawing for drawing in wanted_drawings(cache_dir)}
    drawings = [by_id[row["id"]] for row in json.loads((out / "index.json").read_text(encoding="utf-8"))]
    with Pool(workers) as pool:
        write_pictures(out, size, pool.imap(partial(draw, size=size), drawings, chunksize=16), len(drawings))


def write_pictures(out: Path, size: int, pictures: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Write `count` pictures (size, size, 4) to the file of that size, one by one; returns them, memory-mapped."""
    path = pictures_file(out, size)
    part = path.with_suffix(".part")  # renamed when complete: a trainer that has the old file mapped keeps it
    written = np.lib.format.open_memmap(part, "w+", np.uint8, (count, size, size, 4))
    for row, picture in enumerate(pictures):
        written[row] = picture
    written.flush()
    part.replace(path)
    return written


def select(drawings: list[Drawing], pictures: np.ndarray) -> list[int]:
    """Return the rows of the pictures that stay: not blank, nor nearly equal to another of their style or concept."""
    thumbs = thumbnails(pictures)
    gone = thumbs.reshape(len(thumbs), -1, 4)[..., 3].mean(axis=1) < 4
    for values in ([d.style for d in drawings], [d.name.code for d in drawings]):
        keys = np.array(values)
        for key in dict.fromkeys(values):
            rows = np.flatnonzero((keys == key) & ~gone)
            if len(rows) > 1:
                gone[rows] |= duplicates(thumbs[rows])
    return [int(i) for i in np.flatnonzero(~gone)]


def write_json(path: Path, rows: list[dict]) -> None:
    """Write one row a line: readable, and a diff shows the row that changed."""
    body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{body}\n]\n", encoding="utf-8")


def main() -> None:
    """Build the data set, or draw a data set that exists at another size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/emoji"))
    parser.add_argument("--cache", type=Path, default=Path("data/cache"), help="where the npm archives are kept")
    parser.add_argument("--size", type=int, help="draw what has been built at this size as well")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.size is not None:
        draw_again(args.out, args.cache, args.size, args.workers)
        return
    manifest = build(args.out, args.cache, args.workers)
    heldout.write(heldout.choose(json.loads((args.out / "index.json").read_text(encoding="utf-8"))))
    print(json.dumps({key: manifest[key] for key in ("pictures", "concepts", "styles", "groups")}, indent=2))


if __name__ == "__main__":
    main()
