"""The rules of the house that a reader relies on: who imports whom, and that the Space's settings agree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TENSOR_MATHS = {"schedule", "levels", "ddpm", "samplers"}
NETWORKS = {"attention", "blocks", "clip", "encoder", "decoder", "vae", "diffusion"}


def module(path: Path) -> str:
    """The dotted name of a file: `stable_diffusion.loading.config`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Dotted names of what is imported anywhere in the file, relative ones resolved."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {origin} if node.module else {f"{origin}.{alias.name}" for alias in node.names}
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", sources("stable_diffusion"), ids=lambda path: path.stem)
def test_the_library_stands_alone(path: Path) -> None:
    assert not [name for name in imports(path) if starts(name, "gradio", "diffusers", "ui", "training", "tests", "app")]


@pytest.mark.parametrize("path", [*sources("ui"), ROOT / "app.py"], ids=lambda path: path.stem)
def test_the_page_needs_neither_training_nor_diffusers(path: Path) -> None:
    assert not [name for name in imports(path) if starts(name, "diffusers", "training", "tests")]


@pytest.mark.parametrize("name", sorted(TENSOR_MATHS))
def test_tensor_maths_imports_no_network(name: str) -> None:
    used = {imported.rpartition(".")[2] for imported in imports(ROOT / "stable_diffusion" / f"{name}.py")}
    assert not used & (NETWORKS | {"transformers", "safetensors", "guidance", "pipeline"})


def test_imports_run_one_way() -> None:
    """No module of the library imports itself by a detour."""
    graph = {
        module(path): {name for name in imports(path) if starts(name, "stable_diffusion")}
        for path in sources("stable_diffusion")
    }

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name in graph and name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    assert not [name for name in graph if name != "stable_diffusion" and name in reachable(name)]


def test_the_spaces_settings_agree() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(head) == yaml.safe_load((ROOT / "space.yaml").read_text(encoding="utf-8"))
