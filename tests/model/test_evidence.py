"Evidence: affine motions as oracles, numpy's least squares, light, identical frames."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textures import constant, inside, texture

from frl_dgt_nb.model.evidence import (
    affine_basis,
    evidence,
    least_squares,
    local_contrast,
    pull,
    register,
)


def test_registration_finds_an_affine_motion():
    contrast = local_contrast(texture(size=192))
    basis, _ = affine_basis(192, 192, contrast)
    motion = torch.einsum(
        "bdk,khw->bdhw", torch.tensor([[[0.8, 0.5, -0.6], [-0.5, 0.7, 0.4]]]), basis
    )
    found = register(
        contrast, pull(contrast, -motion)
    )  # pulled back: x -> x - motion(x), the motion to first order
    assert inside(found - motion).norm(dim=1).max() < 0.1


def test_registration_is_not_bent_by_a_part():
    contrast = local_contrast(texture(size=192))
    motion = constant(0.6, -0.4, 192).clone()
    motion[..., 115:150, 70:120] += 2
    found = register(contrast, pull(contrast, -motion))
    assert (found.mean((0, 2, 3)) - torch.tensor([0.6, -0.4])).abs().max() < 0.08


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), damping=st.sampled_from([0.001, 0.03, 1.0]))
def test_least_squares_is_ridge_regression(seed, damping):
    "Of a single place with 40 equations, by numpy."
    rng = np.random.default_rng(seed)
    slopes, change = rng.normal(size=(40, 2)), rng.normal(size=40)
    x, y = slopes.T
    sums = torch.tensor([x @ x, x @ y, y @ y, x @ change, y @ change]).view(1, 5, 1, 1)
    rows = np.concatenate([slopes, np.sqrt(damping) * np.eye(2)])
    expected = np.linalg.lstsq(rows, np.concatenate([-change, [0, 0]]), rcond=None)[0]
    np.testing.assert_allclose(
        least_squares(sums, damping)[0, :, 0, 0].numpy(), expected, rtol=1e-8
    )


@pytest.mark.parametrize("x,y", [(0.4, 0), (-0.4, 0), (0, 0.4), (0, -0.4), (0.3, -0.3)])
def test_evidence_has_sign_and_size(x, y):
    "A patch that moves by itself; the rest stands, so registration leaves the patch alone."
    onset, size = texture(size=256), 256
    centre = torch.arange(size) - 128.0
    bump = torch.exp(-(centre.square()[:, None] + centre.square()) / (2 * 24**2))
    motion = constant(x, y, size) * bump
    found = least_squares(evidence(onset, pull(onset, -motion)), damping=1e-4)
    assert (found[0, :, 30:34, 30:34].mean((1, 2)) - torch.tensor([x, y])).abs().max() < 0.1
    assert found[0, :, 4:10, 4:10].abs().max() < 0.1


def test_identical_frames_do_not_move():
    onset = texture(2)
    sums = evidence(onset, onset)
    assert (
        sums[:, 3:].abs().max() < 1e-4
        and (sums[:, [0, 2]] >= 0).all()
        and sums[:, 0].mean() > 0.001
    )
    assert least_squares(sums).abs().max() < 1e-3
    assert (sums[:, 0] * sums[:, 2] >= sums[:, 1].square() - 1e-9).all()  # a Gram matrix


def test_light_is_not_motion():
    onset = texture() * 0.8
    moved = least_squares(evidence(onset, onset * 0.9 + 0.1), 0.03)
    assert inside(moved).abs().mean() < 0.006
