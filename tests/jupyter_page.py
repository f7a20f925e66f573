"""A JupyterLab of its own in a headless Chromium: what the browser tests share. No test is in here."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

try:
    from playwright.sync_api import Browser, Page, sync_playwright
except ImportError:
    Browser = Page = sync_playwright = None

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "runs" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 180_000  # ms: for a machine that has other things to do
NOISE = (
    "Failed to load resource",
    "favicon",
    "WebGL",
)  # of the browser and of JupyterLab, not of a widget
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
LEFT_OUT = ("#| slow", "#| cuda", "#| eval: false")
STDERR, TRACEBACK = (
    '[data-mime-type="application/vnd.jupyter.stderr"]',
    re.compile(r"Traceback \(most recent call last\)|SyntaxError|IndentationError"),
)  # JupyterLab shows errors as it shows stderr
PROMPTS = """[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(
    prompt => prompt.textContent.trim())"""

READY = bool(CHROMIUM and sync_playwright)
needs_chromium = pytest.mark.skipif(not READY, reason="no chromium")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(
    command: list[str], probe: str, environment: dict, log: Path
) -> Iterator[subprocess.Popen]:
    "A server, from when `probe` answers until the end of the block."
    with open(log, "w") as lines:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=lines, stderr=lines)
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(probe, timeout=5)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[:3]} did not start:\n" + log.read_text()[-2000:])
                time.sleep(0.2)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def private(home: Path) -> dict[str, str]:
    "Environment of a server that knows nobody's settings."
    for name, values in SETTINGS.items():
        path = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    folders = {
        f"JUPYTER{name}_DIR": str(home / name.strip("_").lower())
        for name in ("_CONFIG", "_RUNTIME", "LAB_WORKSPACES")
    }
    return folders | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "IPYTHONDIR": str(home / "ipython"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def copy_notebook(source: Path, target: Path) -> None:
    "Without outputs, and without the cells that are slow or want a GPU, as in the tests of notebooks."
    lesson = json.loads(source.read_text(encoding="utf-8"))
    lesson["cells"] = [
        cell | ({"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {})
        for cell in lesson["cells"]
        if not "".join(cell["source"]).startswith(LEFT_OUT)
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(lesson), encoding="utf-8")


def lab_name(path: Path) -> str:
    "What a notebook is called in the JupyterLab of a test: its place in the book, or its bare name."
    book = ROOT / "nbs"
    return path.relative_to(book).as_posix() if path.is_relative_to(book) else path.name


@contextmanager
def jupyterlab(home: Path, notebooks: list[Path]) -> Iterator[Callable[[str], str]]:
    "A JupyterLab with copies of some notebooks; yields what makes an address of the name of one."
    for path in notebooks:
        copy_notebook(path, home / "work/nbs" / lab_name(path))
    (ROOT / "runs").mkdir(exist_ok=True)
    for path in ROOT.glob("[!.]*"):  # what a notebook may look for above nbs/
        if path.name != "nbs":
            (home / "work" / path.name).symlink_to(path)
    port, token = free_port(), "of-this-test"
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={home / 'work'}",
        "--LabApp.extension_manager=readonly",
        "--LabApp.expose_app_in_browser=True",
    ]
    with serving(
        command, f"http://127.0.0.1:{port}/api/status?token={token}", private(home), home / "log"
    ):
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/nbs/{name}?token={token}&reset"


@contextmanager
def chromium(width: int = 1280, height: int = 800) -> Iterator[Page]:
    "An empty page; `page.complaints` are the console's errors."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield new_page(browser, width, height)
        browser.close()


def new_page(browser: Browser, width: int = 1280, height: int = 800) -> Page:
    "An empty page that remembers what is complained of."
    page = browser.new_page(viewport={"width": width, "height": height})
    page.complaints = []
    page.on(
        "console",
        lambda message: page.complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.set_default_timeout(PATIENCE)
    return page


def complaints(page: Page) -> list[str]:
    "The console's errors, but for the browser's and JupyterLab's own."
    return [text for text in page.complaints if not any(noise in text for noise in NOISE)]


def errors(page: Page) -> list[str]:
    "Tracebacks in the notebook."
    return page.locator(STDERR).filter(has_text=TRACEBACK).all_inner_texts()


def open_notebook(page: Page, address: str) -> None:
    "Until its kernel waits for something to do."
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.wait_for_timeout(2000)


OPEN = """async path => {
    const panel = await window.jupyterapp.commands.execute('docmanager:open', {path});
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session?.kernel?.info;
}"""
CLOSE = """async () => {
    for (const widget of [...window.jupyterapp.shell.widgets('main')]) {
        if (widget.context?.model.dirty) await widget.context.save();
        widget.close();
    }
}"""


@contextmanager
def open_tab(page: Page, address: str, name: str) -> Iterator[None]:
    "A notebook in a JupyterLab that is open already, which saves loading it again; its kernel ends with the tab."
    page.complaints.clear()
    page.evaluate(OPEN, f"nbs/{name}")
    try:
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        yield
    finally:
        page.evaluate(CLOSE)
        page.wait_for_function("!document.querySelector('.jp-Notebook')")
        shut_kernels(address)


def shut_kernels(address: str) -> None:
    "All kernels of the JupyterLab that an address is of: each holds its notebook's arrays for as long as it lives."
    parts = urlsplit(address)
    home = f"{parts.scheme}://{parts.netloc}/api/kernels"

    def ask(method, path):
        request = urllib.request.Request(f"{home}{path}?{parts.query}", method=method)
        return urllib.request.urlopen(request, timeout=60)

    for kernel in json.load(ask("GET", "")):
        ask("DELETE", f"/{kernel['id']}")


def run_all(page: Page, ready: str = "true") -> None:
    """Every cell from the top, until all have run and `ready` (JavaScript) holds, or one has failed.

    Asked again where JupyterLab drops the request while it connects to the kernel."""
    deadline, idle = time.monotonic() + PATIENCE / 1000, 3
    while time.monotonic() < deadline:
        prompts = page.evaluate(PROMPTS)
        done = all(prompt.strip("[]:").isdigit() for prompt in prompts)
        if errors(page) or done and page.evaluate(ready):
            return
        idle = 0 if "[*]:" in prompts else idle + 1
        dialog = page.locator(".jp-Dialog")
        if dialog.count():
            print("JupyterLab asked:", dialog.first.inner_text())
            dialog.first.locator("button.jp-mod-accept").click()
        elif (
            idle > (15 if done else 3)
        ):  # on a machine that is too busy anywidget gives up on a figure after two seconds, and draws the next one
            page.evaluate(
                "() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }"
            )  # what the menu does; nobody waits for its end
            idle = -3
        page.wait_for_timeout(1000)
    keep(page, "notebook_is_stuck")
    pytest.fail(f"the notebook doesn't finish: {prompts}")


def keep(page: Page, name: str) -> None:
    "A screenshot among those of all tests."
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")
