"""What all tests share.

With several processes (`-n 2 --dist loadgroup`) a file is one piece of work, so that its fixtures are made once. The
notebooks, which take longest, are two.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from toy_store import toy_store

SAMPLES = Path(__file__).resolve().parents[1] / "data_samples"
FIRST = ("book", "widgets")  # few tests, but long: begun early, so that the processes end together


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))
    notebooks = 0
    for item in items:
        group = item.path.stem
        if item.path.stem == "test_browser_notebooks" and item.get_closest_marker("parametrize"):
            group, notebooks = f"{group}-{notebooks % 2}", notebooks + 1
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    "A store of random frames: four subjects of two databases, twelve clips. To be read, not to be changed."
    return toy_store(tmp_path_factory.mktemp("toy") / "store")


@pytest.fixture(scope="session")
def samples_folder():
    "The rendered clips that come with the repository."
    return SAMPLES


@pytest.fixture(scope="session")
def sample_clips():
    "All 48 of them, as they are read."
    from frl_dgt_nb.data.databases import read_folder

    return read_folder(SAMPLES)


@pytest.fixture(scope="session")
def few_clips(sample_clips):
    "One clip of each of the eight people, and one that was left out."
    from frl_dgt_nb.data.clips import Exclusion

    excluded = [Exclusion("folder/x/y", "left out")]
    return replace(sample_clips, clips=sample_clips.clips[::6], excluded=excluded)


@pytest.fixture(scope="session")
def few_faces(few_clips, tmp_path_factory):
    "The same clips aligned, 64 pixels large. To be read, not to be changed."
    from frl_dgt_nb.data.preparation import prepare

    place = tmp_path_factory.mktemp("few_faces")
    return prepare(few_clips, place, 64, workers=1, progress=False)
