"""Each figure holds what its title says: read back from the artists, from runs of three modules; the page needs nothing else."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from finished_run import finished_run, small_store

from frl_dgt_nb.model.frldgt import load_model
from frl_dgt_nb.model.regions import au_boxes
from frl_dgt_nb.pictures.colors import flow_colors
from frl_dgt_nb.pictures.pair import PairView
from frl_dgt_nb.pictures.report import typical_clip
from frl_dgt_nb.study.figures import (
    figure3,
    figure4,
    figure6,
    figure7,
    figure8,
    figure9,
    motions,
    weight_maps,
    worst_mistakes,
    write_figures,
)
from frl_dgt_nb.training.finished_run import look_inside_folds, open_finished, pair_data
from frl_dgt_nb.training.metrics import confusion
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


@pytest.fixture(scope="module")
def data():
    return pair_data(small_store(), open_finished(small_store(), finished_run()).config)


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def test_figure3_shows_typical_clips_on_one_scale_of_pixels():
    store, found = small_store(), open_finished(small_store(), finished_run())
    axes = np.array(figure3(store, finished_run()).axes[:24]).reshape(3, 8)
    assert [ax.get_title() for ax in axes[0]] == TITLES and not any(
        ax.get_title() for ax in axes[1:].flat
    )
    rows = [typical_clip(found.table, label) for label in range(3)]
    seen, views = (
        [],
        [
            PairView(
                store,
                row,
                model=load_model(fold_path(found.run, store.index.subject_id[row], ".safetensors")),
            )
            for row in rows
        ],
    )
    for view, row in zip(views, axes):
        assert np.allclose(
            drawn(row[0]), view.pair[0][0].permute(1, 2, 0), atol=1e-6
        ) and np.allclose(drawn(row[1]), view.pair[1][0].permute(1, 2, 0), atol=1e-6)
        assert np.allclose(drawn(row[2]), view.dynamic())
        seen += [
            (row[3], view.motion("optical flow")),
            (row[7], view.truth),
            (row[5], view.motion("module", still=False)),
        ]
    inside = [
        np.percentile(np.hypot(*motion)[view.face[0].numpy()], 99)
        for view in views
        for motion in (view.motion("optical flow"), view.motion("module", still=False), view.truth)
    ]
    for ax, motion in seen:
        assert np.allclose(drawn(ax), flow_colors(motion, max(inside)), atol=1e-3)
    assert [ax.get_ylabel().split("\n")[0] for ax in axes[:, 0]] == [
        "negative",
        "positive",
        "surprise",
    ]


def test_normalised_means_a_size_of_one():
    told = motions(PairView(small_store(), 3))
    for title in ("flow,\nnormalised", "displacement,\nnormalised"):
        motion, pixels = told[title]
        assert not pixels and np.quantile(np.hypot(*motion), 0.95) == pytest.approx(1, rel=0.02)
    assert told["truth"][1] and np.allclose(told["truth"][0], small_store().truth(3))


def test_figure3_of_a_plain_module_and_of_a_dynamic_image():
    "The plain module is the fold's own; a dynamic image has no displacement to show."
    store = small_store()
    assert [
        ax.get_title() for ax in figure3(store, finished_run("plain"), rows=[4]).axes[:8]
    ] == TITLES
    assert [ax.get_title() for ax in figure3(store, finished_run("bare"), rows=[4]).axes[:6]] == [
        title for title in TITLES if "displacement" not in title
    ]


def test_figure3_without_a_run_takes_the_first_clips():
    store = small_store()
    figure, first = figure3(store), int(np.flatnonzero(store.index.label == 0)[0])
    assert np.allclose(drawn(figure.axes[0]), store.pair(first)[0] / 255)


def test_figure4_draws_43_regions_and_nine_boxes():
    store = small_store()
    regions, boxes, *crops = figure4(store, 5).axes
    assert [text.get_text() for text in regions.texts] == [str(n) for n in range(1, 44)] and len(
        regions.patches
    ) == 43
    for patch, box in zip(
        sorted(boxes.patches, key=lambda patch: patch.get_label()), [0, 1, 2, 3, 4, 5, 6, 7, 8]
    ):
        assert np.allclose(
            patch.get_bbox().extents, au_boxes(torch.as_tensor(store.landmarks[5:6]))[0, box]
        )
    assert len(crops) == 9 and crops[8].get_title() == "6: mouth and chin"
    x0, y0, x1, y1 = au_boxes(torch.as_tensor(store.landmarks[5:6]))[0, 8]
    assert (
        np.abs(
            drawn(crops[8]).mean()
            - store.pair(5)[0][int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].mean() / 255
        )
        < 0.02
    )


def test_figure6_has_each_clip_once_and_rings_for_the_left_out(data):
    store = small_store()
    figure = figure6(store, finished_run(), folds=["folder/s02"], data=data)
    features, triangle = figure.axes
    counts = {line.get_label(): len(line.get_xdata()) for line in features.get_lines()}
    own = store.index[store.index.subject_id == "folder/s02"].label.value_counts()
    assert sum(counts.values()) == 12 and {
        name: n for name, n in counts.items() if "held out" in name
    } == {f"{('negative', 'positive', 'surprise')[label]}, held out": n for label, n in own.items()}
    assert "s02" in features.get_title() and re.search(
        r"training \d+%, left out \d+%", features.get_title()
    )
    chances = pd.read_parquet(finished_run() / "predictions.parquet").filter(regex="^p_").to_numpy()
    angles = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
    points = np.concatenate(
        [
            np.stack(line.get_data(), 1)
            for line in triangle.get_lines()
            if line.get_label() in ("negative", "positive", "surprise")
        ]
    )
    expected = chances @ np.stack([np.cos(angles), np.sin(angles)], 1)
    assert np.allclose(np.sort(points, 0), np.sort(expected, 0))
    with pytest.raises(ValueError, match="want subjects of the run"):
        figure6(store, finished_run(), folds=["folder/nobody"], data=data)


def test_figure7_is_local_times_global_and_one_is_no_preference(data):
    store, found = small_store(), open_finished(small_store(), finished_run())
    inside, boxes = look_inside_folds(found, data), data.source.boxes.numpy()
    even = {"local": np.full((12, 9, 2, 4), 0.25), "whole": np.full((12, 2, 9), 1 / 9)}
    for values in weight_maps(even, boxes, [0, 5], 256):
        assert np.allclose(values[np.isfinite(values)], 1)
    one = {
        "local": np.full((12, 9, 2, 4), 0.25),
        "whole": np.eye(9)[[[8, 8]] * 12],
    }  # the mouth alone
    _, after = weight_maps(one, boxes, [0], 256)
    x, y = boxes[0, 8, :2] + [40, 60]
    assert after[int(y), int(x)] > 2 and after[int(boxes[0, 2, 1]) + 5, 128] == 0
    figure = figure7(store, finished_run(), rows=[7], data=data)
    before, later = weight_maps(inside, boxes, [7], 256)
    for ax, values in zip(figure.axes[:2], (before, later)):
        shown = np.ma.filled(np.ma.asarray(ax.images[1].get_array(), float), np.nan)
        assert np.allclose(shown, values, equal_nan=True) and ax.images[1].get_clim() == (
            0,
            pytest.approx(np.nanmax([before, later])),
        )
    assert [ax.get_title() for ax in figure7(store, finished_run(), data=data).axes[:4:3]][
        0
    ] == "negative: local fusion"


def test_figure8_counts_and_scores_runs_side_by_side():
    figure = figure8(finished_run(), finished_run("plain"), names=["A", "B"])
    for ax, kind, name in zip(figure.axes, ("guided", "plain"), "AB"):
        table = pd.read_parquet(finished_run(kind) / "predictions.parquet")
        assert [int(text.get_text().split("\n")[0]) for text in ax.texts] == confusion(
            table.label, table.prediction
        ).ravel().tolist()
        assert ax.get_title().startswith(f"{name}\nUF1 ")
    with pytest.raises(ValueError, match="one folder of a finished run or more"):
        figure8()


def test_figure9_shows_the_most_certain_mistakes():
    found = open_finished(small_store(), finished_run())
    chances, wrong = (
        found.table.filter(regex="^p_").to_numpy(),
        found.table.prediction != found.table.label,
    )
    rows = worst_mistakes(found, 100)
    assert (
        sorted(rows) == np.flatnonzero(wrong).tolist()
        and (np.diff(chances.max(1)[rows]) <= 0).all()
    )
    figure = figure9(small_store(), finished_run(), 2)
    assert len(figure.subfigs) == 2
    for part, row in zip(figure.subfigs, rows):
        title, clip = part.get_suptitle(), found.table.iloc[row]
        assert (
            clip.clip_id in title
            and f"({chances[row].max():.2f})" in title
            and "taken for" in title
        )
        assert np.allclose(drawn(part.axes[0]), small_store().pair(row)[0] / 255)
    with pytest.raises(ValueError, match="1 or more"):
        figure9(small_store(), finished_run(), 0)


def test_figure9_of_a_run_without_mistakes(tmp_path):
    import shutil

    run = tmp_path / "perfect"
    shutil.copytree(finished_run(), run)
    table = pd.read_parquet(run / "predictions.parquet")
    table.assign(prediction=table.label).to_parquet(run / "predictions.parquet")
    assert "no clip" in figure9(small_store(), run).texts[0].get_text()


def test_figures_of_a_model_without_levels_whose_boxes_are_a_grid():
    "Without a global fusion nothing changes after it, and the boxes of a grid have numbers."
    store, run = small_store(), finished_run("bare")
    data = pair_data(store, open_finished(store, run).config)
    before, after = (
        np.ma.filled(np.ma.asarray(ax.images[1].get_array(), float), np.nan)
        for ax in figure7(store, run, rows=[2], data=data).axes[:2]
    )
    assert (
        np.allclose(before, after, atol=1e-5) and np.isfinite(before).all()
    )  # no global fusion; a grid leaves nothing out
    assert len(figure6(store, run, folds=["folder/s01"], data=data).axes) == 2
    boxes = figure9(store, run, 1).subfigs[0].axes[3]
    assert {text.get_text()[0] for text in boxes.texts} == set("123456789")


def test_all_figures_of_a_run_and_their_page(tmp_path):
    written = write_figures(
        small_store(), finished_run("plain"), tmp_path / "out", progress=False, dpi=30
    )
    assert [path.name for path in written] == [f"figure{n}.png" for n in (3, 4, 6, 7, 8, 9)] + [
        "figures.html"
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[:-1])
    page = written[-1].read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]+)"', page)
    assert (
        len(sources) == 6
        and all(source.startswith("data:image/png;base64,") for source in sources)
        and "Figure 9: The most confident mistakes" in page
        and "http" not in re.sub(r"base64,[\w+/=]+", "", page.split("</style>")[1])
    )


def test_nothing_is_written_of_a_run_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        write_figures(small_store(), tmp_path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_told_in_words(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError):
        write_figures(
            small_store(), finished_run("plain"), tmp_path / "out", progress=False, dpi=30
        )
