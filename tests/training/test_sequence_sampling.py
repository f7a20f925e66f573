"""FRL-DGT-S: batches of sequences, a fold, and leave-one-subject-out."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from archives import make_casme2
from toy_store import toy_store

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.clips import label_of
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import PRESETS, ModelConfig
from frl_dgt_nb.model.dgm import displacement_loss
from frl_dgt_nb.model.guided import SHRINK, load_guided
from frl_dgt_nb.model.regions import crop_boxes, face_boxes, mirror_landmarks
from frl_dgt_nb.model.sequence import build_model, load_sequence, sequence_loss
from frl_dgt_nb.training import loso
from frl_dgt_nb.training.fold import check_fit, fold_data, joint_loss, predict_test, train_fold
from frl_dgt_nb.training.interpolation import read_sequence, sequence_store
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.sampling import fold_generator
from frl_dgt_nb.training.sequence_sampling import (
    SequenceData,
    SequenceSource,
    precomputed_sequences,
)
from frl_dgt_nb.training.settings import SEQUENCE_TRAIN_PRESETS, TRAIN_PRESETS, TrainConfig

SAMPLES = Path(__file__).parents[2] / "data_samples/frames/s03/c1"
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
    dropout=0.0,
    sees=("apex", "displacement"),
)
SEQ = replace(SMALL, steps=4)
GUIDED = replace(SEQ, module="guided", sees=("displacement",), mirror=True)
BRIEF = TrainConfig(epochs=2, batch_size=4, pairs=3, apex_jitter=0)
FIXED = replace(BRIEF, pairs=0, mirror=True)
quiet = dict(device="cpu", progress=False)


def make(config):
    "A small model whose displacement isn't zero."
    torch.manual_seed(0)
    model = build_model(config)
    if config.module == "plain":
        with torch.no_grad():
            model.dgm.head.weight.normal_(std=0.02)
    return model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("pairs") / "store")


@pytest.fixture(scope="module")
def store(pairs, tmp_path_factory):
    "Twelve sequences of four frames."
    return sequence_store(pairs, tmp_path_factory.mktemp("sequences") / "store", 4, progress=False)


def changed(store, folder, change):
    "A copy of a store with other frames."
    shutil.copytree(store.path, folder)
    np.save(folder / "frames.npy", change(np.array(store.frames)))
    return FaceStore(folder)


@pytest.mark.parametrize("steps", [2, 4])
def test_known_sequences_are_the_guided_modules_words(pairs, steps):
    found = precomputed_sequences(pairs.path, "a", steps)
    assert found.shape == (12, steps - 1, 2, 32 // SHRINK, 32 // SHRINK)
    frames = read_sequence(pairs, 1, steps)
    with torch.no_grad():
        wanted = F.avg_pool2d(load_guided()(frames[:1], frames[-1:]), SHRINK)[0]
    torch.testing.assert_close(found[1, -1], wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="dynamic"):
        precomputed_sequences(pairs.path, "a", steps, module="dynamic")


def test_a_batch_is_the_frames_of_its_clips(store):
    data = SequenceData(store, "toy/01", batch_size=4)
    batches = list(data.batches(fold_generator(0)))
    assert (
        sorted(int(clip) for batch in batches for clip in batch.clips) == data.train.tolist()
        and max(len(batch.clips) for batch in batches) == 3
    )
    for batch in [*batches, *data.test_batches(), *data.test_batches(torch.tensor([2, 11]))]:
        for frames, clip, rows in zip(batch.frames, batch.clips.tolist(), batch.rows):
            assert torch.equal(
                (frames * 255).round().byte().permute(0, 2, 3, 1),
                torch.from_numpy(store.clip(clip).copy()),
            )
            assert rows.tolist() == list(range(4 * clip, 4 * clip + 4))
        assert torch.equal(batch.labels, data.label[batch.clips]) and torch.equal(
            batch.boxes, data.source.boxes[batch.clips]
        )
        first, second = batch.moved
        assert torch.equal(first.unflatten(0, (-1, 3))[:, 2], batch.frames[:, 0]) and torch.equal(
            second.unflatten(0, (-1, 3)), batch.frames[:, 1:]
        )
    assert {int(clip) for batch in data.test_batches() for clip in batch.clips} == set(
        np.flatnonzero(store.index.subject_id == "toy/01")
    )
    held = SequenceData(store, "toy/01", 4, inner=["play/02"])
    assert {int(clip) for batch in held.batches(fold_generator(0)) for clip in batch.clips} == set(
        held.train.tolist()
    ) and len(held.train) == 6
    some = data.random_pairs(50, fold_generator(1))
    assert (
        (some.rows // 4 == some.clips[:, None]).all()
        and (some.rows[:, 0] != some.rows[:, 1]).all()
        and (some.labels == -100).all()
    )


def with_table(store, displacements, needs_frames=True, **settings):
    source = SequenceSource(store, displacements=displacements, needs_frames=needs_frames)
    return SequenceData(source, "toy/01", **settings)


def test_what_is_known_comes_small_where_nobody_looks_and_large_where_somebody_does(store):
    known = 0.02 * torch.randn(12, 3, 2, 8, 8)
    small, large = (next(with_table(store, known, look).test_batches()) for look in (False, True))
    assert small.frames is None and torch.equal(small.displacement, known[small.clips])
    torch.testing.assert_close(small.boxes, (large.boxes + 0.5) / 4 - 0.5)
    assert large.frames.shape == (3, 4, 3, 32, 32) and large.displacement.shape == (3, 3, 2, 32, 32)
    torch.testing.assert_close(
        large.displacement[1, 2],
        F.interpolate(known[large.clips[1], 2:3], (32, 32), mode="bilinear")[0],
    )
    smooth = (
        torch.linspace(-0.02, 0.02, 8).expand(12, 3, 2, 8, 8).contiguous()
    )  # a slope looks the same at both sizes, but at the rim
    a, b = (next(with_table(store, smooth, look).test_batches()) for look in (False, True))
    inside = torch.tensor([9.0, 9, 20, 20]).expand_as(b.boxes)
    torch.testing.assert_close(
        crop_boxes(a.displacement[:, 0], (inside + 0.5) / 4 - 0.5, size=10),
        crop_boxes(b.displacement[:, 0], inside, size=10),
        atol=1e-4,
        rtol=0,
    )


def test_a_clip_is_mirrored_from_first_to_last(store):
    known = 0.02 * torch.randn(12, 3, 2, 8, 8)
    for extra in ((None, True), (known, True), (known, False)):
        kinds = 2 if extra[0] is not None and extra[1] else 1  # frames, displacements, or both
        data = with_table(store, *extra, batch_size=12, mirror=True)
        batch, again = (
            next(data.batches(fold_generator(3))),
            next(with_table(store, *extra, batch_size=12).batches(fold_generator(3))),
        )
        turned = 0
        for row in range(len(batch.clips)):
            for values, plain, sign in (
                (batch.frames, again.frames, (1, 1, 1)),
                (batch.displacement, again.displacement, (-1, 1)),
            ):
                if values is None:
                    continue
                flipped = plain[row].flip(-1) * torch.tensor(sign).view(-1, 1, 1)
                is_turned = torch.allclose(values[row], flipped, atol=1e-6)
                assert torch.equal(values[row], plain[row]) != is_turned
                assert torch.equal(batch.boxes[row], again.boxes[row]) != is_turned
                turned += is_turned
        assert 0 < turned < len(batch.clips) * kinds


@pytest.mark.parametrize("guided", [False, True])
def test_a_mirroring_model_does_not_care_which_side_is_left(store, tmp_path, guided):
    torch.manual_seed(0)
    model = make(replace(GUIDED if guided else replace(SEQ, mirror=True), dropout=0.0))
    other = changed(store, tmp_path / "turned", lambda frames: frames[:, :, ::-1])
    other.landmarks = mirror_landmarks(torch.as_tensor(store.landmarks), 32).numpy()
    known = 0.02 * torch.randn(12, 3, 2, 8, 8)
    flipped = known.flip(-1) * torch.tensor([-1.0, 1]).view(2, 1, 1)
    ways = [
        with_table(s, k if guided else None, not guided)
        for s, k in ((store, known), (other, flipped))
    ]
    here, there = (predict_test(model, data) for data in ways)
    assert np.allclose(here, there, atol=1e-5)
    model.config = replace(model.config, mirror=False)
    assert np.abs(predict_test(model, ways[0]) - predict_test(model, ways[1])).max() > 1e-4


@pytest.mark.parametrize("mirror, inner, boxes", [(True, 0, "grid"), (False, 1, "au")])
def test_a_fold_is_made_as_the_settings_say(store, mirror, inner, boxes):
    data = fold_data(
        store,
        "toy/01",
        replace(SEQ, boxes=boxes),
        replace(BRIEF, mirror=mirror, inner=inner, batch_size=3),
        0,
        torch.device("cpu"),
    )
    assert isinstance(data, SequenceData) and (
        data.mirror,
        data.batch_size,
        len(data.inner),
        data.source.displacements,
    ) == (mirror, 3, 3 * inner, None)
    assert (
        torch.equal(data.source.boxes, face_boxes(torch.as_tensor(store.landmarks), 32, boxes))
        and data.source.frames is not None
    )
    known = fold_data(store, "toy/01", GUIDED, FIXED, 0, torch.device("cpu"))
    assert known.source.frames is None and torch.equal(
        known.source.displacements, precomputed_sequences(store.path, store.settings["checksum"], 4)
    )


def test_joint_loss_is_that_of_the_sequence(store):
    model, data = make(SEQ), SequenceData(store, "toy/01")
    batch, some = next(data.batches(fold_generator(0))), data.random_pairs(5, fold_generator(1))
    model.eval()
    total, parts = joint_loss(model, batch, some)
    wanted, own = sequence_loss(model(batch.frames, batch.boxes), batch.labels, batch.frames)
    pair_loss, _ = displacement_loss(some.onset, some.apex, model.displace(some.onset, some.apex))
    torch.testing.assert_close(total, wanted + pair_loss)
    assert set(parts) == {"classification", "labelled", "pairs"} and torch.equal(
        parts["labelled"], own["labelled"]
    )


@pytest.mark.parametrize(
    "model_config, train_config", [(SEQ, BRIEF), (GUIDED, FIXED)], ids=["plain", "guided"]
)
def test_a_fold_depends_on_seed_and_subject_alone_and_not_on_the_test_subject(
    store, tmp_path, model_config, train_config
):
    first = train_fold(store, "toy/01", model_config, train_config, **quiet)
    train_fold(store, "play/01", model_config, train_config, **quiet)
    again = train_fold(store, "toy/01", model_config, train_config, **quiet)
    assert np.array_equal(first.probabilities, again.probabilities) and first.losses == again.losses
    assert set(first.losses[0]) == {"total", "classification", "fusion_rate"} | (
        {"labelled", "pairs"} if model_config == SEQ else set()
    )
    own = np.repeat((store.index.subject_id == "toy/01").to_numpy(), 4)
    for name, mask, same in (("theirs", own, True), ("others", ~own, False)):
        other = changed(
            store,
            tmp_path / name,
            lambda frames: np.where(mask[:, None, None, None], 255 - frames[:, ::-1], frames),
        )
        third = train_fold(other, "toy/01", model_config, train_config, **quiet)
        assert (
            torch.equal(first.model.classifier[0].weight, third.model.classifier[0].weight) == same
        )
    assert not np.array_equal(first.probabilities, third.probabilities)


def test_a_fold_learns_sequences_by_heart(store):
    config = TrainConfig(
        epochs=25, batch_size=12, pairs=0, apex_jitter=0, fusion_rate=0.01, store_every=25
    )
    losses = train_fold(store, "toy/01", replace(GUIDED, mirror=False), config, **quiet).losses
    assert losses[-1]["classification"] < 0.3 < 1 < losses[0]["classification"]


def test_what_does_not_fit_is_said_before_anything_is_trained(pairs, store, tmp_path):
    for faces, config, train, told in (
        (
            pairs,
            SEQ,
            BRIEF,
            "steps=4 with a store of clips of any length; sequence_store\\(store, out, steps=4\\)",
        ),
        (
            store,
            replace(SEQ, steps=6),
            BRIEF,
            "steps=6 with a store of sequences of 4 frames; sequence_store",
        ),
        (
            store,
            SEQ,
            replace(BRIEF, apex_jitter=1),
            "apex_jitter=1 with steps=4.*set apex_jitter=0",
        ),
        (store, GUIDED, BRIEF, "pairs=3 with module='guided'"),
    ):
        with pytest.raises(ValueError, match=told):
            check_fit(faces, config, train)
        with pytest.raises(ValueError, match=told):
            run_loso(faces, tmp_path / "run", model_config=config, train_config=train, **quiet)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="clips of any length"):
        SequenceData(pairs, "toy/01")
    with pytest.raises(ValueError, match="wanted \\(12, 3, 2\\)"):
        with_table(store, torch.zeros(12, 4, 2, 8, 8))
    check_fit(store, SMALL, TrainConfig())  # a pair's model takes onset and apex of a sequence


# all folds


def test_a_run_stopped_and_resumed_in_two_processes_is_the_run(store, tmp_path, monkeypatch):
    settings = dict(
        model_config=GUIDED, train_config=replace(FIXED, epochs=1, inner=1), threads=1, **quiet
    )
    whole = run_loso(store, tmp_path / "whole", **settings)
    assert whole["n_clips"] == 12 and {"oracle", "inner"} <= set(whole)
    stop = iter([None, KeyboardInterrupt])
    real = loso.train_on

    def stopped(*what, **how):
        if error := next(stop):
            raise error
        return real(*what, **how)

    monkeypatch.setattr(loso, "train_on", stopped)
    with pytest.raises(KeyboardInterrupt, match="1 of 4 folds"):
        run_loso(store, tmp_path / "parts", **settings)
    with pytest.raises(ValueError, match="model.steps was 4, now 0"):
        run_loso(
            store,
            tmp_path / "parts",
            **(settings | {"model_config": replace(GUIDED, steps=0)}),
            resume=True,
        )
    run_loso(store, tmp_path / "parts", **settings, workers=2, resume=True)
    tables = [
        pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("whole", "parts")
    ]
    pd.testing.assert_frame_equal(*tables)
    for path in sorted((tmp_path / "whole" / "folds").glob("*.safetensors")):
        model = load_sequence(path)
        assert model.config == GUIDED
        for a, b in zip(
            model.state_dict().values(),
            load_sequence(tmp_path / "parts" / "folds" / path.name).state_dict().values(),
        ):
            assert torch.equal(a, b)


def test_presets_bring_the_training_of_sequences(store, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        loso,
        "check_fit",
        lambda store, model, train: (
            seen.update(train=train) or (_ for _ in ()).throw(ValueError("seen"))
        ),
    )
    for steps, presets in ((4, SEQUENCE_TRAIN_PRESETS), (0, TRAIN_PRESETS)):
        for name in ("paper", "tiny", "best"):
            with pytest.raises(ValueError, match="seen"):
                run_loso(
                    store,
                    tmp_path / "run",
                    name,
                    replace(PRESETS[name], steps=steps, sees=("displacement",)),
                    **quiet,
                )
            assert seen["train"] == presets[name]


@pytest.mark.parametrize("classes", [4, 5])
def test_more_classes_from_archive_to_report(tmp_path, classes):
    "CASME II as Table 3 has it: 'others' counts, and so do sadness and fear where there are four classes"
    frames = [
        path.read_bytes() for path in sorted(SAMPLES.iterdir(), key=lambda path: int(path.stem))
    ][::3]
    make_casme2(tmp_path / "data", frames=len(frames), pictures=frames, first=10)
    database = read_database(tmp_path / "data", "casme2", classes)
    faces = prepare(database, tmp_path / "store", size=64, workers=1, progress=False)
    assert (
        set(faces.index.label) == {label_of(emotion, classes) for emotion in faces.index.emotion}
        and faces.index.label.max() == classes - 1
    )
    sequences = sequence_store(faces, tmp_path / "sequences", 3, progress=False)
    config = replace(SMALL, steps=3, classes=classes, sees=("displacement",))
    report = run_loso(
        sequences,
        tmp_path / "run",
        model_config=config,
        train_config=replace(BRIEF, epochs=1),
        **quiet,
    )
    assert np.shape(report["confusion"]) == (classes, classes) and np.sum(
        report["confusion"]
    ) == report["n_clips"] == len(faces)
    assert (
        np.sum(report["confusion"], 1).tolist()
        == np.bincount(faces.index.label, minlength=classes).tolist()
    )
