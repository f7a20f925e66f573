"""Precomputed displacements: each is its method's, computed once, kept, and never taken for another's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_store import toy_store

from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.flow import dynamic_image, optical_flow
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.model.guided import SHRINK
from frl_dgt_nb.model.warp import from_motion
from frl_dgt_nb.study.ablations import variant
from frl_dgt_nb.training import precomputed as known
from frl_dgt_nb.training.fold import train_fold
from frl_dgt_nb.training.precomputed import (
    given_displacement,
    load_frames,
    pair_displacements,
    precomputed_displacements,
)
from frl_dgt_nb.training.sampling import FoldData, PairSource, fold_generator, mirror_displacement
from frl_dgt_nb.training.settings import TrainConfig

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture()
def store(tmp_path):
    precomputed_displacements.cache_clear()
    return toy_store(tmp_path / "store")


def table_of(store, reach, module):
    return precomputed_displacements(store.path, store.settings["checksum"], reach, CPU, module)


@pytest.mark.parametrize("module", ["dis", "farneback", "tvl1"])
def test_a_flow_is_that_of_the_pair(store, module):
    table = table_of(store, 1, module)
    assert table.shape == (len(store), 3, 2, 8, 8) and table.isfinite().all()
    for clip, step in ((0, 0), (4, 1), (7, -1)):
        row, frames = (
            store.index.iloc[clip],
            torch.tensor(store.clip(clip)).permute(0, 3, 1, 2) / 255,
        )
        second = min(max(row.apex + step, 0), row.n_frames - 1)
        wanted = F.avg_pool2d(
            from_motion(optical_flow(frames[[row.onset]], frames[[second]], module)), SHRINK
        )[0]
        torch.testing.assert_close(table[clip, step + 1], wanted)


def test_a_dynamic_image_is_of_all_frames_between(store):
    table = table_of(store, 1, "dynamic")
    assert table.shape == (len(store), 3, 3, 32, 32) and table.dtype == torch.float16
    for clip, step in ((0, 0), (5, 1)):
        row, frames = (
            store.index.iloc[clip],
            torch.tensor(store.clip(clip)).permute(0, 3, 1, 2) / 255,
        )
        last = max(min(row.apex + step, row.n_frames - 1), row.onset + 1)
        torch.testing.assert_close(
            table[clip, step + 1].float(),
            dynamic_image(frames[row.onset : last + 1]),
            atol=2e-3,
            rtol=2e-3,
        )
    assert (
        np.array_equal(given_displacement(store, 5, "dynamic"), table[5, 1].float().numpy())
        and given_displacement(store, 5, "guided") is None
    )


def test_kept_beside_the_faces_and_read_again(store, monkeypatch):
    before = sorted(path.name for path in store.path.iterdir())
    table = table_of(store, 1, "dis")
    assert sorted(set(path.name for path in store.path.iterdir()) - set(before)) == [
        "known-dis-1-0.npy"
    ]
    precomputed_displacements.cache_clear()
    monkeypatch.setattr(known, "compute_displacements", lambda *_: pytest.fail("computed again"))
    assert torch.equal(table_of(store, 1, "dis"), table)
    for module, reach, checksum in (
        ("tvl1", 1, "0"),
        ("dis", 2, "0"),
        ("dis", 1, "1"),
    ):  # another's table is not taken
        with pytest.raises(pytest.fail.Exception):
            precomputed_displacements(store.path, checksum, reach, CPU, module)


def test_a_folder_that_cannot_be_written_to_costs_time_alone(store, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(known, "write_atomic", refuse)
    with pytest.warns(UserWarning, match="known-dis-0-0.npy can't be kept.*Permission denied"):
        table = table_of(store, 0, "dis")
    assert table.shape == (len(store), 1, 2, 8, 8)


def test_unknown_names_are_refused(store):
    with pytest.raises(
        ValueError,
        match="nothing is known beforehand from 'plain'; choose from guided, dynamic, farneback",
    ):
        table_of(store, 0, "plain")


@pytest.mark.parametrize("module", ["guided", "dis", "dynamic"])
def test_the_model_finds_what_the_table_has(store, module):
    "`displace`, which sees two frames, beside the table; of three frames a dynamic image knows more"
    torch.manual_seed(0)
    name = {"guided": "M9", "dis": "M1", "dynamic": "M2"}[module]
    model = FRLDGT(variant(name, PRESETS["best"], TrainConfig(pairs=0), flow="dis")[0]).eval()
    frames = load_frames(store)
    clips = [
        clip
        for clip in range(len(store))
        if module != "dynamic" or store.index.apex[clip] - store.index.onset[clip] == 1
    ]
    assert clips
    onset, apex = (
        frames[(store.index.start + store.index[name])[clips].to_numpy()].permute(0, 3, 1, 2) / 255
        for name in ("onset", "apex")
    )
    table = table_of(store, 0, module)[clips, 0].float()
    if module != "dynamic":
        table = F.interpolate(table, (32, 32), mode="bilinear")
    if module == "guided":
        model.config.__dict__["dgm_size"] = 32
    with torch.no_grad():
        torch.testing.assert_close(
            model.displace(onset, apex),
            table,
            atol=2e-3 if module == "dynamic" else 1e-6,
            rtol=1e-3,
        )


def test_a_dynamic_image_in_the_mirror_keeps_its_colours(store):
    table = table_of(store, 1, "dynamic")
    source = PairSource(store, displacements=table, needs_frames=False, directed=False)
    for other in FoldData(source, "toy/01").test_batches():
        one = other.mirrored(directed=False)
        assert torch.equal(one.displacement, other.displacement.flip(-1))
    assert not torch.equal(
        mirror_displacement(other.displacement, torch.ones(len(other.labels), dtype=torch.bool)),
        one.displacement,
    )


@pytest.mark.parametrize("name", ["M0", "M1", "M2", "M3", "M5", "M6", "M9"])
def test_a_fold_of_every_kind_trains(store, name):
    small = dict(
        crop_size=4,
        patch=2,
        dim=4,
        heads=1,
        depth=1,
        full_size=4,
        dgm_size=32,
        dgm_width=1,
        dgm_depth=1,
    )
    model, train = variant(
        name,
        type(PRESETS["best"])(**small),
        TrainConfig(epochs=1, batch_size=4, pairs=2, mirror=True),
        flow="dis",
    )
    result = train_fold(store, "toy/01", model, train, device="cpu", progress=False)
    assert np.isfinite(result.probabilities).all() and set(result.losses[0]) >= {"classification"}
    assert (
        ("pairs" in result.losses[0])
        == (name in ("M5", "M6", "M9"))
        == ("labelled" in result.losses[0])
    )


def test_grid_boxes_stay_where_they_are(store):
    data = FoldData(PairSource(store, kind="grid"), "toy/01", mirror=True)
    batch = next(data.batches(fold_generator(0)))
    assert (batch.boxes - batch.boxes[:1]).abs().max() < 1e-4 and batch.boxes[
        0, 4, 0
    ] == pytest.approx(31 / 3, abs=1e-4)
    with pytest.raises(ValueError, match="choose from au, grid"):
        PairSource(store, kind="cells")


def test_frames_of_a_pair_in_any_order(store):
    "Positions before the onset, which jitter may ask for, are other frames, not an error"
    frames = torch.rand(3, 3, 32, 32)
    assert pair_displacements(frames, [0, 1, 2], "dynamic").shape == (3, 3, 32, 32)
    first, second = (pair_displacements(frames, [at], "dynamic") for at in (0, 1))
    torch.testing.assert_close(first, second)
