"""Every notebook in a real JupyterLab in a headless Chromium: it opens, runs from the top, shows its widgets, and nothing complains."""
from contextlib import contextmanager

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from jupyter_page import ROOT, chromium, complaints, errors, jupyterlab, keep, needs_chromium, new_page, open_notebook, run_all, shut_kernels

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
NO_WIDGET = "Error displaying widget"
BROKEN = {"broken_cell.ipynb": ["1", "raise ValueError('no such thing')", "2"],
          "broken_widget.ipynb": ["import anywidget", "class Widget(anywidget.AnyWidget): _esm = 'export default { render() { throw new Error(`cannot draw`) } }'", "Widget()"]}
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "What makes an address of a notebook's name, and a browser."
    home = tmp_path_factory.mktemp("lab")
    for name, cells in BROKEN.items(): nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), home / name)
    with jupyterlab(home, [*NOTEBOOKS, *(home / name for name in BROKEN)]) as address, chromium() as page: yield address, page.context.browser


@contextmanager
def run(lab, name):
    "A page in which a notebook has run from the top."
    address, browser = lab
    page = new_page(browser)
    try:
        open_notebook(page, address(name))
        run_all(page)
        yield page
    finally:
        page.close()
        shut_kernels(address(name))


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_runs_in_jupyterlab(lab, name):
    "From the top, without an error in a cell, a widget that can't be shown, or one in the console."
    with run(lab, name) as page:
        keep(page, f"notebook_{name.removesuffix('.ipynb')}")
        assert not errors(page)
        assert not page.get_by_text(NO_WIDGET).count()
        assert not complaints(page)


def test_a_failing_cell_is_seen(lab):
    "Else the tests above say nothing."
    with run(lab, "broken_cell.ipynb") as page: assert "no such thing" in errors(page)[0]


def test_a_failing_widget_is_seen(lab):
    "In its output or in the console."
    with run(lab, "broken_widget.ipynb") as page:
        page.wait_for_timeout(3000)
        keep(page, "broken_widget")
        assert any("cannot draw" in text for text in complaints(page)), complaints(page)
