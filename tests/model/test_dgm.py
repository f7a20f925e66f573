"Displacement module and losses: plain loops as oracles, gradients, dtypes, bad input."

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.model.dgm import (
    DisplacementModule,
    displacement_loss,
    endpoint_error,
    face_mask,
    normalization_loss,
    normalize_displacement,
    reconstruction_loss,
    remove_affine_drift,
    remove_drift,
    scale_gradient,
    smoothness_loss,
)


def small(depth=2, **kwargs):
    torch.manual_seed(0)
    return DisplacementModule(width=4, depth=depth, **kwargs)


def awake(module):
    "A head that isn't zero."
    torch.nn.init.normal_(module.head.weight, std=0.1)
    return module


@pytest.mark.parametrize("size,depth", [((16, 16), 2), ((12, 20), 2), ((32, 64), 4), ((6, 10), 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_and_zero_start(size, depth, batch):
    out = small(depth).eval()(torch.rand(batch, 3, *size), torch.rand(batch, 3, *size))
    assert out.shape == (batch, 2, *size) and out.is_contiguous() and not out.any()


def test_range_is_alpha():
    module = small(alpha=0.05).eval()
    torch.nn.init.constant_(module.head.bias, 100.0)
    torch.testing.assert_close(
        module(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)), torch.full((1, 2, 8, 8), 0.05)
    )


def test_first_step_reaches_the_head_and_then_all():
    module, frames = small(), torch.rand(2, 2, 3, 16, 16)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        displacement_loss(*frames, module(*frames))[0].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_learns_a_shift():
    "A still shift of a pixel, seen through random textures: the loss finds it, sign and all."
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(33.0), indexing="ij")
    waves = (
        torch.stack(
            [torch.sin(x * a + y * b + c) for a, b, c in (torch.rand(24, 3) + 0.3) * 0.6]
        ).view(8, 3, 32, 33)
        / 2
        + 0.5
    )
    onset, apex = (
        waves[..., :-1],
        waves[..., 1:],
    )  # apex(p) = onset(p + 1): displacement +1 pixel = 1/16
    module = DisplacementModule(width=8, depth=2)
    optimizer = torch.optim.Adam(module.parameters(), 0.003)
    for _ in range(60):
        optimizer.zero_grad()
        displacement = module(onset, apex)
        displacement_loss(onset, apex, displacement)[0].backward()
        optimizer.step()
    mean = displacement.detach()[..., 4:-4, 4:-4].mean((0, 2, 3)) * 16
    assert 0.4 < mean[0] < 1.6 and abs(mean[1]) < 0.4, mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    assert (
        awake(small())
        .to(dtype)(torch.rand(2, 3, 8, 8, dtype=dtype), torch.rand(2, 3, 8, 8, dtype=dtype))
        .dtype
        == dtype
    )


def test_autocast():
    module, frames = awake(small()), torch.rand(2, 2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        displacement = module(*frames)
        loss, _ = displacement_loss(*frames, displacement)
    loss.backward()
    assert displacement.dtype == torch.float32 and torch.isfinite(module.stem[0].weight.grad).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda():
    module, frames = awake(small()).eval(), torch.rand(2, 2, 3, 16, 16)
    there = module.cuda()(*frames.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), module.cpu()(*frames), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "onset,apex,message",
    [
        ((1, 3, 10, 16), (1, 3, 10, 16), "divisible by 4"),
        ((1, 3, 16, 16), (2, 3, 16, 16), "got"),
        ((1, 1, 16, 16), (1, 1, 16, 16), "got"),
        ((3, 16, 16), (3, 16, 16), "got"),
    ],
)
def test_bad_frames(onset, apex, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(onset), torch.zeros(apex))


def test_losses_agree_with_the_formulas():
    "Eq. 1-4 in plain loops."
    torch.manual_seed(1)
    displacement = torch.randn(2, 2, 4, 5, dtype=torch.float64) * 0.1

    def size(v):
        return float(v[0].abs() + v[1].abs())

    h, w = 4, 5
    normalization = smoothness = 0
    for d in displacement:
        normalization += sum(size(d[:, y, x]) for y in range(h) for x in range(w)) / (w * h) / 2
        smoothness += (
            sum(size(d[:, y, x] - d[:, y, x - 1]) for y in range(h) for x in range(1, w))
            / (h * (w - 1))
            / 2
        )
        smoothness += (
            sum(size(d[:, y, x] - d[:, y - 1, x]) for y in range(1, h) for x in range(w))
            / (w * (h - 1))
            / 2
        )
    assert math.isclose(normalization_loss(displacement), normalization)
    assert math.isclose(smoothness_loss(displacement), smoothness)
    onset, apex = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    reconstruction = float(reconstruction_loss(onset, apex, displacement))
    assert math.isclose(
        reconstruction_loss(onset, apex, displacement * 0),
        float((onset - apex).abs().mean()),
        rel_tol=1e-6,
    )
    total, parts = displacement_loss(onset, apex, displacement, weights=(3, 5, 7))
    assert math.isclose(total, 3 * reconstruction + 5 * normalization + 7 * smoothness)
    assert not any(part.requires_grad for part in parts.values())


def test_loss_gradients():
    onset, apex = torch.rand(2, 1, 3, 5, 5, dtype=torch.float64)
    displacement = (torch.randn(1, 2, 5, 5, dtype=torch.float64) * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: displacement_loss(onset, apex, d)[0], (displacement,))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 10))
