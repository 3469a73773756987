"""The notebooks run from top to bottom, and are committed with the pictures that a reader should see."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).parent.parent
PICTURES = {"results": 5, "gptq_by_hand": 7, "new_method": 1}
LARGEST = 150_000  # bytes of a picture


def pictures(notebook) -> list[str]:
    """The PNG outputs, in base64."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("QBENCH_RESULTS", str(ROOT / "results"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": tmp_path}}).execute()
    assert len(pictures(notebook)) == PICTURES[path.stem]
    if path.stem == "new_method":
        text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
        assert "clipped g128" in text
        assert "failed" not in text


@pytest.mark.parametrize("name", PICTURES)
def test_committed_outputs_hold_the_pictures(name):
    """``python experiments/notebooks.py`` writes them."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    shown = pictures(notebook)
    assert len(shown) == PICTURES[name]
    assert max(len(picture) * 3 // 4 for picture in shown) < LARGEST
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    assert not any("/tmp/" in str(cell.get("outputs", "")) for cell in notebook.cells)
