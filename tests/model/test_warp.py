"Warp: scipy as oracle, analytic cases, gradients, dtypes, bad input."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from frl_dgt_nb.model.warp import (
    from_motion,
    from_pixels,
    magnify,
    splat,
    to_motion,
    to_pixels,
    warp,
)


def field(batch, height, width, size, seed=0, dtype=torch.float64):
    "Smooth random displacement of up to about `size` pixels."
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 2, 4, 4, generator=generator, dtype=dtype) * size / 2
    return from_pixels(
        torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    )


@pytest.mark.parametrize("height,width", [(16, 16), (12, 20), (7, 5)])
def test_warp_agrees_with_scipy(height, width):
    image = torch.rand(2, 3, height, width, dtype=torch.float64)
    displacement = field(2, height, width, 2.0)
    rows, columns = np.mgrid[:height, :width]
    motion = to_pixels(displacement).numpy()
    for b in range(2):
        for c in range(3):
            at = [
                np.clip(rows + motion[b, 1], 0, height - 1),
                np.clip(columns + motion[b, 0], 0, width - 1),
            ]
            wanted = map_coordinates(image[b, c].numpy(), at, order=1, mode="nearest")
            np.testing.assert_allclose(warp(image, displacement)[b, c].numpy(), wanted, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5))
def test_whole_pixels_move_the_picture(dx, dy):
    image = torch.rand(1, 1, 16, 20, dtype=torch.float64)
    shift = torch.tensor([dx, dy], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 16, 20)
    fetched, carried = warp(image, from_pixels(shift)), splat(image, from_pixels(shift))
    inner = (..., slice(5, -5), slice(5, -5))
    torch.testing.assert_close(
        fetched[inner], image.roll((-dy, -dx), (2, 3))[inner], atol=1e-10, rtol=0
    )
    torch.testing.assert_close(
        carried[inner], image.roll((dy, dx), (2, 3))[inner], atol=1e-6, rtol=0
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_units_there_and_back(height, width):
    motion = torch.randn(2, 2, height, width, dtype=torch.float64)
    torch.testing.assert_close(to_pixels(from_pixels(motion)), motion)
    torch.testing.assert_close(to_motion(from_motion(motion)), motion)
    assert torch.equal(to_motion(motion), -to_pixels(motion))


def test_border_is_repeated():
    image = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    far = torch.zeros(1, 2, 4, 4)
    far[:, 0] = 5
    assert torch.equal(warp(image, far), torch.full((1, 1, 4, 4), 3.0))


def test_backward_undoes_forward_to_first_order():
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, 64, dtype=torch.float64),
        torch.linspace(-1, 1, 64, dtype=torch.float64),
        indexing="ij",
    )
    image = (torch.sin(3 * x) + torch.cos(2 * y))[None, None]
    motion = field(1, 64, 64, 0.5)
    inner = (..., slice(3, -3), slice(3, -3))
    right = (warp(image, -motion) - splat(image, motion))[inner].abs().mean()
    wrong = (warp(image, motion) - splat(image, motion))[inner].abs().mean()
    assert wrong > 10 * right


def test_gradients():
    image = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    displacement = (field(1, 5, 6, 0.5) + 0.01).detach().requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, displacement))
    assert torch.autograd.gradcheck(lambda image: splat(image, displacement.detach()), (image,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_of_the_image_is_kept_and_half_keeps_its_place(dtype):
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    displacement = field(1, 64, 64, 0.5)
    out = warp(image.to(dtype), displacement)
    assert out.dtype == dtype
    tolerance = {
        torch.float16: 1e-3,
        torch.bfloat16: 8e-3,
        torch.float32: 1e-5,
        torch.float64: 1e-12,
    }[dtype]
    torch.testing.assert_close(out.double(), warp(image, displacement), atol=tolerance, rtol=0)


def test_magnify():
    image, displacement = torch.rand(1, 3, 8, 8), field(1, 8, 8, 1.0, dtype=torch.float32)
    assert torch.equal(magnify(image, displacement, 3), warp(image, 3 * displacement))
    torch.testing.assert_close(magnify(image, displacement, 0), image)


@pytest.mark.parametrize(
    "image,displacement",
    [
        ((1, 3, 8, 8), (1, 2, 8, 9)),
        ((1, 3, 8, 8), (2, 2, 8, 8)),
        ((3, 8, 8), (1, 2, 8, 8)),
        ((1, 3, 8, 8), (1, 8, 8, 2)),
        ((1, 3, 8, 8), (2, 8, 8)),
    ],
)
@pytest.mark.parametrize("function", [warp, splat])
def test_bad_shapes_are_named(function, image, displacement):
    with pytest.raises(ValueError, match="got .*" + str(displacement[-1])):
        function(torch.zeros(image), torch.zeros(displacement))


def test_whole_numbers_are_no_displacement():
    with pytest.raises(ValueError, match="floating"):
        to_pixels(torch.zeros(1, 2, 8, 8, dtype=torch.int64))
