"""The rules of the house that a reader relies on: who imports whom, and that the Space's settings agree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TENSOR_MATHS = {"schedule", "ddpm", "levels", "samplers", "request"}
NETWORKS = {"attention", "blocks", "clip", "encoder", "decoder", "vae", "diffusion"}

# The floors of the library: a module imports from the floors below and, where there is no other way round, its own.
FLOORS = (
    {
        "request",
        "loading",
        "attention",
        "blocks",
        "adapters.weights",
        "adapters",
        "batching",
        "compute",
        "inspect",
    },
    {"loading.config"},
    {"loading.clip_config"},
    {"loading.files", "loading.pickles", "loading.scheduler_settings"},
    {"loading.model_config", "loading.checkpoints"},
    {"loading.hub", "loading.key_table", "loading.tokenizer"},
    {"loading.single_file"},
    {"schedule", "images", "encoder", "decoder", "diffusion", "clip", "compute.packed"},
    {
        "ddpm",
        "levels",
        "samplers",
        "vae",
        "tiny_vae",
        "safety",
        "mask",
        "guidance",
        "prompt",
        "preview",
        "inspect.heat_maps",
        "compute.precision",
    },
    {"compute.openvino"},
    {"model_converter", "model_loader"},
    {"adapters.lora", "adapters.textual_inversion"},
    {"pipeline"},
    {"inspect.look_inside", "batching.run_handle", "batching.batch_size"},
    {"batching.preview_worker"},
    {"batching.engine"},
)
LIBRARY = "stable_diffusion"
BEHIND_THE_PAGE = {"training", "tests", "benchmarks", "notebooks", "diffusers"}


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


files = {module(path): path for path in sources(LIBRARY)[1:]}


def starts(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", sources(LIBRARY), ids=module)
def test_the_library_stands_alone(path: Path) -> None:
    others = BEHIND_THE_PAGE | {"gradio", "ui", "serving", "app"}
    assert not [name for name in imports(path) if starts(name, *others)]


@pytest.mark.parametrize("path", [*sources("ui"), *sources("serving"), ROOT / "app.py"], ids=module)
def test_nothing_at_run_time_imports_what_made_or_measures_the_model(path: Path) -> None:
    assert not [name for name in imports(path) if starts(name, *BEHIND_THE_PAGE)]


@pytest.mark.parametrize("folder", ["stable_diffusion", "ui", "training", "benchmarks"])
def test_ray_stays_in_serving(folder: str) -> None:
    """And nothing imports serving: without it, and without ray, everything else is there."""
    assert not [module(path) for path in sources(folder) for name in imports(path) if starts(name, "ray", "serving")]
    assert not [name for name in imports(ROOT / "app.py") if starts(name, "ray", "serving")]


@pytest.mark.parametrize("folder", ["training", "benchmarks", "tests/parity"])
def test_gradio_stays_on_the_page(folder: str) -> None:
    """Only app.py and ui/ import gradio; the page's own tests do so too."""
    assert not [module(path) for path in sources(folder) for name in imports(path) if starts(name, "gradio")]


@pytest.mark.parametrize("name", sorted(TENSOR_MATHS))
def test_tensor_maths_imports_no_network(name: str) -> None:
    used = {imported.rpartition(".")[2] for imported in imports(ROOT / LIBRARY / f"{name}.py")}
    assert not used & (NETWORKS | {"transformers", "safetensors", "guidance", "pipeline"})


def test_a_request_is_free_of_torch() -> None:
    assert not [name for name in imports(ROOT / LIBRARY / "request.py") if starts(name, "torch", LIBRARY)]


def test_every_module_has_its_floor() -> None:
    names = [name for floor in FLOORS for name in floor]
    assert sorted(names) == sorted(module(path).removeprefix(f"{LIBRARY}.") for path in sources(LIBRARY)[1:])


@pytest.mark.parametrize("path", sources(LIBRARY)[1:], ids=module)
def test_imports_run_one_way(path: Path) -> None:
    """From a floor to those below; within a floor, never round in a circle."""
    height = {f"{LIBRARY}.{name}": i for i, floor in enumerate(FLOORS) for name in floor}
    own = module(path)
    assert not [name for name in imports(path) if name in height and height[name] > height[own]]

    seen: set[str] = set()
    waiting = [own]
    while waiting:
        for name in imports(files[waiting.pop()]) & files.keys() - seen:
            seen.add(name)
            waiting.append(name)
    assert own not in seen


@pytest.mark.parametrize(
    ("folder", "page"),
    [
        (LIBRARY, "README.md"),
        ("ui", "README.md"),
        ("serving", "docs/many-visitors.md"),
        ("training", "training/README.md"),
    ],
)
def test_every_file_has_its_line_on_a_map(folder: str, page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    files = [path for path in sources(folder) if path.name != "__init__.py"]
    assert not [path for path in files if f"{path.name}`" not in text]


def test_the_spaces_settings_agree() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(head) == yaml.safe_load((ROOT / "space.yaml").read_text(encoding="utf-8"))
