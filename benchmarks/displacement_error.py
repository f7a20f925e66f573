"""Endpoint error, on the face, of both displacement modules against Farneback, DIS, least squares and zero, where
the true motion is known.

    python benchmarks/displacement_error.py [ROOT [folder|casme2]] [--steps N] [--width N] [--seed S]

The module is trained self-supervised, by the paper's losses, on random pairs of the same clips, at half the size;
the guided module has its shipped weights, from simulated heads that are in neither set. Errors in pixels of the
aligned face at 256: as it is, less the head's drift as a median vector, less it as the affine field nearest in L1;
then where the true motion exceeds a fifth of a pixel, and the cosine there.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.model.dgm import (
    DisplacementModule,
    displacement_loss,
    endpoint_error,
    face_mask,
    remove_affine_drift,
    remove_drift,
)
from frl_dgt_nb.model.evidence import evidence, least_squares
from frl_dgt_nb.model.guided import load_guided
from frl_dgt_nb.model.warp import to_motion


def to_tensor(frames):
    return torch.tensor(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 255


def classical(flow, onset, apex):
    "A flow of OpenCV for a batch: (B,2,H,W), motion of the onset's points in pixels."

    def gray(x):
        return [
            cv2.cvtColor(np.uint8(frame.permute(1, 2, 0) * 255 + 0.5), cv2.COLOR_RGB2GRAY)
            for frame in x
        ]

    return torch.stack(
        [torch.from_numpy(flow(a, b)).permute(2, 0, 1) for a, b in zip(gray(onset), gray(apex))]
    )


def train(clips, steps, width, seed):
    "The module after `steps` steps of 16 random pairs, and the milliseconds of a step."
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = DisplacementModule(width)
    optimizer, started = torch.optim.Adam(module.parameters(), 0.002), time.process_time()
    for _ in range(steps):
        which = torch.randint(len(clips), (16,), generator=generator)
        first, second = torch.stack(
            [clips[i][torch.randperm(len(clips[i]), generator=generator)[:2]] for i in which]
        ).unbind(1)
        optimizer.zero_grad()
        displacement_loss(first, second, module(first, second))[0].backward()
        optimizer.step()
    return module.eval(), (time.process_time() - started) / max(steps, 1) * 1000


@torch.no_grad()
def learnt(module, onset, apex):
    "The module's motion at 256, from frames of 128."
    small = [
        module(a, b)
        for a, b in zip(F.avg_pool2d(onset, 2).split(16), F.avg_pool2d(apex, 2).split(16))
    ]
    return to_motion(
        F.interpolate(torch.cat(small), scale_factor=2, mode="bilinear", align_corners=False)
    )


@torch.no_grad()
def guided(onset, apex, damping=0.03):
    "Damped least squares on the evidence, and what the guided module makes of it, both at 256."
    batches, module = list(zip(onset.split(16), apex.split(16))), load_guided()
    solved = torch.cat([least_squares(evidence(a, b), damping) for a, b in batches])
    return F.interpolate(solved, onset.shape[-2:], mode="bilinear", align_corners=False), to_motion(
        torch.cat([module(a, b) for a, b in batches])
    )


def errors(estimate, truth_px, face):
    "One row of the table: means over the clips."
    moving = face & (truth_px.norm(dim=1) > 0.2)

    def cosine(a, b):
        return ((a * b).sum(1) * moving).sum((1, 2)) / (
            (a.square().sum(1) * moving).sum((1, 2)) * (b.square().sum(1) * moving).sum((1, 2))
        ).sqrt().clamp(min=1e-9)

    median, affine = remove_drift(estimate, face), remove_affine_drift(estimate, face)
    row = {
        "face": endpoint_error(estimate, truth_px, face),
        "less median": endpoint_error(median, truth_px, face),
        "less affine": endpoint_error(affine, truth_px, face),
        "moving, less affine": endpoint_error(affine, truth_px, moving),
        "cosine": cosine(estimate, truth_px),
        "cosine, less affine": cosine(affine, truth_px),
    }
    return {name: value.mean().item() for name, value in row.items()}


def main(root, database, steps, width, seed):
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(read_database(root, database), Path(folder) / "store", progress=False)
        rows = [i for i in range(len(store)) if store.truth(i) is not None]
        onset, apex = (to_tensor(np.stack([store.pair(i)[k] for i in rows])) for k in (0, 1))
        truth_px = torch.tensor(np.stack([store.truth(i) for i in rows])).float()
        face = face_mask(torch.tensor(store.landmarks[rows]).float())
        module, ms = train(
            [F.avg_pool2d(to_tensor(store.clip(i)), 2) for i in rows], steps, width, seed
        )
    estimates = {
        "zero": torch.zeros_like(truth_px),
        "Farneback": classical(
            lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.1, 0),
            onset,
            apex,
        ),
        "DIS": classical(
            lambda a, b: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
                a, b, None
            ),
            onset,
            apex,
        ),
        f"module, {steps} steps": learnt(module, onset, apex),
    }
    estimates["least squares"], estimates["guided module"] = guided(onset, apex)
    print(
        f"{len(rows)} clips, largest true motion {truth_px.norm(dim=1).amax((1, 2)).median():.2f} px (median); "
        f"a step of 16 pairs takes {ms:.0f} ms of CPU"
    )
    print(
        pd.DataFrame(
            {name: errors(estimate, truth_px, face) for name, estimate in estimates.items()}
        )
        .T.round(3)
        .to_string()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", default=str(Path(__file__).parents[1] / "data_samples"))
    parser.add_argument("database", nargs="?", default="folder", choices=["folder", "casme2"])
    for name, default in {"steps": 120, "width": 8, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
