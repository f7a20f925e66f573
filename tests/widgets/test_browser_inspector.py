"""The inspector's notebook in a real JupyterLab, driven in a headless Chromium.

What the page shows is compared, not what the kernel says.
"""

import pytest
from jupyter_page import (
    ROOT,
    chromium,
    complaints,
    errors,
    jupyterlab,
    keep,
    needs_chromium,
    open_notebook,
    run_all,
)
from widget_page import WidgetOnPage

PANELS = {
    "face": "xy",
    "map": "x2y2",
    "crops": "x3y3",
    "curve": "x4y4",
    "classes": "x5y5",
    "regions": "x6y6",
}
FIGURE = ".displacement-inspector .js-plotly-plot"
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The notebook, run from the top."
    notebook = "7_widgets/01_inspector.ipynb"
    home = tmp_path_factory.mktemp("lab")
    with jupyterlab(home, [ROOT / "nbs" / notebook]) as address, chromium() as page:
        open_notebook(page, address(notebook))
        run_all(page, f"!!document.querySelector('{FIGURE} image')")
        page.keyboard.press("Escape")  # to command mode
        yield page


@pytest.fixture
def widget(page):
    return WidgetOnPage(page, "displacement-inspector", PANELS)


def test_runs_from_the_top(page, widget):
    "Every cell, without an error, with the widget in place."
    keep(page, "notebook_has_run")
    assert not errors(page)
    assert page.locator(".displacement-inspector").count() == 1
    for panel in PANELS.keys() - {"classes"}:
        assert widget.pixels(panel).std() > 2, f"{panel} is blank"  # no classifier here


def test_everything_is_inside_the_window(page, widget):
    widget.show()
    widget.is_inside(1280, 800)
    assert not widget.collisions()
    keep(page, "inspector_1280x800")


def test_the_magnification_slider_moves_the_face(page, widget):
    widget.show()
    before, map_before = widget.drawing("face"), widget.drawing("map")
    handle = page.locator(".displacement-inspector .noUi-handle").first
    handle.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert widget.changed("face", before)
    assert widget.drawing("map") == map_before  # the map has nothing to do with it


def test_another_clip_changes_face_and_map(page, widget):
    widget.show()
    face, map_before, words = widget.drawing("face"), widget.drawing("map"), widget.texts()
    page.locator(".displacement-inspector select").nth(1).select_option(index=4)
    assert widget.changed("face", face) and widget.changed("map", map_before)
    assert widget.texts() != words


def test_a_click_chooses_a_region(page, widget):
    widget.show()
    box, before = widget.place("map"), widget.drawing("crops")
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.88 * box["height"]  # the chin: box 6 alone
    page.mouse.move(x, y)
    page.locator(f"{FIGURE} .hoverlayer .hovertext").first.wait_for(state="attached")
    assert "px right" in page.locator(f"{FIGURE} .hoverlayer").first.text_content()
    page.mouse.click(x, y)
    assert widget.changed("crops", before)
    page.get_by_text("6, mouth and chin: mean motion").first.wait_for()


def test_a_box_is_dragged(page, widget):
    widget.show()
    face, crops = widget.place("face"), widget.drawing("crops")
    frame = page.locator(f"{FIGURE} .shapelayer path").first.bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 0.1 * face["height"], steps=4)
    page.mouse.move(x, y - 0.25 * face["height"], steps=4)
    page.mouse.up()
    page.mouse.move(5, 300)
    assert widget.changed("crops", crops)
    keep(page, "inspector_dragged_1280x800")


def test_larger_on_a_large_screen(page, widget):
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.locator(".displacement-inspector select").last.select_option("1.5")
    page.wait_for_function(f"() => document.querySelector('{FIGURE} .main-svg').clientWidth > 1200")
    widget.show()
    keep(page, "inspector_1920x1080")
    widget.is_inside(1920, 1080)
    assert not widget.collisions()


def test_no_widget_complains(page):
    assert not complaints(page)
