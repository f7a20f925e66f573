"""Finished runs whose predictions a test has chosen."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd

from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.study.tables import Row
from frl_dgt_nb.training.settings import TrainConfig


def never(folder):
    raise AssertionError(f"{folder} was run")


def make_run(folder, labels, predictions, subjects, databases="ours", seconds=7.0):
    "The files of a finished run that predicted this"
    columns = {
        "database": databases,
        "subject": subjects,
        "label": labels,
        "prediction": predictions,
    }
    frame = pd.DataFrame(columns).assign(oracle_prediction=labels)
    frame["subject_id"] = frame.database + "/" + frame.subject
    frame["clip_id"] = [f"{subject}/c{i}" for i, subject in enumerate(frame.subject_id)]
    (folder / "folds").mkdir(parents=True)
    frame.to_parquet(folder / "predictions.parquet")
    config = {"seed": 0, "model": asdict(ModelConfig()), "train": asdict(TrainConfig()), "data": {}}
    report = {"seconds": seconds, "oracle": {"uf1": 1.0, "uar": 1.0}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "report.json").write_text(json.dumps(report))
    return frame


def known_runs(out, right, subjects=24, clips=6):
    "Runs, each right in the given share of the clips of every subject: which clips, all have in common"
    labels = np.tile(np.arange(clips) % 3, subjects)
    owner = np.repeat([f"{subject:02}" for subject in range(subjects)], clips)
    hard = np.concatenate([np.random.default_rng(s).permutation(clips) for s in range(subjects)])
    rows = []
    for i, (name, share) in enumerate(right.items()):
        predictions = np.where(hard < share * clips, labels, (labels + 1) % 3)
        make_run(out / name, labels, predictions, owner)
        rows.append(Row(name, name, never, paper={"full": (0.5 + 0.01 * i, 0.5)}))
    return rows
