"""Every notebook of the book, and how it is run in a browser. No test is in here."""

from contextlib import contextmanager

from jupyter_page import ROOT, chromium, complaints, errors, jupyterlab, keep, open_tab, run_all

NOTEBOOKS = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))
NO_WIDGET = "Error displaying widget"


@contextmanager
def open_lab(home, notebooks):
    "A JupyterLab with some notebooks, open in a browser: its page, and its address."
    with jupyterlab(home, notebooks) as address, chromium() as page:
        page.goto(home := address("").replace("/tree/nbs/", ""))
        page.wait_for_function(
            "window.jupyterapp?.shell.widgets('main') && window.jupyterapp.commands.hasCommand('docmanager:open')"
        )
        yield page, home


def check_notebook(lab, name):
    "From the top, without an error in a cell, a widget that can't be shown, or one in the console."
    page, address = lab
    with open_tab(page, address, name):
        run_all(page)
        keep(page, f"notebook_{name.removesuffix('.ipynb').replace('/', '_')}")
        assert not (found := errors(page)), found[0][-2000:]
        assert not page.get_by_text(NO_WIDGET).count()
        assert not complaints(page)
