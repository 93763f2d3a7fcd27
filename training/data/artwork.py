"""Emoji artwork as npm packages ship it: fetched, named by Unicode, drawn at one size.

Every picture leaves this module as straight-alpha RGBA of one square size, so that a background can still be chosen.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SUPERSAMPLING = 2  # filters of the fluent color set leave a jagged alpha when drawn at the final size
TONES = {"light": 1, "medium-light": 2, "medium": 3, "medium-dark": 4, "dark": 5}


@cache
def sources() -> dict:
    """Return the pinned packages, slug corrections and filters of `data_sources.json`."""
    return json.loads(Path(__file__).with_name("data_sources.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Name:
    """One emoji's name, keywords and groups; `concept` and `label` leave its skin tone out."""

    code: str
    concept: str
    label: str
    tags: tuple[str, ...]
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    order: int
    tone: int = 0  # 0 default, 1 light .. 5 dark, 6 two different tones


@dataclass(frozen=True)
class Drawing:
    """One picture still in its package's form: an SVG document or the bytes of a WebP file."""

    style: str
    name: Name
    variant: int
    data: str | bytes = field(repr=False)

    @property
    def key(self) -> tuple:
        """Return the drawing's place in the order of the data set."""
        return self.name.order, self.name.tone, self.variant


def fetch(package: str, version: str, cache_dir: Path) -> Path:
    """Return the path of the package's archive in `cache_dir`, fetched by `npm pack` when it is not there yet.

    Raises:
        RuntimeError: npm is missing or could not fetch the package.
    """
    archive = cache_dir / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=cache_dir, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"could not fetch {package}@{version}: is npm installed and online? ({error})"
            ) from error
    return archive


def read_member(archive: Path, member: str) -> Any:
    """Return the JSON file `member` of a package, or None when the package has none."""
    with tarfile.open(archive) as tar:
        try:
            handle = tar.extractfile(f"package/{member}")
        except KeyError:
            return None
        return json.load(handle) if handle else None


def code_points(text: str) -> str:
    """'1F3F3-FE0F' -> '1f3f3': lower case, without the variation selector that sets disagree on."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def slug(text: str) -> str:
    """'Mrs. Claus' -> 'mrs-claus', the form in which icon sets name their icons."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def read_names(cache_dir: Path) -> tuple[dict[str, Name], dict[str, str]]:
    """Return all emoji by code points, and the code points by slug (label first, then other projects' shortcodes)."""
    package = sources()["names"]["emojibase"]
    base = fetch(package["package"], package["version"], cache_dir)
    package = sources()["names"]["emojilib"]
    keywords = read_member(fetch(package["package"], package["version"], cache_dir), "dist/emoji-en-US.json")
    keywords = {char.replace("\ufe0f", ""): words for char, words in keywords.items()}
    meta = read_member(base, "meta/groups.json")
    names: dict[str, Name] = {}
    slugs: dict[str, str] = {}
    for entry in read_member(base, "en/data.json"):
        if "group" not in entry:
            continue
        concept = code_points(entry["hexcode"])
        more = keywords.get(entry["emoji"].replace("\ufe0f", ""), [])
        shared = {
            "concept": concept,
            "label": entry["label"],
            "tags": tuple(entry.get("tags", [])),
            "keywords": tuple(word.replace("_", " ") for word in more),
            "group": meta["groups"][str(entry["group"])],
            "subgroup": meta["subgroups"][str(entry["subgroup"])],
        }
        for form in [entry, *entry.get("skins", [])]:
            code, tone = code_points(form["hexcode"]), form.get("tone", 0)
            tone = tone if isinstance(tone, int) else 6
            names[code] = Name(code=code, order=form["order"], tone=tone, **shared)
            slugs.setdefault(slug(form["label"]), code)
    for listing in ("emojibase", "cldr", "joypixels", "github", "iamcal"):
        for code, words in read_member(base, f"en/shortcodes/{listing}.json").items():
            if code_points(code) in names:
                for word in [words] if isinstance(words, str) else words:
                    slugs.setdefault(slug(word), code_points(code))
    return names, slugs


