"""Scores against published matrices, the formulas, and input that is none."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from frl_dgt_nb.training.metrics import (
    Resampling,
    accuracy,
    confusion,
    from_confusion,
    interval,
    score_counts,
    scores,
    scores_by,
    subject_counts,
    subject_draws,
    uar,
    uf1,
)

PUBLISHED = [  # matrix (rows truth), UF1, UAR
    ([[219, 22, 9], [40, 62, 7], [21, 3, 59]], 0.7353, 0.7186),  # STSTNet, published log
    ([[195, 39, 16], [36, 68, 5], [12, 7, 64]], 0.7209, 0.7250),  # STSTNet, PyTorch port
    ([[237, 3, 10], [25, 76, 8], [12, 4, 67]], 0.8313, 0.8175),  # HTNet, stored predictions
    ([[61, 0, 9], [13, 33, 5], [9, 1, 33]], 0.7691, 0.7620),  # ... its SMIC part
    ([[88, 0, 0], [4, 26, 2], [1, 0, 24]], 0.9367, 0.9242),  # ... its CASME II part
    ([[88, 3, 1], [8, 17, 1], [2, 3, 10]], 0.7870, 0.7590),  # ... its SAMM part
    ([[192, 30, 24], [33, 65, 11], [25, 9, 46]], 0.6520, 0.6506),  # CapsuleNet, 435 clips
]


@pytest.mark.parametrize("matrix, f1, recall", PUBLISHED)
def test_published_matrices(matrix, f1, recall):
    pair = from_confusion(matrix)
    assert uf1(*pair) == pytest.approx(f1, abs=5e-5)
    assert uar(*pair) == pytest.approx(recall, abs=5e-5)
    assert (confusion(*pair) == matrix).all()


def test_parts_are_rows_of_the_same_run():
    names = ("smic", "casme2", "samm")
    frame = pd.concat(
        [
            pd.DataFrame(
                dict(zip(("label", "prediction"), from_confusion(PUBLISHED[3 + i][0])))
            ).assign(database=name)
            for i, name in enumerate(names)
        ]
    ).sample(frac=1, random_state=0)
    parts = scores_by(frame, "database")
    for i, name in enumerate(names):
        assert parts[name]["uf1"] == pytest.approx(PUBLISHED[3 + i][1], abs=5e-5)
        assert parts[name]["uar"] == pytest.approx(PUBLISHED[3 + i][2], abs=5e-5)
    assert sum(np.array(part["confusion"]) for part in parts.values()).tolist() == PUBLISHED[2][0]
    assert json.loads(json.dumps(parts)) == parts


labelled = st.integers(2, 5).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=60),
    )
)


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
    assert accuracy(labels, predictions, classes) == pytest.approx(
        np.mean([t == p for t, p in clips])
    )
    told = scores(labels, predictions, classes)
    assert told["n_clips"] == len(clips) and np.sum(told["confusion"]) == len(clips)


def test_absent_classes():
    nan = float("nan")
    assert uf1([0, 0], [0, 0]) == pytest.approx(1 / 3) and uf1([0, 0], [0, 0], absent=nan) == 1
    assert uar([0, 0], [0, 1]) == pytest.approx(1 / 6) and uar(
        [0, 0], [0, 1], absent=nan
    ) == pytest.approx(1 / 2)
    assert confusion([1], [1]).shape == (3, 3)


@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.array,
        torch.tensor,
        pd.Series,
        lambda x: np.array(x, np.uint8),
        lambda x: np.array(x, float),
    ],
)
def test_containers_and_dtypes(kind):
    assert uf1(kind([0, 1, 2, 2]), kind([0, 1, 2, 1])) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


@pytest.mark.parametrize(
    "labels, predictions, told",
    [
        ([], [], "at least one clip"),
        ([0, 1], [0], "one length"),
        ([[0]], [[0]], "two vectors"),
        ([0, 3], [0, 0], "labels must be whole numbers 0..2, got 3"),
        ([0], [-1], "predictions must be whole numbers 0..2, got -1"),
        ([0.5], [0], "got 0.5"),
        ([float("nan")], [0], "got nan"),
        (["a"], [0], "got a"),
    ],
)
@pytest.mark.parametrize("measure", [uf1, uar, accuracy, confusion, scores])
def test_bad_input(measure, labels, predictions, told):
    with pytest.raises(ValueError, match=told):
        measure(labels, predictions)


def test_bad_tables():
    with pytest.raises(ValueError, match="no column database, prediction"):
        scores_by(pd.DataFrame({"label": [0]}))
    for matrix in ([[1, 2]], [1, 2], [[1.0, 2.0], [0, 1]], [[1, -1], [0, 1]]):
        with pytest.raises(ValueError, match="square matrix of counts"):
            from_confusion(matrix)


@pytest.fixture(scope="module")
def study():
    "Labels, predictions and subjects of 200 clips: 20 subjects of uneven size and skill"
    generator = np.random.default_rng(0)
    subjects = np.array(
        [
            f"d{s % 2}/{s // 2}"
            for s in generator.choice(20, 200, p=generator.dirichlet(np.full(20, 2.0)))
        ]
    )
    labels = generator.choice(3, 200, p=[0.5, 0.3, 0.2])
    skill = dict(zip(np.unique(subjects), generator.uniform(0.3, 1, 20)))
    right = generator.random(200) < [skill[s] for s in subjects]
    return labels, np.where(right, labels, generator.integers(3, size=200)), subjects


@settings(max_examples=60, deadline=None)
@given(labelled, st.sampled_from([0.0, 1.0, float("nan")]))
def test_scores_of_stacked_matrices(drawn, absent):
    classes, clips = drawn
    labels, predictions = np.transpose(clips)
    stack = score_counts(
        np.stack([confusion(labels, predictions, classes), np.eye(classes, dtype=int)]), absent
    )
    assert stack["uf1"][0] == pytest.approx(uf1(labels, predictions, classes, absent))
    assert stack["uar"][0] == pytest.approx(uar(labels, predictions, classes, absent))
    assert stack["accuracy"][0] == pytest.approx(accuracy(labels, predictions, classes))
    assert all(value[1] == 1 for value in stack.values())


def test_counts_by_subject(study):
    labels, predictions, subjects = study
    counts = subject_counts(*study)
    assert (counts.sum(0) == confusion(labels, predictions)).all()
    for matrix, name in zip(counts, pd.unique(subjects)):
        assert (matrix == confusion(labels[subjects == name], predictions[subjects == name])).all()
    mixed = subject_counts(
        [0, 1, 2], [0, 1, 1], pd.Series([1, "1", 1])
    )  # a number and a text are two subjects
    assert mixed.shape == (2, 3, 3) and mixed[0].sum() == 2


@pytest.mark.parametrize("score", [uf1, uar, accuracy])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_interval_against_a_loop_over_the_same_draws(study, score, level):
    labels, predictions, subjects = study
    rows = [np.flatnonzero(subjects == name) for name in pd.unique(subjects)]
    drawn = []
    for times in subject_draws(len(rows), 200, seed=3):
        assert times.sum() == len(rows)
        taken = np.concatenate([np.tile(which, n) for which, n in zip(rows, times)])
        drawn.append(score(labels[taken], predictions[taken]))
    expected = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    assert interval(
        *study, score=score, resampling=Resampling(200, level, seed=3)
    ) == pytest.approx(tuple(expected))


def test_interval_against_scipy(study):
    counts = subject_counts(*study)
    theirs = bootstrap(
        (np.arange(len(counts)),),
        lambda drawn, axis: score_counts(counts[drawn].sum(-3))["uf1"],
        n_resamples=20_000,
        method="percentile",
    ).confidence_interval
    assert interval(*study, resampling=Resampling(20_000)) == pytest.approx(
        tuple(theirs), abs=0.005
    )


def test_interval_resamples_subjects_not_clips(study):
    "Copies of the same clips tell nothing new, as long as they belong to the same subjects"
    labels, predictions, subjects = study
    tripled = [np.tile(column, 3) for column in study]
    assert interval(*tripled) == pytest.approx(interval(*study))
    own = np.arange(len(tripled[0]))
    low, high = interval(tripled[0], tripled[1], own)
    assert high - low < 0.6 * np.subtract(*interval(*study)[::-1])


def test_draws_without_a_class():
    labels, predictions, subjects = [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]
    assert interval(labels, predictions, subjects, classes=2) == (0.5, 1.0)
    assert interval(labels, predictions, subjects, classes=2, absent=float("nan")) == (1.0, 1.0)


@pytest.mark.parametrize(
    "changed, told",
    [
        (dict(level=0), "level must lie between 0 and 1, got 0"),
        (dict(level=95), "got 95"),
        (dict(resamples=0), "one or more resamples, got 2 and 0"),
        (dict(score=max), "uf1, uar or accuracy, got max"),
        (dict(subjects=["a", "a", "a"]), "two or more subjects"),
        (dict(predictions=[0, 1, 3]), "got 3"),
        (dict(subjects=["a", "b"]), "one subject a clip; got 2, of shape"),
        (dict(subjects=["a", "b", None]), "got 2, .*for 3 clips"),
        (dict(subjects=[["a"], ["b"], ["c"]]), "one subject a clip"),
    ],
)
def test_bad_intervals(changed, told):
    given = dict(labels=[0, 1, 2], predictions=[0, 1, 1], subjects=["a", "a", "b"]) | changed
    with pytest.raises(ValueError, match=told):
        resampling = Resampling(
            **{name: given.pop(name) for name in ("level", "resamples") if name in given}
        )
        interval(**given, resampling=resampling)
