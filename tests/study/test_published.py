"""The published figures: whole tables, consistent with each other, and found by a method's name."""

import pytest

from frl_dgt_nb.study.ablations import VARIANTS
from frl_dgt_nb.study.baselines import BASELINES
from frl_dgt_nb.study.published import (
    CHALLENGE,
    NOT_IMPLEMENTED,
    OTHER_DATA,
    PARTS,
    REMARKS,
    SENSITIVITY,
    TABLE1,
    TABLE2,
    TABLE3,
    composite_scores,
    remark,
)


def test_table_1_has_all_methods():
    run_here = {name for name in TABLE1 if name.lower() in BASELINES}
    assert run_here | set(NOT_IMPLEMENTED) | set(OTHER_DATA) | {"FRL-DGT"} == set(TABLE1)
    assert all(tuple(row) == PARTS for row in TABLE1.values())


def test_table_2_is_whole():
    assert set(TABLE2) == set(VARIANTS) - {"M9-plain"}
    assert max(TABLE2, key=lambda name: TABLE2[name]["full"]) == "M9"
    assert TABLE2["M9"] == TABLE1["FRL-DGT"]
    assert TABLE2["M4"] == {
        "full": (0.797, 0.792),
        "smic": (0.746, 0.746),
        "samm": (0.734, 0.719),
        "casme2": (0.898, 0.885),
    }


def test_table_3():
    figures = {
        (name, classes): scores for name, rows in TABLE3.items() for classes, scores in rows.items()
    }
    assert figures == {
        ("FRL-DGT", 4): (0.750, 0.732, 0.780),
        ("FRL-DGT", 5): (0.748, 0.735, 0.757),
        ("STRCN-A", 4): (0.542, None, 0.560),
        ("FRL-DGT-S", 4): (0.562, 0.549, 0.643),
        ("ELRCN", 5): (0.500, 0.440, 0.524),
        ("FRL-DGT-S", 5): (0.543, 0.539, 0.594),
    }


def test_sensitivity_starts_at_table_1():
    assert len(SENSITIVITY) == 8
    assert SENSITIVITY["labelled", 0.0] == TABLE1["FRL-DGT"]["casme2"]


@pytest.mark.parametrize("name", [*BASELINES, *TABLE1])
def test_every_method_has_scores(name):
    uf1, uar = composite_scores(name)
    assert 0.5 < uar < 0.9 and 0.5 < uf1 < 0.9
    assert composite_scores(name.upper()) == (uf1, uar)
    assert bool(remark(name)) == (name.lower() in {known.lower() for known in REMARKS})


def test_what_is_corrected_and_what_is_not_known():
    assert composite_scores("ststnet") == (0.735, 0.719)
    assert composite_scores("off-apexnet") == CHALLENGE["OFF-ApexNet"]
    with pytest.raises(ValueError, match="no scores of 'vgg' are known; choose from LBP-TOP"):
        composite_scores("vgg")
