"""Six methods of other papers through the same folds: UF1 with an interval, UAR, the oracle, what was changed.

    python benchmarks/baselines.py [--data ROOT --database casme2] [--out runs/baselines] [--only NAME ...]

Methods that look at flow are run twice, with the drift of the head left in and removed. Finished runs are kept
in OUT and read again. The table is printed; the stored one, of data_samples, lies beside this file: baselines.csv.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.study.baselines import BASELINES, run_baseline
from frl_dgt_nb.study.rows import BRIEF
from frl_dgt_nb.training.metrics import interval
from frl_dgt_nb.training.run_folder import load_fold


def last_loss(run: Path, subjects: list[str]) -> str:
    "Mean training loss of the folds after the last epoch; empty for a support vector machine."
    losses = [load_fold(run, subject)["losses"] for subject in subjects]
    return f"{np.mean([fold[-1]['total'] for fold in losses]):.2f}" if losses[0] else ""


def row_of(store: FaceStore, name: str, steady: bool, out: Path) -> dict:
    "Run a method, or read its run, and score it."
    run = out / (f"{name}-steady" if steady else name)
    changed = BRIEF.get(name, {})
    start = time.process_time()
    report = run_baseline(
        store, run, name, steady=steady, device="cpu", resume=True, progress=False, **changed
    )
    seconds = time.process_time() - start
    table = pd.read_parquet(run / "predictions.parquet")
    low, high = interval(table.label, table.prediction, table.subject_id)
    drift = ("yes" if steady else "no") if BASELINES[name].flow else ""
    return {
        "method": name,
        "drift removed": drift,
        "UF1": f"{report['uf1']:.3f}",
        "95 % interval": f"{low:.2f} to {high:.2f}",
        "UAR": f"{report['uar']:.3f}",
        "oracle UF1": f"{report['oracle']['uf1']:.3f}",
        "last training loss": last_loss(run, store.index.subject_id.unique().tolist()),
        "CPU s": round(seconds),
        "changed": ", ".join(f"{key} {value}" for key, value in changed.items()) or "nothing",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data_samples")
    parser.add_argument("--database", default="folder")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--only", nargs="*", choices=list(BASELINES), default=list(BASELINES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = prepare(read_database(options.data, options.database), options.out / "store")
    rows = []
    for name in options.only:
        for steady in (False, True) if BASELINES[name].flow else (False,):
            rows.append(row_of(store, name, steady, options.out))
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
    pd.DataFrame(rows).to_csv(options.out / "baselines.csv", index=False)


if __name__ == "__main__":
    main()
