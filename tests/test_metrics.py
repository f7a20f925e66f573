"""Scores against published matrices, the formulas, and input that is none."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.metrics import accuracy, confusion, from_confusion, scores, scores_by, uar, uf1

PUBLISHED = [  # matrix (rows truth), UF1, UAR
    ([[219, 22, 9], [40, 62, 7], [21, 3, 59]], .7353, .7186),  # STSTNet, published log
    ([[195, 39, 16], [36, 68, 5], [12, 7, 64]], .7209, .7250),  # STSTNet, PyTorch port
    ([[237, 3, 10], [25, 76, 8], [12, 4, 67]], .8313, .8175),  # HTNet, stored predictions
    ([[61, 0, 9], [13, 33, 5], [9, 1, 33]], .7691, .7620),  # ... its SMIC part
    ([[88, 0, 0], [4, 26, 2], [1, 0, 24]], .9367, .9242),  # ... its CASME II part
    ([[88, 3, 1], [8, 17, 1], [2, 3, 10]], .7870, .7590),  # ... its SAMM part
    ([[192, 30, 24], [33, 65, 11], [25, 9, 46]], .6520, .6506),  # CapsuleNet, 435 clips
]


@pytest.mark.parametrize("matrix, f1, recall", PUBLISHED)
def test_published_matrices(matrix, f1, recall):
    pair = from_confusion(matrix)
    assert uf1(*pair) == pytest.approx(f1, abs=5e-5)
    assert uar(*pair) == pytest.approx(recall, abs=5e-5)
    assert (confusion(*pair) == matrix).all()


def test_parts_are_rows_of_the_same_run():
    names = ("smic", "casme2", "samm")
    frame = pd.concat([pd.DataFrame(dict(zip(("label", "prediction"), from_confusion(PUBLISHED[3 + i][0])))).assign(database=name)
                       for i, name in enumerate(names)]).sample(frac=1, random_state=0)
    parts = scores_by(frame, "database")
    for i, name in enumerate(names):
        assert parts[name]["uf1"] == pytest.approx(PUBLISHED[3 + i][1], abs=5e-5)
        assert parts[name]["uar"] == pytest.approx(PUBLISHED[3 + i][2], abs=5e-5)
    assert sum(np.array(part["confusion"]) for part in parts.values()).tolist() == PUBLISHED[2][0]
    assert json.loads(json.dumps(parts)) == parts


labelled = st.integers(2, 5).flatmap(lambda classes: st.tuples(
    st.just(classes), st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=60)))


@settings(max_examples=60, deadline=None)
@given(labelled, st.randoms())
def test_formulas_by_counting(drawn, random):
    classes, clips = drawn
    f1, recall = [], []
    for c in range(classes):
        tp = sum(t == c == p for t, p in clips)
        true, told = sum(t == c for t, _ in clips), sum(p == c for _, p in clips)
        f1.append(2 * tp / (true + told) if true + told else 0)
        recall.append(tp / true if true else 0)
    random.shuffle(clips)
    labels, predictions = zip(*clips)
    assert uf1(labels, predictions, classes) == pytest.approx(np.mean(f1))
    assert uar(labels, predictions, classes) == pytest.approx(np.mean(recall))
    assert accuracy(labels, predictions, classes) == pytest.approx(np.mean([t == p for t, p in clips]))
    told = scores(labels, predictions, classes)
    assert told["n_clips"] == len(clips) and np.sum(told["confusion"]) == len(clips)


def test_absent_classes():
    nan = float("nan")
    assert uf1([0, 0], [0, 0]) == pytest.approx(1 / 3) and uf1([0, 0], [0, 0], absent=nan) == 1
    assert uar([0, 0], [0, 1]) == pytest.approx(1 / 6) and uar([0, 0], [0, 1], absent=nan) == pytest.approx(1 / 2)
    assert confusion([1], [1]).shape == (3, 3)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, pd.Series, lambda x: np.array(x, np.uint8), lambda x: np.array(x, float)])
def test_containers_and_dtypes(kind):
    assert uf1(kind([0, 1, 2, 2]), kind([0, 1, 2, 1])) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


@pytest.mark.parametrize("labels, predictions, told", [
    ([], [], "at least one clip"), ([0, 1], [0], "one length"), ([[0]], [[0]], "two vectors"),
    ([0, 3], [0, 0], "labels must be whole numbers 0..2, got 3"), ([0], [-1], "predictions must be whole numbers 0..2, got -1"),
    ([.5], [0], "got 0.5"), ([float("nan")], [0], "got nan"), (["a"], [0], "got a"),
])
@pytest.mark.parametrize("measure", [uf1, uar, accuracy, confusion, scores])
def test_bad_input(measure, labels, predictions, told):
    with pytest.raises(ValueError, match=told): measure(labels, predictions)


def test_bad_tables():
    with pytest.raises(ValueError, match="no column database, prediction"): scores_by(pd.DataFrame({"label": [0]}))
    for matrix in ([[1, 2]], [1, 2], [[1., 2.], [0, 1]], [[1, -1], [0, 1]]):
        with pytest.raises(ValueError, match="square matrix of counts"): from_confusion(matrix)
