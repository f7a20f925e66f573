"""Weights of learned magnification, from rendered heads alone: `python scripts/magnifier_weights.py` (on two busy
cores 12 minutes for the heads and 17 for the training).

No frame of `data_samples/` (seed 2026) or of any database is used. Heads are kept in runs/magnified_heads.npz (0.6
GB), so that a second run only trains.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from frl_dgt_nb.data.faces import FaceNotFound
from frl_dgt_nb.model.magnify import MagnifiedSet
from frl_dgt_nb.simulate.actions import COMBINATIONS, random_actions
from frl_dgt_nb.simulate.heads import random_person
from frl_dgt_nb.simulate.magnified import MagnifiedPair, magnified_set, render_magnified
from frl_dgt_nb.simulate.render import Studio

LARGEST = 20.0  # pixels, of a magnified motion


def person_pairs(person: int, seed: int, scripts: int) -> list[tuple[MagnifiedPair, np.ndarray]]:
    "A head and `scripts` expressions of it, each with three factors."
    rng, found = np.random.default_rng([seed, person]), []
    with Studio(random_person(rng), rng) as studio:
        for _ in range(scripts):
            actions = random_actions(
                str(rng.choice(list(COMBINATIONS))),
                rng,
                bool(rng.integers(2)),
                amplitude=(0.25, 2.0),
            )
            factors = np.minimum(rng.uniform([1.5, 4, 9], [4, 9, 18]), LARGEST / actions.amplitude)
            try:
                found.append((render_magnified(studio, actions, factors, rng), factors))
            except FaceNotFound:
                pass
    return found


def render_heads(people: int, seed: int, scripts: int, out: Path) -> None:
    "Pairs of many people, in two processes."
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        work = pool.map(
            partial(person_pairs, seed=seed, scripts=scripts), range(people), chunksize=2
        )
        found = [one for some in tqdm(work, total=people, desc="heads") for one in some]
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **magnified_set(*zip(*found))._asdict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("frl_dgt_nb/magnifier.safetensors"))
    parser.add_argument("--heads", type=Path, default=Path("runs/magnified_heads.npz"))
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--scripts", type=int, default=6, help="expressions a head")
    parser.add_argument(
        "--seed", type=int, default=8192, help="of the heads; the training has seed 0"
    )
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    if not options.heads.exists():
        render_heads(options.people, options.seed, options.scripts, options.heads)
    from frl_dgt_nb.model.magnify import MagnificationNet, save_magnifier, train_magnifier

    pairs = MagnifiedSet(*map(torch.from_numpy, np.load(options.heads).values()))
    torch.manual_seed(0)
    net = train_magnifier(
        MagnificationNet(options.width), pairs, options.steps, options.batch_size, seed=0
    )
    used = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    save_magnifier(net, options.out, used | {"pairs": len(pairs.onset), "torch": torch.__version__})


if __name__ == "__main__":
    main()
