"""Tables of made-up runs against values computed by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test
from study_runs import known_runs, make_run, never

from frl_dgt_nb.study.published import COMPOSITE
from frl_dgt_nb.study.tables import (
    Row,
    plot_rows,
    readable_table,
    row_state,
    score_rows,
    write_table,
)
from frl_dgt_nb.training.metrics import score_counts, subject_counts
from frl_dgt_nb.training.protocol import compare_runs

LABELS, GUESSES = [0, 0, 1, 1, 2, 2], {"M9": [0, 0, 1, 1, 2, 0], "M1": [0, 1, 1, 1, 2, 0]}
BY_HAND = {  # counts of class 0, 1, 2 -> F1 and recall of each
    "M9": (np.mean([4 / 5, 1, 2 / 3]), np.mean([1, 1, 1 / 2])),
    "M1": (np.mean([1 / 2, 4 / 5, 2 / 3]), np.mean([1 / 2, 1, 1 / 2])),
}


@pytest.fixture
def small(tmp_path):
    "Two rows of six clips of two databases, one that isn't finished, one that can't be run"
    for name, guesses in GUESSES.items():
        make_run(
            tmp_path / name,
            LABELS,
            guesses,
            ["a", "a", "b", "b", "a", "b"],
            ["x", "x", "x", "y", "y", "y"],
        )
    (tmp_path / "M2/folds").mkdir(parents=True)
    for fold in "abc":
        (tmp_path / f"M2/folds/{fold}.json").touch()
    return [
        Row("M1", "less <b>", never, paper={"full": (0.7, 0.6), "smic": (0.5, 0.4)}),
        Row("M2", "half done", never, paper={"full": (0.77, 0.76)}),
        Row("M3", "nothing yet", never),
        Row("M9", "all", never, paper={"full": (0.812, 0.811)}),
        Row("EMRNet", "another", paper={"full": (0.789, 0.782)}, note="needs CK+"),
    ], tmp_path


def test_values_by_hand(small):
    table = score_rows(*small).set_index("row")
    for name, (uf1, uar) in BY_HAND.items():
        assert table.loc[name, ["uf1", "uar"]].tolist() == pytest.approx([uf1, uar])
    assert table.loc["M1", "accuracy"] == pytest.approx(4 / 6) and table.loc["M1", "seconds"] == 7
    assert (
        table.loc["M1", "clips"] == 6
        and table.loc["M1", "subjects"] == 4
        and table.loc["M1", "data"] == "x, y"
    )
    assert (
        table.loc["M1", "difference"] == pytest.approx(BY_HAND["M1"][0] - BY_HAND["M9"][0])
        and table.loc["M1", "against"] == "M9"
    )
    assert table.loc["M1", "x_uf1"] == pytest.approx(np.mean([2 / 3, 2 / 3, 0])) and table.loc[
        "M1", "y_uar"
    ] == pytest.approx(np.mean([0, 1, 1 / 2]))  # 0 0 1 -> 0 1 1; 1 2 2 -> 1 2 0
    assert table.loc[
        "M1", ["paper_uf1", "paper_uar", "paper_smic_uf1", "paper_smic_uar"]
    ].tolist() == [0.7, 0.6, 0.5, 0.4]
    assert table.state.to_dict() == {
        "M1": "finished",
        "M2": "3 folds so far",
        "M3": "not started",
        "M9": "finished",
        "EMRNet": "not run here",
    }
    assert table.loc[["M2", "M3", "EMRNet"], ["uf1", "difference", "p", "seconds"]].isna().all(
        None
    ) and pd.isna(table.loc["M9", "difference"])
    assert table.paper_data.fillna("").tolist() == [COMPOSITE, COMPOSITE, "", COMPOSITE, COMPOSITE]


def test_intervals_and_p_are_those_of_the_protocol(small):
    rows, out = small
    table, result = score_rows(rows, out).set_index("row"), compare_runs(out / "M9", out / "M1")
    for column, value in (
        ("uf1", result["b"]["uf1"]),
        ("uar", result["b"]["uar"]),
        ("difference", result["difference"]["uf1"]),
    ):
        assert table.loc[
            "M1", [column, f"{column}_low", f"{column}_high"]
        ].tolist() == pytest.approx([value["value"], value["low"], value["high"]])
    assert table.loc["M1", "p"] == table.loc["M1", "p_holm"] == result["permutation"]["p"]


def test_nothing_shows_the_oracle(small):
    rows, out = small
    table = score_rows(rows, out)
    write_table(table, out, "t", "T")
    assert (
        "racle" not in (out / "t.csv").read_text() + (out / "t.html").read_text()
        and table.uf1.max() < 0.9
    )


def test_files_have_every_row_and_the_papers_figures(small):
    rows, out = small
    table = score_rows(rows, out)
    paths = write_table(
        table,
        out,
        "table9",
        "A & B",
        ["about <it>"],
        [("more", "text & more", pd.DataFrame({"x": [1]}))],
    )
    assert [path.name for path in paths] == ["table9.csv", "table9.html", "table9.png"] and paths[
        2
    ].read_bytes().startswith(b"\x89PNG")
    page, again = paths[1].read_text(encoding="utf-8"), pd.read_csv(paths[0])
    pd.testing.assert_frame_equal(
        again[["row", "uf1", "p", "paper_uf1"]], table[["row", "uf1", "p", "paper_uf1"]]
    )
    for row in rows:
        assert f"<td>{row.name}</td>" in page and all(
            f"{value:.3f}" in page for value in row.paper.get("full", ())
        )
    assert (
        f"on {COMPOSITE} (paper)" in page
        and "on x, y (ours)" in page
        and "needs CK+" in page
        and "3 folds so far" in page
    )
    assert (
        "less &lt;b&gt;" in page
        and "about &lt;it&gt;" in page
        and "A &amp; B" in page
        and "data:image/png;base64," in page
    )
    assert 'src="http' not in page and "href" not in page


def test_a_figure_of_the_paper_never_stands_under_our_heading(small):
    text = readable_table(score_rows(*small))
    ours, theirs = "on x, y (ours)", f"on {COMPOSITE} (paper)"
    assert set(text.columns.get_level_values(0)) == {"", ours, theirs}
    assert {name for side, name in text.columns if side == theirs} == {
        "UF1",
        "UAR",
        "smic, UF1 / UAR",
    }
    assert text[theirs, "UF1"].tolist() == ["0.700", "0.770", "", "0.812", "0.789"] and text[
        ours, "UF1"
    ].tolist()[1:3] == ["3 folds so far", "not started"]
    assert text[ours, "UF1"][4] == "not run here" and text[theirs, "smic, UF1 / UAR"].tolist() == [
        "0.500 / 0.400",
        "",
        "",
        "",
        "",
    ]
    assert text[ours, "x, UF1 / UAR"][0] == "0.444 / 0.500" and text[ours, "x, UF1 / UAR"][2] == ""


def test_before_anything_is_run(tmp_path):
    rows = [
        Row("M9", "all", never, paper={"full": (0.8, 0.8)}),
        Row("M1", "less", never),
    ]
    table = score_rows(rows, tmp_path)
    assert (
        table.state.tolist() == ["not started"] * 2
        and len(write_table(table, tmp_path, "t", "T")) == 3
    )


def test_the_picture_has_both_kinds_of_marks(small):
    figure = plot_rows(score_rows(*small))
    left, right = figure.axes
    labels = left.get_legend_handles_labels()[1]
    assert {"paper, other data", "ours, 95 % by subject"} == set(labels)
    paper = next(line for line in left.lines if line.get_label() == "paper, other data")
    assert (
        paper.get_markerfacecolor() == "none"
        and np.nanmax(paper.get_xdata()) == 0.812
        and [tick.get_text() for tick in left.get_yticklabels()]
        == ["M1", "M2", "M3", "M9", "EMRNet"]
    )


def test_no_key_for_what_is_not_drawn(small):
    quiet = plot_rows(score_rows(*small).assign(paper_uf1=np.nan)).axes[0]
    assert quiet.get_legend_handles_labels()[1] == ["ours, 95 % by subject"]


def test_parts_of_a_row_with_three_figures(tmp_path):
    "Table 3 gives accuracy, and one of its rows no UAR."
    table = score_rows([Row("S", "s", paper={"full": (0.542, None, 0.560)})], tmp_path, "CASME II")
    assert (
        table.paper_accuracy.tolist() == [0.56]
        and table.paper_uar.isna().all()
        and table.paper_data.tolist() == ["CASME II"]
    )
    text = readable_table(table)["on CASME II (paper)"]
    assert text.to_dict("records") == [{"UF1": "0.542", "UAR": "", "accuracy": "0.560"}]


def counts_of(run):
    table = pd.read_parquet(run / "predictions.parquet")
    return subject_counts(table.label, table.prediction, table.subject_id)


def test_p_against_scipy(tmp_path):
    "The p of a difference is that of a permutation test that swaps the runs' predictions by subject."
    rows = known_runs(tmp_path, {"M1": 4 / 6, "M9": 5 / 6}, subjects=9)
    first, second = counts_of(tmp_path / "M1"), counts_of(tmp_path / "M9")
    places = np.arange(9)  # of the subjects in the first run; those in the second run are 9 more

    def uf1_of(chosen):
        return score_counts(np.where((chosen < 9)[:, None, None], first, second).sum(0))["uf1"]

    theirs = permutation_test(
        (places, places + 9),
        lambda a, b: uf1_of(a) - uf1_of(b),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert score_rows(rows, tmp_path).set_index("row").p["M1"] == pytest.approx(theirs.pvalue)


def test_state_of_a_row(tmp_path):
    row = Row("M1", "one", never)
    assert row_state(row, tmp_path) == "not started"
    (tmp_path / "M1/folds").mkdir(parents=True)
    assert row_state(row, tmp_path) == "not started"
    (tmp_path / "M1/folds/a.json").touch(), (tmp_path / "M1/folds/b.safetensors").touch()
    assert row_state(row, tmp_path) == "1 folds so far"
    (tmp_path / "M1/report.json").touch()
    assert row_state(row, tmp_path) == "finished"
