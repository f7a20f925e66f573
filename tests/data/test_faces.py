"""Faces: errors that name the file, transforms against a general solver, alignment and registration of known motion."""

import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.data import faces
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.faces import (
    TEMPLATE,
    FaceNotFound,
    align,
    align_displacement,
    alignment_transform,
    anchors,
    detect_landmarks,
    read_image,
    register,
    transform_points,
)


@pytest.fixture(scope="module")
def image(sample_clips):
    clip = sample_clips.clips[0]
    return read_image(clip.frames[clip.onset_index])


@pytest.fixture(scope="module")
def landmarks(image):
    return detect_landmarks(image)


def similarity(scale, degrees, dx, dy):
    a = scale * np.exp(1j * np.radians(degrees))
    return np.array([[a.real, -a.imag, dx], [a.imag, a.real, dy]])


def png(picture):
    return cv2.imencode(".png", picture)[1].tobytes()


def written(path, data):
    path.write_bytes(data)
    return path


def test_images_are_rgb(tmp_path):
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 2] = 255  # BGR, as OpenCV writes
    for name in ("red.png", "r\u00f6d \u7ea2.png", " red .png"):
        assert (read_image(written(tmp_path / name, png(red))) == [255, 0, 0]).all()


def test_every_kind_of_picture_becomes_rgb_of_8_bits(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    rgb, gray = colour[..., ::-1], colour[..., :1]
    kinds = {
        "gray": (gray, gray.repeat(3, 2)),
        "16 bits": (colour.astype(np.uint16) * 257, rgb),
        "gray 16": (gray.astype(np.uint16) * 256 + 99, gray.repeat(3, 2)),
        "alpha": (np.dstack([colour, gray]), rgb),
        "alpha 16": (np.dstack([colour, gray]).astype(np.uint16) * 257, rgb),
        "pixel": (colour[:1, :1], rgb[:1, :1]),
    }
    for name, (picture, wanted) in kinds.items():
        read = read_image(written(tmp_path / f"{name}.png", png(picture)))
        assert read.dtype == np.uint8 and np.array_equal(read, wanted), name
    dark = read_image(
        written(tmp_path / "12 bits.png", png(colour.astype(np.uint16) * 16))
    )  # the same scale for all: no stretching
    assert np.array_equal(dark, rgb // 16)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"", "it is empty"),
        (b"no image", "no image whatever its name says .*b'no image'"),
        (b"\xff\xd8\xff\xe0 half a jpeg", "cut short"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (b"BM", "cut short"),
        (b"<html>404</html>", "b'<html>404</html>"),
        (bytes(100), "no image"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "img7.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"img7.jpg can't be read: .*{words}"):
        read_image(tmp_path / "img7.jpg")


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "7.jpg").mkdir()
    with pytest.raises(ValueError, match="7.jpg can't be read"):
        read_image(tmp_path / "7.jpg")


@settings(deadline=None)
@given(
    st.sampled_from([".jpg", ".png", ".bmp", "progressive"]),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_every_beginning_of_a_picture_is_refused(format, part, filled_up):
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if format == "progressive" else []
    whole = cv2.imencode(
        ".jpg" if progressive else format,
        cv2.resize(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8), (80, 80)),
        progressive,
    )[1].tobytes()
    assert not faces.file_problem(whole) and not faces.file_problem(
        whole + b"made by a camera"
    )  # what follows the end is no harm
    n = min(
        int(part * len(whole)), len(whole) - (5 if format == ".png" else 1)
    )  # of a PNG, the checksum of its empty last block
    filled_up = filled_up and format != ".bmp"  # black pixels are pixels
    rest = whole[:n] + bytes(len(whole) - n) * filled_up
    assert (
        faces.file_problem(rest) or n < 8 and cv2.imdecode(np.frombuffer(rest, np.uint8), 1) is None
    ), (n, len(whole))


def test_a_picture_in_a_preface_does_not_pass_for_the_end():
    small, large = (
        cv2.imencode(".jpg", np.full((n, n, 3), 99, np.uint8))[1].tobytes() for n in (8, 64)
    )
    both = (
        large[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + large[2:]
    )  # APP1, as EXIF thumbnails are
    assert cv2.imdecode(np.frombuffer(both, np.uint8), 1).shape == (64, 64, 3)
    assert not faces.file_problem(both) and "cut short" in faces.file_problem(both[:-20])


def test_a_picture_of_a_billion_pixels_is_refused_before_it_is_decoded(tmp_path):
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (30000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    with pytest.raises(
        ValueError, match="900,000,000 pixels, 33,554,432 are read at most; shrink it"
    ):
        read_image(written(tmp_path / "huge.png", head + b"IEND"))


def test_a_large_picture_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "LARGEST", 80)
    assert read_image(
        written(
            tmp_path / "small.jpg",
            cv2.imencode(".jpg", np.zeros((8, 10, 3), np.uint8))[1].tobytes(),
        )
    ).shape == (8, 10, 3)
    with pytest.raises(ValueError, match="99 pixels, 80 are read"):
        read_image(
            written(
                tmp_path / "large.jpg",
                cv2.imencode(".jpg", np.zeros((9, 11, 3), np.uint8))[1].tobytes(),
            )
        )


def test_no_face_names_the_file():
    with pytest.raises(FaceNotFound, match="sub01/img46.jpg") as caught:
        detect_landmarks(np.zeros((120, 160, 3), np.uint8), "sub01/img46.jpg")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8), [[1]], None],
)
def test_what_is_no_image(bad):
    for call in (detect_landmarks, lambda x: align(x, np.eye(2, 3))):
        with pytest.raises(ValueError, match=r"\(h,w,3\) uint8"):
            call(bad)


def test_a_small_face_is_found_in_the_second_search(image, landmarks):
    small = cv2.resize(image, (60, 60), interpolation=cv2.INTER_AREA)
    assert not faces.dlib_models()[0](small, 0)  # the first search alone would fail
    assert np.abs(detect_landmarks(small) * 320 / 60 - landmarks).max() < 20


def test_the_largest_face_wins_on_either_side(image):
    two = np.full((320, 520, 3), 128, np.uint8)
    two[:, :320], two[60:260, 320:] = image, cv2.resize(image, (200, 200))
    assert (
        detect_landmarks(two)[:, 0].max() < 320 and detect_landmarks(two[:, ::-1])[:, 0].min() > 200
    )


def test_the_model_is_loaded_once_and_its_package_never_imported():
    assert faces.dlib_models() is faces.dlib_models()
    assert "face_recognition_models" not in sys.modules


def test_a_missing_model_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install face-recognition-models"):
        faces.landmark_file()


@given(
    st.floats(0.3, 3),
    st.floats(-60, 60),
    st.floats(-99, 99),
    st.floats(-99, 99),
    st.sampled_from([64, 128, 256]),
)
def test_alignment_undoes_any_similarity(scale, degrees, dx, dy, size):
    points = np.random.default_rng(0).normal(0, 1, (68, 2))
    points[36:42] += [20, 30]
    points[42:48] += [60, 32]
    points[48:] += [41, 70]
    want = transform_points(points, alignment_transform(points, size))
    moved = transform_points(points, similarity(scale, degrees, dx, dy))
    assert np.allclose(transform_points(moved, alignment_transform(moved, size)), want, atol=1e-6)


def test_alignment_equals_a_general_least_squares_solver(landmarks):
    (x, y), target = anchors(landmarks).T, (TEMPLATE * 256).ravel()
    system = np.zeros((6, 4))  # unknown: a, b, shift x, shift y
    system[0::2], system[1::2] = (
        np.stack([x, -y, x * 0 + 1, x * 0], 1),
        np.stack([y, x, x * 0, x * 0 + 1], 1),
    )
    a, b, dx, dy = np.linalg.lstsq(system, target, rcond=None)[0]
    assert np.allclose(alignment_transform(landmarks), [[a, -b, dx], [b, a, dy]])


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.zeros((5, 2)), r"\(68, 2\)"),
        (np.ones((68, 2)), "one point"),
        (np.full((68, 2), np.nan), "not finite"),
    ],
)
def test_landmarks_of_no_face(bad, words):
    with pytest.raises(ValueError, match=words):
        alignment_transform(bad)


