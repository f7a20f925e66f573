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
from frl_dgt_nb.training import fold
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.settings import TRAIN_PRESETS

MODEL = PRESETS["best"]
TRAIN = replace(TRAIN_PRESETS["best"], store_every=25)  # the last epoch is all we need
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


def clip_displacements(store: FaceStore, i: int, reach: int) -> torch.Tensor:
    "Registered, damped least squares from the onset to the frames around the apex; nothing learnt."
    row = store.index.iloc[i]
    around = (row["apex"] + torch.arange(-reach, reach + 1)).clamp(0, row["n_frames"] - 1)
    pictures = torch.from_numpy(store.clip(i)[[row["onset"], *around]].copy())
    onset, apexes = (pictures.permute(0, 3, 1, 2).float() / 255).split([1, len(around)])
    motion = least_squares(evidence(onset.expand_as(apexes), apexes), 0.1)
    motion = F.interpolate(motion, apexes.shape[-2:], mode="bilinear")
    return F.avg_pool2d(from_motion(motion), 4)


def least_squares_displacements(path, checksum, reach, device, module="guided", progress=False):
    "In place of `precomputed_displacements`."
    store = FaceStore(path)
    return torch.stack([clip_displacements(store, i, reach) for i in range(len(store))])


def run_step(store: FaceStore, name: str, out: Path) -> dict:
    "A run of a row of STEPS, or what is stored of it: its report."
    model_changes, train_changes = STEPS[name]
    folder = out / name.replace(" ", "_").replace(":", "").replace(",", "")
    model, train = replace(MODEL, **model_changes), replace(TRAIN, **train_changes)
    how = dict(resume=True, seed=int(name.endswith("seed")), threads=1)
    trained = fold.precomputed_displacements
    if name.startswith("damped"):
        fold.precomputed_displacements = least_squares_displacements
    try:
        return run_loso(store, folder, "best", model, train, **how)
    finally:
        fold.precomputed_displacements = trained


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data_samples")
    parser.add_argument("--database", default="folder")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--only", nargs="*", choices=list(STEPS), default=list(STEPS))
    options = parser.parse_args()
    store, rows = prepare(read_database(options.data, options.database), options.out / "store"), []
    for name in options.only:
        report = run_step(store, name, options.out)
        scores = {key: round(report[key], 3) for key in ("uf1", "uar", "accuracy", "seconds")}
        rows.append({"": name, **scores})
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    pd.DataFrame(rows).to_csv(options.out / "ladder.csv", index=False)


if __name__ == "__main__":
    main()
