"""Colours say what they claim to say, to every kind of colour vision; bad input is refused in words."""

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
    class_colors,
    flow_colors,
    flow_maximum,
    look,
    plot_wheel,
    seen_as,
    smallest_distance,
    to_array,
    to_displacement,
)
from frl_dgt_nb.pictures.plots import plot_image

MOTION = arrays(float, (2, 5, 6), elements=st.floats(-50, 50, width=32))
FACE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def axes():
    return Figure(figsize=(3, 3)).subplots()


@settings(max_examples=50, deadline=None)
@given(MOTION)
def test_flow_colors_are_colors(motion):
    colors = flow_colors(motion)
    assert colors.shape == (5, 6, 3)
    assert colors.min() >= 0
    assert colors.max() <= 1


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
    assert saturation == pytest.approx(size)
    assert value == 1
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


def test_wheel_is_the_key():
    ax = plot_wheel(axes(), maximum=2.0)
    (image,) = ax.images
    x0, x1, y1, y0 = image.get_extent()
    assert (x0, x1, y0, y1) == (-2, 2, -2, 2)
    assert "px" in ax.get_xlabel()
    data = np.asarray(image.get_array())
    assert np.allclose(
        data[190, 100, :3], flow_colors(np.array([0, 1.8]).reshape(2, 1, 1), 2.0)[0, 0]
    )  # row 190 of 201 is dy = 1.8: down
    # transparent outside of the rim
    assert data[0, 0, 3] == 0
    assert data[100, 100, 3] == 1


def test_lists_are_arrays():
    assert to_array([[1, 2]]).shape == (1, 2)


def test_names_that_moved_are_still_here():
    assert DOWN_IS_YELLOW == 30
    assert to_displacement(np.zeros((2, 3, 3))).shape == (2, 3, 3)


@pytest.mark.parametrize("vision", VISION)
def test_greys_and_extremes_are_the_same_to_everybody(vision):
    greys = np.linspace(0, 1, 9)[:, None].repeat(3, 1)
    assert np.allclose(seen_as(greys, vision), greys, atol=3e-3)


def test_red_and_green_are_confused_and_blue_and_yellow_are_not():
    assert (
        smallest_distance(["#CC3333", "#668019"], "deuteranopia")
        < 15
        < smallest_distance(["#CC3333", "#668019"])
    )
    assert smallest_distance(["blue", "gold"], "deuteranopia") > 80
    assert np.allclose(seen_as([[1, 0, 0]], "usual"), [[1, 0, 0]])
    with pytest.raises(ValueError, match="want one of usual"):
        seen_as([[0, 0, 0]], "cat")


@pytest.mark.parametrize("classes, limit", [(3, 50), (4, 50), (5, 17)])
@pytest.mark.parametrize("vision", ["usual", "protanopia", "deuteranopia"])
def test_classes_stay_apart(classes, limit, vision):
    "Distances in CIE Lab of the closest two; about 2 is just noticeable."
    assert smallest_distance(class_colors(classes), vision) > limit
    assert smallest_distance(class_colors(classes), "tritanopia") > 15


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_every_class_has_a_marker_of_its_own(classes):
    assert len({CLASS_MARKERS[name] for name in class_names(classes)}) == classes
    assert all(name in CLASS_COLORS for name in class_names(classes))


def test_a_look_changes_what_is_made_inside_and_nothing_else():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    sizes = {}
    for kind in ("page", "projector"):
        with look(kind):
            sizes[kind] = plot_image(axes(), FACE, "t").title.get_fontsize()
    assert sizes["projector"] > 1.4 * sizes["page"]
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="page, projector"):
        look("wall")
