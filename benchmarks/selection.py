"""What it is worth to choose the epoch: the preset `best`, its last epoch, the one chosen on held-out training
subjects, and the oracle's.

    python benchmarks/selection.py --data ROOT --database casme2 --inner 4 --seeds 0 1 --out runs/selection

A run for each seed; finished ones in OUT are read again. With --inner 0 nobody is held out, and there is no inner
epoch.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.protocol import readable_selections, selection_table
from frl_dgt_nb.training.settings import TRAIN_PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data_samples")
    parser.add_argument("--database", default="folder")
    parser.add_argument("--inner", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=TRAIN_PRESETS["best"].epochs)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/selection"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = prepare(
        read_database(options.data, options.database), options.out / f"store_{options.database}"
    )
    config = replace(TRAIN_PRESETS["best"], inner=options.inner, epochs=options.epochs)
    for seed in options.seeds:
        out = (
            options.out
            / f"{options.database}_inner{options.inner}_epochs{options.epochs}_seed{seed}"
        )
        run_loso(
            store,
            out,
            preset="best",
            train_config=config,
            workers=options.workers,
            threads=1,
            seed=seed,
            resume=True,
        )
        print(f"seed {seed}\n{readable_selections(selection_table(out)).to_string()}\n")


if __name__ == "__main__":
    main()
