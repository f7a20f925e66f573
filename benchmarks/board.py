"""How long the board takes to read a run and to draw it, for runs of 22 and of 68 folds: the kernel's part, from
the look at the folder to the last message sent.

    python benchmarks/board.py    the runs are made up: random predictions of 6 clips a subject, 50 epochs

`first` reads all but the last five folds, `one more` is a refresh after another fold was finished, `nothing new`
is what happens every five seconds in between.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from frl_dgt_nb.training.run_folder import fold_path
from frl_dgt_nb.widgets.board import LosoBoard

CLIPS, EPOCHS = 6, 50


def write_fold(run, number, generator):
    "A fold as `save_fold` would have left it."
    subject, chances = f"made/{number:02}", generator.dirichlet(np.ones(3), (EPOCHS, CLIPS))
    fold = {
        "subject_id": subject,
        "clip_ids": [f"{subject}/c{k}" for k in range(CLIPS)],
        "labels": [k % 3 for k in range(CLIPS)],
        "probabilities": chances.tolist(),
        "epochs": [*range(1, EPOCHS + 1)],
        "losses": [
            {"total": loss, "classification": loss}
            for loss in np.geomspace(1.1, 0.2, EPOCHS) * generator.uniform(0.8, 1.2)
        ],
        "seconds": 60.0,
        "device": "cpu",
    }
    fold_path(run, subject).write_text(json.dumps(fold))


def times(act, tries=1):
    "ms on the clock and of the processor, medians."
    told = []
    for _ in range(tries):
        clock, processor = time.perf_counter(), time.process_time()
        act()
        told.append(
            (1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processor))
        )
    return np.median(told, 0)


def main():
    rows = {}
    for folds in (22, 68):
        generator, run = np.random.default_rng(0), Path(tempfile.mkdtemp())
        (run / "folds").mkdir()
        for number in range(folds - 5):
            write_fold(run, number, generator)
        boards = []
        rows[folds, "first"] = times(lambda: boards.append(LosoBoard(run)))
        told = []
        for number in range(folds - 5, folds):
            write_fold(run, number, generator)
            told.append(times(boards[0].refresh))
        assert len(boards[0].watch.folds) == folds
        rows[folds, "one more"] = np.median(told, 0)
        rows[folds, "nothing new"] = times(boards[0].refresh, 20)
    table = pd.DataFrame(rows, index=["clock, ms", "processor, ms"]).T
    table.index.names = ["folds", "refresh"]
    print(table.to_string(float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
