"""The laboratory of the losses and the view of the weights in a real JupyterLab, driven in a headless Chromium.
What the page shows is compared, not what the kernel says."""

import re
import time

import nbformat
import pytest
from jupyter_page import (
    chromium,
    complaints,
    errors,
    jupyterlab,
    keep,
    needs_chromium,
    new_page,
    open_notebook,
    run_all,
)
from nbformat.v4 import new_code_cell, new_notebook
from widget_page import WidgetOnPage

PANELS = {
    "module-lab": {
        "total": "xy",
        "parts": "x2y2",
        "error": "x3y3",
        "reconstruction": "x4y4",
        "difference": "x5y5",
        "displacement": "x6y6",
        "truth": "x7y7",
    },
    "fusion-view": {
        "without": "xy",
        "with": "x2y2",
        "crops": "x3y3",
        "heads": "x4y4",
        "regions": "x5y5",
        "bars": "x6y6",
    },
}
STORE = """
import torch
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
torch.set_num_threads(1)
store = prepare(read_folder("../data_samples"), "../runs/stores/data_samples", progress=False)
"""
LAB = """
from frl_dgt_nb import ModuleLab
ModuleLab(store, clip="folder/s02/c1", apex="moved", times=2.0, noise=2.0)
"""
VIEW = """
from frl_dgt_nb import FRLDGT, PRESETS, FusionView
torch.manual_seed(0)
FusionView(store, FRLDGT(PRESETS["best"]), clip="folder/s01/c2")
"""
LESSONS = {"module-lab": LAB, "fusion-view": VIEW}
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "What makes an address of a notebook's name, and a browser. Each widget has a notebook of two cells."
    home = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    paths = []
    for name, cell in LESSONS.items():
        cells = [new_code_cell(STORE.strip()), new_code_cell(cell.strip())]
        paths.append(home / f"{name}.ipynb")
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), paths[-1])
    with jupyterlab(home, paths) as address, chromium() as page:
        yield address, page.context.browser


def opened(browser, name):
    "A widget in a notebook that has run from the top."
    address, chrome = browser
    page = new_page(chrome)
    open_notebook(page, address(f"{name}.ipynb"))
    run_all(page, f"!!document.querySelector('.{name} .js-plotly-plot image')")
    page.keyboard.press("Escape")  # to command mode
    page.set_default_timeout(60_000)
    return WidgetOnPage(page, name, PANELS[name])


@pytest.fixture(scope="module")
def lab(browser):
    widget = opened(browser, "module-lab")
    yield widget
    widget.page.close()


@pytest.fixture(scope="module")
def view(browser):
    widget = opened(browser, "fusion-view")
    yield widget
    widget.page.close()


def push(widget, label):
    buttons = widget.page.locator(
        f".{widget.name} button", has_text=re.compile(rf"^\s*{label}\s*$")
    )
    buttons.first.click()


def steps_of(widget):
    "As the page tells it; -1: it doesn't."
    for text in widget.texts():
        if text.startswith("step "):
            return int(text.split(":")[0].removeprefix("step "))
    return -1


def waits(condition, seconds=60):
    "Whether something comes to be."
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


@pytest.fixture(params=PANELS)
def widget(request):
    return request.getfixturevalue({"module-lab": "lab", "fusion-view": "view"}[request.param])


def test_runs_from_the_top(widget):
    "Every cell, without an error, with the widget in place."
    widget.show()
    assert not errors(widget.page)
    assert widget.page.locator(f".{widget.name}").count() == 1
    filled = set(widget.panels) - {"total", "parts", "error", "displacement"}  # curves, still empty
    for panel in filled:
        assert widget.pixels(panel).std() > 2, f"{panel} is blank"
    widget.is_inside(1280, 800)
    assert not widget.collisions()
    keep(widget.page, f"{widget.name}_1280x800")


# the laboratory


def pause(lab):
    push(lab, "pause")
    button = lab.page.locator(".module-lab button", has_text="pause").first
    assert waits(button.is_disabled)


def smoothness(lab):
    "The handle of its slider, after those of × truth, noise, reconstruction and normalization."
    handle = lab.page.locator(".module-lab .noUi-handle").nth(4)
    handle.focus()
    return handle


def corner_and_size(lab):
    "Where the picture of the displacement is; how far it is scrolled doesn't count."
    place = lab.place("displacement")
    return place["x"], place["width"], place["height"]


def test_a_step_is_drawn(lab):
    before = {panel: lab.drawing(panel) for panel in ("total", "displacement")}
    push(lab, "step")
    assert waits(lambda: steps_of(lab) == 1)
    for panel in before:
        assert lab.changed(panel, before[panel]), panel


