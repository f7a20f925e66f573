"""Pictures of motion and regions hold the data they claim to show; bad input is refused in words."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from frl_dgt_nb.pictures.colors import flow_colors
from frl_dgt_nb.pictures.plots import (
    add_wheel,
    draw_evidence,
    figure_png,
    patch_map,
    plot_boxes,
    plot_displacement,
    plot_evidence,
    plot_heat,
    plot_image,
    plot_weights,
    to_image,
)

FACE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BOXES = np.array([[5.0, 6, 25, 30], [30, 6, 50, 30], [10, 10, 40, 20]])


def axes():
    return Figure(figsize=(3, 3)).subplots()


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


def test_displacement_shows_colors_arrows_and_their_scale():
    motion = np.random.default_rng(0).normal(size=(2, 64, 64))
    ax = plot_displacement(axes(), motion, maximum=2.0, arrows=8)
    assert np.allclose(np.asarray(ax.images[0].get_array()), flow_colors(motion, 2.0))
    (quiver,) = ax.collections
    x, y = quiver.XY.T.astype(int)
    assert len(x) == 64
    assert np.allclose(quiver.U, motion[0, y, x])
    assert np.allclose(quiver.V, motion[1, y, x])
    # an arrow of the maximum is one step of eight pixels long
    assert 1 / quiver.scale == pytest.approx(4)
    assert "× 4" in ax.get_title()
    assert ax.yaxis_inverted()
    assert "px" in ax.get_xlabel()
    assert "2 px" in ax.child_axes[0].get_title()


def test_displacement_on_a_face_keeps_what_does_not_move():
    ax = plot_displacement(axes(), np.zeros((2, 64, 64)), FACE, arrows=0, wheel=False)
    drawn = np.asarray(ax.images[0].get_array())
    assert np.ptp(drawn, axis=-1).max() == 0
    assert np.corrcoef(drawn[..., 0].ravel(), FACE.mean(-1).ravel())[0, 1] > 0.999
    assert not ax.collections
    assert not ax.child_axes


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
    assert np.allclose([bar.get_height() for bar in ax.patches], weights.mean(0))
    assert ax.get_ylim()[0] == 0
    heads = np.stack([line.get_ydata() for line in ax.lines[:-1]], -1)
    assert np.allclose(heads.ravel(), weights.T.ravel()) or np.allclose(
        np.sort(heads.ravel()), np.sort(weights.ravel())
    )
    assert np.allclose(ax.lines[-1].get_ydata(), 1 / 9)
    assert [label.get_text() for label in ax.get_xticklabels()][:3] == ["1L", "1R", "2"]


def evidence(weights):
    return {"motion": np.ones((2, 64, 64)), "boxes": BOXES, "weights": weights}


def test_evidence_is_four_panels_of_one_clip():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=2)
    figure = plot_evidence(FACE, FACE[::-1], evidence(weights), maximum=4.0, title="a clip")
    onset, apex, motion, boxes = figure.axes[:4]
    assert np.allclose(onset.images[0].get_array(), FACE / 255)
    assert np.allclose(apex.images[0].get_array(), FACE[::-1] / 255)
    assert np.allclose(motion.images[0].get_array(), flow_colors(np.ones((2, 64, 64)), 4.0))
    assert len(boxes.patches) == 3
    assert figure.get_suptitle() == "a clip"


def test_png_is_the_figure_and_fewer_bits_are_smaller():
    figure = plot_image(Figure(figsize=(3, 2)).subplots(), FACE).figure
    full, small = (figure_png(figure, 40, bits) for bits in (8, 4))
    pixels, coarse = (
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
        for data in (full, small)
    )
    assert full.startswith(b"\x89PNG")
    assert pixels.shape == (80, 120, 3)
    assert len(small) < len(full)
    assert np.abs(pixels - coarse).max() <= 9
    assert len(np.unique(coarse)) <= 16


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_shares_that_are_all_alike_are_one_everywhere(side, seed):
    draw = np.random.default_rng(seed)
    low = draw.uniform(-4, 30, (3, 2))
    boxes = np.concatenate([low, low + draw.uniform(12, 30, (3, 2))], 1)
    found = patch_map(boxes, np.full((3, side**2), 1 / side**2), 64)
    assert np.allclose(found[np.isfinite(found)], 1)
    assert np.isfinite(found).any()


def test_patches_lie_row_by_row_and_overlaps_are_averaged():
    found = patch_map(
        [[0, 0, 19, 19], [10, 10, 29, 29]], [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], 32
    )
    assert [found[y, x] for y, x in ((2, 2), (2, 15), (15, 2), (25, 25))] == pytest.approx(
        [0.4, 0.8, 1.2, 1]
    )
    assert found[15, 15] == pytest.approx((1.6 + 1) / 2)
    assert np.isnan(found[31, 31])
    assert np.isnan(found[2, 25])


@pytest.mark.parametrize("weights", [np.ones((2, 3)), np.ones((1, 4)), np.ones((2, 2, 4))])
def test_bad_patches(weights):
    with pytest.raises(ValueError, match="N a square number"):
        patch_map(BOXES[:2], weights, 64)


def test_heat_holds_its_values_and_its_scale():
    values = np.linspace(-1, 3, 64 * 64).reshape(64, 64)
    ax = plot_heat(axes(), FACE, values, maximum=2, label="unit")
    face, heat = ax.images
    assert np.allclose(heat.get_array(), values)
    assert heat.get_clim() == (0, 2)
    assert np.allclose(face.get_array(), FACE.mean(-1) / 255)
    bar = next(other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylabel() == "unit"
    assert heat.colorbar.extend == "max"
    assert plot_heat(axes(), FACE, values, signed=True, label="").images[1].get_clim() == (-3, 3)
    with pytest.raises(ValueError, match="the same size"):
        plot_heat(axes(), FACE, values[:32])


def test_a_normalised_displacement_claims_no_pixels():
    ax = plot_displacement(axes(), np.ones((2, 64, 64)), maximum=1.5, arrows=0, wheel=False)
    assert "×" not in ax.get_title()
    assert not ax.child_axes
    assert add_wheel(ax, 1.5, "of its size").get_title() == "1.5 of its size"


def test_evidence_names_the_boxes_it_is_told():
    axes4 = Figure(figsize=(8, 2)).subplots(1, 4)
    seen = evidence(np.full((2, 3), 1 / 3))
    draw_evidence(axes4, FACE, FACE, seen, names=("x", "y", "z"))
    assert [text.get_text()[0] for text in axes4[3].texts] == ["x", "y", "z"]
