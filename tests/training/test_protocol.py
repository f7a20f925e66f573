"""Selections and comparisons against loops, brute force and scipy; runs that can't be compared."""

import itertools
import json
from dataclasses import asdict
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.training.metrics import subject_counts, subject_draws, uf1
from frl_dgt_nb.training.protocol import (
    compare_runs,
    comparison_table,
    comparison_text,
    holm,
    mcnemar,
    pair_runs,
    read_predictions,
    readable_selections,
    selection_table,
    swap_test,
    swaps,
)
from frl_dgt_nb.training.settings import TrainConfig


def make_run(out, seed=0, subjects=6, inner=True, classes=3, skill=0.6, data=0):
    "The files of a finished run: `data` draws the clips, `seed` the predictions"
    clips, luck, rows = np.random.default_rng(data), np.random.default_rng(seed), []
    for s in range(subjects):
        for c in range(clips.integers(1, 9)):
            label = int(clips.integers(classes))

            def guess():
                return label if luck.random() < skill else int(luck.integers(classes))

            rows.append(
                {
                    "clip_id": f"toy/{s:02}/c{c}",
                    "database": "toy",
                    "subject": f"{s:02}",
                    "name": f"c{c}",
                    "subject_id": f"toy/{s:02}",
                    "label": label,
                    "prediction": guess(),
                    "oracle_prediction": guess(),
                }
                | ({"inner_prediction": guess()} if inner else {})
            )
    out.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(out / "predictions.parquet", index=False)
    config = {
        "seed": seed,
        "model": asdict(ModelConfig(classes=classes)),
        "train": asdict(TrainConfig()),
        "data": {"checksum": data},
    }
    (out / "config.json").write_text(json.dumps(config))
    (out / "report.json").write_text("{}")
    return out


def edit(run, change):
    "The run with another table"
    change(pd.read_parquet(run / "predictions.parquet")).to_parquet(
        run / "predictions.parquet", index=False
    )
    return run


def by_hand(labels, predictions, classes=3, lenient=False):
    "UF1 and UAR by counting; lenient: absent classes left out of the mean"
    f1, recall = [], []
    for c in range(classes):
        true, told = labels == c, predictions == c
        if true.any() or told.any() or not lenient:
            f1.append(2 * (true & told).sum() / max(1, true.sum() + told.sum()))
        if true.any() or not lenient:
            recall.append((true & told).sum() / max(1, true.sum()))
    return {"uf1": np.mean(f1), "uar": np.mean(recall)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "a", seed=1, skill=0.5), make_run(folder / "b", seed=2, skill=0.8)


@pytest.mark.parametrize("classes", [3, 5])
def test_selections_against_a_loop(tmp_path, classes):
    run = make_run(tmp_path / "run", classes=classes)
    table, found = (
        pd.read_parquet(run / "predictions.parquet"),
        selection_table(run, resamples=30, level=0.8, seed=4),
    )
    parts = [part for _, part in table.groupby("subject_id", sort=False)]
    assert len(found) == 12 and not found.isna().any().any()
    columns = {"last": "prediction", "inner": "inner_prediction", "oracle": "oracle_prediction"}

    def pooled(column, taken):
        return by_hand(
            *(np.concatenate([part[c] for part in taken]) for c in ("label", column)), classes
        )

    fold = {
        (i, column): by_hand(part.label.to_numpy(), part[column].to_numpy(), classes, True)
        for i, part in enumerate(parts)
        for column in columns.values()
    }

    def mean(column, taken):
        return pd.DataFrame([fold[i, column] for i in taken]).mean()

    draws = [range(len(parts))] + [
        [i for i, n in enumerate(times) for _ in range(n)]
        for times in subject_draws(len(parts), 30, 4)
    ]
    by_loop = {
        name: {
            "clips": pd.DataFrame([pooled(column, [parts[i] for i in taken]) for taken in draws]),
            "folds": pd.DataFrame([mean(column, taken) for taken in draws]),
        }
        for name, column in columns.items()
    }
    for row in found.itertuples():
        own, last = (
            by_loop[name][row.over][row.score].to_numpy() for name in (row.selection, "last")
        )
        assert (row.value, row.low, row.high) == pytest.approx(
            (own[0], *np.quantile(own[1:], [0.1, 0.9]))
        )
        gaps = np.subtract(own, last)
        assert (row.gap, row.gap_low, row.gap_high) == pytest.approx(
            (gaps[0], *np.quantile(gaps[1:], [0.1, 0.9]))
        )


