"""The samples: found beside the package, in the folder of work or above, or named; and what is said without them."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from frl_dgt_nb import samples
from frl_dgt_nb.data import preparation


@pytest.fixture
def installed(tmp_path, monkeypatch):
    "A package without a checkout beside it, and an empty folder to work in."
    package = tmp_path / "site-packages/frl_dgt_nb/__init__.py"
    monkeypatch.setattr(preparation, "find_spec", lambda name: SimpleNamespace(origin=str(package)))
    work = tmp_path / "work/deep"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def one_person(samples_folder, tmp_path):
    "A copy of the samples that is quickly aligned."
    folder = tmp_path / "elsewhere/data_samples"
    shutil.copytree(samples_folder / "frames/s01", folder / "frames/s01")
    shutil.copytree(samples_folder / "truth/s01", folder / "truth/s01")
    lines = (samples_folder / "clips.csv").read_text().splitlines(keepends=True)
    rows = [line for line in lines[1:] if line.startswith("s01,")]
    (folder / "clips.csv").write_text(lines[0] + "".join(rows))
    return folder


def test_an_installed_package_says_how_to_get_them(installed):
    with pytest.raises(ValueError, match="there is no folder data_samples here") as error:
        samples()
    assert "python -m frl_dgt_nb.simulate.samples data_samples" in str(error.value)
    assert "samples('.../data_samples')" in str(error.value)
    assert not list(installed.iterdir())


def test_their_place_can_be_named(installed, one_person, tmp_path):
    faces = samples(one_person, progress=False)
    assert len(faces) == 6 and faces.truth(0) is not None
    assert faces.path == one_person.parent / "runs/stores/data_samples"
    own = samples(one_person, tmp_path / "store", progress=False)
    assert own.path == tmp_path / "store" and np.array_equal(own.frames, faces.frames)


def test_they_are_found_above_the_folder_of_work(installed, one_person):
    shutil.move(one_person, installed.parent / "data_samples")
    assert preparation.find_samples() == installed.parent / "data_samples"


def test_those_of_the_checkout_are_found_from_anywhere(tmp_path, monkeypatch, samples_folder):
    monkeypatch.chdir(tmp_path)
    assert preparation.find_samples() == samples_folder


def test_a_folder_without_a_table(tmp_path):
    with pytest.raises(ValueError, match="clips.csv is missing"):
        samples(tmp_path)
