"""`import frl_dgt_nb`: quick, and every name that it offers is there."""

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import frl_dgt_nb

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "pandas", "matplotlib", "cv2", "numpy", "kornia", "ipywidgets"]
# what the design promises, and the README and the course use
PROMISED = """prepare read_database samples FRLDGT ModelConfig TrainConfig PRESETS run_loso predict compare_runs uf1 uar
    warp displacement_loss au_boxes crop_boxes FusionBefore DisplacementInspector""".split()
PROBE = """
import json, sys, time
before, start = set(sys.modules), time.perf_counter()
import frl_dgt_nb
print(json.dumps([time.perf_counter() - start, sorted(set(sys.modules) - before)]))
"""


def names():
    return [name for name in frl_dgt_nb.__all__ if name != "__version__"]


def test_it_costs_next_to_nothing():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    seconds, loaded = json.loads(done.stdout)
    print(f"import frl_dgt_nb: {1000 * seconds:.1f} ms, {len(loaded)} modules")
    assert not set(HEAVY) & set(loaded)
    assert not [name for name in loaded if name.startswith("frl_dgt_nb.")]
    assert seconds < 2


@pytest.mark.parametrize("name", names())
def test_a_name_is_what_its_module_holds(name):
    home = import_module(f"frl_dgt_nb.{frl_dgt_nb._HOME_OF[name]}")
    assert getattr(frl_dgt_nb, name) is getattr(home, name)


def test_it_offers_what_was_promised_and_not_too_much():
    assert set(PROMISED) <= set(names()) and len(names()) <= 40
    assert len(set(names())) == sum(map(len, frl_dgt_nb._HOMES.values())), "a name has two homes"


def test_dir_and_star_show_them():
    assert set(frl_dgt_nb.__all__) <= set(dir(frl_dgt_nb))
    space = {}
    exec("from frl_dgt_nb import *", space)
    assert set(frl_dgt_nb.__all__) <= set(space)


@pytest.mark.parametrize("name", ["uf2", "Samples", "_private"])
def test_an_unknown_name_says_what_there_is(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; it offers .*samples.*uf1"):
        getattr(frl_dgt_nb, name)
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from frl_dgt_nb import {name}")


def test_the_version_is_that_of_the_settings():
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    assert frl_dgt_nb.__version__ == config["DEFAULT"]["version"]


def test_no_name_hides_a_part_of_the_package():
    "`frl_dgt_nb.data` is the sub-package, whatever was loaded before."
    parts = {path.stem for path in Path(frl_dgt_nb.__file__).parent.iterdir()}
    assert not parts & set(names())
    assert not [name for name in names() if isinstance(getattr(frl_dgt_nb, name), ModuleType)]


def test_a_name_is_loaded_once():
    first = frl_dgt_nb.PRESETS
    assert vars(frl_dgt_nb)["PRESETS"] is first and frl_dgt_nb.PRESETS is first


def test_the_readme_needs_nothing_else():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    imported = re.findall(r"^from (frl_dgt_nb[\w.]*) import (.*)$", text, re.MULTILINE)
    assert imported and {module for module, _ in imported} == {"frl_dgt_nb"}
    wanted = {name for _, line in imported for name in line.split(", ")}
    assert wanted <= set(names())