def test_selections_for_people(tmp_path):
    with_inner, without = (
        selection_table(make_run(tmp_path / "a")),
        selection_table(make_run(tmp_path / "b", inner=False)),
    )
    assert with_inner.selection.unique().tolist() == [
        "last",
        "inner",
        "oracle",
    ] and without.selection.unique().tolist() == ["last", "oracle"]
    text = readable_selections(with_inner)
    row = with_inner[(with_inner.selection == "oracle") & (with_inner.over == "clips")].iloc[0]
    assert text.loc["oracle", "UF1 pooled"] == f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
    assert (
        text.loc["oracle", "pooled UF1, to last"]
        == f"{row.gap:+.3f} [{row.gap_low:+.3f}, {row.gap_high:+.3f}]"
    )
    assert text.loc["last", "pooled UF1, to last"] == "" and list(
        readable_selections(without).index
    ) == ["last", "oracle"]


def test_difference_is_that_of_the_same_draws(runs):
    result = compare_runs(*runs, resamples=40, seed=5)
    a, b = (pd.read_parquet(run / "predictions.parquet") for run in runs)
    rows = [np.flatnonzero(a.subject_id == name) for name in a.subject_id.unique()]
    drawn = []
    for times in subject_draws(len(rows), 40, 5):
        taken = np.concatenate([np.tile(which, n) for which, n in zip(rows, times)])
        drawn.append(
            uf1(b.label[taken], b.prediction[taken]) - uf1(a.label[taken], a.prediction[taken])
        )
    value = uf1(b.label, b.prediction) - uf1(a.label, a.prediction)
    assert tuple(result["difference"]["uf1"].values()) == pytest.approx(
        (value, *np.quantile(drawn, [0.025, 0.975]))
    )
    assert result["b"]["uf1"]["value"] - result["a"]["uf1"]["value"] == pytest.approx(value)
    right = [table.label == table.prediction for table in (a, b)]
    assert (result["mcnemar"]["only_a"], result["mcnemar"]["only_b"]) == (
        (right[0] & ~right[1]).sum(),
        (right[1] & ~right[0]).sum(),
    )
    assert (result["n_clips"], result["n_subjects"]) == (len(a), 6) and json.loads(
        json.dumps(result)
    ) == result


