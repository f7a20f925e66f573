"""How long the inspector takes to answer each control: the kernel's part, from the changed value to the last
message sent.

    python benchmarks/inspector.py [STORE] [PRESET]    default: data_samples, with an untrained model of the preset best

`seconds of the processor` don't depend on what else the machine does, `on the clock` does. The first visit to a
clip computes its motion; after that it is kept.
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.widgets.inspector import DisplacementInspector

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 150  # ms


def times(act, values):
    "(ms of the processor, ms on the clock) for each value."
    told = []
    for value in values:
        processor, clock = time.process_time(), time.perf_counter()
        act(value)
        told.append(
            (1000 * (time.process_time() - processor), 1000 * (time.perf_counter() - clock))
        )
    return told


def main(store=None, preset="best"):
    torch.manual_seed(0)
    store = (
        FaceStore(store)
        if store
        else prepare(
            read_folder(ROOT / "data_samples"), ROOT / "runs/stores/data_samples", progress=False
        )
    )
    inspector = DisplacementInspector(store, FRLDGT(PRESETS[preset]), out=tempfile.mkdtemp())
    controls, last = inspector.controls, int(store.index["n_frames"].iloc[0]) - 1

    def turn(name):
        return lambda value: setattr(controls[name], "value", value)

    rows = {
        "clip, first visit": times(
            turn("clip"),
            controls["clip"].options and [row for _, row in controls["clip"].options][1:],
        ),
        "clip, seen before": times(turn("clip"), [0, 1, 0, 1, 0]),
    }
    tries = dict(
        picture=["frame", "onset", "apex", "magnified", "blink", "difference", "magnified"],
        factor=[3, 7, 12, 20, 30],
        map=["magnitude", "strain", "error", "face", "colours"] * 2,
        source=["optical flow", "truth", "dynamic image", "module"] * 2,
        still=[False, True] * 3,
        arrows=[0, 20, 40, 16],
        length=[2, 4, 1],
        limit=[0.5, 1, 0],
        frame=[0, 1, 2, last],
        region=[*range(9), *range(9)],
        moments=[(0, last), (0, 2), (0, last), (0, 2)],
    )
    for name, values in tries.items():
        for value in values:  # known options alone
            if hasattr(controls[name], "options") and value not in [
                option[-1] if isinstance(option, tuple) else option
                for option in controls[name].options
            ]:
                break
        else:
            times(turn(name), values)  # the first visit computes
            rows[name] = times(turn(name), values)
    box = inspector.scene.boxes[inspector.scene.settings.region].tolist()

    def drag(by):
        return inspector.move_box(
            SimpleNamespace(x0=box[0] + by, x1=box[2] + by, y0=box[1], y1=box[3])
        )

    rows["a box dragged (asks the model twice)"] = times(drag, [3, 6, 9, 12])
    table = pd.DataFrame(
        {
            name: {
                "processor, median": np.median([p for p, _ in told]),
                "processor, worst": max(p for p, _ in told),
                "clock, median": np.median([c for _, c in told]),
            }
            for name, told in rows.items()
        }
    ).T
    print(
        f"ms a redraw, {store.settings['size']}x{store.settings['size']}, model {preset}, "
        f"{torch.get_num_threads()} thread(s)"
    )
    print(table.to_string(float_format="{:.0f}".format))
    slow = table.index[table["processor, median"] > LIMIT].drop(
        "clip, first visit", errors="ignore"
    )
    print(f"all within {LIMIT} ms" if slow.empty else f"over {LIMIT} ms: {', '.join(slow)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
