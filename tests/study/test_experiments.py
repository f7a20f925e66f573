"""Experiments that are stopped, resumed, refused and finished; rows that hold what the tables of the paper name."""

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
from frl_dgt_nb.study.ablations import TABLE2, VARIANTS, variant
from frl_dgt_nb.study.baselines import BASELINES, ELSEWHERE, PUBLISHED, baseline_settings
from frl_dgt_nb.study.experiments import (
    check_rows,
    choose_rows,
    preset_configs,
    row_names,
    run_experiment,
    run_rows,
    run_table,
    run_table2,
    run_table3,
    table1_rows,
    table2_rows,
    table3_rows,
)
from frl_dgt_nb.study.tables import Row, score_rows
from frl_dgt_nb.training import loso
from frl_dgt_nb.training.settings import SEQUENCE_TRAIN_PRESETS, TRAIN_PRESETS

torch.set_num_threads(1)
BRIEF, HOW = replace(FOUR, epochs=1), dict(device="cpu", threads=1, progress=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("toy") / "store", subjects=3)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    monkeypatch.setattr(
        "frl_dgt_nb.study.tables.figure_png", lambda *args, **more: b"\x89PNG"
    )  # test_tables looks at pictures


@pytest.fixture
def rows(store):
    "Three rows of Table 2 that take a second."
    return [
        row
        for row in table2_rows(store, SMALL, BRIEF, "dis", **HOW)
        if row.name in ("M4", "M6", "M9")
    ]


@pytest.fixture
def copied(rows, whole):
    "The same rows, which take their runs from there."
    return [
        replace(row, run=lambda folder, name=row.name: shutil.copytree(whole / name, folder))
        for row in rows
    ]


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    "The same rows, never interrupted."
    out = tmp_path_factory.mktemp("whole")
    run_rows(
        [
            row
            for row in table2_rows(store, SMALL, BRIEF, "dis", **HOW)
            if row.name in ("M4", "M6", "M9")
        ],
        out,
        progress=False,
    )
    return out


def contents(out):
    "All that the rows left, but for seconds and logs."
    told = {
        path.relative_to(out): path.read_bytes()
        for pattern in ("*/folds/*.safetensors", "*/predictions.parquet", "*/config.json")
        for path in out.glob(pattern)
    }
    for path in [*out.glob("*/folds/*.json"), *out.glob("*/report.json")]:
        told[path.relative_to(out)] = {
            key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"
        }
    return told


def stop_after(monkeypatch, folds):
    "Ctrl-C while the next fold is stored."
    whole, count = loso.save_fold, []

    def save(*args):
        count.append(args)
        if len(count) > folds:
            raise KeyboardInterrupt
        whole(*args)

    monkeypatch.setattr(loso, "save_fold", save)