def swap_by_hand(a, b, score="uf1"):
    "p by swapping rows of the tables, all ways"
    names, apart, labels = a.subject_id.unique(), [], a.label.to_numpy()
    for way in itertools.product([False, True], repeat=len(names)):
        moved = a.subject_id.isin(names[list(way)])
        swapped = (
            np.where(moved, b.prediction, a.prediction),
            np.where(moved, a.prediction, b.prediction),
        )
        apart.append(abs(np.subtract(*(by_hand(labels, each)[score] for each in swapped))))
    return np.mean(np.array(apart) >= apart[0] - 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_all_swaps_by_hand(tmp_path, seed):
    a, b = (
        make_run(tmp_path / "a", seed=10 + seed, skill=0.3),
        make_run(tmp_path / "b", seed=20 + seed, skill=0.7),
    )
    found = compare_runs(a, b, resamples=10)["permutation"]
    tables = [pd.read_parquet(run / "predictions.parquet") for run in (a, b)]
    assert found == {"p": pytest.approx(swap_by_hand(*tables)), "ways": 64, "exact": True}
    counts = [subject_counts(table.label, table.prediction, table.subject_id) for table in tables]
    assert swap_test(*counts, "uar")["p"] == pytest.approx(swap_by_hand(*tables, "uar"))


def test_random_swaps_against_scipy(tmp_path):
    tables = [
        pd.read_parquet(
            make_run(tmp_path / str(seed), seed=seed, subjects=30, skill=skill)
            / "predictions.parquet"
        )
        for seed, skill in ((1, 0.5), (2, 0.6))
    ]
    counts = np.stack(
        [subject_counts(table.label, table.prediction, table.subject_id) for table in tables]
    )
    place = np.arange(30)  # even numbers are run A's subjects, odd ones run B's

    def apart(x, y, axis):
        a, b = (counts[which % 2, which // 2].sum(-3) for which in (x, y))  # scipy swaps x and y

        def f1(m):
            return (2 * m.diagonal(axis1=-2, axis2=-1) / (m.sum(-1) + m.sum(-2))).mean(-1)

        return f1(a) - f1(b)

    theirs = permutation_test(
        (2 * place, 2 * place + 1),
        apart,
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
    ).pvalue
    ours = swap_test(*counts)
    assert 0 < ours["p"] < 1 and ours["ways"] == 10_000 and not ours["exact"]
    assert ours["p"] == pytest.approx(theirs, abs=0.02)
    assert (
        swap_test(*counts, seed=1)["p"] != ours["p"] or swap_test(*counts, seed=2)["p"] != ours["p"]
    )  # they are drawn
    assert swap_test(*counts) == ours  # and the seed settles it


def test_swaps():
    assert (
        sorted(map(tuple, swaps(3))) == list(itertools.product([0, 1], repeat=3))
        and not swaps(3)[0].any()
    )
    few = swaps(68, 50)
    assert few.shape == (50, 68) and not few[0].any() and 0.4 < few[1:].mean() < 0.6
    assert (
        not (swaps(13, 8192).shape[0] - 8192)
        and len(swaps(13, 8191)) == 8191
        and len(np.unique(swaps(13, 8192), axis=0)) == 8192
    )


def test_equal_runs_are_seldom_called_different():
    "400 studies of two runs that are equally good: p < .05 in about one of twenty"
    generator, found = np.random.default_rng(0), []
    for _ in range(400):
        counts = generator.multinomial(
            5, [0.2, 0.05, 0.05, 0.05, 0.25, 0.05, 0.05, 0.05, 0.25], size=(2, 12)
        ).reshape(2, 12, 3, 3)
        found.append(swap_test(*counts, permutations=300)["p"])
    assert 0.02 < np.mean(np.less(found, 0.05)) < 0.08


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_by_counting(clips):
    a, b = sum(x and not y for x, y in clips), sum(y and not x for x, y in clips)
    tail = sum(comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
    found = mcnemar(*zip(*clips))
    assert found == {"only_a": a, "only_b": b, "p": pytest.approx(min(1, 2 * tail))}


def test_order_and_names(runs, tmp_path):
    a, b = runs
    forth, back = compare_runs(a, b), compare_runs(b, a)
    assert (
        forth["permutation"] == back["permutation"]
        and forth["mcnemar"]["p"] == back["mcnemar"]["p"]
    )
    assert [forth["difference"]["uf1"][name] for name in ("value", "low", "high")] == pytest.approx(
        [-back["difference"]["uf1"][name] for name in ("value", "high", "low")]
    )
    shuffled = edit(
        make_run(tmp_path / "b", seed=2, skill=0.8),
        lambda table: table.sample(frac=1, random_state=0),
    )
    assert compare_runs(a, shuffled) == forth | {
        "run_b": str(shuffled)
    }  # paired by clip, not by row


def test_a_run_and_itself(runs):
    result = compare_runs(runs[0], runs[0])
    assert (
        result["difference"]["uf1"] == {"value": 0, "low": 0, "high": 0}
        and result["permutation"]["p"] == result["mcnemar"]["p"] == 1
    )
    assert (
        result["settings"] == []
        and "settings that differ: none" in comparison_text(result)
        and "can't be told apart" in comparison_text(result)
    )


def test_for_people(runs):
    result = compare_runs(*runs)
    text, shown = comparison_text(result), comparison_table(result)
    assert list(shown.index) == ["A", "B", "B - A"] and shown.loc["B - A", "UF1"].startswith(
        f"{result['difference']['uf1']['value']:+.3f} ["
    )
    assert (
        str(runs[0]) in text
        and "seed A 1, B 2" in text
        and f"p = {result['mcnemar']['p']:.3g}" in text
        and "all 64 ways" in text
    )
    far = result | {"permutation": {"p": 0.01, "ways": 64, "exact": True}}
    assert "differ: B has the higher UF1" in comparison_text(far)
    far["difference"] = {
        "uf1": {"value": -0.1, "low": -0.2, "high": 0.0},
        "uar": {"value": 0.0, "low": 0.0, "high": 0.0},
    }
    assert "differ: A has the higher UF1" in comparison_text(far)


def test_inner_is_compared_by_inner(runs):
    result = compare_runs(*runs, selection="inner")
    table = pd.read_parquet(runs[0] / "predictions.parquet")
    assert (
        result["a"]["uf1"]["value"]
        == pytest.approx(uf1(table.label, table.inner_prediction))
        != compare_runs(*runs)["a"]["uf1"]["value"]
    )


def test_five_classes(tmp_path):
    a, b = make_run(tmp_path / "a", seed=1, classes=5), make_run(tmp_path / "b", seed=2, classes=5)
    table = pd.read_parquet(a / "predictions.parquet")
    assert compare_runs(a, b)["a"]["uf1"]["value"] == pytest.approx(
        uf1(table.label, table.prediction, 5)
    )


def test_runs_on_other_clips(runs, tmp_path):
    fewer = edit(make_run(tmp_path / "fewer", seed=3), lambda table: table.iloc[5:])
    with pytest.raises(
        ValueError,
        match=r"fewer lacks 5 of the clips of .*a: toy/00/c0, toy/00/c1, toy/00/c2 and 2 more; "
        "runs are compared on the same clips",
    ):
        compare_runs(runs[0], fewer)
    with pytest.raises(ValueError, match="fewer lacks 5 of the clips"):
        compare_runs(fewer, runs[0])
    other = edit(
        make_run(tmp_path / "other", seed=3),
        lambda table: table.assign(
            label=table.label.where(table.index != 4, (table.label + 1) % 3)
        ),
    )
    name = pd.read_parquet(other / "predictions.parquet").clip_id[4]
    with pytest.raises(
        ValueError, match=f"1 of .* clips have other labels in .*other than in .*a: {name}; "
    ):
        compare_runs(runs[0], other)


@pytest.mark.parametrize(
    "changed, told",
    [
        (dict(selection="oracle"), "selection is last or inner, got 'oracle'"),
        (dict(level=1.5), "level must lie between 0 and 1, got 1.5"),
        (dict(permutations=0), "permutations must be 1 or more, got 0"),
        (dict(resamples=0), "one or more resamples"),
    ],
)
def test_bad_settings(runs, changed, told):
    with pytest.raises(ValueError, match=told):
        compare_runs(*runs, **changed)


def test_no_inner(runs, tmp_path):
    plain = make_run(tmp_path / "plain", seed=3, inner=False)
    with pytest.raises(ValueError, match="plain has no inner epochs.*--inner"):
        compare_runs(runs[0], plain, selection="inner")
    assert len(pair_runs(runs[0], plain)[0]) == len(pd.read_parquet(plain / "predictions.parquet"))


def test_one_subject_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="two or more subjects"):
        selection_table(make_run(tmp_path / "one", subjects=1))


@pytest.mark.parametrize(
    "break_it, told",
    [
        (lambda run: (run / "report.json").unlink(), "holds no finished run.*--resume"),
        (lambda run: (run / "predictions.parquet").unlink(), "can't be read"),
        (
            lambda run: (run / "predictions.parquet").write_bytes(b"PAR1 but cut short"),
            "can't be read",
        ),
        (lambda run: (run / "predictions.parquet").write_bytes(b""), "can't be read"),
        (lambda run: (run / "config.json").unlink(), "can't be read"),
        (lambda run: (run / "config.json").write_text('{"seed": 0'), "can't be read"),
        (lambda run: (run / "config.json").write_text('{"seed": 0}'), "can't be read"),
        (lambda run: (run / "config.json").write_bytes(b"\xff\xfe"), "can't be read"),
        (lambda run: edit(run, lambda table: table.drop(columns="label")), "no column label"),
        (lambda run: edit(run, lambda table: table.iloc[:0]), "no clips"),
        (lambda run: edit(run, lambda table: pd.concat([table, table.iloc[:1]])), "twice"),
    ],
)
def test_damaged_runs(runs, tmp_path, break_it, told):
    run = make_run(tmp_path / "run")
    read_predictions(run)
    break_it(run)
    for use in (read_predictions, selection_table, lambda run: compare_runs(runs[0], run)):
        with pytest.raises(ValueError, match=told):
            use(run)


def test_other_classes_are_refused_in_either_order(tmp_path):
    make_run(tmp_path / "three"), make_run(tmp_path / "four")
    config = json.loads((tmp_path / "four/config.json").read_text())
    config["model"]["classes"] = 4
    (tmp_path / "four/config.json").write_text(json.dumps(config))
    for a, b in (("three", "four"), ("four", "three")):
        with pytest.raises(ValueError, match="3 classes|4 classes"):
            compare_runs(tmp_path / a, tmp_path / b)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=9))
@settings(max_examples=200, deadline=None)
def test_holm(p):
    "By its definition: step down through the sorted p; never below each alone, never above Bonferroni's."
    adjusted, real = holm(p), [(value, i) for i, value in enumerate(p) if value == value]
    running = 0.0
    for step, (value, i) in enumerate(sorted(real)):
        running = max(running, min(1.0, value * (len(real) - step)))
        assert adjusted[i] == pytest.approx(running)
        assert value <= adjusted[i] + 1e-12 <= min(1, value * len(real)) + 1e-9
    assert np.isnan(adjusted).sum() == len(p) - len(real)
