"""Rows that hold what the tables of the paper name, with the settings that they promise."""

import json
from dataclasses import replace

import pytest
from run_toy import BRIEF, SMALL
from toy_store import toy_store

from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.study import rows as study_rows
from frl_dgt_nb.study.ablations import VARIANTS, variant
from frl_dgt_nb.study.baselines import BASELINES, BaselineConfig, baseline_settings
from frl_dgt_nb.study.published import NOT_IMPLEMENTED, OTHER_DATA, TABLE1, TABLE2, composite_scores
from frl_dgt_nb.study.rows import (
    ExperimentSettings,
    experiment_text,
    preset_configs,
    row_names,
    table1_rows,
    table2_rows,
    table3_rows,
)
from frl_dgt_nb.training.settings import TRAIN_PRESETS

SETTINGS = ExperimentSettings(flow="dis", device="cpu", threads=1, progress=False)
STEADY = {f"{name}-steady" for name, baseline in BASELINES.items() if baseline.flow}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("toy") / "store", subjects=3)


def by_name(rows):
    return {row.name: row for row in rows}


def as_json(config):
    return json.loads(json.dumps(vars(config)))


@pytest.mark.parametrize("preset", ["paper", "tiny", "best"])
def test_rows_of_table2_are_the_variants(store, preset):
    rows = by_name(table2_rows(store, ExperimentSettings(preset, seed=3)))
    assert set(rows) == set(VARIANTS) - (set() if preset == "best" else {"M9-plain"})
    assert list(rows)[:10] == [f"M{i}" for i in range(10)]
    for name, row in rows.items():
        model, train = variant(name, PRESETS[preset], TRAIN_PRESETS[preset], "tvl1")
        settings = row.settings()
        assert settings["model"] == as_json(model)
        assert settings["train"] == as_json(train)
        assert settings["seed"] == 3
        assert row.paper == TABLE2.get(name, {})
    assert rows["M3"].against == ("M9-plain" if preset == "best" else "M9")
    assert all(row.against == "M9" for name, row in rows.items() if name != "M3")


def test_rows_of_table1_are_the_baselines_and_the_quoted(store):
    rows = by_name(table1_rows(store, SETTINGS, (SMALL, BRIEF)))
    run = {name for name, row in rows.items() if row.run}
    assert run == set(BASELINES) | STEADY | {"M9"}
    assert set(rows) - run == {*NOT_IMPLEMENTED, *OTHER_DATA}
    assert rows["M9"].paper == TABLE2["M9"]


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_of_table1(store, name):
    row = by_name(table1_rows(store, SETTINGS))[name]
    assert row.paper == {"full": composite_scores(name)}
    assert row.settings() == baseline_settings(store, BaselineConfig(name, "dis"))
    assert "brief" not in row.note


@pytest.mark.parametrize("name", sorted(STEADY))
def test_a_baseline_without_the_drift(store, name):
    row = by_name(table1_rows(store, SETTINGS))[name]
    config = BaselineConfig(name.removesuffix("-steady"), "dis", steady=True)
    assert row.paper == {}
    assert row.settings() == baseline_settings(store, config)


@pytest.mark.parametrize("name", OTHER_DATA)
def test_a_method_that_needs_other_data(store, name):
    row = by_name(table1_rows(store, SETTINGS))[name]
    assert row.run is None
    assert row.paper == {"full": TABLE1[name]["full"]}
    assert "other data" in row.note and OTHER_DATA[name] in row.note


def test_tiny_is_brief(store):
    row = by_name(table1_rows(store, ExperimentSettings("tiny")))["ststnet"]
    assert row.settings()["train"]["epochs"] == 400
    assert "epochs 400" in row.note


NAMES3 = {3: ("M9", []), 4: ("FRL-DGT-4", ["STRCN-A-4"]), 5: ("FRL-DGT-5", ["ELRCN-5"])}


@pytest.mark.parametrize("classes", NAMES3)
def test_rows_of_table3(store, classes):
    pairs, sequences, *quoted = table3_rows(store, store, ExperimentSettings("paper"), classes)
    name, names_of_quoted = NAMES3[classes]
    assert pairs.name == pairs.against == sequences.against == name
    assert [row.name for row in quoted] == names_of_quoted
    assert all(row.run is None for row in quoted)
    assert sequences.settings()["train"]["batch_size"] == 5
    assert sequences.settings()["model"]["steps"] == 10
    assert pairs.settings()["model"].get("steps", 0) == 0
    assert (
        pairs.settings()["model"]["classes"] == sequences.settings()["model"]["classes"] == classes
    )
    assert bool(pairs.paper) == (classes != 3)
    assert ("3" in pairs.note) == (classes == 3)


def test_figures_of_table3(store):
    pairs, sequences, *_ = table3_rows(store, store, ExperimentSettings("paper"), 4)
    assert pairs.paper["full"] == (0.750, 0.732, 0.780)
    assert sequences.paper["full"] == (0.562, 0.549, 0.643)


@pytest.mark.parametrize("classes", NAMES3)
def test_four_classes_are_not_compared_with_three(store, classes):
    "With M9 of another table in the same folder they once were, and that folder has other clips."
    rows = [
        row for row in table3_rows(store, store, ExperimentSettings("tiny"), classes) if row.run
    ]
    assert {row.against for row in rows} == {rows[0].name}
    assert rows[0].name.endswith(f"-{classes}") == (classes != 3)


@pytest.mark.parametrize("preset", ["best", "paper"])
def test_names_are_known_without_faces(store, preset):
    settings = ExperimentSettings(preset)
    tables = {
        "table1": table1_rows(store, settings),
        "table2": table2_rows(store, settings),
        "table3": table3_rows(store, store, settings),
    }
    for name, rows in tables.items():
        assert row_names(name, preset) == [row.name for row in rows if row.run]
    assert row_names("figures") == row_names("sensitivity") == []


@pytest.mark.parametrize("preset", ["huge", "flow"])
def test_presets_that_there_are_not(preset):
    with pytest.raises(ValueError, match="choose from paper, tiny, best"):
        preset_configs(ExperimentSettings(preset))


def test_what_the_page_says_of_the_settings():
    settings = ExperimentSettings("tiny", flow="dis", seed=2, epochs=4)
    assert experiment_text(settings, flow=True).startswith(
        "Preset tiny, epochs 4, seed 2, optical flow dis. Every row:"
    )
    assert experiment_text(ExperimentSettings()).startswith("Preset best, seed 0. Every row:")


def test_how_the_folds_are_run_is_passed_on(store, monkeypatch):
    "Workers and device are no settings of the run: a row may go on with others."
    asked = {}
    monkeypatch.setattr(study_rows, "run_loso", lambda store, folder, **more: asked.update(more))
    one, two = (
        by_name(table2_rows(store, replace(SETTINGS, workers=workers), (SMALL, BRIEF)))["M9"]
        for workers in (1, 2)
    )
    two.run("somewhere")
    assert asked["workers"] == 2
    assert asked["device"] == "cpu"
    assert asked["resume"]
    assert one.settings() == two.settings()
