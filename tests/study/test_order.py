"""Orders of rows whose truth is known: which pairs agree with the paper, contradict it, or can't be told apart."""

from itertools import permutations

import pandas as pd
import pytest
from study_runs import known_runs

from frl_dgt_nb.study.order import AGREES, CONTRADICTS, UNDECIDED, order_holds, order_text

RIGHT = {
    "M0": 2 / 6,
    "M5": 3 / 6,
    "M3": 4 / 6,
    "M4": 5 / 6,
    "M9": 1.0,
}  # the paper's order, far apart
PUBLISHED = pd.Series({name: 0.5 + 0.01 * i for i, name in enumerate(RIGHT)})


def pairs_of(folder, right, **options):
    known_runs(folder, right, **options)
    return order_holds(PUBLISHED, folder)


def test_an_order_that_is_there(tmp_path):
    pairs = pairs_of(tmp_path, RIGHT)
    assert len(pairs) == 10
    assert (pairs.finding == AGREES).all()
    assert (pairs.difference > 0).all()
    assert (pairs.low <= pairs.difference).all()
    assert "The paper's order holds here." in order_text(pairs)
    assert " < ".join(RIGHT) in order_text(pairs)


def test_an_order_that_is_turned_round(tmp_path):
    pairs = pairs_of(tmp_path, dict(zip(RIGHT, reversed(RIGHT.values()))))
    assert (pairs.finding == CONTRADICTS).all()
    assert "point the same way here: 0 of 10." in order_text(pairs)
    assert "does not hold" in order_text(pairs)


def test_one_pair_against_the_paper_is_named(tmp_path):
    pairs = pairs_of(tmp_path, RIGHT | {"M9": 4.5 / 6, "M4": 1.0})
    against = pairs[pairs.finding == CONTRADICTS]
    assert list(zip(against.worse, against.better)) == [("M4", "M9")]
    assert "against the paper: M4 < M9 (-" in order_text(pairs)


def test_equal_runs_say_nothing(tmp_path):
    pairs = pairs_of(tmp_path, dict.fromkeys(RIGHT, 4 / 6))
    assert (pairs.finding == UNDECIDED).all()
    assert (pairs.difference == 0).all()
    assert "neither confirm nor refute" in order_text(pairs)
    assert "As in the paper: none; against the paper: none" in order_text(pairs)


def test_few_subjects_can_say_nothing_and_this_is_said(tmp_path):
    pairs = pairs_of(tmp_path, RIGHT, subjects=8)
    assert (pairs.finding == UNDECIDED).all()
    assert "no p can be smaller than 0.0078" in order_text(pairs)
    one = order_holds(
        PUBLISHED[["M0", "M9"]], tmp_path
    )  # a single pair has nothing to be corrected for
    assert one.finding.tolist() == [AGREES]
    assert "no p can" not in order_text(one)


def test_the_order_asked_for_is_the_papers_not_that_of_the_names(tmp_path):
    known_runs(tmp_path, RIGHT)
    for names in list(permutations(RIGHT))[:5]:
        pairs = order_holds(PUBLISHED[list(names)], tmp_path)
        assert list(dict.fromkeys(pairs.worse)) == ["M0", "M5", "M3", "M4"]


@pytest.mark.parametrize("finished", [{}, {"M9": 1.0}])
def test_fewer_than_two_finished_rows(tmp_path, finished):
    assert "nothing can be said" in order_text(pairs_of(tmp_path, finished))
