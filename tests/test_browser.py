"""The inspector's notebook in a real JupyterLab, driven in a headless Chromium: what the page shows is compared, not what the kernel says."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "runs" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PANELS = {"face": "xy", "map": "x2y2", "crops": "x3y3", "curve": "x4y4", "classes": "x5y5", "regions": "x6y6"}
PATIENCE = 180_000 # ms: for a machine that has other things to do
FIGURE = ".displacement-inspector .js-plotly-plot"
NOISE = ("Failed to load resource", "favicon", "WebGL") # of the browser and of JupyterLab, not of a widget
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"}, "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}

try: from playwright.sync_api import sync_playwright
except ImportError: sync_playwright = None
pytestmark = pytest.mark.skipif(not CHROMIUM or sync_playwright is None, reason="no chromium")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    "The address of a copy of the notebook, in a JupyterLab of its own with nobody's settings."
    home = tmp_path_factory.mktemp("lab")
    (home / "work/nbs").mkdir(parents=True)
    lesson = json.loads((ROOT / "nbs/41_inspector.ipynb").read_text(encoding="utf-8"))
    lesson["cells"] = [cell for cell in lesson["cells"] if not "".join(cell["source"]).startswith("#| slow")]  # as in the tests of notebooks
    (home / "work/nbs/41_inspector.ipynb").write_text(json.dumps(lesson), encoding="utf-8")
    (ROOT / "runs").mkdir(exist_ok=True)
    for name in ("data_samples", "runs", "frl_dgt_nb"): (home / "work" / name).symlink_to(ROOT / name)
    for name, values in SETTINGS.items():
        path = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port, token = free_port(), "of-this-test"
    folders = {f"JUPYTER{name}_DIR": str(home / name.strip("_").lower()) for name in ("_CONFIG", "_RUNTIME", "LAB_WORKSPACES")}
    environment = os.environ | folders | {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(home / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
                                   f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'work'}", "--LabApp.extension_manager=readonly"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline: pytest.fail("JupyterLab did not start:\n" + (home / "log").read_text()[-2000:])
                time.sleep(.2)
        yield f"http://127.0.0.1:{port}/lab/tree/nbs/41_inspector.ipynb?token={token}&reset"
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


@pytest.fixture(scope="module")
def page(notebook):
    "The notebook, run from the top; `page.complaints` are the console's errors."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(PATIENCE)
        page.goto(notebook)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        page.wait_for_timeout(2000)
        run_all(page)
        page.keyboard.press("Escape")  # to command mode
        yield page
        browser.close()


PROMPTS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent.trim())"
STOPPED = "!!document.querySelector('[data-mime-type=\"application/vnd.jupyter.error\"]')"


def run_all(page):
    "Every cell from the top, until all have run or one has failed; asked again where JupyterLab drops the request while it connects to the kernel."
    deadline, idle = time.monotonic() + PATIENCE / 1000, 3
    while time.monotonic() < deadline:
        prompts = page.evaluate(PROMPTS)
        if page.evaluate(STOPPED) or all(prompt.strip("[]:").isdigit() for prompt in prompts) and page.evaluate(f"!!document.querySelector('{FIGURE} image')"): return
        idle = 0 if "[*]:" in prompts else idle + 1
        dialog = page.locator(".jp-Dialog")
        if dialog.count():
            print("JupyterLab asked:", dialog.first.inner_text())
            dialog.first.locator("button.jp-mod-accept").click()
        elif idle > 3:
            page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
            page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
            idle = -3
        page.wait_for_timeout(1000)
    keep(page, "notebook_is_stuck")
    pytest.fail(f"the notebook doesn't finish: {prompts}")


def show(page):
    "Scroll to the inspector, until it stays where it is."
    widget, before, steady = page.locator(".displacement-inspector").first, None, 0
    page.mouse.move(5, 300)  # away from what answers it
    for _ in range(60):
        page.wait_for_timeout(150)
        now = widget.bounding_box()
        steady = steady + 1 if now == before and 0 < now["y"] < 200 else 0
        if steady == 4: return
        if not steady: widget.evaluate("node => node.scrollIntoView({block: 'start'})")
        before = now
    pytest.fail(f"the inspector doesn't come into view: {now}")


def place(page, panel):
    "Where a panel is, scrolled to if JupyterLab has scrolled away."
    for _ in range(5):
        box = page.locator(f"{FIGURE} .nsewdrag[data-subplot={PANELS[panel]}]").first.bounding_box()
        if box and box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"]: break
        show(page)
    return box


def pixels(page, panel):
    "A panel as it is on the screen."
    return cv2.imdecode(np.frombuffer(page.screenshot(clip=place(page, panel)), np.uint8), cv2.IMREAD_COLOR).astype(int)


def drawing(page, panel):
    "What the page draws in a panel: its part of the SVG, pictures included, wherever it is scrolled to."
    return page.locator(f"{FIGURE} .subplot.{PANELS[panel]}").first.evaluate("node => node.outerHTML")


def changed(page, panel, before, seconds=60):
    "Whether the panel comes to be drawn otherwise."
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if drawing(page, panel) != before: return True
        page.wait_for_timeout(200)
    return False


def keep(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def test_runs_from_the_top(page):
    "Every cell, without an error, with the widget in place."
    keep(page, "notebook_has_run")
    assert not page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert page.locator(".displacement-inspector").count() == 1
    for panel in PANELS.keys() - {"classes"}: assert pixels(page, panel).std() > 2, f"{panel} is blank"  # no classifier here


def test_everything_is_inside_the_window(page):
    show(page)
    for panel in PANELS:
        box = place(page, panel)
        assert box["x"] >= 0 and box["x"] + box["width"] <= 1280 and box["y"] + box["height"] <= 800, (panel, box)
    keep(page, "inspector_1280x800")


def test_the_magnification_slider_moves_the_face(page):
    show(page)
    before, map_before = drawing(page, "face"), drawing(page, "map")
    handle = page.locator(".displacement-inspector .noUi-handle").first
    handle.focus()
    for _ in range(10): page.keyboard.press("ArrowRight")
    assert changed(page, "face", before)
    assert drawing(page, "map") == map_before  # the map has nothing to do with it


def test_another_clip_changes_face_and_map(page):
    show(page)
    face, map_before, told = drawing(page, "face"), drawing(page, "map"), page.locator(".displacement-inspector .widget-html-content").all_inner_texts()
    page.locator(".displacement-inspector select").nth(1).select_option(index=4)
    assert changed(page, "face", face) and changed(page, "map", map_before)
    assert page.locator(".displacement-inspector .widget-html-content").all_inner_texts() != told


def test_a_click_chooses_a_region(page):
    show(page)
    box, before = place(page, "map"), drawing(page, "crops")
    x, y = box["x"] + .5 * box["width"], box["y"] + .88 * box["height"]  # the chin, which is in box 6 alone
    page.mouse.move(x, y)
    page.locator(f"{FIGURE} .hoverlayer .hovertext").first.wait_for(state="attached")
    assert "px right" in page.locator(f"{FIGURE} .hoverlayer").first.text_content()
    page.mouse.click(x, y)
    assert changed(page, "crops", before)
    page.get_by_text("6, mouth and chin: mean motion").first.wait_for()


def test_a_box_is_dragged(page):
    show(page)
    face, crops = place(page, "face"), drawing(page, "crops")
    frame = page.locator(f"{FIGURE} .shapelayer path").first.bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - .1 * face["height"], steps=4)
    page.mouse.move(x, y - .25 * face["height"], steps=4)
    page.mouse.up()
    page.mouse.move(5, 300)
    assert changed(page, "crops", crops)
    keep(page, "inspector_dragged_1280x800")


def test_larger_on_a_large_screen(page):
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.locator(".displacement-inspector select").last.select_option("1.5")
    page.wait_for_function(f"() => document.querySelector('{FIGURE} .main-svg').clientWidth > 1200")
    show(page)
    keep(page, "inspector_1920x1080")
    for panel in PANELS:
        box = place(page, panel)
        assert box["x"] + box["width"] <= 1920 and box["y"] + box["height"] <= 1080, (panel, box)


def test_no_widget_complains(page):
    assert not [text for text in page.complaints if not any(noise in text for noise in NOISE)]
