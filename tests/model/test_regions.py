"Regions: symmetry, containment, order on fabricated faces, crops against kornia."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.geometry.transform import crop_and_resize

from frl_dgt_nb.model.regions import (
    BOX_REGIONS,
    MIRROR_LANDMARKS,
    MIRROR_ORDERS,
    REGION_NAMES,
    REGION_POINTS,
    REGION_WATCHES,
    au_boxes,
    crop_boxes,
    face_boxes,
    grid_boxes,
    mirror_boxes,
    mirror_landmarks,
    point_tables,
    region_polygons,
)


def mean_face(size=256):
    "A fabricated face of 68 landmarks, the same on both sides; (1,68,2)."
    turn = np.linspace(0, np.pi, 17)

    def other(half):
        return half * [-1, 1]

    jaw = np.stack([-0.5 * np.cos(turn), 0.12 + 0.68 * np.sin(turn)], 1)
    brow = np.array([[-0.42, 0], [-0.34, -0.05], [-0.26, -0.06], [-0.17, -0.045], [-0.09, -0.02]])
    bridge, nostril = (
        np.array([[0, 0.08], [0, 0.17], [0, 0.26], [0, 0.35]]),
        np.array([[-0.1, 0.41], [-0.05, 0.43]]),
    )
    eye = np.array(
        [[-0.32, 0.1], [-0.26, 0.065], [-0.18, 0.065], [-0.12, 0.1], [-0.18, 0.125], [-0.26, 0.125]]
    )
    upper, lower = (
        np.array([[-0.19, 0.58], [-0.12, 0.55], [-0.05, 0.535]]),
        np.array([[-0.12, 0.63], [-0.05, 0.65]]),
    )
    inner = np.array([[-0.16, 0.585], [-0.05, 0.57]])
    points = [
        jaw,
        brow,
        other(brow)[::-1],
        bridge,
        nostril,
        [[0, 0.44]],
        other(nostril)[::-1],
        eye,
        other(eye)[[3, 2, 1, 0, 5, 4]],
        upper,
        [[0, 0.54]],
        other(upper)[::-1],
        other(lower),
        [[0, 0.655]],
        lower[::-1],
        inner,
        [[0, 0.572]],
        other(inner)[::-1],
        [[0.05, 0.6], [0, 0.605], [-0.05, 0.6]],
    ]
    return torch.tensor(np.concatenate(points) * 0.8 * size + [(size - 1) / 2, 0.3 * size])[None]


def some_faces(count=8, size=256, noise=0.012, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        mean_face(size)
        + torch.randn(count, 68, 2, generator=generator, dtype=torch.float64) * noise * size
    )


def test_mean_face_is_its_own_mirror():
    torch.testing.assert_close(mirror_landmarks(mean_face(), 256), mean_face())
    assert sorted(MIRROR_LANDMARKS) == list(range(68)) and [
        MIRROR_LANDMARKS[i] for i in MIRROR_LANDMARKS
    ] == list(range(68))


def test_boxes_of_the_mean_face():
    "Left and right in fractions of the jaw's width, against those measured on real faces, to .08."
    face = mean_face()
    left, width = face[0, 0, 0], face[0, 16, 0] - face[0, 0, 0]
    boxes = (au_boxes(face)[0] - left) / width  # y is not compared
    wanted = {
        0: (0.08, 0.42),
        1: (0.57, 0.91),
        3: (0.14, 0.50),
        4: (0.50, 0.86),
        5: (0.28, 0.72),
        6: (0.06, 0.50),
        7: (0.50, 0.95),
        8: (0.10, 0.90),
    }
    for box, (x0, x1) in wanted.items():
        assert abs(boxes[box, 0] - x0) < 0.08 and abs(boxes[box, 2] - x1) < 0.08, REGION_NAMES[box]
    assert len(REGION_NAMES) == len(REGION_WATCHES) == len(BOX_REGIONS) == 9


def test_points_of_a_region_by_hand():
    face = torch.zeros(1, 68, 2, dtype=torch.float64)
    face[0, 36], face[0, 45] = torch.tensor([0.0, 50.0]), torch.tensor([100.0, 50.0])
    face[0, 17], face[0, 41], face[0, 2] = (
        torch.tensor([10.0, 40.0]),
        torch.tensor([30.0, 60.0]),
        torch.tensor([0.0, 80.0]),
    )
    polygons = region_polygons(face)
    assert polygons.shape == (1, 43, 6, 2)
    torch.testing.assert_close(
        polygons[0, 0, 0], torch.tensor([10.0, 30.0], dtype=torch.float64)
    )  # 17^
    torch.testing.assert_close(
        polygons[0, 14, 1], torch.tensor([15.0, 70.0], dtype=torch.float64)
    )  # 41~2
    assert point_tables()[1].unique().tolist() == pytest.approx([0, 0.1, 0.2])


def test_every_region_has_its_mirror():
    "Regions as sets of points: the mirror of each is a region, but for 7 and 14, which differ as published."

    def mirror(point):
        lift = "^" * point.count("^")
        return (
            "~".join(
                sorted(str(MIRROR_LANDMARKS[int(end)]) for end in point.rstrip("^").split("~"))
            )
            + lift
        )

    def normal(point):
        return "~".join(sorted(point.rstrip("^").split("~"))) + "^" * point.count("^")

    regions = [frozenset(map(normal, region)) for region in REGION_POINTS]
    lonely = [
        number
        for number, region in enumerate(REGION_POINTS, 1)
        if frozenset(map(mirror, region)) not in regions
    ]
    assert lonely == [7, 14]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.05))
