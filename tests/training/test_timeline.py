"""Where the fusion over time looked, asked of a run's own files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_store import toy_store

from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.model.regions import au_boxes
from frl_dgt_nb.model.sequence import load_sequence
from frl_dgt_nb.training.finished_run import temporal_weights
from frl_dgt_nb.training.interpolation import sequence_store
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.precomputed import load_frames
from frl_dgt_nb.training.run_folder import fold_path
from frl_dgt_nb.training.settings import TrainConfig

SMALL = ModelConfig(
    crop_size=10,
    patch=5,
    dim=16,
    heads=2,
    depth=1,
    full_size=15,
    dgm_size=16,
    dgm_width=4,
    dgm_depth=2,
    sees=("apex", "displacement"),
    steps=4,
)
how = dict(
    train_config=TrainConfig(epochs=1, batch_size=4, pairs=0, apex_jitter=0),
    device="cpu",
    threads=1,
    progress=False,
)


def test_weights_are_those_of_the_model_that_has_not_seen_the_subject(tmp_path):
    pairs = toy_store(tmp_path / "pairs", subjects=3, clips=2)
    store = sequence_store(pairs, tmp_path / "sequences", 4, progress=False)
    run_loso(store, tmp_path / "run", model_config=SMALL, **how)
    table = temporal_weights(tmp_path / "run", store)
    assert (
        table.clip_id.tolist() == store.index.clip_id.tolist()
        and (table.apex == store.index.apex).all()
        and (table.label == store.index.label).all()
    )
    assert np.allclose(table[[1, 2, 3]].sum(axis=1), 1, atol=1e-5)
    frames, boxes = (
        load_frames(store).permute(0, 3, 1, 2).float() / 255,
        au_boxes(torch.as_tensor(store.landmarks), 32),
    )
    for row, subject in enumerate(store.index.subject_id):
        model = load_sequence(fold_path(tmp_path / "run", subject, ".safetensors"))
        with torch.no_grad():
            output = model(frames[None, 4 * row : 4 * row + 4], boxes[row : row + 1])
        assert np.allclose(
            output.temporal_weights.mean(1)[0], table.loc[row, [1, 2, 3]].astype(float), atol=1e-5
        )
        assert output.logits.argmax() == table.prediction[row]
    index, store.index = store.index, store.index.iloc[1:].reset_index(drop=True)
    with pytest.raises(ValueError, match="other clips than"):
        temporal_weights(tmp_path / "run", store)
    store.index = index
    run_loso(store, tmp_path / "of_pairs", model_config=replace(SMALL, steps=0), **how)
    with pytest.raises(ValueError, match="a run on pairs, which has no fusion over time"):
        temporal_weights(tmp_path / "of_pairs", store)
    with pytest.raises(ValueError, match="no finished run"):
        temporal_weights(tmp_path / "nowhere", store)
