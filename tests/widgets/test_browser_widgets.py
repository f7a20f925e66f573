"""The laboratory of the losses and the view of the weights in a real JupyterLab, driven in a headless Chromium: what the page shows is compared, not what the kernel says."""

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
        "rest": "x5y5",
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
STORE = """import torch; torch.set_num_threads(1)
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
store = prepare(read_folder("../data_samples"), "../runs/stores/data_samples", progress=False)"""
LESSONS = {
    "module-lab": "from frl_dgt_nb.widgets.losslab import ModuleLab\nModuleLab(store, clip='folder/s02/c1', apex='moved', times=2., noise=2.)",
    "fusion-view": "from frl_dgt_nb.widgets.fusionview import FusionView\nfrom frl_dgt_nb.model.config import PRESETS\nfrom frl_dgt_nb.model.frldgt import FRLDGT\ntorch.manual_seed(0)\nFusionView(store, FRLDGT(PRESETS['best']), clip='folder/s01/c2')",
}
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    "What makes an address of a notebook's name, and a browser. The lessons themselves are run by test_browser_notebooks; here each widget has a notebook of two cells."
    home = tmp_path_factory.mktemp("lab")
    for name, cell in LESSONS.items():
        nbformat.write(
            new_notebook(
                cells=[new_code_cell(STORE), new_code_cell(cell)],
                metadata={
                    "kernelspec": {
                        "name": "python3",
                        "display_name": "Python 3",
                        "language": "python",
                    }
                },
            ),
            home / f"{name}.ipynb",
        )
    with (
        jupyterlab(home, [home / f"{name}.ipynb" for name in LESSONS]) as address,
        chromium() as page,
    ):
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
    widget.page.locator(
        f".{widget.name} button", has_text=re.compile(rf"^\s*{label}\s*$")
    ).first.click()


def steps_of(widget):  # as the page tells it
    found = [text for text in widget.texts() if text.startswith("step ")]
    return int(found[0].split(":")[0].removeprefix("step ")) if found else -1


def waits(condition, seconds=60):
    "Whether something comes to be."
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


@pytest.mark.parametrize("name", PANELS)
def test_runs_from_the_top(name, request):
    "Every cell, without an error, with the widget in place."
    widget = request.getfixturevalue({"module-lab": "lab", "fusion-view": "view"}[name])
    widget.show()
    assert not errors(widget.page) and widget.page.locator(f".{name}").count() == 1
    for panel in {
        "module-lab": ("reconstruction", "truth", "rest"),
        "fusion-view": PANELS["fusion-view"],
    }[name]:
        assert widget.pixels(panel).std() > 2, f"{panel} is blank"
    widget.is_inside(1280, 800)
    assert not widget.collisions()
    keep(widget.page, f"{name}_1280x800")


# the laboratory


def test_a_step_is_drawn(lab):
    before = {panel: lab.drawing(panel) for panel in ("total", "displacement")}
    push(lab, "step")
    assert waits(lambda: steps_of(lab) == 1)
    assert lab.changed("total", before["total"]) and lab.changed(
        "displacement", before["displacement"]
    )


def test_run_draws_on_and_pause_stops_it(lab):
    lies = lambda: [lab.place("displacement")[key] for key in ("x", "width", "height")]
    where = lies()
    for _ in range(2):  # it can be gone on with
        began = steps_of(lab)
        push(lab, "run")
        for _ in range(2):
            curve, picture = lab.drawing("total"), lab.drawing("rest")
            assert lab.changed("total", curve) and lab.changed("rest", picture)
        assert waits(lambda: steps_of(lab) > began)
        push(lab, "pause")
        assert waits(
            lambda: lab.page.locator(".module-lab button", has_text="pause").first.is_disabled()
        )
        lab.page.wait_for_timeout(2000)  # what was on its way arrives
        paused, curve = steps_of(lab), lab.drawing("total")
        assert (
            not lab.changed("total", curve, seconds=4) and steps_of(lab) == paused < began + 3000
        )  # by itself it ends there
    lab.show()
    assert lies() == where  # the pictures don't wander with the numbers beside them
    keep(lab.page, "module-lab_after_a_run")


def test_a_weight_changes_the_loss_and_not_the_displacement(lab):
    total, displacement, told = lab.drawing("total"), lab.drawing("displacement"), lab.texts()[-1]
    slider = lab.page.locator(".module-lab .noUi-handle").nth(
        4
    )  # × truth, noise, reconstruction, normalization, smoothness
    slider.focus()
    for _ in range(4):
        lab.page.keyboard.press("ArrowRight")
    assert lab.changed("total", total)
    assert waits(lambda: "5 ×" in lab.texts()[-1]) and lab.texts()[-1] != told, lab.texts()
    assert lab.drawing("displacement") == displacement


def test_a_weight_is_heard_while_it_runs(lab):
    push(lab, "run")
    began = steps_of(lab)
    slider = lab.page.locator(".module-lab .noUi-handle").nth(4)
    slider.focus()
    lab.page.keyboard.press("ArrowRight")
    assert waits(lambda: "10 ×" in lab.texts()[-1].split("+")[2]), lab.texts()
    assert waits(lambda: steps_of(lab) > began)
    push(lab, "pause")
    assert waits(
        lambda: lab.page.locator(".module-lab button", has_text="pause").first.is_disabled()
    )


def test_another_apex_changes_what_is_left(lab):
    lab.page.wait_for_timeout(1000)
    rest = lab.drawing("rest")
    lab.page.locator(".module-lab select").nth(3).select_option("as filmed")
    assert lab.changed("rest", rest) and waits(lambda: steps_of(lab) == 0)


# the weights


def test_another_clip_changes_the_faces(view):
    before, told = {panel: view.drawing(panel) for panel in PANELS["fusion-view"]}, view.texts()
    view.page.locator(".fusion-view select").nth(2).select_option(index=3)
    for panel in before:
        assert view.changed(panel, before[panel]), panel
    assert view.texts() != told


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
    x, y = (
        box["x"] + 0.5 * box["width"],
        box["y"] + 0.9 * box["height"],
    )  # the chin, which is in box 6 alone
    if "6 (mouth" in view.texts()[-1]:
        y = box["y"] + 0.22 * box["height"]
    view.page.mouse.move(x, y)
    view.page.locator(f"{view.figure} .hoverlayer .hovertext").first.wait_for(state="attached")
    told = view.page.locator(f"{view.figure} .hoverlayer").first.text_content()
    assert "% of its region (uniform 25.0 %)" in told, told
    view.page.mouse.click(x, y)
    assert view.changed("crops", before)


def test_a_click_on_a_head_shows_that_head(view):
    view.show()
    box, before = view.place("regions"), view.drawing("with")
    view.page.mouse.click(
        box["x"] + 0.05 * box["width"], box["y"] + 0.9 * box["height"]
    )  # the last head, the first region
    assert view.changed("with", before)
    assert waits(lambda: view.texts()[-1].startswith("1L")), view.texts()


@pytest.mark.parametrize("name", PANELS)
def test_larger_on_a_large_screen(name, request):
    widget = request.getfixturevalue({"module-lab": "lab", "fusion-view": "view"}[name])
    widget.page.set_viewport_size({"width": 1920, "height": 1080})
    widget.page.locator(f".{name} select").last.select_option("1.5")
    widget.page.wait_for_function(
        f"() => document.querySelector('{widget.figure} .main-svg').clientWidth > 1200"
    )
    widget.show()
    widget.is_inside(1920, 1080)
    assert not widget.collisions()
    keep(widget.page, f"{name}_1920x1080")
    assert not complaints(widget.page)
