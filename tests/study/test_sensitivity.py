"""A finished run asked again answers as it did; moments move as they should, in the clip; the table counts moves."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from finished_run import finished_run, small_store
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.data.spotting import spot_store
from frl_dgt_nb.study import sensitivity
from frl_dgt_nb.study.sensitivity import (
    answers_to,
    plot_sensitivity,
    questions,
    readable_sensitivity,
    shift_sensitivity,
    shifted,
    spotted_apexes,
)
from frl_dgt_nb.training.finished_run import (
    ask_folds,
    look_inside_folds,
    open_finished,
    pair_data,
    pairs_store,
)
from frl_dgt_nb.training.metrics import Resampling, interval, uar, uf1


def stored(run):
    return pd.read_parquet(run / "predictions.parquet").filter(regex="^p_").to_numpy()


@pytest.mark.parametrize("kind", ["guided", "plain", "bare"])
def test_labelled_pairs_give_what_the_run_stored(kind):
    "Whatever the module, the boxes and the levels; with the mirror image where the run has it."
    store = small_store()
    finished = open_finished(store, finished_run(kind))
    chances = ask_folds(finished, np.arange(len(store)), store.index.onset, store.index.apex)
    assert np.allclose(chances, stored(finished.run), atol=1e-5)


def test_order_and_repetition_of_questions_change_nothing():
    store = small_store()
    finished = open_finished(store, finished_run())
    rows = np.array([11, 3, 3, 0, 9])
    chances = ask_folds(finished, rows, store.index.onset[rows], store.index.apex[rows])
    assert np.allclose(chances, stored(finished.run)[rows], atol=1e-5)


def test_weights_of_all_clips_are_shares_and_of_the_right_fold():
    inside = look_inside_folds(open_finished(small_store(), finished_run()))
    assert inside["local"].shape == (12, 9, 2, 4)
    assert inside["whole"].shape == (12, 2, 9)
    assert inside["features"].shape == (12, 32)
    assert np.allclose(inside["local"].sum(-1), 1, atol=1e-5)
    assert np.allclose(inside["whole"].sum(-1), 1, atol=1e-5)


def test_runs_that_cannot_be_asked(tmp_path):
    store, run = small_store(), finished_run()
    with pytest.raises(ValueError, match="no finished run"):
        open_finished(store, tmp_path)
    with pytest.raises(ValueError, match="faces first"):
        open_finished(run, store)
    for change, words in (
        ({"baseline": "ststnet"}, "baseline ststnet"),
        ({"module": "given", "sees": ["displacement"]}, "flow pictures"),
        ({"steps": 10}, "sequences of 10 frames"),
    ):
        other = tmp_path / words
        shutil.copytree(run, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"model": config["model"] | change}))
        with pytest.raises(ValueError, match=words):
            shift_sensitivity(store, other, progress=False)
    strange = tmp_path / "strange"
    shutil.copytree(run, strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(
        json.dumps(config | {"data": config["data"] | {"checksum": "another"}})
    )
    with pytest.raises(ValueError, match="other clips"):
        shift_sensitivity(store, strange, progress=False)


def test_old_runs_without_new_settings_are_read(tmp_path):
    run = tmp_path / "old"
    shutil.copytree(finished_run(), run)
    config = json.loads((run / "config.json").read_text())
    for name in ("levels", "boxes", "steps"):
        config["model"].pop(name, None)
    (run / "config.json").write_text(json.dumps(config))
    assert (
        open_finished(small_store(), run).config
        == open_finished(small_store(), finished_run()).config
    )


@pytest.mark.parametrize(
    "rows, onset, apex, words",
    [
        ([0], [-1], [3], "0 <= onset"),
        ([0], [2], [2], "onset < apex"),
        ([0], [0], [8], "of 8 frames"),
        ([0, 1], [0], [3], "one of each"),
        ([], [], [], "at least one pair"),
    ],
)
def test_pairs_that_are_none(rows, onset, apex, words):
    with pytest.raises(ValueError, match=words):
        pairs_store(small_store(), rows, onset, apex)


CLIPS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 60), st.integers(0, 30)), min_size=1, max_size=8
).map(
    lambda rows: pd.DataFrame(
        [{"onset": a, "apex": a + b, "n_frames": a + b + c + 1} for a, b, c in rows]
    )
)


@settings(max_examples=80, deadline=None)
@given(CLIPS, st.sampled_from(["onset", "apex"]), st.floats(-0.9, 0.9))
def test_shifted_moments_stay_in_order_and_in_the_clip(index, moment, share):
    onset, apex = shifted(index, moment, share)
    assert (0 <= onset).all()
    assert (onset < apex).all()
    assert (apex < index.n_frames).all()
    moved, kept = (onset, apex) if moment == "onset" else (apex, onset)
    assert (kept == index["apex" if moment == "onset" else "onset"]).all()
    way = moved - index[moment]
    assert (way * share >= 0).all()
    assert (np.abs(way) <= np.abs(share) * (index.apex - index.onset) + 0.5 + 1e-6).all()


def test_three_frames_are_ten_percent_of_thirty():
    "The paper's own example; half a frame goes up, and an apex never passes its clip."
    index = pd.DataFrame({"onset": [5, 5, 5], "apex": [35, 10, 9], "n_frames": [100, 100, 10]})
    assert shifted(index, "onset", 0.1)[0].tolist() == [8, 6, 5]
    assert shifted(index, "onset", -0.1)[0].tolist() == [2, 4, 5]
    assert shifted(index, "apex", 0.3)[1].tolist() == [44, 12, 9]
    with pytest.raises(ValueError, match="want onset or apex"):
        shifted(index, "offset", 0.1)


@pytest.mark.parametrize("shares", [(), (0,), (1.5,), (-0.1,), (0.1, float("nan"))])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="between 0 and 1"):
        questions(small_store().index, shares)


def test_spotted_apexes_are_those_of_spot_store_and_are_kept(tmp_path):
    store = pairs_store(
        small_store(), range(5), *small_store().index[["onset", "apex"]][:5].to_numpy().T
    )
    journal = tmp_path / "spots.jsonl"
    found = spotted_apexes(store, journal)
    assert (
        found.tolist()
        == spot_store(store, tmp_path / "spotted", which="all", progress=False).index.apex.tolist()
    )
    kept = journal.read_text().splitlines()
    assert len(kept) == 1 + len(store)
    journal.write_text(
        "\n".join(kept[:5] + [json.dumps([store.index.clip_id[4], [2, "spotted"]])]) + "\n"
    )  # as an interrupted search leaves it, with a mark in it
    assert found[4] != 2
    assert spotted_apexes(store, journal)[4] == 2


@pytest.fixture(scope="module")
def table():
    "Spotting takes its time and is tested above; here every spotted apex is the offset."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sensitivity,
            "spotted_apexes",
            lambda store, journal, progress: store.index.offset.to_numpy(),
        )
        return shift_sensitivity(
            small_store(),
            finished_run(),
            shares=(0.2, 0.4),
            resampling=Resampling(200),
            progress=False,
        )


def test_table_is_what_the_answers_say(table):
    "Each row scored again by hand from the probabilities."
    store = small_store()
    finished = open_finished(store, finished_run())
    assert len(table) == 1 + 2 * 2 * 3 + 1
    labelled = table.iloc[0]
    predicted = stored(finished.run).argmax(1)
    assert labelled.uf1 == pytest.approx(uf1(store.index.label, predicted))
    assert labelled.uar == pytest.approx(uar(store.index.label, predicted))
    assert (labelled.uf1_low, labelled.uf1_high) == pytest.approx(
        interval(
            store.index.label, predicted, store.index.subject_id, uf1, resampling=Resampling(200)
        )
    )
    onset, apex = shifted(store.index, "apex", -0.4)
    row = table[
        (table.moment == "apex") & (table.share == 0.4) & (table.direction == "earlier")
    ].iloc[0]
    assert row.uf1 == pytest.approx(
        uf1(store.index.label, ask_folds(finished, np.arange(12), onset, apex).argmax(1))
    )
    assert row.frames == pytest.approx((store.index.apex - apex).abs().mean())
    assert row.moved == pytest.approx((store.index.apex != apex).mean())
    assert row.moved > 0


def test_a_run_of_other_code_is_warned_about(tmp_path):
    "Old runs averaged the mirror image without saying so in the model's settings: what they stored can't be had again."
    run = tmp_path / "other"
    shutil.copytree(finished_run(), run)
    table = pd.read_parquet(run / "predictions.parquet")
    table.assign(p_negative=table.p_negative + 0.05, p_positive=table.p_positive - 0.05).to_parquet(
        run / "predictions.parquet"
    )
    with pytest.warns(UserWarning, match="up to 0.05 off"):
        shift_sensitivity(
            small_store(),
            run,
            shares=(0.2,),
            spotted=False,
            resampling=Resampling(10),
            progress=False,
        )


def test_both_directions_are_their_mean(table):
    for moment in ("onset", "apex"):
        part = table[(table.moment == moment) & (table.share == 0.4)].set_index("direction")
        for name in ("uf1", "uar", "frames", "moved"):
            assert part.loc["both", name] == pytest.approx(
                part.loc[["earlier", "later"], name].mean()
            )
        assert part.uf1_low["both"] <= part.uf1["both"] <= part.uf1_high["both"]


def test_the_papers_figures_stand_where_they_belong(table):
    assert table.frames.iloc[-1] == pytest.approx(
        (small_store().index.offset - small_store().index.apex).mean()
    )
    assert table.paper_uf1[0] == 0.919
    assert table.paper_uar.iloc[-1] == 0.648
    assert table.moment.iloc[-1] == "spotted"
    both = table[(table.share == 0.2) & (table.direction == "both")].set_index("moment")
    assert both.paper_uf1.to_dict() == {"onset": 0.817, "apex": 0.83}
    assert table[table.direction == "later"].paper_uf1.isna().all()
    assert table[table.share == 0.4].paper_uf1.isna().all()


def test_different_pairs_are_asked_once(monkeypatch):
    asked = questions(small_store().index, (0.01, 0.2))
    seen = []
    monkeypatch.setattr(
        sensitivity,
        "ask_folds",
        lambda run, rows, onset, apex, progress: (
            seen.append(len(rows))
            or np.stack([np.asarray(rows), np.asarray(onset), np.asarray(apex)], 1)
        ),
    )
    said = answers_to(None, asked)
    assert (
        said == asked[["row", "onset", "apex"]].to_numpy()
    ).all()  # each question gets its own pair's answer
    assert seen == [len(asked[["row", "onset", "apex"]].drop_duplicates())]
    assert seen[0] < len(asked) / 2


def test_picture_and_text_hold_the_table(table):
    figure = plot_sensitivity(table, "uar")
    onset, apex = figure.axes
    run = onset.get_lines()[0]
    paper = next(line for line in onset.get_lines() if "paper" in line.get_label())
    assert run.get_xdata().tolist() == [-40, -20, 0, 20, 40]
    assert run.get_ydata()[2] == pytest.approx(table.uar[0])
    later = table[(table.moment == "onset") & (table.direction == "later")].uar.tolist()
    assert run.get_ydata()[3:].tolist() == pytest.approx(later)
    assert dict(zip(paper.get_xdata().round(), paper.get_ydata()))[20.0] == 0.808
    assert apex.get_ylabel() == "UAR"
    assert "%" in apex.get_xlabel()
    text = readable_sensitivity(table)
    assert list(text.index) == [
        "labelled",
        "onset off by 20%",
        "onset off by 40%",
        "apex off by 20%",
        "apex off by 40%",
        "spotted",
    ]
    assert text.loc["labelled", "UF1"].startswith(f"{table.uf1[0]:.3f} [")
    assert text.loc["apex off by 20%", "paper UAR"] == "0.834"
    assert text.loc["apex off by 40%", "paper UF1"] == ""


def test_a_module_without_training_is_asked_once_for_all_folds():
    data = pair_data(small_store(), open_finished(small_store(), finished_run()).config)
    assert data.source.displacements.shape == (12, 1, 2, 64, 64)
