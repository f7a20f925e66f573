"""Pictures hold the data they claim to show; bad input is refused in words."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import rgb_to_hsv
from matplotlib.figure import Figure

from frl_dgt_nb.data.clips import class_names
from frl_dgt_nb.pictures.colors import (
    CLASS_COLORS,
    CLASS_MARKERS,
    DOWN_IS_YELLOW,
    VISION,
    apart,
    class_colors,
    flow_colors,
    flow_maximum,
    look,
    plot_wheel,
    seen_as,
    to_array,
    to_displacement,
)
from frl_dgt_nb.pictures.plots import (
    draw_evidence,
    figure_png,
    patch_map,
    plot_boxes,
    plot_confusion,
    plot_curves,
    plot_displacement,
    plot_evidence,
    plot_heat,
    plot_image,
    plot_weights,
    to_image,
)
from frl_dgt_nb.pictures.score_plots import (
    corners,
    embed,
    nearest_share,
    plot_embedding,
    plot_intervals,
    plot_points,
    plot_simplex,
)

MOTION = arrays(float, (2, 5, 6), elements=st.floats(-50, 50, width=32))
FACE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BOXES = np.array([[5.0, 6, 25, 30], [30, 6, 50, 30], [10, 10, 40, 20]])


def axes():
    return Figure(figsize=(3, 3)).subplots()


@settings(max_examples=50, deadline=None)
@given(MOTION)
def test_flow_colors_are_colors(motion):
    colors = flow_colors(motion)
    assert colors.shape == (5, 6, 3) and colors.min() >= 0 and colors.max() <= 1


@settings(max_examples=50, deadline=None)
@given(MOTION, st.floats(0.01, 100))
def test_flow_colors_know_no_unit(motion, scale):
    "Scaling motion and maximum together changes nothing."
    kept = np.hypot(*motion) != 7  # exactly at the rim rounding decides
    assert np.allclose(
        flow_colors(motion, 7.0)[kept], flow_colors(motion * scale, 7.0 * scale)[kept], atol=1e-3
    )


@pytest.mark.parametrize("angle", range(0, 360, 15))
@pytest.mark.parametrize("size", [0.1, 0.5, 0.9])
def test_flow_colors_can_be_read_back(angle, size):
    "Hue and saturation give the vector again: the wheel is a key."
    motion = size * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]).reshape(
        2, 1, 1
    )
    hue, saturation, value = rgb_to_hsv(flow_colors(motion, 1.0))[0, 0]
    assert saturation == pytest.approx(size) and value == 1
    assert ((hue * 360 + 30 - angle + 180) % 360 - 180) == pytest.approx(0, abs=1e-6)


def test_opposite_directions_are_opposite_hues():
    motion = np.random.default_rng(0).normal(size=(2, 4, 4))
    hue, other = (rgb_to_hsv(flow_colors(m, 9.0))[..., 0] for m in (motion, -motion))
    assert np.allclose((hue - other) % 1, 0.5)


def test_nothing_moves_is_white_and_beyond_the_scale_is_darker():
    assert (flow_colors(np.zeros((2, 3, 3))) == 1).all()
    assert flow_colors(np.full((2, 1, 1), 3.0), maximum=1).max() == pytest.approx(0.7)


def test_maximum_ignores_a_wild_pixel():
    motion = np.full((2, 30, 30), 0.3)
    motion[0, 0, 0] = 1e4
    assert flow_maximum(motion) == pytest.approx(0.3 * 2**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_and_gradient(dtype):
    motion = torch.ones(2, 4, 4, dtype=torch.float32).to(dtype).requires_grad_()
    assert np.allclose(flow_colors(motion), flow_colors(np.ones((2, 4, 4))), atol=1e-2)


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.zeros((1, 2, 4, 4)), "of a batch, draw one"),
        (np.zeros((3, 4, 4)), r"want \(2,H,W\)"),
        (np.full((2, 4, 4), np.nan), "NaN"),
        (np.full((2, 4, 4), np.inf), "infinity"),
    ],
)
def test_bad_displacement(bad, words):
    with pytest.raises(ValueError, match=words):
        flow_colors(bad)


@pytest.mark.parametrize("maximum", [0, -1, float("nan")])
def test_bad_maximum(maximum):
    with pytest.raises(ValueError, match="above zero"):
        flow_colors(np.ones((2, 4, 4)), maximum)


@pytest.mark.parametrize(
    "image",
    [FACE, FACE.transpose(2, 0, 1), torch.from_numpy(FACE).permute(2, 0, 1) / 255, FACE / 255],
)
def test_every_kind_of_image_is_the_same(image):
    assert np.allclose(to_image(image), FACE / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (2, 3, 64, 64), (64, 64, 4)])
def test_bad_image(shape):
    with pytest.raises(ValueError, match="got a picture of shape"):
        plot_image(axes(), np.zeros(shape))


def test_wheel_is_the_key():
    ax = plot_wheel(axes(), maximum=2.0)
    (image,) = ax.images
    x0, x1, y1, y0 = image.get_extent()
    assert (x0, x1, y0, y1) == (-2, 2, -2, 2) and "px" in ax.get_xlabel()
    data = np.asarray(image.get_array())
    assert np.allclose(
        data[190, 100, :3], flow_colors(np.array([0, 1.8]).reshape(2, 1, 1), 2.0)[0, 0]
    )  # row 190 of 201 is dy = 1.8: down
    assert data[0, 0, 3] == 0 and data[100, 100, 3] == 1  # transparent outside of the rim


def test_displacement_shows_colors_arrows_and_their_scale():
    motion = np.random.default_rng(0).normal(size=(2, 64, 64))
    ax = plot_displacement(axes(), motion, maximum=2.0, arrows=8)
    assert np.allclose(np.asarray(ax.images[0].get_array()), flow_colors(motion, 2.0))
    (quiver,) = ax.collections
    x, y = quiver.XY.T.astype(int)
    assert (
        len(x) == 64
        and np.allclose(quiver.U, motion[0, y, x])
        and np.allclose(quiver.V, motion[1, y, x])
    )
    assert (
        1 / quiver.scale == pytest.approx(4) and "× 4" in ax.get_title()
    )  # an arrow of the maximum is one step of eight pixels long
    assert (
        ax.yaxis_inverted() and "px" in ax.get_xlabel() and "2 px" in ax.child_axes[0].get_title()
    )


def test_displacement_on_a_face_keeps_what_does_not_move():
    ax = plot_displacement(axes(), np.zeros((2, 64, 64)), FACE, arrows=0, wheel=False)
    drawn = np.asarray(ax.images[0].get_array())
    assert (
        np.ptp(drawn, axis=-1).max() == 0
        and np.corrcoef(drawn[..., 0].ravel(), FACE.mean(-1).ravel())[0, 1] > 0.999
    )
    assert not ax.collections and not ax.child_axes


def test_boxes_are_where_they_should_be():
    ax = plot_boxes(axes(), FACE, torch.from_numpy(BOXES), [0.2, 0.5, 0.3], names=("a", "b", "c"))
    drawn = {patch.get_label(): patch for patch in ax.patches}
    for name, box in zip("abc", BOXES):
        assert np.allclose(drawn[name].get_bbox().extents, box)
    widths = [drawn[name].get_linewidth() for name in "abc"]
    assert widths[1] > widths[2] > widths[0]
    assert {text.get_text() for text in ax.texts} == {"a .20", "b .50", "c .30"}


def test_boxes_without_weights_or_names():
    ax = plot_boxes(axes(), FACE, BOXES)
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "boxes, weights, words",
    [
        (BOXES[None], None, r"want \(K,4\)"),
        (BOXES, np.ones((8, 3)), "average the heads"),
        (BOXES, [1, 2], "3 boxes"),
    ],
)
def test_bad_boxes(boxes, weights, words):
    with pytest.raises(ValueError, match=words):
        plot_boxes(axes(), FACE, boxes, weights)


def test_weights_show_mean_heads_and_no_preference():
    weights = np.random.default_rng(0).dirichlet(np.ones(9), size=4)
    ax = plot_weights(axes(), torch.from_numpy(weights))
    assert (
        np.allclose([bar.get_height() for bar in ax.patches], weights.mean(0))
        and ax.get_ylim()[0] == 0
    )
    heads = np.stack([line.get_ydata() for line in ax.lines[:-1]], -1)
    assert np.allclose(heads.ravel(), weights.T.ravel()) or np.allclose(
        np.sort(heads.ravel()), np.sort(weights.ravel())
    )
    assert np.allclose(ax.lines[-1].get_ydata(), 1 / 9)
    assert [label.get_text() for label in ax.get_xticklabels()][:3] == ["1L", "1R", "2"]


def test_confusion_prints_counts_and_shades_rows():
    matrix = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    ax = plot_confusion(axes(), matrix)
    shade = np.asarray(ax.images[0].get_array())
    assert np.allclose(shade[0], [0.8, 0.2, 0]) and np.allclose(
        shade[2], 0
    )  # a class without clips doesn't divide by zero
    assert [text.get_text().split("\n")[0] for text in ax.texts] == [str(n) for n in matrix.ravel()]
    assert ax.get_xlabel() == "predicted" and ax.get_ylabel() == "true"
    with pytest.raises(ValueError, match=r"want \(C,C\)"):
        plot_confusion(axes(), [[1, 2]])


def test_curves_show_mean_and_range_and_skip_what_is_missing():
    folds = np.array([[1.0, 2, 3], [3, np.nan, 5]])
    ax = plot_curves(axes(), {"loss": folds})
    assert np.allclose(ax.lines[0].get_xdata(), [1, 2, 3]) and np.allclose(
        ax.lines[0].get_ydata(), [2, 2, 4]
    )
    low, high = ax.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (1, 5)


def test_evidence_is_four_panels_of_one_clip():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=2)
    figure = plot_evidence(
        FACE, FACE[::-1], np.ones((2, 64, 64)), BOXES, weights, maximum=4.0, title="who"
    )
    onset, apex, motion, boxes = figure.axes[:4]
    assert np.allclose(onset.images[0].get_array(), FACE / 255) and np.allclose(
        apex.images[0].get_array(), FACE[::-1] / 255
    )
    assert (
        np.allclose(motion.images[0].get_array(), flow_colors(np.ones((2, 64, 64)), 4.0))
        and len(boxes.patches) == 3
    )
    assert figure.get_suptitle() == "who"


def test_png_is_the_figure_and_fewer_bits_are_smaller():
    figure = plot_image(Figure(figsize=(3, 2)).subplots(), FACE).figure
    full, small = (figure_png(figure, 40, bits) for bits in (8, 4))
    pixels, coarse = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
        for data in (full, small)
    )
    assert full.startswith(b"\x89PNG") and pixels.shape == (80, 120, 3) and len(small) < len(full)
    assert np.abs(pixels - coarse).max() <= 9 and len(np.unique(coarse)) <= 16


def test_lists_are_arrays():
    assert to_array([[1, 2]]).shape == (1, 2)


def test_names_that_moved_are_still_here():
    assert DOWN_IS_YELLOW == 30 and to_displacement(np.zeros((2, 3, 3))).shape == (2, 3, 3)


@pytest.mark.parametrize("vision", VISION)
def test_greys_and_extremes_are_the_same_to_everybody(vision):
    greys = np.linspace(0, 1, 9)[:, None].repeat(3, 1)
    assert np.allclose(seen_as(greys, vision), greys, atol=3e-3)


def test_red_and_green_are_confused_and_blue_and_yellow_are_not():
    assert (
        apart(["#CC3333", "#668019"], "deuteranopia") < 15 < apart(["#CC3333", "#668019"])
        and apart(["blue", "gold"], "deuteranopia") > 80
    )
    assert np.allclose(seen_as([[1, 0, 0]], "usual"), [[1, 0, 0]])
    with pytest.raises(ValueError, match="want one of usual"):
        seen_as([[0, 0, 0]], "cat")


@pytest.mark.parametrize("classes, limit", [(3, 50), (4, 50), (5, 17)])
@pytest.mark.parametrize("vision", ["usual", "protanopia", "deuteranopia"])
def test_classes_stay_apart(classes, limit, vision):
    "Distances in CIE Lab of the closest two; about 2 is just noticeable."
    assert (
        apart(class_colors(classes), vision) > limit
        and apart(class_colors(classes), "tritanopia") > 15
    )


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_every_class_has_a_marker_of_its_own(classes):
    assert len({CLASS_MARKERS[name] for name in class_names(classes)}) == classes and all(
        name in CLASS_COLORS for name in class_names(classes)
    )


def test_a_look_changes_what_is_made_inside_and_nothing_else():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    sizes = {}
    for kind in ("page", "projector"):
        with look(kind):
            sizes[kind] = plot_image(axes(), FACE, "t").title.get_fontsize()
    assert sizes["projector"] > 1.4 * sizes["page"] and dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="page, projector"):
        look("wall")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_shares_that_are_all_alike_are_one_everywhere(side, seed):
    draw = np.random.default_rng(seed)
    low = draw.uniform(-4, 30, (3, 2))
    boxes = np.concatenate([low, low + draw.uniform(12, 30, (3, 2))], 1)
    found = patch_map(boxes, np.full((3, side**2), 1 / side**2), 64)
    assert np.allclose(found[np.isfinite(found)], 1) and np.isfinite(found).any()


def test_patches_lie_row_by_row_and_overlaps_are_averaged():
    found = patch_map(
        [[0, 0, 19, 19], [10, 10, 29, 29]], [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], 32
    )
    assert [found[y, x] for y, x in ((2, 2), (2, 15), (15, 2), (25, 25))] == pytest.approx(
        [0.4, 0.8, 1.2, 1]
    ) and found[15, 15] == pytest.approx((1.6 + 1) / 2)
    assert np.isnan(found[31, 31]) and np.isnan(found[2, 25])


@pytest.mark.parametrize("weights", [np.ones((2, 3)), np.ones((1, 4)), np.ones((2, 2, 4))])
def test_bad_patches(weights):
    with pytest.raises(ValueError, match="N a square number"):
        patch_map(BOXES[:2], weights, 64)


def test_heat_holds_its_values_and_its_scale():
    values = np.linspace(-1, 3, 64 * 64).reshape(64, 64)
    ax = plot_heat(axes(), FACE, values, maximum=2, label="unit")
    face, heat = ax.images
    assert (
        np.allclose(heat.get_array(), values)
        and heat.get_clim() == (0, 2)
        and np.allclose(face.get_array(), FACE.mean(-1) / 255)
    )
    bar = next(other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylabel() == "unit" and heat.colorbar.extend == "max"
    assert plot_heat(axes(), FACE, values, signed=True, label="").images[1].get_clim() == (-3, 3)
    with pytest.raises(ValueError, match="the same size"):
        plot_heat(axes(), FACE, values[:32])


def test_a_normalised_displacement_claims_no_pixels():
    ax = plot_displacement(axes(), np.ones((2, 64, 64)), maximum=1.5, unit="of its size")
    assert "×" not in ax.get_title() and ax.child_axes[0].get_title() == "1.5 of its size"


def test_evidence_names_the_boxes_it_is_told():
    axes4 = Figure(figsize=(8, 2)).subplots(1, 4)
    draw_evidence(
        axes4,
        FACE,
        FACE,
        np.ones((2, 64, 64)),
        BOXES,
        np.full((2, 3), 1 / 3),
        names=("x", "y", "z"),
    )
    assert [text.get_text()[0] for text in axes4[3].texts] == ["x", "y", "z"]


def test_intervals_stand_where_the_scores_say():
    ax = plot_intervals(
        axes(), ["a", "b"], [0.8, 0.6], [0.7, 0.5], [0.95, 0.65], [0.81, np.nan], 0.33, xlabel="UAR"
    )
    segments = ax.collections[0].get_segments()
    assert np.allclose(
        [segment[:, 0] for segment in segments], [[0.7, 0.95], [0.5, 0.65]]
    ) and np.allclose([segment[0, 1] for segment in segments], [0, 1])
    lines = {line.get_label(): line for line in ax.lines}
    assert np.allclose(lines["the paper"].get_xdata(), [0.81, np.nan], equal_nan=True) and lines[
        "chance"
    ].get_xdata() == [0.33, 0.33]
    assert (
        [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
        and ax.yaxis_inverted()
        and ax.get_xlabel() == "UAR"
    )


@pytest.mark.parametrize(
    "values, low, high, words",
    [
        ([0.5], [0.6], [0.7], "outside of its interval"),
        ([0.5, 0.5], [0.4], [0.6], "one of each a row"),
    ],
)
def test_bad_intervals(values, low, high, words):
    with pytest.raises(ValueError, match=words):
        plot_intervals(axes(), ["a"], values, low, high)


def test_points_have_the_colour_of_their_class_and_rings_where_held_out():
    points, labels, held = (
        np.arange(12.0).reshape(6, 2),
        np.array([0, 0, 1, 1, 2, 2]),
        np.array([0, 1, 0, 0, 0, 1], bool),
    )
    lines = {line.get_label(): line for line in plot_points(axes(), points, labels, held).lines}
    assert set(lines) == {
        "negative",
        "negative, held out",
        "positive",
        "surprise",
        "surprise, held out",
    }
    assert (
        np.allclose(lines["surprise, held out"].get_xydata(), points[5:])
        and lines["surprise, held out"].get_markerfacecolor() == "none"
    )
    assert (
        lines["positive"].get_color() == CLASS_COLORS["positive"]
        and lines["positive"].get_marker() == CLASS_MARKERS["positive"]
    )
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
    assert np.allclose(drawn[names[0]], [corners(classes)[0], (0, 0)]) and all(
        np.allclose(drawn[names[k]], corners(classes)[k]) for k in range(1, classes)
    )
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
    assert (
        (labels[near.argmin(1)] == labels).all()
        and np.allclose(embed(features), places)
        and np.isfinite(embed(np.ones((6, 3)))).all()
    )
    assert "no unit" in plot_embedding(axes(), features, labels).get_xlabel()
    with pytest.raises(ValueError, match="four or more"):
        embed(features[:3])


def test_nearest_share_looks_at_training_clips_of_others_alone():
    "One feature: 0 and 1 are training clips of class 0, 10 and 11 of class 1; held out at 9, of class 0, and at 12, of class 1."
    features, labels = np.array([[0.0], [1], [10], [11], [9], [12]]), np.array([0, 0, 1, 1, 0, 1])
    assert nearest_share(
        features, labels, ["a", "b", "a", "b", "c", "c"], np.array([0, 0, 0, 0, 1, 1], bool)
    ) == (1, 0.5)
    assert nearest_share(
        features, labels, ["a", "a", "b", "b", "c", "c"], np.array([0, 0, 0, 0, 1, 1], bool)
    ) == (0, 0.5)  # the neighbour of the same subject doesn't count
