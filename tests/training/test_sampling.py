"""What is in the batches, read from the batches."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import toy_store

from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.model.guided import SHRINK, load_guided
from frl_dgt_nb.model.regions import au_boxes
from frl_dgt_nb.model.warp import splat, warp
from frl_dgt_nb.training import fold as training
from frl_dgt_nb.training.fold import train_fold
from frl_dgt_nb.training.precomputed import load_frames, precomputed_displacements
from frl_dgt_nb.training.sampling import (
    FoldData,
    PairSource,
    choose_inner,
    draw_pairs,
    fold_generator,
    fold_seed,
    jitter_apex,
    mirror_displacement,
    mirror_some,
)
from frl_dgt_nb.training.settings import TrainConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(toy):
    return toy


def test_no_test_frame_in_a_whole_training(store, monkeypatch):
    "Every batch that a training makes is gathered by the source; those made in training mode are read there"
    seen, testing = [], []
    gather, predict = PairSource.gather, training.predict_test

    def read(self, *args, **kwargs):
        batch = gather(self, *args, **kwargs)
        if not testing:
            seen.append(
                (batch.clips.clone(), batch.rows.clone(), batch.onset.clone(), batch.apex.clone())
            )
        return batch

    def test(*args):
        testing.append(1)
        try:
            return predict(*args)
        finally:
            testing.pop()

    monkeypatch.setattr(PairSource, "gather", read)
    monkeypatch.setattr(training, "predict_test", test)
    small = ModelConfig(
        crop_size=4,
        patch=2,
        dim=4,
        heads=1,
        depth=1,
        full_size=4,
        dgm_size=8,
        dgm_width=1,
        dgm_depth=1,
    )
    owner = np.repeat(store.index.subject_id, store.index.n_frames).to_numpy()
    for subject, inner in (("toy/01", 0), ("play/01", 0), ("play/01", 2)):
        seen.clear()
        away = {subject, *choose_inner(store.index, subject, inner)}
        train_fold(
            store,
            subject,
            small,
            TrainConfig(epochs=4, batch_size=4, pairs=30, apex_jitter=3, mirror=True, inner=inner),
            device="cpu",
            progress=False,
        )
        clips, rows = torch.cat([s[0] for s in seen]), torch.cat([s[1] for s in seen])
        assert (
            len(away) == 1 + inner and len(seen) == 4 * (3 if not inner else 1) * 2
        )  # labelled and random pairs of each step
        assert (
            set(store.index.subject_id.to_numpy()[clips])
            == set(owner[rows].ravel())
            == set(owner) - away
        )
        for _, where, onset, apex in seen:  # and the rows tell the truth about the pictures
            for frames, row in ((onset, where[:, 0]), (apex, where[:, 1])):
                real = load_frames(store)[row].permute(0, 3, 1, 2).float() / 255
                same = (frames == real).flatten(1).all(1) | (frames == real.flip(-1)).flatten(
                    1
                ).all(1)
                assert same.all()


def test_an_epoch_is_every_training_clip_once(store):
    for batch_size in (2, 3, 4, 8, 32):
        data = FoldData(store, "toy/01", batch_size)
        batches = list(data.batches(fold_generator(0)))
        sizes = [len(batch.labels) for batch in batches]
        assert sorted(torch.cat([batch.clips for batch in batches]).tolist()) == data.train.tolist()
        assert (
            max(sizes) - min(sizes) <= 1
            and max(sizes) <= max(batch_size, 3)
            and min(sizes) > 1
            and len(sizes) == data.steps
        )
        for batch in batches:
            index = store.index.iloc[batch.clips]
            assert batch.labels.tolist() == index.label.tolist()
            assert (batch.rows[:, 0].numpy() == index.start + index.onset).all()


def test_test_batches_are_plain(store):
    data = FoldData(store, "play/02", batch_size=2, apex_jitter=4, mirror=True)
    batches = list(data.test_batches())
    assert torch.cat([batch.clips for batch in batches]).tolist() == data.test.tolist()
    index = store.index.iloc[data.test]
    assert index.subject_id.unique().tolist() == ["play/02"]  # and not toy/02
    rows = torch.cat([batch.rows for batch in batches]).numpy()
    assert (rows.T == [index.start + index.onset, index.start + index.apex]).all()
    assert torch.equal(
        torch.cat([batch.boxes for batch in batches]),
        au_boxes(torch.from_numpy(store.landmarks), 32)[data.test],
    )


def test_mirrored_samples_have_mirrored_boxes(store):
    data = FoldData(store, "toy/01", mirror=True)
    clips, zero = data.train, torch.zeros_like(data.train)
    plain = data.source.gather(clips, zero, zero + 1, zero)
    mixed = plain.mirrored(coin=torch.arange(len(clips)) % 2 == 0)
    assert torch.equal(mixed.onset[1::2], plain.onset[1::2]) and torch.equal(
        mixed.boxes[1::2], plain.boxes[1::2]
    )
    assert torch.equal(mixed.onset[::2], plain.onset[::2].flip(-1)) and torch.equal(
        mixed.apex[::2], plain.apex[::2].flip(-1)
    )
    left, right = (
        plain.boxes[::2, 0],
        mixed.boxes[::2, 1],
    )  # 1L of the face is 1R of its mirror image
    assert torch.allclose(right[:, [0, 2]], 31 - left[:, [2, 0]]) and torch.equal(
        right[:, [1, 3]], left[:, [1, 3]]
    )
    one, other = (
        next(FoldData(store, "toy/01", mirror=mirror).batches(fold_generator(0)))
        for mirror in (False, True)
    )
    turned = (one.onset != other.onset).flatten(1).any(1)
    assert 0 < turned.sum() < len(turned)  # some are mirrored, and nobody without `mirror`
    assert torch.equal(one.onset, load_frames(store)[one.rows[:, 0]].permute(0, 3, 1, 2) / 255)


def coded(store, reach):
    "A table that says where it was looked up: clip, and frames from the apex, constant over the face"
    clips, steps = torch.arange(len(store)).float(), torch.arange(-reach, reach + 1).float()
    return torch.stack(torch.broadcast_tensors(1 + clips[:, None], steps), -1)[
        ..., None, None
    ].expand(-1, -1, -1, 8, 8)


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_displacements_are_those_of_the_clip_and_frame(store, reach):
    data, order = (
        FoldData(PairSource(store, displacements=coded(store, reach)), "toy/01", 4, reach),
        fold_generator(0),
    )
    first, apex, seen = (
        torch.from_numpy(store.index.start.to_numpy(copy=True)),
        torch.from_numpy(store.index.apex.to_numpy(copy=True)),
        set(),
    )
    for batch in [batch for _ in range(8) for batch in data.batches(order)] + list(
        data.test_batches()
    ):
        steps = batch.rows[:, 1] - first[batch.clips] - apex[batch.clips]
        wanted = torch.stack([1.0 + batch.clips, steps], 1)[..., None, None].expand(-1, -1, 32, 32)
        torch.testing.assert_close(batch.displacement, wanted)
        seen |= set(steps.tolist())
    assert len(seen) > reach and all(
        batch.displacement[:, 1].eq(0).all() for batch in data.test_batches()
    )  # testing: the apex itself


def test_mirrored_displacement_moves_the_mirrored_face():
    "Oracle: warping and splatting the mirror image is the mirror image of warping and splatting"
    generator, coin = torch.Generator().manual_seed(0), torch.tensor([True, False, True])
    faces = (
        torch.rand(3, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )
    field = 0.2 * (torch.rand(3, 2, 32, 32, generator=generator) - 0.5)
    mirrored = mirror_displacement(field, coin)
    for move in (warp, splat):
        torch.testing.assert_close(
            move(mirror_some(faces, coin), mirrored),
            mirror_some(move(faces, field), coin),
            atol=1e-4,
            rtol=0,
        )
    assert torch.equal(mirror_displacement(mirrored, coin), field) and torch.equal(
        mirrored[1], field[1]
    )
    assert mirror_displacement(field.double(), coin).dtype == torch.float64


def test_mirrored_batches_have_mirrored_displacements(store):
    table = torch.randn(len(store), 3, 2, 8, 8)
    data = FoldData(PairSource(store, displacements=table), "toy/01", mirror=True)
    clips, coin = data.train, torch.arange(len(data.train)) % 2 == 0
    onset, apex = data.source.onset[clips], data.source.apex[clips]
    same = data.source.gather(clips, onset, apex, clips)
    mixed = same.mirrored(coin=coin)
    torch.testing.assert_close(mixed.displacement, mirror_displacement(same.displacement, coin))
    for other in data.test_batches():
        one = other.mirrored()
        assert torch.equal(one.onset, other.onset.flip(-1)) and torch.equal(
            one.apex, other.apex.flip(-1)
        )
        assert torch.equal(one.rows, other.rows) and torch.equal(one.labels, other.labels)
        assert torch.equal(
            one.displacement,
            mirror_displacement(other.displacement, torch.ones(len(one.labels), dtype=torch.bool)),
        )
        assert torch.allclose(one.boxes[:, 1, [0, 2]], 31 - other.boxes[:, 0, [2, 0]])
    assert next(FoldData(store, "toy/01").test_batches()).displacement is None


def test_frames_are_not_touched_where_nobody_looks(store, monkeypatch):
    "The same batches, less the frames; and a training of `best` never gathers one"
    table = torch.randn(len(store), 3, 2, 8, 8)
    seeing = PairSource(store, displacements=table)
    with_frames = list(FoldData(seeing, "toy/01", mirror=True).batches(fold_generator(0)))
    monkeypatch.setattr(
        "frl_dgt_nb.training.sampling.load_frames", lambda *_: pytest.fail("frames were loaded")
    )
    for one, other in zip(
        FoldData(
            PairSource(store, displacements=table, needs_frames=False), "toy/01", mirror=True
        ).batches(fold_generator(0)),
        with_frames,
        strict=True,
    ):
        assert one.onset is None and one.apex is None
        assert all(
            torch.equal(getattr(one, name), getattr(other, name))
            for name in ("boxes", "labels", "clips", "rows", "displacement")
        )
    monkeypatch.setattr(training, "precomputed_displacements", lambda *_: table)
    guided = ModelConfig(
        module="guided",
        sees=("displacement",),
        crop_size=4,
        patch=2,
        dim=4,
        heads=1,
        depth=1,
        full_size=4,
        dgm_size=32,
    )
    train_fold(
        store, "toy/01", guided, TrainConfig(epochs=1, pairs=0), device="cpu", progress=False
    )


def test_known_displacements_are_the_guided_modules(store):
    table, module = (
        precomputed_displacements(store.path, "a", 2, torch.device("cpu")),
        load_guided(),
    )
    assert (
        table.shape == (len(store), 5, 2, 8, 8)
        and not table.requires_grad
        and table.isfinite().all()
        and table.any()
    )
    assert (
        precomputed_displacements(store.path, "a", 2, torch.device("cpu")) is table
        and precomputed_displacements(store.path, "b", 2, torch.device("cpu")) is not table
    )
    for i, step in ((0, 0), (4, -1), (7, 2), (2, -2)):
        row, frames = (
            store.index.iloc[i],
            torch.from_numpy(np.array(store.clip(i))).permute(0, 3, 1, 2) / 255,
        )
        second = min(max(row.apex + step, 0), row.n_frames - 1)
        with torch.no_grad():
            expected = torch.nn.functional.avg_pool2d(
                module(frames[[row.onset]], frames[[second]]), SHRINK
            )[0]
        torch.testing.assert_close(table[i, step + 2], expected, atol=1e-6, rtol=1e-4)


def index_of(labels):
    return pd.DataFrame(
        [{"subject_id": f"db/{s}", "label": label} for s, of in enumerate(labels) for label in of]
    )


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=3, max_size=12),
    st.integers(0, 10),
    st.integers(0, 50),
)
def test_inner_subjects(labels, count, seed):
    "As many as asked for, never the test subject; every class among them wherever one subject a class is enough"
    index, test = index_of(labels), "db/1"
    if count > len(labels) - 2:
        with pytest.raises(
            ValueError,
            match=f"inner={count} of the {len(labels) - 1} training subjects.*lower inner",
        ):
            choose_inner(index, test, count, seed)
        return
    chosen = choose_inner(index, test, count, seed)
    assert (
        len(set(chosen)) == len(chosen) == count
        and test not in chosen
        and set(chosen) < set(index.subject_id)
    )
    assert chosen == choose_inner(index, test, count, seed)
    others = index[index.subject_id != test]
    if count >= others.label.nunique():
        assert set(others[others.subject_id.isin(chosen)].label) == set(others.label)


def test_inner_subjects_depend_on_fold_and_seed_and_not_on_chance_alone():
    index = index_of([[0, 1]] * 30 + [[2]])
    drawn = {
        tuple(choose_inner(index, test, 4, seed)) for test in ("db/0", "db/1") for seed in range(5)
    }
    assert len(drawn) == 10 and all(
        "db/30" in chosen for chosen in drawn
    )  # the only one with class 2
    assert len({name for chosen in drawn for name in chosen}) > 15


def test_inner_clips_are_a_side_of_their_own(store):
    data = FoldData(store, "toy/01", inner=["play/02"])
    owner = store.index.subject_id.to_numpy()
    assert [set(owner[side]) for side in (data.test, data.inner, data.train)] == [
        {"toy/01"},
        {"play/02"},
        {"play/01", "toy/02"},
    ]
    assert (
        torch.cat([batch.clips for batch in data.test_batches(clips=data.inner)]).tolist()
        == data.inner.tolist()
    )
    pairs = data.random_pairs(200, fold_generator(0))
    assert set(owner[pairs.clips]) == {"play/01", "toy/02"}
    with pytest.raises(ValueError, match="0 clips are left"):
        FoldData(store, "toy/01", inner=["play/01", "play/02", "toy/02"])


def test_displacements_of_other_sizes_and_random_pairs_are_refused(store):
    for table in (
        coded(store, 1)[1:],
        coded(store, 2),
        coded(store, 1)[:, :, :1],
        coded(store, 1)[:, 0],
    ):
        with pytest.raises(ValueError, match=r"wanted \(12, 3, 2\)"):
            FoldData(PairSource(store, displacements=table), "toy/01")
    with pytest.raises(ValueError, match="pairs=0"):
        known = PairSource(store, displacements=coded(store, 1))
        FoldData(known, "toy/01").random_pairs(2, fold_generator(0))


def test_pairs_do_not_change_the_labelled_batches(store):
    def rows(pairs):
        data, order, pairing = (
            FoldData(store, "toy/01", 4),
            fold_generator(3, "toy/01", "batches"),
            fold_generator(3, "toy/01", "pairs"),
        )
        seen = []
        for batch in data.batches(order):
            seen.append(batch.rows)
            if pairs:
                data.random_pairs(pairs, pairing)
        return torch.cat(seen)

    assert torch.equal(rows(0), rows(7))


clip = st.tuples(st.integers(0, 20), st.integers(1, 20), st.integers(0, 20)).map(
    lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[2])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(clip, min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 99))
def test_jitter_stays_between_onset_and_offset(clips, reach, seed):
    onset, apex, offset = torch.tensor(clips).T
    drawn = jitter_apex(onset, apex, offset, reach, fold_generator(seed))
    assert (
        (drawn > onset).all() and (drawn <= offset).all() and ((drawn - apex).abs() <= reach).all()
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 300), min_size=1, max_size=50), st.integers(0, 99))
def test_pairs_are_two_frames_of_the_clip(lengths, seed):
    lengths = torch.tensor(lengths)
    first, second = draw_pairs(lengths, fold_generator(seed))
    for drawn in (first, second):
        assert (drawn >= 0).all() and (drawn < lengths).all()
    assert (first != second).all()


def test_every_ordered_pair_is_drawn():
    first, second = draw_pairs(torch.full((2000,), 4), fold_generator(0))
    counts = torch.bincount(first * 4 + second, minlength=16).view(4, 4)
    assert (counts.diagonal() == 0).all() and (
        counts + torch.eye(4, dtype=torch.long) * 167 > 110
    ).all()


def test_seeds_are_the_same_in_every_process():
    code = "from frl_dgt_nb.training.sampling import fold_seed; print(fold_seed(0, 'casme2/01'))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert int(told.stdout) == fold_seed(0, "casme2/01") == 169037769161396842
    assert (
        len({fold_seed(1, "a", "b"), fold_seed(1, "ab"), fold_seed(11, "ab"), fold_seed(1, "a")})
        == 4
    )


def test_frames_are_not_copied_and_not_written(store):
    frames = load_frames(store)
    assert frames.dtype == torch.uint8 and frames.data_ptr() == store.frames.ctypes.data
    before = np.array(store.frames)
    batch = FoldData(PairSource(store, frames=frames), "toy/01").random_pairs(4, fold_generator(0))
    batch.onset.zero_()
    assert (
        (store.frames == before).all()
        and batch.apex.dtype == torch.float32
        and 0 <= batch.apex.min() <= batch.apex.max() <= 1
    )


def test_own_boxes(store):
    boxes = torch.rand(len(store), 9, 4)
    batch = next(FoldData(PairSource(store, boxes=boxes), "toy/01").batches(fold_generator(0)))
    assert torch.equal(batch.boxes, boxes[batch.clips])


def test_bad_input(store, tmp_path):
    with pytest.raises(ValueError, match="no subject '01' in the store; it has 4: toy/01, play/01"):
        FoldData(store, "01")
    with pytest.raises(ValueError, match="batch_size 1"):
        FoldData(store, "toy/01", batch_size=1)
    alone = toy_store(tmp_path / "alone", subjects=1)
    with pytest.raises(ValueError, match="0 clips are left"):
        FoldData(alone, "toy/01")
