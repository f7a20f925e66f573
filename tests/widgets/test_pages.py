"""Widgets as pages: what is said before a server starts, who is let in, how it ends, and what the page shows in a
headless Chromium."""

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_page import (
    PATIENCE,
    ROOT,
    chromium,
    complaints,
    free_port,
    keep,
    needs_chromium,
)
from toy_store import toy_store

from frl_dgt_nb.command.browser import store_of
from frl_dgt_nb.command.cli import main
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.run_folder import fold_path
from frl_dgt_nb.training.settings import TRAIN_PRESETS
from frl_dgt_nb.widgets import pages
from frl_dgt_nb.widgets.pages import announce, app_notebook, call

SHELL = [
    sys.executable,
    "-c",
    "import sys; from frl_dgt_nb.command.cli import main; sys.exit(main())",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A run, and its faces where `loso` would have put them."
    home = tmp_path_factory.mktemp("home")
    samples = read_folder(ROOT / "data_samples")
    few = [
        clip for clip in samples.clips if clip.subject < "s05" and clip.name in ("c1", "c2", "c4")
    ]
    store = prepare(replace(samples, clips=few), home / "stores/faces", progress=False)
    run_loso(
        store,
        home / "samples",
        "best",
        train_config=replace(TRAIN_PRESETS["best"], epochs=8, apex_jitter=0),
        device="cpu",
        threads=1,
        progress=False,
    )
    return home


@pytest.fixture
def served(monkeypatch):
    "What would have been served."
    calls = []
    monkeypatch.setattr("frl_dgt_nb.command.browser.serve", lambda *args: calls.append(args))
    return calls


def test_a_notebook_that_jupyter_takes():
    made = nbformat.from_dict(app_notebook("A title", "1 + 1"))
    nbformat.validate(made)
    assert made.metadata.title == "A title"
    assert made.cells[1].source == "1 + 1"


@given(
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.text(),
)
def test_any_path_and_text_arrives_as_it_is(path, text):
    "A quote or a newline in a folder's name is no code."
    line = ast.parse(call("m", "f", Path(path), text, some=text, none=None)).body[1].value
    values = [ast.literal_eval(argument) for argument in line.args]
    settings = {keyword.arg: ast.literal_eval(keyword.value) for keyword in line.keywords}
    assert values == [str(Path(path).resolve()), text]
    assert settings == {"some": text}


def test_without_voila_one_line_says_how_to_get_it(home, monkeypatch, capsys, served):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    for command in (["board", str(home / "samples")], ["inspect", str(home / "stores/faces")]):
        assert main(command) == 2
        assert capsys.readouterr().err.strip().splitlines() == [
            "frl-dgt: Voila is not installed, which makes a page of a notebook; pip install 'frl-dgt-nb[lab]'"
        ]
    assert not served


@pytest.mark.parametrize(
    "command, words",
    [
        ("board {home}/nowhere", "holds no run"),
        ("board {home}/stores/faces", "holds no run"),
        ("board {home}/samples --store {home}/nowhere", "no folder"),
        ("board {home}/samples --store {other}", "other clips"),
        ("inspect {home}/nowhere", "nowhere"),
        ("inspect {home}/samples", "clips.csv"),
        ("inspect {home}/stores/faces --run {home}/stores", "holds no run"),
        ("inspect {other} --run {home}/samples", "other clips"),
        ("inspect {home}/nowhere --database samm", "nowhere"),
        ("board {home}/samples --port 0", "above 0"),
        ("inspect {home}/stores/faces --database flow", "--database"),
        ("board", "run"),
    ],
)
def test_what_is_wrong_is_said_before_the_server_starts(
    home, tmp_path, served, capsys, command, words
):
    toy_store(tmp_path / "other", seed=1, size=64)
    assert main(command.format(home=home, other=tmp_path / "other").split()) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert words in told[0]
    assert not served


def test_the_board_that_is_served(home, served, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["board", "samples"]) == 0
    run, store, out = str(home / "samples"), str(home / "stores/faces"), str(home)
    name, title, code, *settings = served[0]
    assert (name, title) == ("board", "Run samples")
    first, second = code.splitlines()
    assert first == "from frl_dgt_nb.widgets.board import LosoBoard"
    assert second == f"LosoBoard({run!r}, store={store!r}, out={out!r})"
    assert settings == ["localhost", 8866, True, True]


def test_the_flags_of_a_page(home, served, monkeypatch):
    monkeypatch.chdir(home)
    flags = "--port 9000 --host 0.0.0.0 --no-token --no-browser"
    assert main(["board", "samples", *flags.split()]) == 0
    assert served[0][3:] == ("0.0.0.0", 9000, False, False)


def test_the_inspector_that_is_served(home, served, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["inspect", "stores/faces", "--run", "samples"]) == 0
    assert main(["inspect", "stores/faces"]) == 0
    run, store, out = str(home / "samples"), str(home / "stores/faces"), str(home)
    with_run, alone = (code.splitlines()[1] for _, _, code, *_ in served)
    assert with_run == f"DisplacementInspector({run!r}, store={store!r}, out={out!r})"
    assert alone == f"DisplacementInspector({store!r}, out={out!r})"


def test_the_store_of_a_run(home, tmp_path):
    assert store_of(home / "samples") == home / "stores/faces"
    shutil.copytree(home / "samples", tmp_path / "run")
    toy_store(tmp_path / "stores/other", seed=1, size=64)
    assert store_of(tmp_path / "run") is None
    assert store_of(tmp_path / "nothing") is None


def test_faces_are_aligned_first(tmp_path, served, monkeypatch, capsys):
    "And found again the second time."
    clips = pd.read_csv(ROOT / "data_samples/clips.csv", dtype=str).iloc[:1]
    one = clips.iloc[0]
    shutil.copytree(
        ROOT / "data_samples/frames" / one.subject / one["name"],
        tmp_path / "data/frames" / one.subject / one["name"],
    )
    clips.to_csv(tmp_path / "data/clips.csv", index=False)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "data"]) == 0
    assert "1/1" in capsys.readouterr().err  # a bar
    (store,) = Path("runs/stores").iterdir()
    written = (store / "frames.npy").stat().st_mtime_ns
    assert str(store.resolve()) in served[0][2]
    assert main(["inspect", "data"]) == 0
    assert (store / "frames.npy").stat().st_mtime_ns == written