def test_run_draws_on_and_pause_stops_it(lab):
    place = corner_and_size(lab)
    for _ in range(2):  # it can be gone on with
        began = steps_of(lab)
        push(lab, "run")
        for _ in range(2):
            curve, picture = lab.drawing("total"), lab.drawing("difference")
            assert lab.changed("total", curve)
            assert lab.changed("difference", picture)
        assert waits(lambda: steps_of(lab) > began)
        pause(lab)
        lab.page.wait_for_timeout(2000)  # what was on its way arrives
        paused, curve = steps_of(lab), lab.drawing("total")
        assert not lab.changed("total", curve, seconds=4)
        assert steps_of(lab) == paused < began + 3000  # where it ends by itself
    lab.show()
    assert corner_and_size(lab) == place  # the pictures don't wander with the numbers beside them
    keep(lab.page, "module-lab_after_a_run")


def test_a_weight_changes_the_loss_and_not_the_displacement(lab):
    total, displacement, status = lab.drawing("total"), lab.drawing("displacement"), lab.texts()[-1]
    smoothness(lab)
    for _ in range(4):
        lab.page.keyboard.press("ArrowRight")
    assert lab.changed("total", total)
    assert waits(lambda: "+ 5 ×" in lab.texts()[-1]), lab.texts()  # all four presses, and not .5
    assert lab.texts()[-1] != status
    assert lab.drawing("displacement") == displacement


def test_a_weight_is_heard_while_it_runs(lab):
    push(lab, "run")
    began = steps_of(lab)
    smoothness(lab)
    lab.page.keyboard.press("ArrowRight")
    assert waits(lambda: "10 ×" in lab.texts()[-1].split("+")[2]), lab.texts()
    assert waits(lambda: steps_of(lab) > began)
    pause(lab)


def test_another_apex_changes_what_is_left(lab):
    lab.page.wait_for_timeout(1000)
    difference = lab.drawing("difference")
    lab.page.locator(".module-lab select").nth(3).select_option("as filmed")
    assert lab.changed("difference", difference)
    assert waits(lambda: steps_of(lab) == 0)


# the weights


def test_another_clip_changes_the_faces(view):
    before = {panel: view.drawing(panel) for panel in view.panels}
    texts = view.texts()
    view.page.locator(".fusion-view select").nth(2).select_option(index=3)
    for panel in before:
        assert view.changed(panel, before[panel]), panel
    assert view.texts() != texts


def test_another_head_changes_faces_and_bars_and_not_the_table(view):
    before = {panel: view.drawing(panel) for panel in ("with", "without", "bars", "regions")}
    view.page.locator(".fusion-view select").nth(3).select_option(index=2)
    for panel in ("with", "without", "bars"):
        assert view.changed(panel, before[panel]), panel
    assert view.drawing("regions") == before["regions"]


def test_another_level_changes_the_faces_alone(view):
    before = {panel: view.drawing(panel) for panel in ("with", "without", "bars")}
    push(view, "regions")
    for panel in ("with", "without"):
        assert view.changed(panel, before[panel]), panel
    assert view.drawing("bars") == before["bars"]


def test_the_mouse_reads_the_face_and_chooses_a_region(view):
    view.show()
    box, before = view.place("with"), view.drawing("crops")
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"]  # the chin, in box 6 alone
    if "6 (mouth" in view.texts()[-1]:
        y = box["y"] + 0.22 * box["height"]
    view.page.mouse.move(x, y)
    view.page.locator(f"{view.figure} .hoverlayer .hovertext").first.wait_for(state="attached")
    text = view.page.locator(f"{view.figure} .hoverlayer").first.text_content()
    assert "% of its region (uniform 25.0 %)" in text
    view.page.mouse.click(x, y)
    assert view.changed("crops", before)


def test_a_click_on_a_head_shows_that_head(view):
    view.show()
    box, before = view.place("regions"), view.drawing("with")
    x, y = (
        box["x"] + 0.05 * box["width"],
        box["y"] + 0.9 * box["height"],
    )  # the last head, region 1L
    view.page.mouse.click(x, y)
    assert view.changed("with", before)
    assert waits(lambda: view.texts()[-1].startswith("1L")), view.texts()


def test_larger_on_a_large_screen(widget):
    widget.page.set_viewport_size({"width": 1920, "height": 1080})
    widget.page.locator(f".{widget.name} select").last.select_option("1.5")
    widget.page.wait_for_function(
        f"() => document.querySelector('{widget.figure} .main-svg').clientWidth > 1200"
    )
    widget.show()
    widget.is_inside(1920, 1080)
    assert not widget.collisions()
    keep(widget.page, f"{widget.name}_1920x1080")
    assert not complaints(widget.page)
