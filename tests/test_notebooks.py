"""Each notebook runs in a fresh kernel and prints sensible numbers; the committed file holds small outputs of a run."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MAX_BYTES = 2**20
MAX_CELL_LINES = 20
SECONDS_OF_A_CELL = 240

# What each notebook prints: the words around a number, and the range it lies in.
KEY_NUMBERS = {
    "aae": [
        (r"(\d+)% of the test images lie in the petal", 70, 100),
        (r"(?m)^ +100 +([\d.]+)%", 0, 15),
        (r"(\d+)% of the drawn images are recognised", 70, 100),
    ],
    "local_attention": [
        (r"largest difference between fast and slow: (\S+)", 0, 1e-4),
        (r"to the power ([\d.]+) \(full\)", 1.5, 2.6),
        (r"and ([\d.]+) \(local\)", 0.5, 1.5),
        (r"mean span: ([\d.]+) of", 1, 60),
        (r"test: ([\d.]+) bits per dimension", 1.6, 2.0),
    ],
    "photos": [
        (r"what is left of green: ([\d.]+) bits", 3, 4.5),
        (r"nearly white: the 256 probabilities sum to (\S+)", 0.999999, 1.000001),
        (r"the model above +([\d.]+) bits per dimension", 3.5, 5),
        (r"vlae_photos +([\d.]+) bits per dimension", 3, 4),
        (r"with the code of another patch, the pixels cost (\d+) nats more", 10, 1000),
    ],
    "vae": [
        (r"ELBO is above the evidence: (\d+)", 0, 0),
        (r"missing KL ([\d.]+)", 0, 5),
        (r"(?m)^64 dimensions.*prior off by +(\S+),", -5000, -20),
        (r"the score function needs ([\d,]+) draws", 10, 1e7),
    ],
}
# Parts of a loss that the table of a training has as columns.
COLUMNS = {
    "aae": ("Reconstruction Loss", "Discriminator Accuracy"),
    "local_attention": ("Bits Per Dim",),
    "photos": ("Distortion", "Rate", "Bits Per Dim"),
    "vae": ("Distortion", "Rate", "Bits Per Dim"),
}


def printed(notebook: nbformat.NotebookNode, stream: str = "stdout") -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def check_numbers(name: str, text: str) -> None:
    for pattern, low, high in KEY_NUMBERS[name]:
        found = re.search(pattern, text)
        assert found, f"{name} does not print {pattern}"
        assert low <= float(found[1].replace(",", "")) <= high, found[0]


def check_table(name: str, notebook: nbformat.NotebookNode) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    (table,) = [text for output in outputs if (text := output.get("data", {}).get("text/html"))]
    assert [column for column in COLUMNS[name] if f"<th>{column}</th>" not in table] == []


def count_pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_each_notebook_has_key_numbers():
    assert sorted(KEY_NUMBERS) == sorted(COLUMNS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_those_of_one_run_and_small(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MAX_BYTES
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(not cell.metadata for cell in notebook.cells)
    assert max(len(cell.source.splitlines()) for cell in code) <= MAX_CELL_LINES
    assert count_pictures(notebook) >= 5
    assert printed(notebook, "stderr") == ""
    check_numbers(name, printed(notebook))
    check_table(name, notebook)


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS_OF_A_CELL)
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    pictures = count_pictures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # Without the backend of the other tests, whose figures nobody sees.
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment["IPYTHONDIR"] = str(tmp_path / "ipython")
    resources = {"metadata": {"path": str(tmp_path)}}
    # A cell that fails raises.
    NotebookClient(notebook, timeout=SECONDS_OF_A_CELL, kernel_name="python3", resources=resources).execute(
        env=environment
    )
    check_numbers(name, printed(notebook))
    check_table(name, notebook)
    assert count_pictures(notebook) == pictures
    assert printed(notebook, "stderr") == ""