def find_code(icon: str, slugs: dict[str, str]) -> tuple[str, int] | None:
    """Code points and variant number of an icon name: 'fox-face-2' -> ('1f98a', 2); None when nothing fits."""
    fixed = sources()["slugs"]
    for stem, variant in ((icon, 0), *((m[1], int(m[2])) for m in [re.fullmatch(r"(.+)-(\d)", icon)] if m)):
        toned = re.fullmatch(r"(.+?)-(light|medium-light|medium|medium-dark|dark)(?:-skin-tone)?", stem)
        body, tone = (toned[1], f"-{toned[2]}-skin-tone") if toned else (stem, "")
        for name in (stem, body + tone, fixed.get(body, body) + tone):
            if name in slugs:
                return slugs[name], variant
    return None


def iconify_drawings(style: str, archive: Path, names: dict[str, Name], slugs: dict[str, str]) -> Iterator[Drawing]:
    """Yield the drawings of an iconify set, by its own code point table where it has one and by name for the rest."""
    icons = read_member(archive, "icons.json")
    by_icon = {icon: code_points(code) for code, icon in (read_member(archive, "chars.json") or {}).items()}
    for icon, entry in {**icons["icons"], **icons.get("aliases", {})}.items():
        mirrored = bool(entry.get("hFlip"))
        if "parent" in entry:
            if not mirrored:
                continue
            entry = icons["icons"][entry["parent"]]
        found = (by_icon[icon], 0) if by_icon.get(icon) in names else find_code(icon, slugs)
        if found is None:
            continue
        width, height = entry.get("width", icons["width"]), entry.get("height", icons["height"])
        left, top = entry.get("left", 0), entry.get("top", 0)
        body = entry["body"]
        if mirrored:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="%d" height="%d" viewBox="{left} {top} {width} {height}">{body}</svg>'
        )
        yield Drawing(style, names[found[0]], found[1], svg)


def webp_drawings(style: str, archive: Path, names: dict[str, Name]) -> Iterator[Drawing]:
    """Yield the drawings of a set of WebP files that are named by code points."""
    with tarfile.open(archive) as tar:
        for member in tar:
            code = code_points(Path(member.name).stem)
            if member.name.endswith(".webp") and code in names and (picture := tar.extractfile(member)):
                yield Drawing(style, names[code], 0, picture.read())


def read_drawings(style: str, cache_dir: Path, names: dict[str, Name], slugs: dict[str, str]) -> list[Drawing]:
    """Return all drawings of a style that have a name, in Unicode's order, one for each name and variant."""
    source = sources()["styles"][style]
    archive = fetch(source["package"], source["version"], cache_dir)
    if source["form"] == "webp":
        found = webp_drawings(style, archive, names)
    else:
        found = iconify_drawings(style, archive, names, slugs)
    unique: dict[tuple, Drawing] = {}
    for drawing in found:
        unique.setdefault(drawing.key, drawing)
    return [unique[key] for key in sorted(unique)]


def shrink(image: Image.Image, size: int) -> np.ndarray:
    """(H, W) RGBA picture -> (size, size, 4) uint8, averaged in premultiplied alpha, straight alpha again after.

    Averaging straight alpha would let the colour of transparent pixels bleed into the edges.
    """
    small = (
        image.convert("RGBA")
        .convert("RGBa")
        .resize((size, size), Image.Resampling.BOX if image.width % size == 0 else Image.Resampling.LANCZOS)
    )
    return np.asarray(small.convert("RGBA"))


def draw(drawing: Drawing, size: int = 128) -> np.ndarray:
    """Render one drawing. Returns (size, size, 4) uint8, straight alpha, transparent pixels zero."""
    if isinstance(drawing.data, bytes):
        image = Image.open(io.BytesIO(drawing.data))
    else:
        import resvg_py  # a tool of the builder only: training and tests run without it

        large = size * SUPERSAMPLING
        svg = drawing.data.replace('width="%d" height="%d"', f'width="{large}" height="{large}"', 1)
        image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))))
    return shrink(image, size)