def test_scale_gradient(scale):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    out = scale_gradient(x, scale)
    assert torch.equal(out, x)
    weight = torch.randn(3, 4, dtype=torch.float64)
    (out * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight * scale)
    assert torch.equal(
        torch.autograd.grad((scale_gradient(x) * 1e6).sum(), x)[0], torch.ones_like(x) * 1e-6 * 1e6
    )


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 100), st.floats(0.05, 1))
def test_normalize_ignores_size(factor, quantile):
    displacement = torch.randn(2, 2, 6, 7, dtype=torch.float64) * 0.01
    normal = normalize_displacement(displacement, quantile)
    torch.testing.assert_close(
        normalize_displacement(
            displacement * torch.tensor([factor, 1.0]).view(2, 1, 1, 1), quantile
        ),
        normal,
    )
    assert (
        (normal.norm(dim=1).flatten(1) <= 1 + 1e-9).double().mean(1) - quantile
    ).abs().max() < 0.03


def test_normalize_gradient_also_at_zero():
    displacement = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_displacement, (displacement,))
    nothing = torch.zeros(1, 2, 4, 4, requires_grad=True)
    normalize_displacement(nothing).sum().backward()
    assert torch.isfinite(nothing.grad).all()
    assert normalize_displacement(torch.randn(1, 2, 8, 8).half()).dtype == torch.float16
    with pytest.raises(ValueError, match="quantile"):
        normalize_displacement(nothing, 0)


def test_endpoint_error():
    truth = torch.zeros(2, 2, 4, 4)
    estimate = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1) * torch.tensor([1.0, 2.0]).view(
        2, 1, 1, 1
    ).expand(2, 1, 4, 4)
    torch.testing.assert_close(endpoint_error(estimate, truth), torch.tensor([5.0, 10.0]))
    mask = torch.zeros(4, 4)
    mask[0, 0] = 1
    estimate[:, :, 0, 0] = 0
    torch.testing.assert_close(endpoint_error(estimate, truth, mask), torch.zeros(2))
    with pytest.raises(ValueError, match="one shape"):
        endpoint_error(estimate, truth[:1])


def test_face_mask_is_the_hull():
    points = torch.randn(3, 68, 2, generator=torch.Generator().manual_seed(0)) * 15 + 48
    for landmarks, mask in zip(points, face_mask(points, 96)):
        wanted = cv2.fillConvexPoly(
            np.zeros((96, 96), np.uint8), cv2.convexHull(landmarks.round().int().numpy()), 1
        ).astype(bool)
        assert (mask.numpy() != wanted).sum() < 0.06 * wanted.sum()


def test_drift_is_removed():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    truth = torch.zeros(2, 2, 48, 48)
    truth[:, 1, 10:18, 10:18] = 0.8  # a brow: a twentieth of the face
    mask = torch.ones(2, 48, 48, dtype=torch.bool)
    mask[:, :4] = False
    shift = torch.tensor([[0.7, -0.3], [-1.0, 0.2]])[..., None, None].expand(2, 2, 48, 48)
    torch.testing.assert_close(remove_drift(truth + shift, mask), truth, atol=1e-5, rtol=0)
    turn = torch.stack([-0.4 * y + 0.1 * x, 0.4 * x])[None]
    assert endpoint_error(remove_affine_drift(truth + shift + turn, mask), truth, mask).max() < 0.02
    assert endpoint_error(remove_drift(truth + shift + turn, mask), truth, mask).min() > 0.1
    outside = (truth + shift).clone()
    outside[:, :, :4] = 50  # what lies off the face doesn't count
    torch.testing.assert_close(
        remove_drift(outside, mask)[:, :, 4:], truth[:, :, 4:], atol=1e-5, rtol=0
    )
