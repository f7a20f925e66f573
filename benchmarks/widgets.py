"""How long the laboratory and the view of the weights take to answer each control: the kernel's part, from the
changed value to the last message sent.

    python benchmarks/widgets.py [STORE] [PRESET]    default: data_samples, with an untrained model of the preset best

The inspector has a table of its own, inspector.py. `seconds of the processor` don't depend on what else the
machine does, `on the clock` does.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from inspector import LIMIT, times

from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.widgets.fusionview import FusionView
from frl_dgt_nb.widgets.losslab import ModuleLab

ROOT = Path(__file__).resolve().parent.parent
TRIES = {
    "lab": dict(
        clip=[1, 0, 1, 0],
        kind=["module", "field"] * 2,
        apex=["moved", "filmed"] * 2,
        times=[2, 4, 1],
        noise=[2, 4, 0],
        reconstruction=[1, 10] * 2,
        normalization=[0, 1] * 2,
        smoothness=[2, 0.2] * 2,
        rate=[1e-3, 5e-4] * 2,
        limit=[1, 0] * 2,
    ),
    "view": dict(
        clip=[1, 0, 1, 0],
        level=["patches × regions", "regions", "full face", "patches"],
        head=[0, 1, 2, -1],
        region=[*range(9)],
    ),
}


def turned(widget, tries):
    "Times of each control, after a first visit that computes what is kept."
    rows = {}
    for name, values in tries.items():

        def turn(value):
            return setattr(widget.controls[name], "value", value)

        times(turn, values)
        rows[name] = times(turn, values)
    return rows


def main(store=None, preset="best"):
    torch.manual_seed(0)
    store = (
        FaceStore(store)
        if store
        else prepare(
            read_folder(ROOT / "data_samples"), ROOT / "runs/stores/data_samples", progress=False
        )
    )
    lab, view, rows = ModuleLab(store), FusionView(store, FRLDGT(PRESETS[preset])), {}
    rows |= {f"lab: {name}": told for name, told in turned(lab, TRIES["lab"]).items()}
    for kind in ("field", "module"):
        lab.controls["kind"].value = kind
        rows[f"lab: ten steps of the {kind}, without a redraw"] = times(
            lambda _: lab.bench.advance(10), range(5)
        )
        rows[f"lab: redraw of the {kind}"] = times(lambda _: lab.show(), range(5))
    lab.bench.history *= 60
    rows["lab: redraw after three thousand steps"] = times(lambda _: lab.show(), range(5))
    rows |= {f"view: {name}": told for name, told in turned(view, TRIES["view"]).items()}
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
        f"ms a redraw, {store.settings['size']}x{store.settings['size']}, "
        f"{lab.bench.side}x{lab.bench.side} in the laboratory, model {preset}, {torch.get_num_threads()} thread(s)"
    )
    print(table.to_string(float_format="{:.0f}".format))
    slow = [
        name
        for name in table.index[table["processor, median"] > LIMIT]
        if "steps of the" not in name
    ]
    print(f"all redraws within {LIMIT} ms" if not slow else f"over {LIMIT} ms: {', '.join(slow)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
