"""The notebooks run from top to bottom on the bundled model; their committed files are small and name no machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from notebooks.run import FOLDER, NOTEBOOKS, execute
from stable_diffusion.model_loader import BUNDLED
from ui.inside.stops import STOPS

MAX_BYTES = 1_000_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_from_top_to_bottom(name: str, bundled_model: Path):
    if not (bundled_model / "model_index.json").is_file():
        pytest.skip(f"no model at {bundled_model}")
    notebook = execute(name, None if bundled_model == BUNDLED else bundled_model)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran)
    shown = [output for cell in ran for output in cell.outputs if "image/jpeg" in output.get("data", {})]
    assert len(shown) >= 5


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed_is_small_and_names_no_machine(name: str):
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES, f"{len(text)} bytes: show fewer or smaller pictures"
    for cell in json.loads(text)["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
        shown = json.dumps([cell["source"], [o.get("text", "") for o in cell.get("outputs", [])]])
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|work|Users|opt)/", shown)


def test_each_stop_of_the_tour_has_one_section_and_a_row_in_the_table():
    texts = [
        "".join(cell["source"])
        for name in NOTEBOOKS
        for cell in json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
    ]
    stops = [f"{number}: {stop.title}" for number, stop in enumerate(STOPS, start=1)]
    sections = re.findall(r"^#+ Stop (.+)$", "\n".join(texts), re.MULTILINE)
    assert sorted(sections, key=lambda section: int(section.split(":")[0])) == stops
    assert re.findall(r"^\| (\d+: [^|]+) \|", "\n".join(texts), re.MULTILINE) == stops
