"""Look-alikes of the published flow pictures: 442 tiny pictures of nobody, in which the class shows, or doesn't."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

CLIPS = {
    "smic": (70, 51, 43),
    "casme2": (88, 32, 25),
    "samm": (92, 26, 15),
}  # negative, positive, surprise
SUBJECTS = {"smic": 16, "casme2": 24, "samm": 28}
PLACES = {
    0: [(8, 8, 0.3, 1), (19, 8, -0.3, 1)],
    1: [(9, 21, -1, -0.5), (18, 21, 1, -0.5)],
    2: [(8, 7, 0, -1), (19, 7, 0, -1), (13, 25, 0, 0.6)],
}  # x, y, u, v of each class


@dataclass
class MadeFlow:
    "What was written: the folder, and the label of every clip by its clip_id."

    root: Path
    labels: dict[str, int] = field(default_factory=dict)


def picture(label, generator, noise=0.3, size=28):
    "A smooth field with bumps where this class moves (none for label None), stretched to bytes"
    y, x = np.mgrid[:size, :size]
    flow = noise * cv2.resize(
        generator.normal(size=(7, 7, 2)), (size, size), interpolation=cv2.INTER_CUBIC
    )
    for px, py, u, v in PLACES.get(label, ()):
        flow += np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8)[..., None] * [u, v]
    (uy, ux), (vy, vx) = (np.gradient(flow[..., i]) for i in (0, 1))
    maps = np.dstack([flow, np.sqrt(ux**2 + vy**2 + (uy + vx) ** 2 / 2)])
    low, high = maps.min((0, 1)), maps.max((0, 1))
    return np.round(255 * (maps - low) / (high - low)).astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())


def make_flow(
    folder,
    signal=True,
    noise=0.3,
    part=1.0,
    subjects=SUBJECTS,
    seed=0,
    sheet="combined_3_class2_for_optical_flow.csv",
):
    """Pictures and sheet as they are passed on.

    `part` of the clips of each class; every subject has at least one clip, few have many.
    """
    generator, made, rows = np.random.default_rng(seed), MadeFlow(Path(folder)), []
    for database, counts in CLIPS.items():
        labels = generator.permutation(
            np.repeat(range(3), [max(1, round(part * count)) for count in counts])
        )
        people = subjects[database]
        owner = np.concatenate(
            [
                np.arange(people),
                generator.choice(
                    people, max(0, len(labels) - people), p=generator.dirichlet(np.ones(people))
                ),
            ]
        )[: len(labels)]
        for k, (label, number) in enumerate(zip(labels.tolist(), owner.tolist())):
            sub, name = names(database, number + 1, k, label)
            write(
                made.root / "STSNet_whole_norm_u_v_os" / f"{sub}_{name} .png",
                picture(label if signal else None, generator, noise),
            )
            rows.append([database, sub, name, label, "", f"{sub}_{name}.jpg", ""])
            made.labels[f"{database}/{sub}/{name}"] = label
    headings = ["dataset", "sub", "filename_o", "label", "apex", "imagename", "sub_filename"]
    pd.DataFrame(rows, columns=headings).to_csv(made.root / sheet, index=False)
    return made


def names(database, number, k, label):
    "Subject and clip as each database writes them"
    if database == "casme2":
        return f"sub{number:02}", f"EP{k % 19 + 1:02}_{k:02}f"
    if database == "samm":
        return f"{number:03}", f"{number:03}_{k % 7 + 1}_{k}"
    return f"s{number:02}", f"s{number:02}_{('ne', 'po', 'sur')[label]}_{k:02}"
