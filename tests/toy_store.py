"""A store of random frames in the files of `FaceStore`, for tests that need many small folds and no faces."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from frl_dgt_nb.data.store import VERSION, FaceStore


def toy_store(path, subjects=4, clips=3, frames=5, size=32, seed=0):
    "Subjects of two databases, some with the same number; lengths differ from clip to clip"
    generator, path, rows, start = np.random.default_rng(seed), Path(path), [], 0
    path.mkdir(parents=True)
    for s in range(subjects):
        database, subject = ("toy", "play")[s % 2], f"{s // 2 + 1:02}"
        for c in range(clips):
            length = frames + (s + c) % 3
            rows.append(
                {
                    "clip_id": f"{database}/{subject}/c{c}",
                    "database": database,
                    "subject": subject,
                    "name": f"c{c}",
                    "subject_id": f"{database}/{subject}",
                    "label": (s + c) % 3,
                    "emotion": "",
                    "action_units": "",
                    "start": start,
                    "n_frames": length,
                    "onset": c % 2,
                    "apex": length // 2,
                    "offset": length - 1,
                    "landmarks": generator.uniform(0.2 * size, 0.8 * size, 136).tolist(),
                    "transform": [1.0, 0, 0, 0, 1, 0],
                }
            )
            start += length
    pd.DataFrame(rows).to_parquet(path / "index.parquet", index=False)
    np.save(path / "frames.npy", generator.integers(0, 256, (start, size, size, 3), dtype=np.uint8))
    settings = {
        "version": VERSION,
        "size": size,
        "clips": len(rows),
        "frames": start,
        "checksum": str(seed),
        "root": "",
    }
    (path / "settings.json").write_text(json.dumps(settings))
    (path / "excluded.json").write_text(json.dumps([["toy/09/c0", "the apex is /"]]))
    (path / "lost.json").write_text("[]")
    return FaceStore(path)
