"""The other half of the notebooks of tests/test_browser_notebooks.py, for another process."""
import pytest

from jupyter_page import needs_chromium
from notebook_pages import NOTEBOOKS, check_notebook, open_lab

HALF = NOTEBOOKS[1::2]
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with open_lab(tmp_path_factory.mktemp("lab"), HALF) as lab: yield lab


@pytest.mark.parametrize("name", [path.name for path in HALF])
def test_runs_in_jupyterlab(lab, name): check_notebook(lab, name)
