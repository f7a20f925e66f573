"""Experiments that are stopped, resumed, refused and finished."""

import json
import shutil
from base64 import b64encode
from dataclasses import replace

import pandas as pd
import pytest
import torch
from run_toy import BRIEF as FOUR
from run_toy import SMALL
from toy_store import toy_store

from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.sequence import SEQUENCE_PRESETS
from frl_dgt_nb.study import experiments
from frl_dgt_nb.study.experiments import (
    Table,
    check_rows,
    choose_rows,
    run_experiment,
    run_rows,
    run_table,
    run_table2,
    run_table3,
)
from frl_dgt_nb.study.published import TABLE2
from frl_dgt_nb.study.rows import ExperimentSettings, table1_rows, table2_rows
from frl_dgt_nb.study.tables import Row, score_rows
from frl_dgt_nb.training import loso
from frl_dgt_nb.training.settings import SEQUENCE_TRAIN_PRESETS, TRAIN_PRESETS

torch.set_num_threads(1)
BRIEF = replace(FOUR, epochs=1)
SETTINGS = ExperimentSettings("tiny", flow="dis", device="cpu", threads=1, progress=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("toy") / "store", subjects=3)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    "test_tables looks at pictures."
    monkeypatch.setattr("frl_dgt_nb.study.tables.figure_png", lambda *args, **more: b"\x89PNG")


def three_rows(store):
    rows = table2_rows(store, SETTINGS, (SMALL, BRIEF))
    return [row for row in rows if row.name in ("M4", "M6", "M9")]


@pytest.fixture
def rows(store):
    "Three rows of Table 2 that take a second."
    return three_rows(store)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    "The same rows, never interrupted."
    out = tmp_path_factory.mktemp("whole")
    run_rows(three_rows(store), out, progress=False)
    return out


@pytest.fixture
def copied(rows, whole):
    "The same rows, which take their runs from there."

    def copying(row):
        return replace(row, run=lambda folder: shutil.copytree(whole / row.name, folder))

    return [copying(row) for row in rows]


def run_table_t(rows, out, names=None):
    return run_table(Table("t", "T", rows), out, names, progress=False)


def contents(out):
    "All that the rows left, but for seconds and logs."
    files = {}
    for pattern in ("*/folds/*.safetensors", "*/predictions.parquet", "*/config.json"):
        for path in out.glob(pattern):
            files[path.relative_to(out)] = path.read_bytes()
    for path in [*out.glob("*/folds/*.json"), *out.glob("*/report.json")]:
        content = json.loads(path.read_text())
        content.pop("seconds")
        files[path.relative_to(out)] = content
    return files


def times(out):
    return {
        path: path.stat().st_mtime_ns
        for path in out.glob("*/folds/*")
        if path.with_suffix(".json").exists()
    }


def stop_after(monkeypatch, folds):
    "Ctrl-C while the next fold is stored."
    save_fold, saved = loso.save_fold, []

    def save(*args):
        saved.append(args)
        if len(saved) > folds:
            raise KeyboardInterrupt
        save_fold(*args)

    monkeypatch.setattr(loso, "save_fold", save)


def test_stopped_and_given_again_it_ends_the_same(rows, whole, tmp_path, monkeypatch):
    "In the second fold of the second of three rows: M9 first, then M4 and M6."
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        wanted = r"stopped in row M4 \(1 folds so far\).*the same command goes on"
        with pytest.raises(KeyboardInterrupt, match=wanted):
            run_table_t(rows, tmp_path)
    states = pd.read_csv(tmp_path / "t.csv").set_index("row").state.to_dict()
    assert states == {"M4": "1 folds so far", "M6": "not started", "M9": "finished"}
    assert (tmp_path / "t.html").exists()
    left, before = contents(tmp_path), times(tmp_path)
    table = run_table_t(rows, tmp_path)
    assert (table.state == "finished").all()
    assert contents(tmp_path) == contents(whole)
    assert left.items() <= contents(tmp_path).items()
    assert before.items() <= times(tmp_path).items()


