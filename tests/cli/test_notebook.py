"""The notebook of the documentation runs, and shows a video, plots and a bar that changes in its place."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.enable_socket
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "results do not belong into git"
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 3
    assert any("<video controls" in data.get("text/html", "") for data in shown)
    texts = [data.get("text/plain", "") for data in shown]
    assert any("RTX 4090" in text and "GPU memory [MiB]" in text for text in texts)
    assert any("KV cache and time (in brackets: relative to bf16)" in text for text in texts)
    plain = [re.sub(r"\x1b\[[\d;]*m", "", text) for text in texts]
    # Where the bar has come to in the end; it was drawn once.
    (bar,) = [text for text in plain if "chunk 2/2" in text]
    assert "21 frames, KV cache" in bar
    assert (tmp_path / "results" / "compare").is_dir()
