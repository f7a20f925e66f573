"""Pictures of scores and features hold the data they claim to show; bad input is refused in words."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from frl_dgt_nb.data.clips import class_names
from frl_dgt_nb.pictures.colors import CLASS_COLORS, CLASS_MARKERS
from frl_dgt_nb.pictures.score_plots import (
    corners,
    embed,
    nearest_share,
    plot_confusion,
    plot_curves,
    plot_embedding,
    plot_intervals,
    plot_points,
    plot_simplex,
)


def axes():
    return Figure(figsize=(3, 3)).subplots()


def test_confusion_prints_counts_and_shades_rows():
    matrix = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    ax = plot_confusion(axes(), matrix)
    shade = np.asarray(ax.images[0].get_array())
    # a class without clips doesn't divide by zero
    assert np.allclose(shade[0], [0.8, 0.2, 0])
    assert np.allclose(shade[2], 0)
    assert [text.get_text().split("\n")[0] for text in ax.texts] == [str(n) for n in matrix.ravel()]
    assert ax.get_xlabel() == "predicted"
    assert ax.get_ylabel() == "true"
    with pytest.raises(ValueError, match=r"want \(C,C\)"):
        plot_confusion(axes(), [[1, 2]])


def test_curves_show_mean_and_range_and_skip_what_is_missing():
    folds = np.array([[1.0, 2, 3], [3, np.nan, 5]])
    ax = plot_curves(axes(), {"loss": folds})
    assert np.allclose(ax.lines[0].get_xdata(), [1, 2, 3])
    assert np.allclose(ax.lines[0].get_ydata(), [2, 2, 4])
    low, high = ax.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (1, 5)


def test_intervals_stand_where_the_scores_say():
    scores = pd.DataFrame(
        {"value": [0.8, 0.6], "low": [0.7, 0.5], "high": [0.95, 0.65], "published": [0.81, np.nan]},
        index=["a", "b"],
    )
    ax = plot_intervals(axes(), scores, 0.33, xlabel="UAR")
    segments = ax.collections[0].get_segments()
    assert np.allclose([segment[:, 0] for segment in segments], [[0.7, 0.95], [0.5, 0.65]])
    assert np.allclose([segment[0, 1] for segment in segments], [0, 1])
    lines = {line.get_label(): line for line in ax.lines}
    assert np.allclose(lines["the paper"].get_xdata(), [0.81, np.nan], equal_nan=True)
    assert lines["chance"].get_xdata() == [0.33, 0.33]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "UAR"


@pytest.mark.parametrize(
    "scores, words",
    [
        ({"value": [0.5], "low": [0.6], "high": [0.7]}, "outside of its interval"),
        ({"value": [0.5], "low": [0.4], "high": [0.45]}, "outside of its interval"),
        ({"value": [0.5], "low": [0.4]}, "without high"),
    ],
)
def test_bad_intervals(scores, words):
    with pytest.raises(ValueError, match=words):
        plot_intervals(axes(), pd.DataFrame(scores))


def test_intervals_of_nothing_published_have_no_diamonds():
    ax = plot_intervals(axes(), pd.DataFrame({"value": [0.5], "low": [0.4], "high": [0.6]}))
    assert "the paper" not in {line.get_label() for line in ax.lines}


def test_points_have_the_colour_of_their_class_and_rings_where_held_out():
    points = np.arange(12.0).reshape(6, 2)
    labels = np.array([0, 0, 1, 1, 2, 2])
    held = np.array([0, 1, 0, 0, 0, 1], bool)
    lines = {line.get_label(): line for line in plot_points(axes(), points, labels, held).lines}
    assert set(lines) == {
        "negative",
        "negative, held out",
        "positive",
        "surprise",
        "surprise, held out",
    }
    assert np.allclose(lines["surprise, held out"].get_xydata(), points[5:])
    assert lines["surprise, held out"].get_markerfacecolor() == "none"
    assert lines["positive"].get_color() == CLASS_COLORS["positive"]
    assert lines["positive"].get_marker() == CLASS_MARKERS["positive"]
    with pytest.raises(ValueError, match="a mark each"):
        plot_points(axes(), points, labels[:5])


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_certainty_is_a_corner_and_no_idea_the_centre(classes):
    names = class_names(classes)
    ax = plot_simplex(
        axes(),
        np.vstack([np.eye(classes), np.full((1, classes), 1 / classes)]),
        [*range(classes), 0],
        names,
    )
    drawn = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert np.allclose(drawn[names[0]], [corners(classes)[0], (0, 0)])
    assert all(np.allclose(drawn[names[k]], corners(classes)[k]) for k in range(1, classes))
    assert {text.get_text() for text in ax.texts} == set(names)


@pytest.mark.parametrize(
    "chances, words",
    [(np.ones((2, 3)), "sum to 1"), (np.ones((2, 2)) / 2, "want"), (np.ones(3) / 3, "want")],
)
def test_bad_probabilities(chances, words):
    with pytest.raises(ValueError, match=words):
        plot_simplex(axes(), chances, [0, 1])


def test_a_map_keeps_neighbours_and_its_seed():
    labels = np.arange(30) % 2
    features = np.random.default_rng(0).normal(size=(30, 5)) * 0.1 + labels[:, None]
    places = embed(features)
    near = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(30)
    assert (labels[near.argmin(1)] == labels).all()
    assert np.allclose(embed(features), places)
    assert np.isfinite(embed(np.ones((6, 3)))).all()
    assert "no unit" in plot_embedding(axes(), features, labels).get_xlabel()
    with pytest.raises(ValueError, match="four or more"):
        embed(features[:3])


def test_nearest_share_looks_at_training_clips_of_others_alone():
    "One feature: training clips at 0, 1 (class 0), 10, 11 (class 1); held out at 9 (class 0) and at 12 (class 1)."
    features, labels = np.array([[0.0], [1], [10], [11], [9], [12]]), np.array([0, 0, 1, 1, 0, 1])
    assert nearest_share(
        features, labels, ["a", "b", "a", "b", "c", "c"], np.array([0, 0, 0, 0, 1, 1], bool)
    ) == (1, 0.5)
    assert nearest_share(
        features, labels, ["a", "a", "b", "b", "c", "c"], np.array([0, 0, 0, 0, 1, 1], bool)
    ) == (0, 0.5)  # the neighbour of the same subject doesn't count
