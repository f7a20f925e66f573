"""How far is a spotted apex from the known one, and what does it cost in UF1?

    python benchmarks/spotting.py [ROOT [folder|casme2]] [--loso RUNS] [--seed S] [--long N] [--rendered N]

First table: clips cut at their known onset and offset. Second: untrimmed clips of 40 frames, made from the onset
frames and true displacements of the set (a head that drifts, turns and comes nearer; light; noise; a blink in
each). Third, with --rendered N (wants the extra `sim`): N heads rendered by the simulator, two clips of 40 frames
each, one of them with a blink. Errors are means over the clips, in frames. `as [33]` is the region method on
frames as they are aligned, without smoothing. With --loso, the preset `best` is trained and tested on stores with
spotted apexes, a run in a folder of RUNS for each; it takes minutes to an hour, and goes on where it was
interrupted.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.curves import Disturbance, flow_strain_curve, play_clip, steady
from frl_dgt_nb.data.faces import align, alignment_transform, detect_landmarks, transform_points
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.spotting import METHODS, Spot, spot, spot_store
from frl_dgt_nb.simulate.actions import envelope, random_actions

METHODS["strain from the first frame, not relative"] = partial(
    flow_strain_curve, both=False, relative=False
)  # for comparison alone
WAYS = {
    "regions as [33]": dict(method="regions", smooth=0),
    "regions": dict(method="regions"),  # all but the first on steadied frames
    "strain from the first frame": dict(method="strain from the first frame, not relative"),
    "strain": dict(method="strain"),
}


def middle(frames, landmarks, trimmed=False):
    "What costs nothing: the middle frame, a quarter to either side."
    n = len(frames) - 1
    return Spot(0 if trimmed else n // 4, n // 2, n if trimmed else n - n // 4, None, "middle")


def measure(clips, trimmed):
    "A row a way: mean absolute errors in frames over clips of (frames, landmarks, onset, apex, offset)."
    rows, held = {}, [steady(frames, landmarks) for frames, landmarks, *_ in clips]
    for name, way in {
        "middle frame": middle,
        **{name: partial(spot, steadied=False, **settings) for name, settings in WAYS.items()},
    }.items():
        found = [
            way(clip[0] if name == "regions as [33]" else still, clip[1], trimmed=trimmed)
            for clip, still in zip(clips, held)
        ]
        away = abs(
            np.array([[one.onset, one.apex, one.offset] for one in found])
            - np.array([clip[2:5] for clip in clips])
        )
        rows[name] = {
            "apex": away[:, 1].mean(),
            "at most 1": (away[:, 1] <= 1).mean(),
            "at most 2": (away[:, 1] <= 2).mean(),
        }
        if not trimmed:
            rows[name] |= {"onset": away[:, 0].mean(), "offset": away[:, 2].mean()}
    return pd.DataFrame(rows).T.round(2)


def cut(store, row):
    onset, apex, offset = store.index.loc[row, ["onset", "apex", "offset"]]
    return (
        store.clip(row)[onset : offset + 1],
        store.landmarks[row],
        0,
        apex - onset,
        offset - onset,
    )


def draw_moments(rng):
    onset = int(rng.integers(6, 14))
    apex = onset + int(rng.integers(4, 9))
    return onset, apex, apex + int(rng.integers(5, 11))


def played(store, row, seed):
    rng = np.random.default_rng([seed, row])
    onset, apex, offset = draw_moments(rng)
    blink = int(rng.choice([t for t in range(3, 37) if abs(t - apex) > 6]))
    still = cv2.GaussianBlur(store.pair(row)[0], (0, 0), 0.7)
    clip = play_clip(
        still,
        store.truth(row),
        store.landmarks[row],
        envelope(40, onset, apex, offset),
        Disturbance(blink=blink, seed=seed + row),
    )
    return clip, store.landmarks[row], onset, apex, offset


def rendered(heads, seed, frames=40):
    "Clips of rendered heads; the blink closes the lids by five pixels."
    from frl_dgt_nb.simulate.heads import random_person
    from frl_dgt_nb.simulate.render import Studio, true_displacement
    from frl_dgt_nb.simulate.samples import action_field, expose, pose, random_drift, unit_field

    for head in range(heads):
        rng = np.random.default_rng([seed, head])
        with Studio(random_person(rng), rng) as studio:
            for number in range(2):
                rng = np.random.default_rng([seed, head, number])
                actions = random_actions(
                    ["disgust", "happiness", "surprise"][(head + number) % 3],
                    rng,
                    distract=bool(number),
                )
                onset, apex, offset = draw_moments(rng)
                rest, drift = (
                    pose(studio.person.vertices, rng.normal(0, [1.5, 2, 1]), [0, 0, 0]),
                    random_drift(frames, 0, rng),
                )
                scale = np.sqrt(
                    np.linalg.det(alignment_transform(detect_landmarks(studio.shoot(rest)))[:, :2])
                )

                def largest(moves):
                    return (
                        scale
                        * np.linalg.norm(
                            true_displacement(rest, rest + moves, studio.size, 4), axis=-1
                        ).max()
                    )

                moves, lids = action_field(actions), unit_field("45")
                part, shut = (
                    envelope(frames, onset, apex, offset) * actions.amplitude / largest(moves),
                    np.zeros(frames),
                )
                if number:
                    blink = int(rng.choice([t for t in range(3, frames - 3) if abs(t - apex) > 6]))
                    shut[blink - 2 : blink + 3] = (
                        np.array([0.3, 0.9, 1, 0.6, 0.2]) * 5 / largest(lids)
                    )
                raw = [
                    expose(
                        studio.shoot(
                            pose(
                                rest + part[t] * moves + shut[t] * lids,
                                drift.turn[t],
                                drift.shift[t],
                            ),
                            drift.light[t],
                        ),
                        rng,
                    )
                    for t in range(frames)
                ]
                points = detect_landmarks(raw[0])
                transform = alignment_transform(points)
                yield (
                    np.stack([align(frame, transform) for frame in raw]),
                    transform_points(points, transform),
                    onset,
                    apex,
                    offset,
                )


def drop(store, runs, seed, workers):
    "UF1 and UAR of `best` with labelled and with spotted apexes, for training and test alike."
    from frl_dgt_nb.training.loso import run_loso

    runs.mkdir(parents=True, exist_ok=True)
    rows = {}
    ways = {
        "labelled": None,
        "regions as [33]": dict(method="regions", steadied=False, smooth=0),
        "regions": dict(method="regions"),
        "strain": dict(method="strain"),
    }
    for name, how in ways.items():
        one = spot_store(store, runs / f"store {name}", "all", **how) if how else store
        report = run_loso(
            one, runs / f"{name} {seed}", "best", seed=seed, workers=workers, resume=True
        )
        away = (one.index["apex"] - store.index["apex"]).abs()
        rows[name] = {"frames away": away.mean(), "UF1": report["uf1"], "UAR": report["uar"]}
        print(pd.DataFrame(rows).T.round(3).to_string(), flush=True)


def main(root, database, loso, seed, long, heads, workers):
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(read_database(root, database), Path(folder) / "store", progress=False)
        print(
            f"{len(store)} clips cut at onset and offset\n"
            f"{measure([cut(store, row) for row in range(len(store))], True).to_string()}\n",
            flush=True,
        )
        rows = [row for row in range(len(store)) if store.truth(row) is not None]
        if rows := rows[:: max(1, len(rows) // max(long, 1))][:long]:
            print(
                f"{len(rows)} untrimmed clips of 40 frames\n"
                f"{measure([played(store, row, seed) for row in rows], False).to_string()}\n",
                flush=True,
            )
        if heads:
            print(
                f"{2 * heads} rendered clips of 40 frames\n{measure(list(rendered(heads, seed)), False).to_string()}\n",
                flush=True,
            )
        if loso:
            drop(store, Path(loso), seed, workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", default=str(Path(__file__).parents[1] / "data_samples"))
    parser.add_argument("database", nargs="?", default="folder", choices=["folder", "casme2"])
    parser.add_argument("--loso", metavar="RUNS", help="folder for the runs")
    for name, default in {"seed": 0, "long": 24, "workers": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rendered", dest="heads", type=int, default=0)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    main(**vars(parser.parse_args()))
