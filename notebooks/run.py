"""Execute the notebooks from top to bottom and save them with their outputs: `python -m notebooks.run [name ...]`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = ("add_noise", "demo", "Text2Image", "Image2Image")
OTHER_MODEL = "from stable_diffusion import model_loader\n\nmodel_loader.BUNDLED = __import__('pathlib').Path({!r})"


def execute(name: str, model: Path | None = None) -> NotebookNode:
    """Return the notebook with new outputs, without times and paths; raises CellExecutionError if a cell fails.

    model: a directory to use as the bundled model.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    if model is not None:
        # Behind the first cell, which makes the library importable.
        notebook.cells.insert(2, nbformat.v4.new_code_cell(OTHER_MODEL.format(str(Path(model).resolve()))))
    # Without ipywidgets, tqdm warns, and the warning holds a path.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"}
    # A cell's prints arrive in pieces that differ from run to run.
    settings = {"timeout": 1800, "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}, **settings)
    client.execute(env=environment)
    if model is not None:
        del notebook.cells[2]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    """Execute the named notebooks, or all, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NOTEBOOKS, help="notebooks to execute; default: all")
    parser.add_argument("--model", type=Path, help="a directory to use as the bundled model")
    options = parser.parse_args()
    for name in options.names:
        notebook = execute(name, options.model)
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
