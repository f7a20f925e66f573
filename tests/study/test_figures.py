"""Figures 6 to 9 hold what their titles say, read back from the artists of three runs; the page needs nothing else."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from finished_run import finished_run, small_store

from frl_dgt_nb.pictures.score_plots import corners
from frl_dgt_nb.study.figures import (
    figure6,
    figure7,
    figure8,
    figure9,
    weight_maps,
    worst_mistakes,
    write_figures,
)
from frl_dgt_nb.training.finished_run import look_inside_folds, open_finished, pair_data
from frl_dgt_nb.training.metrics import confusion

NAMES = ("negative", "positive", "surprise")


@pytest.fixture(scope="module")
def data():
    return pair_data(small_store(), open_finished(small_store(), finished_run()).config)


def predictions(kind="guided"):
    return pd.read_parquet(finished_run(kind) / "predictions.parquet")


def heat(ax):
    "The values that lie over a face, NaN where there are none."
    return np.ma.filled(np.ma.asarray(ax.images[1].get_array(), float), np.nan)


def test_figure6_has_each_clip_once_and_rings_for_the_left_out(data):
    store = small_store()
    features, _ = figure6(store, finished_run(), folds=["folder/s02"], data=data).axes
    counts = {line.get_label(): len(line.get_xdata()) for line in features.get_lines()}
    rings = {name: count for name, count in counts.items() if "held out" in name}
    own = store.index[store.index.subject_id == "folder/s02"].label.value_counts()
    assert sum(counts.values()) == 12
    assert rings == {f"{NAMES[label]}, held out": count for label, count in own.items()}
    assert "s02" in features.get_title()
    assert re.search(r"training \d+%, left out \d+%", features.get_title())


def test_figure6_has_the_probabilities_of_all_clips(data):
    triangle = figure6(small_store(), finished_run(), folds=["folder/s02"], data=data).axes[1]
    lines = [line for line in triangle.get_lines() if line.get_label() in NAMES]
    points = np.concatenate([line.get_xydata() for line in lines])
    wanted = predictions().filter(regex="^p_").to_numpy() @ corners(3)
    assert np.allclose(np.sort(points, 0), np.sort(wanted, 0))


def test_figure6_of_an_unknown_fold(data):
    with pytest.raises(ValueError, match="want subjects of the run"):
        figure6(small_store(), finished_run(), folds=["folder/nobody"], data=data)


def test_one_is_no_preference(data):
    boxes = data.source.boxes.numpy()
    even = {"local": np.full((12, 9, 2, 4), 0.25), "whole": np.full((12, 2, 9), 1 / 9)}
    for values in weight_maps(even, boxes, [0, 5], 256):
        assert np.allclose(values[np.isfinite(values)], 1)


def test_a_region_that_gets_all_leaves_nothing_to_the_others(data):
    boxes = data.source.boxes.numpy()
    mouth_alone = {"local": np.full((12, 9, 2, 4), 0.25), "whole": np.eye(9)[[[8, 8]] * 12]}
    _, after = weight_maps(mouth_alone, boxes, [0], 256)
    x, y = (boxes[0, 8, :2] + [40, 60]).astype(int)
    assert after[y, x] > 2 and after[int(boxes[0, 2, 1]) + 5, 128] == 0


def test_figure7_is_local_times_global(data):
    store, finished = small_store(), open_finished(small_store(), finished_run())
    boxes = data.source.boxes.numpy()
    maps = weight_maps(look_inside_folds(finished, data), boxes, [7], 256)
    for ax, values in zip(figure7(store, finished_run(), rows=[7], data=data).axes, maps):
        assert np.allclose(heat(ax), values, equal_nan=True)
        assert ax.images[1].get_clim() == (0, pytest.approx(np.nanmax(maps)))
    titles = [ax.get_title() for ax in figure7(store, finished_run(), data=data).axes]
    for name in NAMES:
        assert f"{name}: local fusion" in titles and f"{name}: after global fusion" in titles


def test_figure8_counts_and_scores_runs_side_by_side():
    figure = figure8(finished_run(), finished_run("plain"), names=["A", "B"])
    for ax, kind, name in zip(figure.axes, ("guided", "plain"), "AB"):
        table = predictions(kind)
        counts = [int(text.get_text().split("\n")[0]) for text in ax.texts]
        assert counts == confusion(table.label, table.prediction).ravel().tolist()
        assert ax.get_title().startswith(f"{name}\nUF1 ")
    with pytest.raises(ValueError, match="one folder of a finished run or more"):
        figure8()


def test_figure8_of_a_run_on_two_databases_has_each_of_them(tmp_path):
    shutil.copytree(finished_run(), tmp_path / "run")
    table = predictions()
    half = np.where(np.arange(len(table)) < 6, "casme2", "samm")
    table.assign(database=half).to_parquet(tmp_path / "run" / "predictions.parquet")
    panels = figure8(tmp_path / "run").axes
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["run", "casme2", "samm"]
    totals = [sum(int(text.get_text().split("\n")[0]) for text in ax.texts) for ax in panels]
    assert totals == [12, 6, 6]


def test_figure9_shows_the_most_certain_mistakes():
    store, finished = small_store(), open_finished(small_store(), finished_run())
    certainty = finished.table.filter(regex="^p_").to_numpy().max(1)
    rows = worst_mistakes(finished, 100)
    assert (
        sorted(rows) == np.flatnonzero(finished.table.prediction != finished.table.label).tolist()
    )
    assert (np.diff(certainty[rows]) <= 0).all()
    panels = figure9(store, finished_run(), 2).subfigs
    assert len(panels) == 2
    for panel, row in zip(panels, rows):
        title = panel.get_suptitle()
        assert finished.table.clip_id[row] in title and "taken for" in title
        assert f"({certainty[row]:.2f})" in title
        assert np.allclose(panel.axes[0].images[0].get_array(), store.pair(row)[0] / 255)
    with pytest.raises(ValueError, match="1 or more"):
        figure9(store, finished_run(), 0)


def test_figure9_of_a_run_without_mistakes(tmp_path):
    run = tmp_path / "perfect"
    shutil.copytree(finished_run(), run)
    table = predictions()
    table.assign(prediction=table.label).to_parquet(run / "predictions.parquet")
    assert "no clip" in figure9(small_store(), run).texts[0].get_text()


def test_figures_of_a_model_without_levels_whose_boxes_are_a_grid():
    "Without a global fusion nothing changes after it, and the boxes of a grid have numbers."
    store, run = small_store(), finished_run("bare")
    data = pair_data(store, open_finished(store, run).config)
    before, after = (heat(ax) for ax in figure7(store, run, rows=[2], data=data).axes[:2])
    assert np.allclose(before, after, atol=1e-5)
    assert np.isfinite(before).all()  # a grid leaves nothing out
    assert len(figure6(store, run, folds=["folder/s01"], data=data).axes) == 2
    boxes = figure9(store, run, 1).subfigs[0].axes[3]
    assert {text.get_text()[0] for text in boxes.texts} == set("123456789")


def test_all_figures_of_a_run_and_their_page(tmp_path):
    out, run = tmp_path / "out", finished_run("plain")
    *pictures, page = write_figures(small_store(), run, out, progress=False, dpi=30)
    assert [path.name for path in pictures] == [
        f"figure{number}.png" for number in (3, 4, 6, 7, 8, 9)
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]+)"', text)
    assert page.name == "figures.html" and len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    words = re.sub(r"base64,[\w+/=]+", "", text.split("</style>")[1])
    assert "Figure 9: The most confident mistakes" in words and "http" not in words


def test_nothing_is_written_of_a_run_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        write_figures(small_store(), tmp_path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_reported_in_words(tmp_path):
    (tmp_path / "out").write_text("a file")
    run = finished_run("plain")
    with pytest.raises(ValueError):
        write_figures(small_store(), run, tmp_path / "out", progress=False, dpi=30)
