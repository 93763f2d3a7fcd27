"""The rules of the code as a whole: which folder imports which, in no circle, and a row on the map for every file."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stable_diffusion", "ui", "serving", "training", "benchmarks")
MAPS = ("docs/architecture.md", "docs/many-visitors.md", "training/README.md")
MAPPED = ("stable_diffusion", "ui", "serving", "training")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "training" / "README.md"]

SD = "stable_diffusion"
LIBRARY = {SD, f"{SD}.loading", f"{SD}.adapters", f"{SD}.compute", f"{SD}.batching", f"{SD}.inspect"}
PAGE = {
    "ui",
    "ui.form",
    "ui.words",
    "ui.stage",
    "ui.runs",
    "ui.keep",
    "ui.inside",
    "ui.inside.stops",
    "ui.inside.laboratory",
    "ui.web",
}
MAY_IMPORT = {
    f"{SD}.loading": {SD},
    f"{SD}.compute": {SD, f"{SD}.loading"},
    f"{SD}.adapters": {SD, f"{SD}.loading"},
    SD: {f"{SD}.loading", f"{SD}.compute", f"{SD}.adapters"},
    f"{SD}.batching": {SD, f"{SD}.compute"},
    f"{SD}.inspect": {SD, f"{SD}.loading"},
    "ui.keep": LIBRARY,
    "ui.words": LIBRARY,
    "ui.runs": LIBRARY | {"ui.keep", "ui.words"},
    "ui.web": LIBRARY,
    "ui.stage": LIBRARY | {"ui.keep", "ui.runs"},
    "ui.form": LIBRARY | {"ui.keep", "ui.runs", "ui.stage", "ui.words"},
    "ui.inside": LIBRARY | PAGE - {"ui", "ui.web"},
    "ui.inside.stops": LIBRARY | PAGE - {"ui", "ui.web"},
    "ui.inside.laboratory": LIBRARY | PAGE - {"ui", "ui.inside", "ui.web"},
    "ui": LIBRARY | PAGE,
    "app": LIBRARY | PAGE,
    "serving": LIBRARY | PAGE | {"app"},
    "training": LIBRARY,
    "training.data": LIBRARY,
    "training.data.sentences": LIBRARY | {"training.data"},
    "training.networks": LIBRARY | {"training", "training.data", "training.data.sentences"},
    "training.judging": LIBRARY | {"training", "training.data", "training.data.sentences", "training.networks"},
    "benchmarks": LIBRARY | PAGE | {"app", "tests", "tests.parity"},
}
"""The folders that a folder's files may import, beside their own. Nothing at run time imports training or tests."""

ONLY_IN = {"gradio": ("app", "ui"), "ray": ("serving",), "diffusers": ("benchmarks",)}
"""Packages that nothing else imports; tests apart."""


def name_of(path: Path) -> str:
    """Return the dotted name of a file's module: `stable_diffusion.loading.config`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
FILES["app"] = ROOT / "app.py"


@cache
def imports(module: str) -> set[str]:
    """Return the dotted names that a module imports, in functions and for type checking too.

    An import for types alone counts: a reader who follows the names of a circle comes back all the same.
    """
    path = FILES[module]
    package = path.parent.relative_to(ROOT).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                found.add(name if name in FILES else origin)
    return found


def folder_of(module: str) -> str:
    """Return the folder of one of our modules in dots, `ui.form` for `ui.form.controls`; `app` for itself."""
    path = FILES.get(module, (ROOT / module.replace(".", "/")).with_suffix(".py"))
    return ".".join(path.parent.relative_to(ROOT).parts) or module


def test_imports_run_in_no_circle() -> None:
    """`CycleError` shows the circle: every module of it imports the one before."""
    TopologicalSorter({module: imports(module) & FILES.keys() for module in FILES}).prepare()


@pytest.mark.parametrize("folder", sorted({folder_of(module) for module in FILES}))
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    ours = {*PACKAGES, "app", "tests", "notebooks"}
    imported = {
        (module, name, folder_of(name))
        for module in FILES
        if folder_of(module) == folder
        for name in imports(module)
        if name.partition(".")[0] in ours
    }
    assert not [
        f"{module} imports {name}" for module, name, other in imported if other not in MAY_IMPORT[folder] | {folder}
    ]


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    users = {module for module in FILES for name in imports(module) if name.partition(".")[0] == package}
    assert not {module for module in users if module.partition(".")[0] not in ONLY_IN[package]}


@pytest.mark.parametrize("name", ["schedule", "ddpm", "levels", "samplers", "request"])
def test_the_algorithms_import_no_network(name: str) -> None:
    networks = {"attention", "blocks", "clip", "encoder", "decoder", "vae", "tiny_vae", "diffusion", "pipeline"}
    assert not imports(f"{SD}.{name}") & {f"{SD}.{network}" for network in networks}
    assert not imports(f"{SD}.{name}") & {"transformers", "safetensors"}


def test_a_request_is_checked_without_torch() -> None:
    assert not [name for name in imports(f"{SD}.request") if name.partition(".")[0] in ("torch", SD)]


def mapped(page: str) -> list[str]:
    """Return the paths that a page's tables have in their first column, as links or as `folder/name.py`."""
    path = ROOT / page
    cells = re.findall(r"^\| (.+?) \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    pattern = re.compile(r"\[`[^`]+`\]\(([^)]+\.py)\)|`([\w/]+\.py)`")
    names = [link or name for cell in cells for link, name in pattern.findall(cell)]
    return [(path.parent / name).resolve().relative_to(ROOT).as_posix() for name in names]


def test_every_file_has_one_row_on_a_map() -> None:
    rows = Counter(row for page in MAPS for row in mapped(page))
    assert not {row for row, count in rows.items() if count > 1}
    wanted = {path.relative_to(ROOT).as_posix() for path in FILES.values() if path.name != "__init__.py"}
    wanted = {path for path in wanted if path.startswith(tuple(f"{folder}/" for folder in MAPPED))}
    assert wanted - rows.keys() == set()
    assert not [row for row in rows if not (ROOT / row).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_spaces_settings_agree() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(head) == yaml.safe_load((ROOT / "space.yaml").read_text(encoding="utf-8"))
