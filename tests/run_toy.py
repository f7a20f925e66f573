"""A run of its own for tests that kill it: python run_toy.py STORE RUN WORKERS"""

import sys

import torch

from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.settings import TrainConfig

SMALL = ModelConfig(
    crop_size=4, patch=2, dim=4, heads=1, depth=1, full_size=4, dgm_size=8, dgm_width=1, dgm_depth=1
)
BRIEF = TrainConfig(epochs=4, batch_size=4, pairs=3, mirror=True)

if __name__ == "__main__":
    torch.set_num_threads(1)
    store, out, workers = sys.argv[1:]
    try:
        run_loso(
            FaceStore(store),
            out,
            model_config=SMALL,
            train_config=BRIEF,
            device="cpu",
            threads=1,
            workers=int(workers),
            resume=True,
            progress=False,
        )
    except KeyboardInterrupt as stop:
        sys.exit(str(stop))