def test_align_puts_pixels_where_transform_points_puts_points():
    for scale in (
        2.3,
        1.0,
        0.6,
        0.5,
        0.24,
        0.1,
    ):  # from .5 on with averaging first: half a pixel wrong would show
        side = int(40 / scale)
        y, x = np.mgrid[: 8 * side, : 8 * side].astype(float)
        blob = np.exp(-((x - 4.2 * side) ** 2 + (y - 3.7 * side) ** 2) / (2 * (6 / scale) ** 2))
        transform = similarity(scale, 12, 3, -20)
        face = align(np.repeat((blob * 255).astype(np.uint8)[..., None], 3, 2), transform, 320)[
            ..., 0
        ].astype(float)
        face[face < 8] = 0
        v, u = np.mgrid[:320, :320]
        centre = np.array([(u * face).sum(), (v * face).sum()]) / face.sum()
        assert np.abs(centre - transform_points([4.2 * side, 3.7 * side], transform)).max() < 0.1, (
            scale
        )


def test_align_keeps_the_type_and_invents_no_border():
    out = align(np.full((50, 50, 3), 77, np.uint8), similarity(1.5, 20, 30, 10), 128)
    assert out.shape == (128, 128, 3) and out.dtype == np.uint8 and (out == 77).all()


@given(st.floats(0.3, 3), st.floats(-180, 180), st.floats(-3, 3), st.floats(-3, 3))
def test_a_constant_displacement_turns_and_scales(scale, degrees, dx, dy):
    out = align_displacement(
        np.broadcast_to([dx, dy], (40, 40, 2)), similarity(scale, degrees, 17, -5), 64
    )
    want = scale * np.exp(1j * np.radians(degrees)) * (dx + 1j * dy)
    assert out.shape == (2, 64, 64) and out.dtype == np.float32
    assert np.allclose(out[0], want.real, atol=1e-4) and np.allclose(out[1], want.imag, atol=1e-4)


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_linear_displacement_lands_where_its_points_land(step):
    transform = similarity(1.1, 8, -9, 4)
    y, x = np.mgrid[0:240:step, 0:240:step]
    out = align_displacement(np.stack([0.01 * x, -0.02 * y], -1), transform, 128, step)
    raw = transform_points(np.array([[64.0, 40]]), cv2.invertAffineTransform(transform))[0]
    assert np.allclose(
        out[:, 40, 64], transform[:, :2] @ [0.01 * raw[0], -0.02 * raw[1]], atol=0.01
    )


