"""The inspector's notebook in a real JupyterLab, driven in a headless Chromium: what the page shows is compared, not what the kernel says."""
import time

import cv2
import numpy as np
import pytest

from jupyter_page import ROOT, chromium, complaints, errors, jupyterlab, keep, needs_chromium, open_notebook, run_all

PANELS = {"face": "xy", "map": "x2y2", "crops": "x3y3", "curve": "x4y4", "classes": "x5y5", "regions": "x6y6"}
FIGURE = ".displacement-inspector .js-plotly-plot"
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The notebook, run from the top."
    with jupyterlab(tmp_path_factory.mktemp("lab"), [ROOT / "nbs/41_inspector.ipynb"]) as address, chromium() as page:
        open_notebook(page, address("41_inspector.ipynb"))
        run_all(page, f"!!document.querySelector('{FIGURE} image')")
        page.keyboard.press("Escape")  # to command mode
        yield page


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


def test_runs_from_the_top(page):
    "Every cell, without an error, with the widget in place."
    keep(page, "notebook_has_run")
    assert not errors(page)
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
    assert not complaints(page)
