"""The checks of the house and of the book, each on something that it has to find."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def house(tmp_path):
    "A copy of the package, to be spoilt."
    shutil.copytree(
        ROOT / "frl_dgt_nb", tmp_path / "frl_dgt_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


@pytest.mark.parametrize(
    "module, line, why",
    [
        ("data/clips.py", "from ..model.warp import warp", "data may import files"),
        ("model/warp.py", "from ..data.store import FaceStore", "model may import files"),
        (
            "training/fold.py",
            "from ..data import spotting",
            "training may not import data.spotting",
        ),
        ("training/fold.py", "import frl_dgt_nb.simulate.heads", "training may import"),
        ("study/features.py", "def lazy():\n    from ..widgets import board", "study may import"),
        ("pictures/plots.py", "import plotly.graph_objects as go", "only widgets may"),
        ("model/warp.py", "from .frldgt import FRLDGT", "a circle of imports"),
    ],
)
def test_an_import_that_breaks_the_rule(house, module, line, why):
    path = house / "frl_dgt_nb" / module
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\n{line}\n", encoding="utf-8")
    told = run(ROOT / "scripts/structure.py", "--check", house)
    assert told.returncode == 1 and why in told.stdout, told.stdout + told.stderr
    if "circle" not in why:
        number = len(path.read_text("utf-8").splitlines())
        assert f"{path}:{number}:" in told.stdout


def test_the_house_as_it_is(house):
    told = run(ROOT / "scripts/structure.py", "--check", house)
    assert told.returncode == 0 and "modules import what they may" in told.stdout


def lesson(*cells):
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def text(source, name):
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": [source]}


def code(source, name, *outputs):
    lines = {"source": source.splitlines(keepends=True), "outputs": outputs}
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {}} | lines


@pytest.fixture
def book(tmp_path):
    "A book of two lessons with its script."
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/book.py", tmp_path / "scripts")
    picture = {"output_type": "display_data", "data": {"image/png": "aGk="}, "metadata": {}}
    plot = "#| fig-alt: a line that\n#| fig-alt: rises\nplot()"
    notebooks = {
        "index.ipynb": [text("[1.1 one](1_part/01_one.ipynb) [1.2 two](1_part/02_two.ipynb)", "a")],
        "1_part/01_one.ipynb": [
            text("# One", "a"),
            code("#| default_exp one", "b"),
            code(plot, "c", picture),
        ],
        "1_part/02_two.ipynb": [text("# Two\n\nsee [1.1 one](01_one.ipynb)", "a")],
    }
    for name, cells in notebooks.items():
        path = tmp_path / "nbs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(lesson(*cells)))
    assert run(tmp_path / "scripts/book.py").returncode == 0
    return tmp_path


def read(book, name):
    return json.loads((book / "nbs" / name).read_text())["cells"]


def check(book):
    return run(book / "scripts/book.py", "--check")


def test_a_book_is_finished(book):
    "Links above and below, the module's name out of the way, the text of a picture where programs look for it."
    assert check(book).returncode == 0
    cells = read(book, "1_part/01_one.ipynb")
    assert [cell["id"] for cell in cells] == ["a", "navigation-top", "c", "b", "navigation-bottom"]
    assert "[1.2 two](02_two.ipynb) →" in cells[1]["source"][0]
    assert cells[2]["outputs"][0]["metadata"] == {"image/png": {"alt": "a line that rises"}}


@pytest.mark.parametrize(
    "name, old, new, why",
    [
        ("1_part/02_two.ipynb", "(01_one.ipynb)", "(01_none.ipynb)", "nothing is at 01_none.ipynb"),
        ("1_part/02_two.ipynb", "[1.1 one]", "[1.2 two]", "leads to 1.1 one"),
        ("1_part/02_two.ipynb", "see ", "see notebook 11 and ", "'notebook 11' is no link"),
        ("1_part/02_two.ipynb", "see ", "see 44_tables and ", "'44_tables' is no link"),
        ("1_part/01_one.ipynb", "#| fig-alt: ", "# ", "a picture without a line"),
        ("1_part/01_one.ipynb", "fig-alt: rises", "fig-alt: falls", "run `make book`"),
        ("1_part/01_one.ipynb", "contents](", "content](", "run `make book`"),
        (
            "index.ipynb",
            "(1_part/02_two.ipynb)",
            "(1_part/01_one.ipynb)",
            "no link to 1_part/02_two",
        ),
    ],
)
def test_a_book_that_is_not(book, name, old, new, why):
    path = book / "nbs" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    told = check(book)
    assert told.returncode == 1 and why in told.stdout, told.stdout + told.stderr