def test_boxes_mirror_contain_and_lie_inside(seed, noise):
    faces = some_faces(2, noise=noise, seed=seed)
    boxes = au_boxes(faces)
    torch.testing.assert_close(au_boxes(mirror_landmarks(faces, 256)), mirror_boxes(boxes, 256))
    points = region_polygons(faces).clamp(0, 255)
    for k, regions in enumerate(BOX_REGIONS):
        inside = points[:, [r - 1 for r in regions]]
        assert (inside >= boxes[:, k, None, None, :2] - 1e-6).all() and (
            inside <= boxes[:, k, None, None, 2:] + 1e-6
        ).all()
    assert (boxes >= 0).all() and (boxes <= 255).all()


def test_order():
    boxes = au_boxes(some_faces())
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert all(
        (centre[:, left, 0] < centre[:, right, 0]).all() for left, right in ((0, 1), (3, 4), (6, 7))
    )
    assert all(
        (centre[:, up, 1] < centre[:, down, 1]).all()
        for up, down in ((0, 3), (1, 4), (3, 6), (4, 7), (2, 5), (5, 8))
    )


@pytest.mark.parametrize(
    "face",
    [
        torch.zeros(1, 68, 2),
        torch.full((1, 68, 2), -500.0),
        torch.full((1, 68, 2), 900.0),
        torch.full((1, 68, 2), 100.0),
    ],
)
def test_collapsed_landmarks_still_make_boxes(face):
    boxes = au_boxes(face, 256, minimum=8)
    assert (
        (boxes[..., 2:] - boxes[..., :2] >= 8 - 1e-4).all()
        and (boxes >= 0).all()
        and (boxes <= 255).all()
    )


def test_batch_and_scale():
    faces = some_faces()
    torch.testing.assert_close(au_boxes(faces)[3:4], au_boxes(faces[3:4]))
    assert au_boxes(faces.float()).dtype == torch.float32 and au_boxes(faces).dtype == torch.float64
    torch.testing.assert_close(region_polygons(faces / 2), region_polygons(faces) / 2)


@pytest.mark.parametrize("shape", [(68, 2), (1, 67, 2), (1, 68, 3)])
def test_bad_landmarks(shape):
    with pytest.raises(ValueError, match="68,2"):
        au_boxes(torch.zeros(shape))
    with pytest.raises(ValueError, match="floating"):
        au_boxes(torch.zeros(1, 68, 2, dtype=torch.int32))


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_grid_boxes_cover_the_face(parts):
    boxes = grid_boxes(256, parts)
    assert boxes.shape == (parts * parts, 4)
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum().item() == pytest.approx(255**2, rel=1e-4)
    torch.testing.assert_close(boxes[1:parts, 0], boxes[: parts - 1, 2])


@pytest.mark.parametrize("height,width", [(64, 64), (48, 80)])
def test_crops_agree_with_kornia(height, width):
    torch.manual_seed(0)
    images = torch.rand(3, 5, height, width, dtype=torch.float64)
    low, side = (
        torch.rand(3, 9, 2, dtype=torch.float64) * 20,
        torch.rand(3, 9, 2, dtype=torch.float64) * 20 + 6,
    )
    boxes = torch.cat([low, low + side], -1)
    x0, y0, x1, y1 = boxes.flatten(0, 1).unbind(-1)
    corners = torch.stack([torch.stack(p, -1) for p in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1)
    wanted = crop_and_resize(images.repeat_interleave(9, 0), corners, (18, 18)).view(
        3, 9, 5, 18, 18
    )
    torch.testing.assert_close(crop_boxes(images, boxes, 18), wanted, atol=1e-6, rtol=0)


def test_crop_of_whole_pixels_is_a_slice():
    images = torch.rand(1, 2, 32, 32, dtype=torch.float64)
    crop = crop_boxes(images, torch.tensor([[[4.0, 7.0, 13.0, 16.0]]], dtype=torch.float64), 10)
    torch.testing.assert_close(crop[0, 0], images[0, :, 7:17, 4:14])


def test_crop_gradient_and_dtype():
    images = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[1.2, 0.7, 5.9, 6.3]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda images: crop_boxes(images, boxes, 3), (images,))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert crop_boxes(images.detach().to(dtype), boxes.float(), 3).dtype == dtype
    with pytest.raises(ValueError, match="boxes"):
        crop_boxes(images, boxes[0])


@pytest.mark.parametrize("kind", MIRROR_ORDERS)
def test_boxes_of_both_kinds_in_the_mirror(kind):
    faces = some_faces()
    torch.testing.assert_close(
        face_boxes(mirror_landmarks(faces, 256), 256, kind),
        mirror_boxes(face_boxes(faces, 256, kind), 256, MIRROR_ORDERS[kind]),
    )
    assert torch.equal(face_boxes(faces), au_boxes(faces)) and torch.equal(
        face_boxes(faces, 256, "grid")[1], grid_boxes(256).to(faces)
    )


def test_other_boxes_are_refused():
    with pytest.raises(ValueError, match="no boxes 'cells'; choose from au, grid"):
        face_boxes(some_faces(), 256, "cells")
    with pytest.raises(ValueError, match="landmarks must be"):
        face_boxes(torch.zeros(1, 5, 2), 256, "grid")
