"""The notebooks of examples/ run from their first cell to their last, in a folder of their own.

It needs nbclient and ipykernel: `make test-demo`.
"""

from pathlib import Path

import pytest

import vlmcompress

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: make test-demo")
import nbformat  # noqa: E402

pytestmark = pytest.mark.slow
EXAMPLES = Path(vlmcompress.__file__).parents[1] / "examples"


@pytest.fixture
def ran(request, tmp_path, monkeypatch):
    """A notebook with its outputs; an error in a cell is raised."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    found = nbformat.read(EXAMPLES / f"{request.param}.ipynb", as_version=4)
    client = nbclient.NotebookClient(found, timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute()
    return found


def outputs(notebook, kind):
    """What all cells showed of one kind: a stream, or a type of data."""
    every = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    texts = [out["text"] for out in every if out.get("name") == kind]
    return texts + [out["data"][kind] for out in every if kind in out.get("data", {})]


@pytest.mark.parametrize("ran", ["quickstart"], indirect=True)
def test_quickstart(ran):
    told = "".join(outputs(ran, "stdout"))
    assert "green\ndivprune, budget 36" in told
    assert "fastv at 50%" in told
    assert "how many stars are there ? -> two (encoder: 0.0 ms)" in told
    pages = outputs(ran, "text/html")
    assert "144 &rarr; 36" in pages[0]
    assert "<strong>right</strong>" in pages[-1]
    assert len(outputs(ran, "image/png")) >= 4
    assert "Loading weights" not in "".join(outputs(ran, "stderr"))


@pytest.mark.parametrize("ran", ["own_method"], indirect=True)
def test_a_method_of_ones_own(ran):
    told = "".join(outputs(ran, "stdout"))
    shares = {line.split()[0]: int(line.split()[1].rstrip("%")) for line in told.splitlines()}
    assert set(shares) == {"full", "loudest", "divprune", "random"}
    assert shares["full"] > 95
    assert shares["full"] > shares["loudest"]
    assert "loudest(power=1.0) at 18" in outputs(ran, "text/html")[0]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    assert not any(cell.get("outputs") for cell in found.cells)
