"""Imports of training run one way: from judging to networks to data, and never to the page or the tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BELOW = {
    "training.data": set(),
    "training.sheets": set(),
    "training.networks": {"training.data", "training.sheets"},
    "training.judging": {"training.data", "training.sheets", "training.networks"},
}
"""For each room the rooms of training that it may import, beside itself."""


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1] if node.level else ())
            name = ".".join(filter(None, (base, node.module)))
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found


def modules() -> dict[str, Path]:
    """The modules of training by dotted name."""
    paths = (ROOT / "training").rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths if path.name != "__init__.py"
    }


@pytest.mark.parametrize("room", sorted(BELOW))
def test_a_room_imports_only_rooms_below(room: str) -> None:
    allowed = {room, *BELOW[room]}
    for name, path in modules().items():
        if f"{name}.".startswith(f"{room}."):
            others = {".".join(one.split(".")[:2]) for one in imports(path) if one.startswith("training.")}
            assert others <= allowed, name
            assert not {one.split(".")[0] for one in imports(path)} & {"ui", "tests", "serving", "app"}, name


def test_no_module_imports_itself_round_a_circle() -> None:
    files = modules()
    arrows = {name: imports(path) & files.keys() for name, path in files.items()}
    assert sum(map(len, arrows.values())) > 40
    for name in files:
        reached, waiting = set(), [name]
        while waiting:
            for other in arrows[waiting.pop()] - reached:
                reached.add(other)
                waiting.append(other)
        assert name not in reached, name