def test_stopped_and_given_again_it_ends_the_same(rows, whole, tmp_path, monkeypatch):
    "In the second fold of the second of three rows: M9 first, then M4 and M6."
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(
            KeyboardInterrupt,
            match=r"stopped in row M4 \(1 folds so far\).*the same command goes on",
        ):
            run_table("t", rows, tmp_path, "T", progress=False)
    table, left = pd.read_csv(tmp_path / "t.csv").set_index("row"), contents(tmp_path)
    assert (
        table.state.to_dict() == {"M4": "1 folds so far", "M6": "not started", "M9": "finished"}
        and (tmp_path / "t.html").exists()
    )
    times = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.glob("*/folds/*")
        if path.with_suffix(".json").exists()
    }
    table = run_table("t", rows, tmp_path, "T", progress=False)
    assert (
        (table.state == "finished").all()
        and contents(tmp_path) == contents(whole)
        and left.items() <= contents(tmp_path).items()
    )
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_finished_rows_are_not_run_again(rows, whole):
    def never(folder):
        raise AssertionError(folder)

    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.parent.name != ""}
    run_rows([replace(row, run=never) for row in rows], whole, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_some_rows_and_then_the_others(copied, whole, tmp_path):
    table = run_table("t", copied, tmp_path, "T", names=["M9"], progress=False)
    assert (
        table.state.tolist() == ["not started", "not started", "finished"] and table.p.isna().all()
    )
    table = run_table("t", copied, tmp_path, "T", names=["M4"], progress=False)
    assert (
        table.state.tolist() == ["finished", "not started", "finished"]
        and table.against.tolist()[0] == "M9"
        and table.p.notna().tolist() == [True, False, False]
    )
    mine, theirs = (
        each.drop(columns="p_holm").iloc[[0, 2]] for each in (table, score_rows(copied, whole))
    )
    pd.testing.assert_frame_equal(mine, theirs, check_dtype=False)


@pytest.mark.parametrize("names", [None, ["M9"]])
def test_a_folder_of_another_run_is_refused_before_anything_runs(
    store, rows, whole, tmp_path, names
):
    other = [
        replace(row, run=lambda folder: pytest.fail("was run"))
        for row in table2_rows(store, SMALL, replace(BRIEF, epochs=7), "dis", seed=1, **HOW)
    ]
    before = contents(whole)
    with pytest.raises(ValueError) as error:
        run_rows(other, whole, names, progress=False)
    assert (
        f"{whole / 'M4'} holds a run with other settings: seed was 0, now 1; train.epochs was 1, now 7"
        in str(error.value)
        and "\n" not in str(error.value)
    )
    assert contents(whole) == before and not (whole / "M0").exists()


def test_a_folder_of_other_data_is_refused(rows, whole, tmp_path):
    other = toy_store(tmp_path / "store", subjects=3, seed=5)
    with pytest.raises(ValueError, match="data.checksum was 0, now 5"):
        check_rows(table2_rows(other, SMALL, BRIEF, "dis", **HOW), whole)


def test_a_folder_with_a_broken_config_is_named(rows, tmp_path):
    (tmp_path / "M6").mkdir()
    (tmp_path / "M6/config.json").write_text("{")
    with pytest.raises(ValueError, match="M6"):
        check_rows(rows, tmp_path)


def test_rows_that_there_are_not(rows):
    quoted = [*rows, Row("EMRNet", "quoted")]
    assert [row.name for row in choose_rows(quoted)] == ["M4", "M6", "M9"] and [
        row.name for row in choose_rows(quoted, ["M9", "M4"])
    ] == ["M4", "M9"]
    for names in (["M17"], ["M4", "m9"], ["EMRNet"]):
        with pytest.raises(ValueError, match="choose from M4, M6, M9"):
            choose_rows(quoted, names)


def test_a_row_that_fails_leaves_the_others_and_a_table(copied, whole, tmp_path):
    def fail(folder):
        raise ValueError("the loss is no longer finite")

    broken = [
        copied[0],
        replace(copied[1], run=fail),
        copied[2],
    ]  # M9, with which the others are compared, goes first
    with pytest.raises(ValueError, match="no longer finite"):
        run_table("t", broken, tmp_path, "T", progress=False)
    assert pd.read_csv(tmp_path / "t.csv").state.tolist() == ["finished", "not started", "finished"]
    run_table("t", copied, tmp_path, "T", progress=False)
    assert contents(tmp_path) == contents(whole)


def test_the_table_grows_row_by_row(copied, tmp_path, monkeypatch):
    seen = []
    whole = experiments.write_table
    monkeypatch.setattr(
        experiments,
        "write_table",
        lambda table, *args: (seen.append((table.state == "finished").sum()), whole(table, *args)),
    )
    run_table("t", copied, tmp_path, "T", progress=False)
    assert seen == [0, 1, 2, 3]


def test_rows_that_others_are_compared_with_come_first(copied, tmp_path):
    made = []
    ordered = [
        replace(row, run=lambda folder, row=row: (made.append(row.name), row.run(folder)))
        for row in copied
    ]
    run_rows(ordered, tmp_path, progress=False)
    assert made == ["M9", "M4", "M6"]


def test_differences_are_those_of_the_runs(rows, whole):
    table = score_rows(rows, whole).set_index("row")
    for name in ("M4", "M6"):
        reports = [json.loads((whole / each / "report.json").read_text()) for each in (name, "M9")]
        assert table.difference[name] == pytest.approx(
            reports[0]["uf1"] - reports[1]["uf1"]
        ) and table.uar[name] == pytest.approx(reports[0]["uar"])
        for part in ("toy", "play"):
            assert table.loc[name, f"{part}_uf1"] == pytest.approx(
                reports[0]["per_database"][part]["uf1"]
            )
    assert (
        table.paper_uf1.to_dict() == {name: TABLE2[name]["full"][0] for name in ("M4", "M6", "M9")}
        and table.paper_samm_uar["M6"] == TABLE2["M6"]["samm"][1]
    )


@pytest.mark.parametrize("preset", ["paper", "tiny", "best"])
def test_rows_of_table2_are_the_variants(store, preset):
    made = {row.name: row for row in table2_rows(store, *preset_configs(preset), "tvl1", 3)}
    assert set(made) == set(VARIANTS) - (set() if preset == "best" else {"M9-plain"}) and list(
        made
    )[:10] == [f"M{i}" for i in range(10)]
    for name, row in made.items():
        model, train = variant(name, PRESETS[preset], TRAIN_PRESETS[preset], "tvl1")
        assert (
            row.settings()["model"] == json.loads(json.dumps(vars(model)))
            and row.settings()["train"] == json.loads(json.dumps(vars(train)))
            and row.settings()["seed"] == 3
        )
    assert made["M3"].against == ("M9-plain" if preset == "best" else "M9") and all(
        made[name].against == "M9" for name in made if name != "M3"
    )


def test_rows_of_table1_are_the_baselines_and_the_quoted(store):
    made = {
        row.name: row
        for row in table1_rows(store, SMALL, BRIEF, "dis", device="cpu", progress=False)
    }
    run = {name for name, row in made.items() if row.run}
    assert run == set(BASELINES) | {
        f"{name}-steady" for name, one in BASELINES.items() if one.flow
    } | {"M9"}
    for name in BASELINES:
        assert (
            made[name].paper == {"full": PUBLISHED[name]}
            and made[name].settings()["model"]["baseline"] == name
        )
    for name, (uf1, uar, why) in ELSEWHERE.items():
        assert (
            made[name].run is None
            and tuple(made[name].paper["full"]) == (uf1, uar)
            and "other data" in made[name].note
            and why in made[name].note
        )
    assert (
        all(not row.paper for name, row in made.items() if name.endswith("-steady"))
        and made["M9"].paper == TABLE2["M9"]
    )
    for name in run & {
        f"{name}{end}" for name, one in BASELINES.items() if one.flow for end in ("", "-steady")
    }:
        model = made[name].settings()["model"]
        assert (
            model["steady"] == name.endswith("-steady")
            and model["flow"] == "dis"
            and model
            == baseline_settings(store, model["baseline"], "dis", model["steady"])["model"]
        )
    brief = {row.name: row for row in table1_rows(store, SMALL, BRIEF, brief=True)}
    assert (
        brief["ststnet"].settings()["train"]["epochs"] == 400
        and "epochs 400" in brief["ststnet"].note
        and "brief" not in made["ststnet"].note
    )


def test_a_baseline_and_m9_in_one_table(store, tmp_path):
    rows = table1_rows(store, SMALL, BRIEF, "dis", **HOW)
    table = run_table(
        "table1", rows, tmp_path, "T", names=["bi-woof", "M9"], progress=False
    ).set_index("row")
    assert (
        table.state["bi-woof"] == table.state["M9"] == "finished"
        and table.state["EMRNet"] == "not run here"
        and table.against["bi-woof"] == "M9"
    )
    page = (tmp_path / "table1.html").read_text()
    assert all(f"<td>{row.name}</td>" in page for row in rows) and all(
        f"{value:.3f}" in page for row in rows for value in row.paper.get("full", ())
    )


def test_experiments_share_m9(store, tmp_path, monkeypatch):
    for presets, config in ((PRESETS, SMALL), (TRAIN_PRESETS, BRIEF)):
        monkeypatch.setitem(presets, "tiny", config)
    run_table2(store, tmp_path, "tiny", names=["M9"], **HOW)
    before = contents(tmp_path)
    said, paths = run_experiment(
        "table1", {3: store}, tmp_path, "tiny", "dis", names=["bi-woof"], **HOW
    )
    assert (
        before.items() <= contents(tmp_path).items()
        and [path.name for path in paths] == ["table1.csv", "table1.html", "table1.png"]
        and all(path.exists() for path in paths)
    )
    assert "bi-woof" in said and "EMRNet" in said and "to M9" in said and "not run here" in said


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_rows_of_table3(store, classes):
    rows = table3_rows(store, store, classes, "paper")
    pairs, sequences, *quoted = rows
    names = {3: ("M9", []), 4: ("FRL-DGT-4", ["STRCN-A-4"]), 5: ("FRL-DGT-5", ["ELRCN-5"])}[classes]
    assert (
        pairs.name == names[0]
        and sequences.against == pairs.name
        and [row.name for row in quoted] == names[1]
        and all(row.run is None for row in quoted)
    )
    assert (
        sequences.settings()["train"]["batch_size"] == 5
        and sequences.settings()["model"]["steps"] == 10
        and pairs.settings()["model"].get("steps", 0) == 0
    )
    assert (
        pairs.settings()["model"]["classes"] == sequences.settings()["model"]["classes"] == classes
    )
    assert bool(pairs.paper) == (classes != 3) and ("3" in pairs.note) == (classes == 3)
    if classes == 4:
        assert pairs.paper["full"] == (0.750, 0.732, 0.780) and sequences.paper["full"] == (
            0.562,
            0.549,
            0.643,
        )


@pytest.mark.parametrize("preset", ["best", "paper"])
def test_names_are_known_without_faces(store, preset):
    configs = preset_configs(preset)
    for name, rows in {
        "table1": table1_rows(store, *configs),
        "table2": table2_rows(store, *configs),
        "table3": table3_rows(store, store, 3, preset),
    }.items():
        assert row_names(name, preset) == [row.name for row in rows if row.run]
    assert row_names("figures") == row_names("sensitivity") == []


def test_names_and_presets_that_there_are_not(store, tmp_path):
    with pytest.raises(
        ValueError, match="choose from table1, table2, table3, sensitivity, figures"
    ):
        run_experiment("table4", {3: store}, tmp_path)
    for preset in ("huge", "flow"):
        with pytest.raises(ValueError, match="choose from paper, tiny, best"):
            run_table2(store, tmp_path, preset)
    assert not list(tmp_path.iterdir())


def test_how_the_folds_are_run_is_passed_on(store, monkeypatch):
    "Workers and device are no settings: a row may go on with others."
    made, asked = {}, {}
    monkeypatch.setattr(
        experiments, "run_loso", lambda store, folder, **settings: asked.update(settings)
    )
    for workers in (1, 2):
        made[workers] = next(
            row
            for row in table2_rows(store, SMALL, BRIEF, "dis", workers=workers, device="cpu")
            if row.name == "M9"
        )
    made[2].run("somewhere")
    assert (
        asked["workers"] == 2
        and asked["device"] == "cpu"
        and asked["resume"]
        and made[1].settings() == made[2].settings()
    )


def test_a_row_is_a_run_like_any_other(store, whole, tmp_path):
    "What the row's folder holds is what run_loso makes with the same settings."
    loso.run_loso(store, tmp_path / "M9", model_config=SMALL, train_config=BRIEF, **HOW)
    theirs = contents(tmp_path)
    assert theirs and theirs == {
        path: value for path, value in contents(whole).items() if path.parts[0] == "M9"
    }


@pytest.fixture
def toys(monkeypatch):
    "The preset tiny is a toy's."
    for presets, config in (
        (PRESETS, SMALL),
        (TRAIN_PRESETS, BRIEF),
        (SEQUENCE_PRESETS, replace(SMALL, steps=10, sees=("apex", "displacement"))),
        (SEQUENCE_TRAIN_PRESETS, replace(BRIEF, apex_jitter=0)),
    ):
        monkeypatch.setitem(presets, "tiny", config)


def test_table3_makes_its_sequences(store, tmp_path, toys):
    shutil.copytree(store.path, tmp_path / "store")
    table = run_table3(
        {3: FaceStore(tmp_path / "store")}, tmp_path / "out", "tiny", **HOW
    ).set_index("row")
    assert (
        table.state.to_dict() == {"M9": "finished", "FRL-DGT-S-3": "finished"}
        and table.against["FRL-DGT-S-3"] == "M9"
        and table.p.notna()["FRL-DGT-S-3"]
    )
    assert (
        table.paper_uf1.isna().all()
        and table.note.str.contains("3").all()
        and (tmp_path / "store-10frames/index.parquet").exists()
    )


def test_four_classes_are_not_compared_with_three(store):
    "With M9 of another table in the same folder they once were, and that folder has other clips."
    for classes in (3, 4, 5):
        rows = [row for row in table3_rows(store, store, classes, "tiny") if row.run]
        assert {row.against for row in rows} == {rows[0].name} and rows[0].name.endswith(
            f"-{classes}"
        ) == (classes != 3)


def test_sensitivity_and_figures_ask_m9(store, tmp_path, toys, monkeypatch):
    asked = {}

    def say(name, value):
        return lambda store, run, *args, **more: asked.update({name: run}) or value

    scored = pd.DataFrame(
        {"moment": ["labelled"], "share": [0.0], "direction": [""], "moved": [0.0], "frames": [0.0]}
        | {f"{score}{end}": [0.5] for score in ("uf1", "uar") for end in ("", "_low", "_high")}
        | {"paper_uf1": [0.919], "paper_uar": [0.903]}
    )
    monkeypatch.setattr(experiments, "shift_sensitivity", say("sensitivity", scored))
    said, paths = run_experiment("sensitivity", {3: store}, tmp_path, "tiny", **HOW)
    assert (
        asked == {"sensitivity": tmp_path / "M9"}
        and (tmp_path / "M9/report.json").exists()
        and ".919" in paths[1].read_text()
        and "CASME II (paper)" in paths[1].read_text()
    )
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/figure8.png").write_bytes(b"\x89PNG8")
    monkeypatch.setattr(
        experiments,
        "write_figures",
        say("figures", [tmp_path / "figures/figure8.png", tmp_path / "figures/figures.html"]),
    )
    monkeypatch.setattr(experiments, "occlusion_table", say("occlusion", None))
    monkeypatch.setattr(
        experiments,
        "agreement_table",
        lambda table: pd.DataFrame({"value": [0.1], "low": [0.0], "high": [0.2]}, index=["weight"]),
    )
    monkeypatch.setattr(experiments, "plot_occlusion", lambda store, table: None)
    said, paths = run_experiment("figures", {3: store}, tmp_path, "tiny", **HOW)
    assert (
        set(asked.values()) == {tmp_path / "M9"}
        and b64encode(b"\x89PNG8").decode() in paths[1].read_text()
        and "weight" in said
        and pd.read_csv(paths[0]).value.tolist() == [0.1]
    )


def test_fewer_epochs_everywhere(store, tmp_path, toys):
    "Pairs and sequences; the page says so, and a run with others isn't mixed with these."
    TRAIN_PRESETS["tiny"], SEQUENCE_TRAIN_PRESETS["tiny"] = (
        replace(BRIEF, epochs=3),
        replace(BRIEF, epochs=3, apex_jitter=0),
    )  # `toys` takes it back
    shutil.copytree(store.path, tmp_path / "store")
    said, paths = run_experiment(
        "table3", {3: FaceStore(tmp_path / "store")}, tmp_path / "out", "tiny", epochs=1, **HOW
    )
    for row in ("M9", "FRL-DGT-S-3"):
        assert (
            json.loads((tmp_path / "out" / row / "config.json").read_text())["train"]["epochs"] == 1
        )
    assert "Preset tiny, epochs 1, seed 0" in paths[1].read_text()
    for name in ("table1", "table2", "table3", "sensitivity", "figures"):
        with pytest.raises(ValueError, match="epochs.*choose another --out"):
            run_experiment(
                name,
                {3: FaceStore(tmp_path / "store")},
                tmp_path / "out",
                "tiny",
                names=["M9"] if "table" in name else None,
                epochs=2,
                **HOW,
            )
