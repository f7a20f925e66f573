"""Fold, report, inspector, fusion view and a finished run say the same of the same pair, and of its mirror image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finished_run import SMALL, finished_run, small_store
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import toy_store

from frl_dgt_nb import predict
from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.model.sequence import FRLDGTS
from frl_dgt_nb.pictures.pair import PairView, ask
from frl_dgt_nb.pictures.report import explain
from frl_dgt_nb.training.finished_run import ask_folds, look_inside, open_finished, pair_data
from frl_dgt_nb.training.fold import fold_data, predict_test
from frl_dgt_nb.training.precomputed import given_displacement
from frl_dgt_nb.training.predict import box_mask, freeze_sides, predict_batch, prepare_sides
from frl_dgt_nb.training.sampling import Batch, FoldData, PairSource
from frl_dgt_nb.training.sequence_sampling import SequenceBatch
from frl_dgt_nb.training.settings import TrainConfig
from frl_dgt_nb.widgets.head_weights import both_weights

torch.set_num_threads(1)
MODULES = ("plain", "guided", "dis", "farneback", "tvl1", "dynamic")
FIXED = TrainConfig(pairs=0, apex_jitter=0, batch_size=4)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(scope="module")
def store():
    return small_store()


def make(device="cpu", **changes):
    "A model of random weights that finds some motion and tells clips apart."
    sees = ("onset", "apex", "displacement")
    if changes["module"] == "dynamic":
        sees = ("dynamic",)
    if changes["module"] == "plain":
        changes["dgm_size"] = 64
    torch.manual_seed(0)
    model = FRLDGT(ModelConfig(**SMALL, sees=sees, **changes))
    if model.config.module == "plain":
        torch.nn.init.normal_(model.dgm.head.weight, std=0.05)
    for weight in model.classifier.parameters():
        weight.data.mul_(5)
    return model.to(device).eval()


def of_fold(model, store, device):
    "What a run stores of the first subject's four clips."
    subject = store.index.subject_id[0]
    data = fold_data(store, subject, model.config, FIXED, 0, torch.device(device))
    return predict_test(model, data)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_everybody_says_what_the_run_says(store, module, mirror, device):
    model = make(device, module=module, mirror=mirror)
    run = of_fold(model, store, device)
    assert np.abs(run[0] - run[1]).max() > 1e-3  # the model does tell clips apart
    tolerance = 2e-3 if device == "cuda" else 2e-4 if module == "dynamic" else 2e-5
    for row in range(2):
        displacement = given_displacement(store, row, module)
        seen = explain(model, *store.pair(row), store.landmarks[row], displacement)
        np.testing.assert_allclose(seen["probabilities"], run[row], atol=tolerance)
        if module != "dynamic" and device == "cpu":  # which two frames aren't enough for
            view = PairView(store, row, model=model)
            np.testing.assert_allclose(ask(view, view.boxes)[0], run[row], atol=tolerance)
            np.testing.assert_allclose(both_weights(view)[2], run[row], atol=tolerance)
    if device == "cpu":
        data = pair_data(store, model.config)
        again = predict_test(model, data, torch.arange(4))
        np.testing.assert_allclose(again, run, atol=tolerance)
        weights = look_inside(model, data, torch.tensor([1]))["whole"][0]
        np.testing.assert_allclose(weights, seen["weights"], atol=1e-3)


@pytest.mark.parametrize("module", MODULES)
def test_a_pair_and_its_mirror_image_are_one(store, module):
    "With `mirror`, and without it not: this is what averaging buys."
    for mirror in (True, False):
        model = make(module=module, mirror=mirror)
        data = fold_data(store, "folder/s01", model.config, FIXED, 0, torch.device("cpu"))
        batch = next(data.test_batches())
        other = batch.mirrored(directed=module != "dynamic")
        here, there = (predict_batch(model, each).probabilities for each in (batch, other))
        assert (float((here - there).abs().max()) < 2e-5) == mirror


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("strain", [False, True])
def test_a_displacement_that_comes_with_the_data_is_mirrored(mirror, strain):
    sees = ("displacement", "strain") if strain else ("displacement",)
    channels, sizes = 2 + strain, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = FRLDGT(ModelConfig(**SMALL, module="given", sees=sees, mirror=mirror)).eval()
    displacement = 0.02 * torch.randn(4, channels, 64, 64, generator=sizes)
    boxes = torch.tensor([[8.0, 8, 30, 30]]).expand(4, 9, 4) + torch.arange(9)[:, None]
    answer = predict(model, None, None, boxes, displacement)
    turned = displacement.flip(-1)
    turned[:, 0] *= -1
    other = Batch(None, None, boxes, displacement=displacement).mirrored()
    assert torch.equal(other.displacement, turned)
    sides = [(boxes, displacement), (other.boxes, turned)] if mirror else [(boxes, displacement)]
    with torch.no_grad():
        wanted = [model(None, None, *side).logits.softmax(-1) for side in sides]
    torch.testing.assert_close(answer.probabilities, torch.stack(wanted).mean(0))


def test_a_learnt_displacement_is_found_anew_in_the_mirror(store):
    "The mirror image of what was found is something else, and gives another answer."
    model = make(module="plain", mirror=True)
    batch = next(FoldData(store, "folder/s01").test_batches())
    first, second = prepare_sides(model, batch)
    with torch.no_grad():
        found = model.displace(batch.onset.flip(-1), batch.apex.flip(-1))
    assert torch.equal(second.displacement, found)
    naive = batch._replace(displacement=first.displacement).mirrored()
    assert not torch.allclose(naive.displacement, found, atol=1e-4)
    wrong = predict(model, batch.onset, batch.apex, batch.boxes, first.displacement)
    right = predict(model, batch.onset, batch.apex, batch.boxes)
    assert float((wrong.probabilities - right.probabilities).abs().max()) > 1e-4


@pytest.mark.parametrize("module", ["plain", "guided"])
def test_a_frozen_region_is_frozen_on_both_sides(store, module):
    model = make(module=module, mirror=True)
    batch = next(FoldData(store, "folder/s01").test_batches())
    if module == "guided":  # then the mirror image of a pair brings the mirrored displacement
        batch = batch._replace(displacement=prepare_sides(model, batch)[0].displacement)
    box = torch.tensor([[20.0, 100, 90, 170]]).expand(4, 4)
    sides = freeze_sides(prepare_sides(model, batch), box)
    free = prepare_sides(model, batch)
    for side, before, columns in zip(sides, free, (slice(20, 91), slice(165, 236))):
        inside = (..., slice(100, 171), columns)
        assert torch.equal(side.apex[inside], side.onset[inside])
        assert side.displacement[inside].eq(0).all()
        side.apex[inside], side.displacement[inside] = (
            before.apex[inside],
            before.displacement[inside],
        )
        assert torch.equal(side.apex, before.apex)
        assert torch.equal(side.displacement, before.displacement)
    frozen = predict(model, *batch.inputs, frozen=box).probabilities
    other = batch.mirrored()
    turned = torch.stack([255 - box[:, 2], box[:, 1], 255 - box[:, 0], box[:, 3]], 1)
    there = predict(model, *other.inputs, frozen=turned).probabilities
    torch.testing.assert_close(frozen, there, atol=2e-5, rtol=0)
    free = predict(model, *batch.inputs).probabilities
    assert float((frozen - free).abs().max()) > 1e-4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 60), min_size=4, max_size=4))
def test_a_mask_is_the_slice_of_its_rounded_box(corners):
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    mask = box_mask(torch.tensor([x0, y0, x1, y1]), 24, 32)
    wanted = torch.zeros(24, 32, dtype=torch.bool)
    left, top, right, bottom = np.round(np.float32([x0, y0, x1, y1])).astype(int)
    if right >= 0 and bottom >= 0:
        wanted[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    assert torch.equal(mask, wanted)


@pytest.mark.parametrize("seen", [("displacement",), ("onset", "apex", "displacement")])
def test_sequences_have_two_sides_as_well(seen):
    torch.manual_seed(0)
    settings = ModelConfig(**SMALL, dgm_size=16, sees=seen, mirror=True, steps=3, module="guided")
    model = FRLDGTS(settings).eval()
    frames = torch.rand(2, 3, 3, 32, 32)
    boxes = torch.tensor([[4.0, 4, 15, 15]]).expand(2, 9, 4) + torch.arange(9)[:, None]
    batch = SequenceBatch(frames, boxes, displacement=0.02 * torch.randn(2, 2, 2, 32, 32))
    here, there = (predict_batch(model, each).probabilities for each in (batch, batch.mirrored()))
    torch.testing.assert_close(here, there, atol=1e-6, rtol=0)
    box = torch.tensor([[2.0, 3, 9, 9]]).expand(2, 4)
    for side, columns in zip(
        freeze_sides(prepare_sides(model, batch), box), (slice(2, 10), slice(22, 30))
    ):
        inside = side.frames[..., 3:10, columns]
        assert torch.equal(inside, inside[:, :1].expand_as(inside))
        assert side.displacement[..., 3:10, columns].eq(0).all()


def test_a_model_in_training_is_put_into_evaluation_mode(tmp_path):
    store = toy_store(tmp_path / "toy")
    batch = next(FoldData(PairSource(store), "toy/01").test_batches())
    model = make(module="plain", mirror=True).train()
    first = predict(model, batch.onset, batch.apex, batch.boxes).probabilities
    assert not model.training and not first.requires_grad
    assert torch.equal(first, predict(model, *batch[:3]).probabilities)


def test_bad_shapes_are_named(store):
    model = make(module="plain", mirror=True)
    batch = next(FoldData(store, "folder/s01").test_batches())
    with pytest.raises(ValueError, match="got apex of shape"):
        predict(model, batch.onset, batch.apex[:2], batch.boxes)
    with pytest.raises(ValueError, match="got boxes of shape"):
        predict(model, batch.onset, batch.apex, batch.boxes[:, :8])
    with pytest.raises(ValueError, match="no displacement module"):
        given_model = FRLDGT(replace(model.config, module="given", sees=("displacement",)))
        predict(given_model, None, None, batch.boxes)


def test_pairs_of_a_single_subject_can_be_asked_about(store):
    "One clip, twice: nobody is left to train on, and nobody trains."
    finished = open_finished(store, finished_run())
    index = store.index.iloc[[2, 2]]
    answers = ask_folds(finished, [2, 2], index.onset, index.apex)
    stored = finished.table.filter(regex="^p_").iloc[2]
    np.testing.assert_allclose(answers, [stored, stored], atol=1e-5)