def test_who_can_open_it_is_said(capsys):
    assert announce("localhost", 8866, 8866, "abc") == "http://localhost:8866/?token=abc"
    told = capsys.readouterr()
    assert "token=abc" in told.out
    assert "Ctrl-C" in told.out
    assert not told.err
    assert announce("localhost", 8867, 8866, "") == "http://localhost:8867/"
    told = capsys.readouterr()
    assert "8866 is taken" in told.out
    assert "without a token every user of this machine" in told.err
    assert socket.gethostname() in announce("0.0.0.0", 1, 1, "")
    assert "everybody on the network" in capsys.readouterr().err
    announce("0.0.0.0", 1, 1, "abc")
    assert "unencrypted" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(home):
    "`frl-dgt board` on a port that is taken: the process, its address, and what it has told."
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port := free_port()))
        taken.listen()
        process = subprocess.Popen(
            [*SHELL, "board", "samples", "--no-browser", "--port", str(port)],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        told = []
        while not re.match("http", told[-1] if told else ""):
            if not (line := process.stdout.readline()):
                pytest.fail("no server: " + "".join(told))
            told.append(line)
        yield process, told[-1].strip(), told, port
    if process.poll() is None:
        process.kill()


def status(address, follow=False):
    "Status, and where to; redirects aren't followed."

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args):
            return None

    try:
        with urllib.request.build_opener(*[] if follow else [Stay]).open(
            address, timeout=PATIENCE / 1000
        ) as answer:
            return answer.status, answer.geturl()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Location", "")


def test_a_taken_port_is_not_used(server):
    process, address, told, port = server
    assert f"port {port} is taken" in told[-2]
    assert f":{port}/" not in address


