"""Every notebook in a real JupyterLab in a headless Chromium, and what happens to one that is broken."""

import os
import subprocess
import sys

import nbformat
import pytest
from jupyter_page import ROOT, complaints, errors, lab_name, needs_chromium, open_tab, run_all
from nbformat.v4 import new_code_cell, new_notebook
from notebook_pages import NOTEBOOKS, check_notebook, open_lab

BROKEN = {
    "broken_cell.ipynb": ["1", "raise ValueError('no such thing')", "2"],
    "broken_widget.ipynb": [
        "import anywidget",
        "class Widget(anywidget.AnyWidget): _esm = 'export default { render() { throw new Error(`cannot draw`) } }'",
        "Widget()",
    ],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    home, kernel = (
        tmp_path_factory.mktemp("lab"),
        {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    for name, cells in BROKEN.items():
        nbformat.write(
            new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata=kernel),
            home / name,
        )
    with open_lab(home, [*NOTEBOOKS, *(home / name for name in BROKEN)]) as lab:
        yield lab


@needs_chromium
def test_a_failing_cell_is_seen(lab):
    "Else the tests below say nothing."
    with open_tab(*lab, "broken_cell.ipynb"):
        run_all(lab[0])
        assert "no such thing" in errors(lab[0])[0]
    with pytest.raises(AssertionError):
        check_notebook(lab, "broken_cell.ipynb")


@needs_chromium
def test_a_failing_widget_is_seen(lab):
    with open_tab(*lab, "broken_widget.ipynb"):
        run_all(lab[0])
        lab[0].wait_for_timeout(3000)
        assert any("cannot draw" in text for text in complaints(lab[0]))


@needs_chromium
@pytest.mark.parametrize("name", [lab_name(path) for path in NOTEBOOKS])
def test_runs_in_jupyterlab(lab, name):
    check_notebook(lab, name)


def test_without_chromium_they_say_so(tmp_path):
    "Every browser test, on a machine whose PATH has none."
    files = [
        path
        for path in sorted((ROOT / "tests").rglob("test_browser*.py"))
        if path.name != "test_browser_notebooks.py"
    ]
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0 and told.stdout.count("no chromium") >= len(files), (
        told.stdout + told.stderr
    )
    assert "passed" not in told.stdout and "failed" not in told.stdout, told.stdout
