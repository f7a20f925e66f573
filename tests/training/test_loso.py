"""Runs: independence of folds, stops of every kind, and what is never written over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from run_toy import BRIEF, SMALL
from safetensors.torch import load_file
from toy_store import toy_store

from frl_dgt_nb.model.frldgt import load_model
from frl_dgt_nb.training import loso
from frl_dgt_nb.training import run_folder as folds
from frl_dgt_nb.training.fold import train_fold, train_on
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.metrics import scores
from frl_dgt_nb.training.run_folder import (
    best_epoch,
    differences,
    fold_path,
    inner_epoch,
    load_fold,
    read_settings,
    run_settings,
)

torch.set_num_threads(1)
SETTINGS = dict(model_config=SMALL, train_config=BRIEF, device="cpu", threads=1, progress=False)


@pytest.fixture(scope="module")
def store(toy):
    return toy


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    "A whole run, never stopped"
    out = tmp_path_factory.mktemp("run") / "whole"
    return out, run_loso(store, out, **SETTINGS)


def subjects(store):
    return store.index.subject_id.unique().tolist()


def same_folds(store, one, other):
    for subject in subjects(store):
        a, b = load_fold(one, subject), load_fold(other, subject)
        assert a["probabilities"] == b["probabilities"] and a["losses"] == b["losses"]
        a, b = (load_file(fold_path(out, subject, ".safetensors")) for out in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_report_and_predictions(store, run):
    out, report = run
    table = pd.read_parquet(out / "predictions.parquet")
    assert (
        table.clip_id.tolist() == store.index.clip_id.tolist()
        and table.label.tolist() == store.index.label.tolist()
    )
    expected = scores(table.label, table.prediction)
    assert {name: report[name] for name in expected} == expected
    assert report["selection"] == "last" and set(report["oracle"]) == {"uf1", "uar"}
    assert (report["n_clips"], report["n_subjects"]) == (12, 4) and set(report["per_database"]) == {
        "toy",
        "play",
    }
    assert report["excluded"] == [{"clip": "toy/09/c0", "reason": "the apex is /"}]
    assert report["seconds"] > 0 and "torch" in report["versions"]
    assert json.loads((out / "report.json").read_text()) == report
    probabilities = table[["p_negative", "p_positive", "p_surprise"]].to_numpy()
    assert (
        np.allclose(probabilities.sum(1), 1) and (probabilities.argmax(1) == table.prediction).all()
    )
    assert all(
        len(epochs) == 4 and epochs[-1] == last
        for epochs, last in zip(table.epoch_predictions, table.prediction)
    )
    assert sum(part["n_clips"] for part in report["per_database"].values()) == 12


def test_stored_weights_predict_what_was_stored(store, run):
    from frl_dgt_nb.training.fold import predict_test
    from frl_dgt_nb.training.sampling import FoldData

    fold = load_fold(run[0], "play/02")
    model = load_model(fold_path(run[0], "play/02", ".safetensors"))
    assert np.allclose(
        predict_test(model, FoldData(store, "play/02", BRIEF.batch_size)),
        fold["probabilities"][-1],
        atol=1e-7,
    )


def test_a_fold_alone_is_the_fold_within_the_run(store, run):
    for subject in ("play/02", "toy/01"):
        alone = train_fold(store, subject, SMALL, BRIEF, device="cpu", progress=False)
        assert alone.probabilities.tolist() == load_fold(run[0], subject)["probabilities"]


def test_two_processes_make_the_same_bits(store, run, tmp_path):
    assert (
        run_loso(store, tmp_path / "two", workers=2, **SETTINGS)["confusion"] == run[1]["confusion"]
    )
    same_folds(store, run[0], tmp_path / "two")


def test_oracle_takes_the_earliest_of_the_best_epochs():
    onehot = np.eye(3)[[[0, 0, 0], [0, 1, 0], [0, 1, 1], [2, 1, 0]]]  # (epochs,clips,classes)
    assert best_epoch({"probabilities": onehot.tolist(), "labels": [0, 1, 2]}) == 1


def test_inner_takes_the_earliest_epoch_of_lowest_cross_entropy():
    sure, unsure, wrong = [0.9, 0.05, 0.05], [0.5, 0.25, 0.25], [0.0, 0.5, 0.5]
    fold = {
        "inner_labels": [0, 0],
        "inner_probabilities": [
            [unsure, unsure],
            [sure, wrong],
            [sure, unsure],
            [unsure, sure],
            [sure, wrong],
        ],
    }
    assert inner_epoch(fold) == 2  # never the one that is sure and once as wrong as can be


@pytest.fixture(scope="module")
def inner_run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("inner") / "run"
    return out, run_loso(store, out, **SETTINGS | {"train_config": replace(BRIEF, inner=1)})


def test_inner_predictions_are_those_of_the_epoch_chosen_on_others(store, inner_run):
    out, report = inner_run
    table = pd.read_parquet(out / "predictions.parquet").set_index("clip_id")
    last = scores(table.label, table.prediction)
    assert report["selection"] == "last" and {name: report[name] for name in last} == last
    chosen = scores(table.label, table.inner_prediction)
    assert report["inner"] == {name: chosen[name] for name in ("uf1", "uar")}
    epochs = set()
    for subject in subjects(store):
        fold = load_fold(out, subject)
        owners = {clip.rsplit("/", 1)[0] for clip in fold["inner_clip_ids"]}
        assert len(owners) == 1 and subject not in owners and len(fold["inner_clip_ids"]) == 3
        assert (
            store.index.set_index("clip_id").label[fold["inner_clip_ids"]].tolist()
            == fold["inner_labels"]
        )
        losses = [
            -np.mean([np.log(p[label]) for p, label in zip(each, fold["inner_labels"])])
            for each in fold["inner_probabilities"]
        ]
        at = int(np.argmin(losses))
        epochs.add(at)
        assert len(losses) == len(fold["epochs"]) == 4
        assert (
            table.inner_prediction[fold["clip_ids"]].tolist()
            == np.argmax(fold["probabilities"][at], -1).tolist()
        )
    assert epochs != {3}  # else the test above would pass with the last epoch


def test_without_inner_nothing_is_said_of_it(store, run):
    assert "inner" not in run[1] and not [
        name for name in load_fold(run[0], "toy/01") if "inner" in name
    ]
    assert "inner_prediction" not in pd.read_parquet(run[0] / "predictions.parquet")


def test_too_many_inner_subjects_are_refused_before_anything_is_written(store, tmp_path):
    with pytest.raises(ValueError, match="inner=3 of the 3 training subjects.*lower inner"):
        run_loso(store, tmp_path / "run", **SETTINGS | {"train_config": replace(BRIEF, inner=3)})
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_a_setting_goes_on(store, run, tmp_path):
    "Its config.json lacks what later versions added; that had the default"
    shutil.copytree(run[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["train"]["inner"], config["model"]["displacement_noise"], config["model"]["levels"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for path in ("report.json", "predictions.parquet", "folds/toy__02.json"):
        (tmp_path / "run" / path).unlink()
    with pytest.raises(ValueError, match="train.inner was 0, now 1;"):
        run_loso(
            store,
            tmp_path / "run",
            **SETTINGS | {"train_config": replace(BRIEF, inner=1)},
            resume=True,
        )
    assert (
        run_loso(store, tmp_path / "run", **SETTINGS, resume=True)["confusion"]
        == run[1]["confusion"]
    )
    same_folds(store, run[0], tmp_path / "run")
    assert read_settings(tmp_path / "run") == run_settings(store, SMALL, BRIEF, 0)


def test_an_existing_run_is_not_touched(store, run):
    # but for its lock, which some versions of filelock touch
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run[0].rglob("[!.]*")
    }
    with pytest.raises(ValueError, match="not empty.*--resume"):
        run_loso(store, run[0], **SETTINGS)
    with pytest.raises(ValueError, match="seed was 0, now 1; train.epochs was 4, now 9; "):
        run_loso(
            store,
            run[0],
            **SETTINGS | {"train_config": replace(BRIEF, epochs=9)},
            seed=1,
            resume=True,
        )
    with pytest.raises(ValueError, match="model.dim was 4, now 8"):
        run_loso(store, run[0], **SETTINGS | {"model_config": replace(SMALL, dim=8)}, resume=True)
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run[0].rglob("[!.]*")
    }


def test_other_data_are_another_run(store, run, tmp_path):
    other = toy_store(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="data.checksum was 0, now 1"):
        run_loso(other, run[0], **SETTINGS, resume=True)
    settings = run_settings(store, SMALL, BRIEF, 0)
    assert differences(settings, json.loads(json.dumps(settings))) == []


def test_a_folder_with_something_else(store, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        run_loso(store, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="not empty"):
        run_loso(store, tmp_path / "thesis.tex", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_ctrl_c_and_resume(store, run, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args[0].test_subject)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_on(*args, **kwargs)

    monkeypatch.setattr(loso, "train_on", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped with 2 of 4 folds finished .*--resume"):
        run_loso(store, tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run" / "report.json").exists()
    report = run_loso(store, tmp_path / "run", **SETTINGS, resume=True)
    assert (
        calls == subjects(store)[:3] + subjects(store)[2:]
    )  # finished folds are not trained again
    assert report["confusion"] == run[1]["confusion"]
    same_folds(store, run[0], tmp_path / "run")


def test_half_a_fold_is_no_fold(store, run, tmp_path, monkeypatch):
    "Stopped after the weights and before the JSON, and while the JSON was being written"

    def stop(*args):
        raise KeyboardInterrupt

    write = folds.write_json
    with monkeypatch.context() as patch:
        patch.setattr(
            folds,
            "write_json",
            lambda path, value: stop() if path.parent.name == "folds" else write(path, value),
        )
        with pytest.raises(KeyboardInterrupt, match="0 of 4"):
            run_loso(store, tmp_path / "run", **SETTINGS)
    first = fold_path(tmp_path / "run", subjects(store)[0])
    assert (
        fold_path(tmp_path / "run", subjects(store)[0], ".safetensors").exists()
        and not first.exists()
    )
    first.with_name(first.name + ".part").write_text('{"subject_id": "toy')
    assert (
        run_loso(store, tmp_path / "run", **SETTINGS, resume=True)["confusion"]
        == run[1]["confusion"]
    )
    same_folds(store, run[0], tmp_path / "run")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_kill_9_and_resume(store, run, tmp_path):
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "run_toy.py"),
        str(store.path),
        str(tmp_path / "run"),
        "2",
    ]
    process = subprocess.Popen(command)
    while process.poll() is None and not list((tmp_path / "run").glob("folds/*.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "run" / "folds").glob("*.json"):
        json.loads(path.read_text())  # whole, or not there
    deadline = time.time() + 60
    while (
        True
    ):  # the lock is gone with its holder; a worker that outlived it for a moment harms nothing
        try:
            report = run_loso(store, tmp_path / "run", **SETTINGS, resume=True)
        except ValueError:
            assert time.time() < deadline
            time.sleep(0.1)
        else:
            break
    assert report["confusion"] == run[1]["confusion"]
    same_folds(store, run[0], tmp_path / "run")


def test_an_error_in_a_worker_comes_through(store, tmp_path):
    bad = SETTINGS | {"train_config": replace(BRIEF, dgm_rate=1e30, fusion_rate=1e30)}
    with pytest.raises(ValueError, match="no longer finite in fold"):
        run_loso(store, tmp_path / "run", **bad, workers=2)


def test_names_and_bad_input(store, tmp_path):
    assert fold_path("run", "casme2/sub01").as_posix() == "run/folds/casme2__sub01.json"
    assert fold_path("run", "folder/..%\\a b").name == "folder__..%25%5Ca b.json"
    assert load_fold(tmp_path, "a/b") is None
    for wanted, told in (
        ({"preset": "huge"}, "no preset 'huge'; choose from paper, tiny"),
        ({"workers": 0}, "workers must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=told):
            run_loso(store, tmp_path / "run", **SETTINGS, **wanted)
    with pytest.raises(ValueError, match="takes two or more"):
        run_loso(toy_store(tmp_path / "one", subjects=1), tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()
