"""Weights of the guided displacement module, from simulated heads alone: `python scripts/guided_weights.py`

On two cores 3.5 minutes for the heads, 12 for the training. No frame of `data_samples/` (seed 2026) or of any database
is used. Heads are kept in runs/guided_heads.npz, so that a second run only trains.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm.auto import tqdm

from frl_dgt_nb.data.faces import (
    FaceNotFound,
    align,
    alignment_transform,
    detect_landmarks,
    transform_points,
)
from frl_dgt_nb.simulate.heads import random_person
from frl_dgt_nb.simulate.render import Studio
from frl_dgt_nb.simulate.samples import expose, pose


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "Sensor noise and JPEG of random strength."
    coded = cv2.imencode(
        ".jpg",
        expose(image, rng, rng.uniform(0.5, 3)),
        [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(82, 97))],
    )[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)


def neutral_frames(
    person: int, seed: int, frames: int = 4, size: int = 320
) -> tuple[np.ndarray, np.ndarray] | None:
    "A person at rest, `frames` times with drift, light and noise, aligned: (frames,256,256,3) uint8, (68,2)."
    rng = np.random.default_rng([seed, person])
    with Studio(random_person(rng), rng, size) as studio:
        turn, shift = rng.normal(0, [2.5, 3, 2]), rng.normal(0, [0.02, 0.02, 0])
        shots = []
        for t in range(frames):
            drift = rng.standard_normal(7) * min(t, 1) * rng.uniform(0, 3)
            head = pose(
                studio.person.vertices, turn + 0.06 * drift[:3], shift + 0.0012 * drift[3:6]
            )
            shots.append(photograph(studio.shoot(head, 1 + 0.012 * drift[6]), rng))
    try:
        landmarks = detect_landmarks(shots[0])
    except FaceNotFound:
        return None
    transform = alignment_transform(landmarks)
    return np.stack([align(shot, transform) for shot in shots]), transform_points(
        landmarks, transform
    )


def render_heads(people: int, seed: int, out: Path) -> None:
    "Neutral frames of many people, in two processes."
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        work = pool.map(partial(neutral_frames, seed=seed), range(people), chunksize=4)
        found = [one for one in tqdm(work, total=people, desc="heads") if one is not None]
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        frames=np.stack([one[0] for one in found]),
        landmarks=np.stack([one[1] for one in found]).astype(np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("frl_dgt_nb/model/guided.safetensors"))
    parser.add_argument("--heads", type=Path, default=Path("runs/guided_heads.npz"))
    parser.add_argument("--people", type=int, default=160)
    parser.add_argument("--seed", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3, help="sets of known motions")
    parser.add_argument("--each", type=int, default=14, help="motions a person and round")
    parser.add_argument("--epochs", type=int, default=5, help="passes over a round's set")
    options = parser.parse_args()
    if not options.heads.exists():
        render_heads(options.people, options.seed, options.heads)
    from frl_dgt_nb.model.guided import GuidedModule, GuidedTraining, save_guided, train_guided

    heads = np.load(options.heads)
    torch.manual_seed(options.seed)
    module = train_guided(
        GuidedModule(),
        torch.from_numpy(heads["frames"]),
        torch.from_numpy(heads["landmarks"]),
        GuidedTraining(options.rounds, options.each, options.epochs, seed=options.seed),
    )
    save_guided(module, options.out)


if __name__ == "__main__":
    main()