def test_a_displacement_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"\(h,w,2\)"):
        align_displacement(np.zeros((2, 9, 9)), np.eye(2, 3))


@pytest.mark.parametrize("degrees, dx, dy", [(0, 0, 0), (0.4, 0.8, -0.6), (-0.7, -2.2, 1.4)])
def test_registration_finds_a_known_drift(image, landmarks, degrees, dx, dy):
    transform = alignment_transform(landmarks)
    inside = transform_points(landmarks, transform)
    drift = np.vstack(
        [cv2.getRotationMatrix2D((160, 160), degrees, 1) + [[0, 0, dx], [0, 0, dy]], [0, 0, 1]]
    )
    frame = cv2.warpAffine(
        image, drift[:2], (320, 320), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    own = register(frame, align(image, transform), transform, inside)
    there = transform_points(
        transform_points(landmarks, drift[:2]), own
    )  # where the moved landmarks end
    assert np.abs(there - inside).max() < 0.15
    if degrees:
        assert (
            np.abs(
                transform_points(transform_points(landmarks, drift[:2]), transform) - inside
            ).max()
            > 0.5
        )


def test_registration_gives_up_on_a_black_frame(image, landmarks):
    transform = alignment_transform(landmarks)
    assert (
        register(
            np.zeros_like(image),
            align(image, transform),
            transform,
            transform_points(landmarks, transform),
        )
        is transform
    )


def test_data_samples_keep_their_faces_inside():
    for clip in read_folder("data_samples").clips[::5]:
        found = detect_landmarks(read_image(clip.frames[clip.onset_index]), clip.clip_id)
        inside = transform_points(found, alignment_transform(found))
        assert inside.min() > 0 and inside.max() < 256
