"""A store of twelve rendered clips of three subjects and finished runs on it, made once a process."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.settings import TrainConfig

SAMPLES, HOME = Path(__file__).parent.parent / "data_samples", TemporaryDirectory()
SMALL = dict(
    crop_size=18, patch=9, dim=16, heads=2, depth=1, full_size=36, dgm_width=4, dgm_depth=3
)
KINDS = {
    "guided": ModelConfig(**SMALL, module="guided", sees=("displacement",), mirror=True),
    "plain": ModelConfig(**SMALL, dgm_size=64),
    "bare": ModelConfig(
        **SMALL, module="dynamic", sees=("dynamic",), levels=("local",), boxes="grid", mirror=True
    ),
}


@lru_cache
def small_store():
    "Three subjects, four clips each."
    torch.set_num_threads(1)
    database = read_folder(SAMPLES)
    return prepare(
        replace(
            database,
            clips=[clip for clip in database.clips if clip.subject < "s04" and clip.name < "c5"],
        ),
        Path(HOME.name) / "store",
        progress=False,
    )


@lru_cache
def made_run(kind):
    config, out = KINDS[kind], Path(HOME.name) / kind
    training = TrainConfig(
        epochs=1, pairs=2 if config.module == "plain" else 0, apex_jitter=0, batch_size=4
    )
    run_loso(
        small_store(),
        out,
        model_config=config,
        train_config=training,
        device="cpu",
        threads=1,
        progress=False,
    )
    return out


def finished_run(kind="guided"):
    "The folder of a run of one epoch."
    return made_run(kind)
