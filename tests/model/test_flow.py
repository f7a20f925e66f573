"""Optical flow, strain and dynamic image beyond the lesson: bad input, shapes, oracles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.model.flow import (
    FLOWS,
    dynamic_image,
    optical_flow,
    optical_strain,
    rank_weights,
    to_gray,
)
from frl_dgt_nb.model.warp import from_motion, warp


@pytest.fixture(scope="module")
def texture():
    torch.manual_seed(1)
    return (
        F.interpolate(torch.rand(2, 1, 24, 20), (96, 80), mode="bicubic")
        .clamp(0, 1)
        .expand(-1, 3, -1, -1)
    )


@pytest.mark.parametrize("method", FLOWS)
@pytest.mark.parametrize("shift", [(0.5, 0), (0, 0.5), (-0.4, 0.3)])
def test_a_known_shift_comes_back_in_the_right_order_and_sign(texture, method, shift):
    moved = warp(texture, from_motion(torch.tensor(shift).view(1, 2, 1, 1).expand(2, 2, 96, 80)))
    found = optical_flow(texture, moved, method)
    assert found.shape == (2, 2, 96, 80) and found.dtype == texture.dtype
    assert torch.allclose(
        found[:, :, 15:-15, 15:-15].flatten(2).median(2).values,
        torch.tensor(shift).expand(2, 2),
        atol=0.08,
    )


@pytest.mark.parametrize("method", FLOWS)
def test_nothing_moves_in_one_picture(texture, method):
    found = optical_flow(texture, texture, method)[..., 15:-15, 15:-15]
    assert found.abs().max() < 2e-2  # Farneback's is not exactly zero where a texture is weak


def test_samples_do_not_see_each_other(texture):
    alone = optical_flow(texture[:1], texture[:1].roll(1, -1), "dis")
    assert torch.equal(optical_flow(texture, texture.roll(1, -1), "dis")[:1], alone)


@pytest.mark.parametrize(
    "first, second, method, words",
    [
        ((2, 3, 32, 32), (2, 3, 32, 32), "pwc", "choose from"),
        ((1, 3, 32, 32), (2, 3, 32, 32), "dis", "one shape"),
        ((3, 32, 32), (3, 32, 32), "dis", r"\(B,3,H,W\)"),
        ((1, 1, 32, 32), (1, 1, 32, 32), "dis", r"\(B,3,H,W\)"),
    ],
)
def test_bad_flow_input(first, second, method, words):
    with pytest.raises(ValueError, match=words):
        optical_flow(torch.zeros(first), torch.zeros(second), method)


def test_gray_is_opencv_gray(texture):
    import cv2

    frames = torch.randint(0, 256, (2, 3, 9, 7), generator=torch.Generator().manual_seed(0)) / 255
    for gray, frame in zip(to_gray(frames), frames):
        expected = cv2.cvtColor(
            (frame.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), cv2.COLOR_RGB2GRAY
        )
        assert np.abs(gray.astype(int) - expected).max() <= 1
    assert to_gray(frames.double()).dtype == np.uint8


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-0.1, 0.1), min_size=4, max_size=4),
    st.lists(st.floats(-5, 5), min_size=2, max_size=2),
)
def test_strain_of_a_linear_motion(matrix, shift):
    "u = J p + c has the strain (J + J')/2 everywhere, whatever c."
    y, x = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    J = torch.tensor(matrix, dtype=torch.float64).view(2, 2)
    motion = torch.einsum("ij,jhw->ihw", J, torch.stack([x, y])) + torch.tensor(
        shift, dtype=torch.float64
    ).view(2, 1, 1)
    assert torch.allclose(
        optical_strain(motion[None]), ((J + J.T) / 2).norm().expand(1, 8, 8), atol=1e-9
    )


def test_strain_of_bad_input():
    for bad in (torch.zeros(2, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 1, 8)):
        with pytest.raises(ValueError):
            optical_strain(bad)


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_rank_weights_are_the_closed_form(count):
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, count + 1))])
    t = np.arange(1, count + 1)
    assert np.allclose(
        rank_weights(count), 2 * (count - t + 1) - (count + 1) * (harmonic[count] - harmonic[t - 1])
    )
    assert abs(float(rank_weights(count).sum())) < 1e-9


def test_dynamic_image_orders_the_frames():
    "The means of the frames grow along it, which is what it is for."
    generator = torch.Generator().manual_seed(0)
    start, step = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    clip = torch.stack(
        [start + t * step + 0.1 * torch.rand(3, 8, 8, generator=generator) for t in range(10)]
    )
    ranks = [(dynamic_image(clip) * clip[: t + 1].mean(0)).sum().item() for t in range(10)]
    assert ranks == sorted(ranks)


def test_dynamic_image_of_batches_and_of_bad_input():
    clips = torch.rand(2, 5, 3, 6, 6)
    assert torch.allclose(dynamic_image(clips)[1], dynamic_image(clips[1]), atol=1e-6)
    assert dynamic_image(torch.ones(4, 3, 6, 6)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="two frames"):
        dynamic_image(clips[0, :1])
    with pytest.raises(ValueError, match=r"T,C,H,W"):
        dynamic_image(clips[0, 0])
