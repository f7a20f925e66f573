"""Figures 3 and 4 hold what their titles say: read back from the artists, from runs of three modules."""

import numpy as np
import pytest
import torch
from finished_run import finished_run, small_store

from frl_dgt_nb.model.frldgt import load_model
from frl_dgt_nb.model.regions import au_boxes
from frl_dgt_nb.pictures.colors import flow_colors
from frl_dgt_nb.pictures.pair import PairView
from frl_dgt_nb.pictures.report import typical_clip
from frl_dgt_nb.study.face_figures import figure3, figure4, motions
from frl_dgt_nb.training.finished_run import open_finished
from frl_dgt_nb.training.run_folder import fold_path

TITLES = [
    "onset",
    "apex",
    "dynamic\nimage",
    "flow, head\nheld still",
    "flow,\nnormalised",
    "displacement",
    "displacement,\nnormalised",
    "truth",
]


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def typical_views():
    "The typical clip of each class, with the model that had left its subject out."
    store, finished = small_store(), open_finished(small_store(), finished_run())
    views = []
    for label in range(3):
        row = typical_clip(finished.table, label)
        path = fold_path(finished.run, store.index.subject_id[row], ".safetensors")
        views.append(PairView(store, row, model=load_model(path)))
    return views


def test_figure3_shows_typical_clips():
    axes = np.array(figure3(small_store(), finished_run()).axes[:24]).reshape(3, 8)
    assert [ax.get_title() for ax in axes[0]] == TITLES
    assert not any(ax.get_title() for ax in axes[1:].flat)
    names = [ax.get_ylabel().split("\n")[0] for ax in axes[:, 0]]
    assert names == ["negative", "positive", "surprise"]
    for view, row in zip(typical_views(), axes):
        for ax, frame in zip(row, view.pair):
            assert np.allclose(drawn(ax), frame[0].permute(1, 2, 0), atol=1e-6)
        assert np.allclose(drawn(row[2]), view.dynamic())


def test_figure3_draws_pixels_on_one_scale():
    axes = np.array(figure3(small_store(), finished_run()).axes[:24]).reshape(3, 8)
    seen, sizes = [], []
    for view, row in zip(typical_views(), axes):
        flow, own = view.motion("optical flow"), view.motion("module", still=False)
        for ax, motion in ((row[3], flow), (row[5], own), (row[7], view.truth)):
            seen.append((ax, motion))
            sizes.append(np.percentile(np.hypot(*motion)[view.face[0].numpy()], 99))
    for ax, motion in seen:
        assert np.allclose(drawn(ax), flow_colors(motion, max(sizes)), atol=1e-3)


def test_normalised_means_a_size_of_one():
    titled = motions(PairView(small_store(), 3))
    for title in ("flow,\nnormalised", "displacement,\nnormalised"):
        field, in_pixels = titled[title]
        assert not in_pixels and np.quantile(np.hypot(*field), 0.95) == pytest.approx(1, rel=0.02)
    assert titled["truth"].in_pixels and np.allclose(titled["truth"].field, small_store().truth(3))


def test_figure3_of_a_plain_module_and_of_a_dynamic_image():
    "The plain module is the fold's own; a dynamic image has no displacement to show."
    store = small_store()
    plain = figure3(store, finished_run("plain"), rows=[4]).axes[:8]
    assert [ax.get_title() for ax in plain] == TITLES
    bare = figure3(store, finished_run("bare"), rows=[4]).axes[:6]
    assert [ax.get_title() for ax in bare] == [
        title for title in TITLES if "displacement" not in title
    ]


def test_figure3_without_a_run_takes_the_first_clips():
    store = small_store()
    first = int(np.flatnonzero(store.index.label == 0)[0])
    assert np.allclose(drawn(figure3(store).axes[0]), store.pair(first)[0] / 255)


def test_figure4_draws_43_regions_and_nine_boxes():
    store = small_store()
    regions, boxes, *crops = figure4(store, 5).axes
    assert [text.get_text() for text in regions.texts] == [str(number) for number in range(1, 44)]
    assert len(regions.patches) == 43
    wanted = au_boxes(torch.as_tensor(store.landmarks[5:6]))[0]
    patches = sorted(boxes.patches, key=lambda patch: patch.get_label())
    assert [patch.get_label() for patch in patches] == [
        "1L",
        "1R",
        "2",
        "3L",
        "3R",
        "4",
        "5L",
        "5R",
        "6",
    ]
    for patch, box in zip(patches, wanted):
        assert np.allclose(patch.get_bbox().extents, box)
    assert len(crops) == 9 and crops[8].get_title() == "6\nmouth and chin"
    x0, y0, x1, y1 = wanted[8].int().tolist()
    mouth = store.pair(5)[0][y0 : y1 + 1, x0 : x1 + 1]
    assert abs(drawn(crops[8]).mean() - mouth.mean() / 255) < 0.02