def test_finished_rows_are_not_run_again(rows, whole):
    def never(folder):
        raise AssertionError(folder)

    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    run_rows([replace(row, run=never) for row in rows], whole, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_some_rows_and_then_the_others(copied, whole, tmp_path):
    table = run_table_t(copied, tmp_path, ["M9"])
    assert table.state.tolist() == ["not started", "not started", "finished"]
    assert table.p.isna().all()
    table = run_table_t(copied, tmp_path, ["M4"])
    assert table.state.tolist() == ["finished", "not started", "finished"]
    assert table.against.tolist()[0] == "M9"
    assert table.p.notna().tolist() == [True, False, False]
    mine, theirs = (
        each.drop(columns="p_holm").iloc[[0, 2]] for each in (table, score_rows(copied, whole))
    )
    pd.testing.assert_frame_equal(mine, theirs, check_dtype=False)


@pytest.mark.parametrize("names", [None, ["M9"]])
def test_a_folder_of_another_run_is_refused_before_anything_runs(store, whole, names):
    other = table2_rows(store, replace(SETTINGS, seed=1), (SMALL, replace(BRIEF, epochs=7)))
    other = [replace(row, run=lambda folder: pytest.fail("was run")) for row in other]
    before = contents(whole)
    with pytest.raises(ValueError) as error:
        run_rows(other, whole, names, progress=False)
    wanted = f"{whole / 'M4'} holds a run with other settings: seed was 0, now 1; train.epochs was 1, now 7"
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(whole) == before
    assert not (whole / "M0").exists()


def test_a_folder_of_other_data_is_refused(whole, tmp_path):
    other = toy_store(tmp_path / "store", subjects=3, seed=5)
    with pytest.raises(ValueError, match="data.checksum was 0, now 5"):
        check_rows(table2_rows(other, SETTINGS, (SMALL, BRIEF)), whole)


def test_a_folder_with_a_broken_config_is_named(rows, tmp_path):
    (tmp_path / "M6").mkdir()
    (tmp_path / "M6/config.json").write_text("{")
    with pytest.raises(ValueError, match="M6"):
        check_rows(rows, tmp_path)


def test_rows_that_there_are_not(rows):
    quoted = [*rows, Row("EMRNet", "quoted")]
    assert [row.name for row in choose_rows(quoted)] == ["M4", "M6", "M9"]
    assert [row.name for row in choose_rows(quoted, ["M9", "M4"])] == ["M4", "M9"]
    for names in (["M17"], ["M4", "m9"], ["EMRNet"]):
        with pytest.raises(ValueError, match="choose from M4, M6, M9"):
            choose_rows(quoted, names)


def test_a_row_that_fails_leaves_the_others_and_a_table(copied, whole, tmp_path):
    def fail(folder):
        raise ValueError("the loss is no longer finite")

    m4, m6, m9 = copied  # M9, with which the others are compared, goes first
    with pytest.raises(ValueError, match="no longer finite"):
        run_table_t([m4, replace(m6, run=fail), m9], tmp_path)
    assert pd.read_csv(tmp_path / "t.csv").state.tolist() == ["finished", "not started", "finished"]
    run_table_t(copied, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_the_table_grows_row_by_row(copied, tmp_path, monkeypatch):
    seen, write_table = [], experiments.write_table

    def write(table, *args):
        seen.append((table.state == "finished").sum())
        write_table(table, *args)

    monkeypatch.setattr(experiments, "write_table", write)
    run_table_t(copied, tmp_path)
    assert seen == [0, 1, 2, 3]


def test_rows_that_others_are_compared_with_come_first(copied, tmp_path):
    made = []

    def noting(row):
        return replace(row, run=lambda folder: (made.append(row.name), row.run(folder)))

    run_rows([noting(row) for row in copied], tmp_path, progress=False)
    assert made == ["M9", "M4", "M6"]


@pytest.mark.parametrize("name", ["M4", "M6"])
def test_differences_are_those_of_the_runs(rows, whole, name):
    row = score_rows(rows, whole).set_index("row").loc[name]
    mine, reference = (
        json.loads((whole / each / "report.json").read_text()) for each in (name, "M9")
    )
    assert row.difference == pytest.approx(mine["uf1"] - reference["uf1"])
    assert row.uar == pytest.approx(mine["uar"])
    for part in ("toy", "play"):
        assert row[f"{part}_uf1"] == pytest.approx(mine["per_database"][part]["uf1"])
    assert row.paper_uf1 == TABLE2[name]["full"][0]
    assert row.paper_samm_uar == TABLE2[name]["samm"][1]


def test_a_baseline_and_m9_in_one_table(store, tmp_path):
    rows = table1_rows(store, SETTINGS, (SMALL, BRIEF))
    table = run_table(
        Table("table1", "T", rows), tmp_path, ["bi-woof", "M9"], progress=False
    ).set_index("row")
    assert table.state["bi-woof"] == table.state["M9"] == "finished"
    assert table.state["EMRNet"] == "not run here"
    assert table.against["bi-woof"] == "M9"
    page = (tmp_path / "table1.html").read_text()
    for row in rows:
        assert f"<td>{row.name}</td>" in page
        assert all(f"{value:.3f}" in page for value in row.paper.get("full", ()))


@pytest.fixture
def toys(monkeypatch):
    "The preset tiny is a toy's."
    sequences = replace(SMALL, steps=10, sees=("apex", "displacement"))
    monkeypatch.setitem(PRESETS, "tiny", SMALL)
    monkeypatch.setitem(TRAIN_PRESETS, "tiny", BRIEF)
    monkeypatch.setitem(SEQUENCE_PRESETS, "tiny", sequences)
    monkeypatch.setitem(SEQUENCE_TRAIN_PRESETS, "tiny", replace(BRIEF, apex_jitter=0))


def test_experiments_share_m9(store, tmp_path, toys):
    run_table2(store, tmp_path, SETTINGS, ["M9"])
    before = contents(tmp_path)
    text, paths = run_experiment("table1", {3: store}, tmp_path, SETTINGS, ["bi-woof"])
    assert before.items() <= contents(tmp_path).items()
    assert [path.name for path in paths] == ["table1.csv", "table1.html", "table1.png"]
    assert all(path.exists() for path in paths)
    assert all(words in text for words in ("bi-woof", "EMRNet", "to M9", "not run here"))


def test_names_and_presets_that_there_are_not(store, tmp_path):
    with pytest.raises(
        ValueError, match="choose from table1, table2, table3, sensitivity, figures"
    ):
        run_experiment("table4", {3: store}, tmp_path, SETTINGS)
    for preset in ("huge", "flow"):
        with pytest.raises(ValueError, match="choose from paper, tiny, best"):
            run_table2(store, tmp_path, replace(SETTINGS, preset=preset))
    assert not list(tmp_path.iterdir())


def test_a_row_is_a_run_like_any_other(store, whole, tmp_path):
    "What the row's folder holds is what run_loso makes with the same settings."
    configs = {"model_config": SMALL, "train_config": BRIEF}
    loso.run_loso(store, tmp_path / "M9", **configs, device="cpu", threads=1, progress=False)
    theirs = {path: value for path, value in contents(whole).items() if path.parts[0] == "M9"}
    assert theirs
    assert contents(tmp_path) == theirs


@pytest.fixture
def own_store(store, tmp_path):
    "A copy that sequences may be put beside."
    shutil.copytree(store.path, tmp_path / "store")
    return FaceStore(tmp_path / "store")


def test_table3_makes_its_sequences(own_store, tmp_path, toys):
    table = run_table3({3: own_store}, tmp_path / "out", SETTINGS).set_index("row")
    assert table.state.to_dict() == {"M9": "finished", "FRL-DGT-S-3": "finished"}
    assert table.against["FRL-DGT-S-3"] == "M9"
    assert table.p.notna()["FRL-DGT-S-3"]
    assert table.paper_uf1.isna().all()
    assert table.note.str.contains("3").all()
    assert (tmp_path / "store-10frames/index.parquet").exists()


def test_sensitivity_asks_m9(store, tmp_path, toys, monkeypatch):
    asked = []
    columns = {
        "moment": ["labelled"],
        "share": [0.0],
        "direction": [""],
        "moved": [0.0],
        "frames": [0.0],
    }
    for score, published in (("uf1", 0.919), ("uar", 0.903)):
        columns |= {f"{score}{end}": [0.5] for end in ("", "_low", "_high")} | {
            f"paper_{score}": [published]
        }

    def shift(store, run, **more):
        asked.append(run)
        return pd.DataFrame(columns)

    monkeypatch.setattr(experiments, "shift_sensitivity", shift)
    _, paths = run_experiment("sensitivity", {3: store}, tmp_path, SETTINGS)
    assert asked == [tmp_path / "M9"]
    assert (tmp_path / "M9/report.json").exists()
    page = paths[1].read_text()
    assert ".919" in page
    assert "CASME II (paper)" in page


def test_figures_ask_m9(store, tmp_path, toys, monkeypatch):
    asked = []
    (tmp_path / "figures").mkdir()
    picture = tmp_path / "figures/figure8.png"
    picture.write_bytes(b"\x89PNG8")

    def write_figures(store, run, out, progress):
        asked.append(run)
        return [picture, tmp_path / "figures/figures.html"]

    agreement = pd.DataFrame({"value": [0.1], "low": [0.0], "high": [0.2]}, index=["weight"])
    monkeypatch.setattr(experiments, "write_figures", write_figures)
    monkeypatch.setattr(
        experiments, "occlusion_table", lambda store, run, progress: asked.append(run)
    )
    monkeypatch.setattr(experiments, "agreement_table", lambda table: agreement)
    monkeypatch.setattr(experiments, "plot_occlusion", lambda store, table: None)
    text, paths = run_experiment("figures", {3: store}, tmp_path, SETTINGS)
    assert asked == [tmp_path / "M9", tmp_path / "M9"]
    assert b64encode(b"\x89PNG8").decode() in paths[1].read_text()
    assert "weight" in text
    assert pd.read_csv(paths[0]).value.tolist() == [0.1]


def test_fewer_epochs_everywhere(own_store, tmp_path, toys, monkeypatch):
    "Pairs and sequences; the page says so, and a run with others isn't mixed with these."
    monkeypatch.setitem(TRAIN_PRESETS, "tiny", replace(BRIEF, epochs=3))
    monkeypatch.setitem(SEQUENCE_TRAIN_PRESETS, "tiny", replace(BRIEF, epochs=3, apex_jitter=0))
    stores, out = {3: own_store}, tmp_path / "out"
    _, paths = run_experiment("table3", stores, out, replace(SETTINGS, epochs=1))
    for row in ("M9", "FRL-DGT-S-3"):
        assert json.loads((out / row / "config.json").read_text())["train"]["epochs"] == 1
    assert "Preset tiny, epochs 1, seed 0" in paths[1].read_text()
    for name in ("table1", "table2", "table3", "sensitivity", "figures"):
        names = ["M9"] if "table" in name else None
        with pytest.raises(ValueError, match="epochs.*choose another --out"):
            run_experiment(name, stores, out, replace(SETTINGS, epochs=2), names)