def test_without_the_token_nothing_is_shown(server):
    process, address, *_ = server
    base, word = address.split("?token=")
    assert len(word) == 48
    for path in ("", "voila/render/board.ipynb", "?token=wrong", f"?token={word[:-1]}"):
        code, where = status(base + path)
        assert code in (302, 403, 404) and (code != 302 or "/login" in where), path
    code, where = status(base + "api/kernels/00000000-0000-0000-0000-000000000000")
    assert code in (302, 403, 404)
    assert status(base + "voila/files/board.ipynb")[0] in (302, 403)  # nor any file beside it


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="reads /proc, and the whole of 127.0.0.0/8 is local",
)
def test_only_this_machine_and_nobody_reads_the_token(server):
    process, address, *_ = server
    port, word = int(re.search(r":(\d+)/", address)[1]), address.split("=")[1]
    with pytest.raises(OSError):
        socket.create_connection(
            ("127.0.0.2", port), timeout=5
        ).close()  # a server that listens everywhere would answer
    assert word not in Path(f"/proc/{process.pid}/cmdline").read_text()


# what lies outside the window, or is scrolled out of a box that is too narrow
OUTSIDE = """([width, height]) => {
    const parts = ".loso-board, .loso-board .jupyter-widgets, .loso-board .main-svg";
    const outside = node => {
        const box = node.getBoundingClientRect();
        const beyond = box.left < 0 || box.top < 0 || box.right > width || box.bottom > height;
        const scrolled = node.matches(".widget-box") && node.scrollWidth > node.clientWidth + 1;
        return box.width * box.height && (beyond || scrolled);
    };
    const place = node => JSON.stringify(node.getBoundingClientRect());
    return [...document.querySelectorAll(parts)].filter(outside).map(node => [node.getAttribute("class"), place(node)]);
}"""


def ours(complaints):
    "Voila loads whatever extension of JupyterLab is installed; those of others may not work in it."
    return [
        text
        for text in complaints
        if not re.search(r"voila/labextensions/(?!anywidget|@jupyter-widgets)", text)
    ]


def corners(page):
    "Where the board's figure is, and the inspector."
    names = (".loso-board .js-plotly-plot", ".displacement-inspector")
    return [page.locator(name).first.bounding_box() for name in names]


@needs_chromium
def test_the_board_as_a_page(server, home):
    "Filled, not only there; a click opens the inspector, a new fold is seen. Large and small, nothing complains."
    process, address, *_ = server
    with chromium() as page:
        page.goto(address, wait_until="commit")
        figure = page.locator(".loso-board .js-plotly-plot").first
        page.wait_for_function(
            "document.querySelectorAll('.loso-board .heatmaplayer image').length > 0"
        )
        assert "4 of 4 folds" in page.locator(".loso-board").first.inner_text()
        assert figure.locator(".scatterlayer .trace .js-line").count() >= 3
        keep(page, "board_1280x800")
        assert not page.evaluate(OUTSIDE, [1280, 800])
        page.locator(".loso-board select").nth(1).select_option(index=0)
        page.wait_for_selector(".displacement-inspector .js-plotly-plot image")
        board, inspector = corners(page)
        assert inspector["y"] > board["y"] + 270  # below
        assert not page.evaluate(OUTSIDE, [1280, 1600])
        page.set_viewport_size({"width": 1920, "height": 1080})
        page.wait_for_timeout(1000)
        keep(page, "board_1920x1080")
        board, inspector = corners(page)
        assert inspector["x"] > board["x"] + 846  # beside
        assert not page.evaluate(OUTSIDE, [1920, 1080])
        gone = fold_path(home / "samples", "folder/s02")
        gone.rename(gone.with_suffix(".away"))
        page.get_by_role("button", name="refresh").first.click()
        page.get_by_text("3 of 4 folds").first.wait_for()
        gone.with_suffix(".away").rename(gone)
        assert not ours(complaints(page))


def test_ctrl_c_ends_it_cleanly(server):
    "The last one: the server, its kernels, its folder."
    process, address, *_ = server
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    rest = process.stdout.read()
    assert "Traceback" not in rest
    assert "Error" not in rest
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)
