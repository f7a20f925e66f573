"""What each departure of the preset `best` is worth: leave-one-subject-out with one of them taken back at a time.

    python benchmarks/ladder.py [--data ROOT --database casme2] [--out runs/ladder] [--only NAME ...]

Finished rows are kept in OUT and read again; the table is printed and written to OUT/ladder.csv.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.evidence import evidence, least_squares
from frl_dgt_nb.model.warp import from_motion
from frl_dgt_nb.training import fold as training
from frl_dgt_nb.training.loso import run_loso

MODEL, TRAIN = (
    PRESETS["best"],
    replace(training.TRAIN_PRESETS["best"], store_every=25),
)  # the last epoch is all we need
STEPS = {  # name: model settings, training settings
    "best": ({}, {}),
    "best, another seed": ({}, {}),
    "no smooth noise": ({"displacement_noise": 0.0}, {}),
    "finer patches: crops of 45 by 9, full face 72": (
        {"crop_size": 45, "patch": 9, "full_size": 72},
        {},
    ),
    "no mirroring": ({"mirror": False}, {"mirror": False}),
    "displacement not normalised": ({"normalize": False}, {}),
    "frames beside the displacement": ({"sees": ("onset", "apex", "displacement")}, {}),
    "damped least squares instead of the trained module": ({}, {}),
    "fusion after attention": ({"fusion": "after"}, {}),
    "no apex jitter": ({}, {"apex_jitter": 0}),
    "C = 128": ({"dim": 128}, {}),
}


def least_squares_displacements(path, checksum, reach, device):
    "In place of `precomputed_displacements`: registered, damped least squares, nothing learnt."
    store, found = FaceStore(path), []
    for i in range(len(store)):
        row = store.index.iloc[i]
        around = (row["apex"] + torch.arange(-reach, reach + 1)).clamp(0, row["n_frames"] - 1)
        frames = (
            torch.from_numpy(store.clip(i)[[row["onset"], *around]].copy())
            .permute(0, 3, 1, 2)
            .float()
            / 255
        )
        motion = least_squares(evidence(frames[:1].expand_as(frames[1:]), frames[1:]), 0.1)
        found.append(
            F.avg_pool2d(from_motion(F.interpolate(motion, frames.shape[-2:], mode="bilinear")), 4)
        )
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data_samples")
    parser.add_argument("--database", default="folder")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--only", nargs="*", choices=list(STEPS), default=list(STEPS))
    options = parser.parse_args()
    store = prepare(read_database(options.data, options.database), options.out / "store")
    trained, rows = training.precomputed_displacements, []
    for name in options.only:
        training.precomputed_displacements = (
            least_squares_displacements if name.startswith("damped") else trained
        )
        model, train = replace(MODEL, **STEPS[name][0]), replace(TRAIN, **STEPS[name][1])
        report = run_loso(
            store,
            options.out / name.replace(" ", "_").replace(":", "").replace(",", ""),
            "best",
            model,
            train,
            resume=True,
            seed=int(name.endswith("seed")),
            threads=1,
        )
        rows.append(
            {"": name}
            | {key: round(report[key], 3) for key in ("uf1", "uar", "accuracy", "seconds")}
        )
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    pd.DataFrame(rows).to_csv(options.out / "ladder.csv", index=False)


if __name__ == "__main__":
    main()
