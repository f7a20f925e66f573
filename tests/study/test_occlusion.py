"""Freezing many regions at once is freezing each; effects, controls and correlations are what they are called."""

import numpy as np
import pandas as pd
import pytest
import torch
from finished_run import finished_run, small_store
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from frl_dgt_nb.model.regions import au_boxes
from frl_dgt_nb.pictures.pair import PairView, ask
from frl_dgt_nb.study.occlusion import (
    agreement_table,
    another_clip,
    occlusion_table,
    plot_occlusion,
    random_boxes,
    rank_correlation,
    repeat_pairs,
)
from frl_dgt_nb.training.finished_run import fold_models, open_finished
from frl_dgt_nb.training.metrics import Resampling
from frl_dgt_nb.training.predict import box_mask, freeze
from frl_dgt_nb.training.sampling import Batch
from frl_dgt_nb.widgets.head_weights import both_weights


@pytest.fixture(scope="module")
def table():
    return occlusion_table(small_store(), finished_run(), progress=False)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_many_boxes_at_once_are_each_alone(seed):
    draw = torch.Generator().manual_seed(seed)
    onset, apex, displacement = (
        torch.rand(2, channels, 20, 24, generator=draw) for channels in (3, 3, 2)
    )
    corners = (
        torch.rand(2, 3, 2, 2, generator=draw).sort(2).values * 30 - 4
    )  # some reach beyond the picture
    corners[:, :, 1].clamp_(min=0)  # but none lies wholly outside
    boxes = corners.flatten(2)
    pairs = Batch(onset, apex, boxes, displacement=displacement)
    frozen = freeze(repeat_pairs(pairs, 3), box_mask(boxes.flatten(0, 1), 20, 24))
    for copy, (x0, y0, x1, y1) in enumerate(boxes.flatten(0, 1).round().int().tolist()):
        wanted, still = apex[copy // 3].clone(), displacement[copy // 3].clone()
        if x1 >= 0 and y1 >= 0:
            inside = (..., slice(max(y0, 0), y1 + 1), slice(max(x0, 0), x1 + 1))
            wanted[inside], still[inside] = onset[copy // 3][inside], 0
        assert torch.equal(frozen.apex[copy], wanted)
        assert torch.equal(frozen.displacement[copy], still)


def test_where_nobody_sees_frames_there_are_none():
    box = torch.tensor([[0.0, 0, 3, 3]]).expand(2, 4)
    frozen = freeze(
        Batch(None, None, box, displacement=torch.ones(2, 2, 8, 8)), box_mask(box, 8, 8)
    )
    assert frozen.apex is None
    assert frozen.displacement.sum() == 2 * 2 * (64 - 16)


@pytest.mark.parametrize("kind", ["guided", "plain"])
def test_table_says_what_the_inspector_says(kind):
    "One pair, region by region, by other code; with nothing frozen it is what the run says, mirror image or not."
    store, run = small_store(), finished_run(kind)
    finished = open_finished(store, run)
    _, model = next(fold_models(finished))
    assert model.config.mirror == (kind == "guided")
    table = occlusion_table(store, run, progress=False)
    view = PairView(store, 2, model=model)
    whole, weights = ask(view, view.boxes)
    frozen = np.stack([ask(view, view.boxes, k)[0] for k in range(9)])
    part = table[table.clip_id == store.index.clip_id[2]]
    assert np.allclose(part["drop"], (whole - frozen)[:, whole.argmax()], atol=1e-4)
    assert np.allclose(part.weight, weights, atol=1e-4)
    assert np.allclose(part.drop_true, (whole - frozen)[:, store.index.label[2]], atol=1e-4)
    assert (part.changed == (frozen.argmax(1) != whole.argmax())).all()
    assert (part.prediction == whole.argmax()).all()
    assert np.allclose(whole, finished.table.filter(regex="^p_").iloc[2], atol=1e-4)
    assert np.allclose(both_weights(view)[2], whole, atol=1e-6)


def test_table_has_a_row_a_clip_and_region(table):
    store = small_store()
    assert len(table) == 9 * 12
    assert list(table.clip_id[::9]) == list(store.index.clip_id)
    assert (table.label[::9].to_numpy() == store.index.label).all()
    assert np.allclose(table.groupby("clip_id").weight.sum(), 1, atol=1e-4)
    assert table.region[:9].tolist() == ["1L", "1R", "2", "3L", "3R", "4", "5L", "5R", "6"]
    predicted = pd.read_parquet(finished_run() / "predictions.parquet").prediction
    assert (table.prediction[::9].to_numpy() == predicted).all()
    same = table.prediction == table.label
    assert np.allclose(table["drop"][same], table.drop_true[same])
    assert table["drop"].abs().max() > 1e-5
    boxes = au_boxes(torch.as_tensor(store.landmarks[:1]))[0].numpy()
    assert table.area[8] == pytest.approx(
        (boxes[8, 2] - boxes[8, 0]) * (boxes[8, 3] - boxes[8, 1]) / 256**2, rel=1e-3
    )


def test_motion_and_truth_are_means_within_the_box(table):
    store = small_store()
    truth = store.truth(4)
    boxes = au_boxes(torch.as_tensor(store.landmarks[4:5]))[0].numpy().round().astype(int)
    means = [np.hypot(*truth)[y0 : y1 + 1, x0 : x1 + 1].mean() for x0, y0, x1, y1 in boxes]
    assert np.allclose(table.truth[4 * 9 : 5 * 9], means, rtol=1e-4)
    assert (table.motion > 0).all()


def test_twins_are_random_but_not_by_accident(table):
    other = occlusion_table(small_store(), finished_run(), seed=1, progress=False)
    assert not np.allclose(other.control, table.control)
    assert np.allclose(other["drop"], table["drop"], atol=1e-6)
    boxes = torch.tensor([[[0.0, 0, 9, 9], [50, 50, 99, 99]]])
    assert torch.equal(*(random_boxes(boxes, np.random.default_rng(0)) for _ in range(2)))


def test_a_model_without_levels_and_direction():
    "A dynamic image has no motion to measure; a grid's boxes have numbers; equal weights agree with nothing."
    table = occlusion_table(small_store(), finished_run("bare"), progress=False)
    assert table.motion.isna().all()
    assert table.region[:9].tolist() == list("123456789")
    assert np.allclose(table.weight, 1 / 9, atol=1e-5)
    agreed = agreement_table(table, resampling=Resampling(50))
    assert agreed.value["weight"] == pytest.approx(0, abs=0.3)
    assert "motion, module" not in agreed.index
    assert "motion, truth" in agreed.index


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_twins_have_the_size_of_the_box_and_stay_on_the_face(seed):
    boxes = au_boxes(torch.as_tensor(small_store().landmarks[:2]))
    twins = random_boxes(boxes, np.random.default_rng(seed))
    assert torch.allclose(
        twins[..., 2:] - twins[..., :2], boxes[..., 2:] - boxes[..., :2], atol=1e-3
    )
    assert (twins[..., :2] >= boxes[..., :2].amin(1, keepdim=True) - 1e-3).all()
    assert (twins[..., 2:] <= boxes[..., 2:].amax(1, keepdim=True) + 1e-3).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_correlation_is_that_of_scipy(seed):
    a, b = np.random.default_rng(seed).integers(0, 6, (2, 5, 9)).astype(float)
    assert np.allclose(rank_correlation(a, b), [spearmanr(x, y)[0] for x, y in zip(a, b)])


def test_nothing_agrees_with_what_is_all_alike():
    agreed = rank_correlation(np.ones((2, 9)), np.random.default_rng(0).random((2, 9)))
    assert agreed.tolist() == [0, 0]


def made(weight, drop, clips=24):
    names = [f"s{c // 4}" for c in range(clips)]
    return pd.DataFrame(
        {
            "clip_id": np.repeat(np.arange(clips), 9),
            "subject_id": np.repeat(names, 9),
            "region": np.tile(list("abcdefghi"), clips),
            "weight": np.ravel(weight),
            "drop": np.ravel(drop),
            "drop_true": -np.ravel(drop),
            "motion": np.abs(np.ravel(drop)),
            "truth": np.nan,
            "area": np.tile(np.arange(9.0), clips),
        }
    )


def test_agreement_tells_knowing_from_guessing():
    draw = np.random.default_rng(0)
    drop = draw.normal(size=(24, 9))
    noise = draw.random((24, 9))
    regions = np.tile(np.arange(9.0), (24, 1))
    own, none, general = (
        agreement_table(made(weight, effect), resampling=Resampling(300))
        for weight, effect in ((np.abs(drop), drop), (noise, drop), (regions, regions))
    )
    assert own.value["weight"] == pytest.approx(1)
    assert own.low["weight"] == pytest.approx(1)
    assert abs(own.value["weight of another clip"]) < 0.25
    assert none.low["weight"] < 0 < none.high["weight"]
    assert abs(none.value["weights permuted"]) < 0.25
    assert none.value["motion, module"] == pytest.approx(1)
    assert none.high["weight less motion, module"] < 0
    assert "motion, truth" not in none.index
    assert general.value["weight of another clip"] == pytest.approx(1)
    assert general.value["weight less weight of another clip"] == pytest.approx(0)
    assert (own.low <= own.value + 1e-9).all()
    assert (own.value <= own.high + 1e-9).all()


def test_agreement_is_the_mean_over_clips():
    draw = np.random.default_rng(1)
    weight, drop = draw.random((24, 9)), draw.normal(size=(24, 9))
    expected = np.mean([spearmanr(w, np.abs(d))[0] for w, d in zip(weight, drop)])
    agreed = agreement_table(made(weight, drop), resampling=Resampling(10))
    assert agreed.value["weight"] == pytest.approx(expected)


def test_another_clip_is_of_another_subject():
    subjects = np.repeat(["a", "b", "c"], 4)
    assert (subjects[another_clip(subjects, np.random.default_rng(0))] != subjects).all()


def test_picture_holds_weights_and_effects(table):
    store = small_store()
    figure = plot_occlusion(store, table, 3)
    part = table[table.clip_id == store.index.clip_id[3]]
    line = figure.axes[2].get_lines()[-1]
    assert np.allclose(line.get_xdata(), part.weight)
    assert np.allclose(line.get_ydata(), part["drop"])
    assert {text.get_text() for text in figure.axes[2].texts} == set(part.region)
    effect = figure.axes[1].images[1]
    low, high = effect.get_clim()
    assert low == pytest.approx(-high)
    assert (
        np.nanmax(np.abs(np.ma.filled(effect.get_array(), np.nan)))
        <= np.abs(part["drop"]).max() + 1e-6
    )
    with pytest.raises(ValueError, match="nothing about"):
        plot_occlusion(store, table[table.clip_id != store.index.clip_id[3]], 3)
