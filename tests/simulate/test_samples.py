"""Simulator: tables, drawing, geometry against known motions, rendering where the machine can."""

import csv
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from frl_dgt_nb.data.clips import label_of
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.faces import (
    align_displacement,
    alignment_transform,
    detect_landmarks,
    read_image,
)
from frl_dgt_nb.simulate.actions import (
    ACTION_UNITS,
    COMBINATIONS,
    DISTRACTORS,
    Actions,
    envelope,
    facial_actions,
    parse_code,
    random_actions,
)
from frl_dgt_nb.simulate.render import can_render, project, seen_at, true_displacement
from frl_dgt_nb.simulate.samples import (
    NECK,
    action_field,
    expose,
    fresh_folder,
    main,
    pose,
    random_drift,
    simulate_clip,
    unit_field,
)

has_anny = importlib.util.find_spec("anny") is not None
needs_anny = pytest.mark.skipif(not has_anny, reason="the extra sim is not installed")
needs_camera = pytest.mark.skipif(
    not (has_anny and importlib.util.find_spec("pyvista") and can_render()),
    reason="no pyvista or no OpenGL without a display",
)
SAMPLES = __file__.rsplit("/", 3)[0] + "/data_samples"


@pytest.fixture(scope="module")
def person():
    from frl_dgt_nb.simulate.heads import random_person

    return random_person(np.random.default_rng(0))


@pytest.fixture(scope="module")
def filmed(person):
    from frl_dgt_nb.simulate.render import Studio

    with Studio(person, np.random.default_rng(0), 240) as studio:
        actions = Actions("happiness", "12", "", {"12": 1.0}, 0.0, 1.3)
        clips = [simulate_clip(studio, actions, np.random.default_rng(7)) for _ in range(2)]
        return studio.shoot(person.vertices), studio.shoot(person.vertices + [0.01, 0, 0]), clips


# tables and drawing


def test_every_code_is_known_and_every_emotion_has_a_label():
    for emotion, codes in COMBINATIONS.items():
        assert label_of(emotion) in (0, 1, 2)
        assert len(set(codes)) == len(codes) and all(parse_code(code) for code in codes)
    assert all(len(parse_code(unit)) == 1 for unit in DISTRACTORS)


@pytest.mark.parametrize("code", ["", "+", "4+", "X4", "L", "L1", "99", "4 7"])
def test_bad_codes_are_refused(code):
    with pytest.raises(ValueError):
        parse_code(code)


def test_a_side_takes_its_own_half_of_the_actions():
    for number, actions in ACTION_UNITS.items():
        if len(actions) > 1:
            left, right = set(facial_actions(f"L{number}")), set(facial_actions(f"R{number}"))
            assert left and right and not left & right and left | right == set(actions)


@given(st.sampled_from(sorted(COMBINATIONS)), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_random_actions_are_within_their_ranges(emotion, seed, distract):
    actions = random_actions(emotion, np.random.default_rng(seed), distract)
    assert actions.code in COMBINATIONS[emotion] and set(actions.weights) == set(
        actions.code.split("+")
    )
    assert (
        all(0.6 <= weight <= 1 for weight in actions.weights.values())
        and 0.4 <= actions.amplitude <= 1.4
    )
    assert bool(actions.distractor) == distract == (actions.distraction > 0)
    if distract:
        assert parse_code(actions.distractor)[0][1] not in {
            number for _, number in parse_code(actions.code)
        }


@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_envelope_rises_and_falls(onset, rise, fall, rest):
    apex, offset = onset + rise, onset + rise + fall
    part = envelope(offset + rest, onset, apex, offset)
    assert (
        part[apex] == 1 and abs(part[: onset + 1]).max() == 0 and abs(part[offset:]).max() < 1e-12
    )
    assert (np.diff(part[onset : apex + 1]) > 0).all() and (
        np.diff(part[apex : offset + 1]) < 0
    ).all()


@pytest.mark.parametrize(
    "where", [(8, 3, 3, 7), (8, 4, 3, 7), (8, -1, 3, 7), (8, 1, 3, 8), (8, 1, 5, 5)]
)
def test_envelope_refuses_a_wrong_order(where):
    with pytest.raises(ValueError, match="wanted 0 <= onset"):
        envelope(*where)


def test_drift_is_zero_at_the_onset_and_scales():
    one, two = (random_drift(8, 3, np.random.default_rng(0), size) for size in (1, 2))
    assert not one.turn[3].any() and not one.shift[3].any() and one.light[3] == 1
    np.testing.assert_allclose(two.shift, 2 * one.shift)
    assert one.turn[0].any() and one.light.std() > 0


def test_noise_has_the_asked_spread():
    gray = np.full((80, 80, 3), 128, np.uint8)
    noisy = expose(gray, np.random.default_rng(0), 2.0)
    assert noisy.dtype == np.uint8 and abs(noisy.std() - 2) < 0.1
    assert np.array_equal(expose(gray, np.random.default_rng(0), 0), gray)


# geometry


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@needs_anny
def test_pose_turns_about_the_neck():
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(pose(NECK[None], (10, 20, 30), (0, 0, 0))[0], NECK)
    moved = pose(points, (5, -3, 2), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(distances(moved), distances(points))


@needs_anny
@pytest.mark.parametrize("size,step", [(320, 4), (200, 4), (101, 3)])
def test_rigid_motions_have_their_analytic_displacement(person, size, step):
    head = person.vertices
    on_face = (seen_at(head, size, step)[0] >= 0).all(-1)
    assert on_face.shape == (-(-size // step),) * 2
    turn = pose(head, (0, 0, 3), (0.02, -0.01, 0))
    matrix = Rotation.from_euler("z", 3, degrees=True).as_matrix()
    y, x = np.mgrid[:size:step, :size:step]
    # pixels back to decimetres
    space = np.stack([(x + 0.5) / size * 2 - 1, 1 - (y + 0.5) / size * 2, 0 * x], -1) * 1.05
    gone = (space - NECK) @ matrix.T + NECK + [0.02, -0.01, 0]
    expected = (project(gone.reshape(-1, 3), size) - project(space.reshape(-1, 3), size)).reshape(
        *x.shape, 2
    )
    np.testing.assert_allclose(
        true_displacement(head, turn, size, step)[on_face], expected[on_face], atol=1e-6
    )


@needs_anny
def test_truth_is_linear_in_the_motion(person):
    moves = unit_field("12")
    one = true_displacement(person.vertices, person.vertices + 0.01 * moves)
    two = true_displacement(person.vertices, person.vertices + 0.02 * moves)
    np.testing.assert_allclose(two, 2 * one, atol=1e-9)


@needs_anny
@pytest.mark.parametrize(
    "unit,sign", [("1", 1), ("2", 1), ("4", -1), ("12", 1), ("15", -1), ("26", -1)]
)
def test_units_move_up_or_down_as_facs_says(unit, sign):
    moves = unit_field(unit)
    strongest = np.linalg.norm(moves[:, :2], axis=1).argsort()[-40:]
    assert (sign * moves[strongest, 1] > 0).mean() > 0.9
    assert np.linalg.norm(moves[:, :2], axis=1).max() == pytest.approx(1)


@needs_anny
def test_left_is_the_persons_left(person):
    moves = np.linalg.norm(unit_field("L12"), axis=1)
    assert person.vertices[moves.argmax(), 0] > 0.1


@needs_anny
def test_the_distractor_adds_to_the_field():
    plain = Actions("happiness", "12", "", {"12": 1.0}, 0.0, 1.0)
    both = Actions("happiness", "12", "1", {"12": 1.0}, 0.5, 1.0)
    brow = np.abs(unit_field("1")).max(1) > 0.5
    assert (
        np.abs(action_field(plain)[brow]).max() < 0.05
        and np.abs(action_field(both)[brow]).max() > 0.3
    )


# rendering


@needs_camera
def test_rendered_face_moves_and_is_found(filmed):
    still, shifted, _ = filmed
    assert still.shape == (240, 240, 3) and still.dtype == np.uint8
    assert 60 < detect_landmarks(still)[36:48].mean(0)[1] < 120
    assert 0 < np.abs(still.astype(int) - shifted).mean() < 15  # about one pixel


@needs_camera
def test_clips_repeat_and_keep_their_amplitude(filmed):
    _, _, (clip, again) = filmed
    assert np.array_equal(clip.frames, again.frames) and np.array_equal(
        clip.displacement, again.displacement
    )
    transform = alignment_transform(clip.landmarks, 256)
    largest = np.linalg.norm(align_displacement(clip.displacement, transform), axis=0).max()
    assert largest == pytest.approx(1.3, rel=0.08)


@needs_camera
def test_truth_explains_the_apex(filmed):
    import cv2

    _, _, (clip, _) = filmed
    onset, apex = clip.clean.astype(np.float32)
    grid = np.stack(np.meshgrid(*[np.arange(len(onset), dtype=np.float32)] * 2), -1)
    how = dict(interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    dense = cv2.remap(np.float32(clip.displacement), grid / 4, None, **how)
    moving = np.linalg.norm(dense, axis=-1) > 0.2

    def error(field):
        pulled = cv2.remap(apex, grid + field, None, cv2.INTER_CUBIC)
        return np.abs(pulled - onset)[moving].mean()

    assert moving.mean() > 0.02 and error(dense) < 0.7 * error(0 * dense) < error(-dense)


@needs_camera
def test_too_few_frames(person):
    from frl_dgt_nb.simulate.render import Studio

    with (
        Studio(person, np.random.default_rng(0), 64) as studio,
        pytest.raises(ValueError, match="at least 7"),
    ):
        simulate_clip(
            studio,
            random_actions("surprise", np.random.default_rng(0)),
            np.random.default_rng(0),
            frames=5,
        )


# folders and the command


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not simulated here"):
        fresh_folder(tmp_path, {})
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 1 and "not simulated here" in capsys.readouterr().err
    assert (tmp_path / "frames" / "mine.txt").read_text() == "mine"


def test_an_older_set_is_replaced(tmp_path):
    out = fresh_folder(tmp_path / "set", {"seed": 1})
    (out / "frames").mkdir()
    (out / "README.md").write_text("kept")
    fresh_folder(out, {"seed": 2})
    assert not (out / "frames").exists() and (out / "README.md").exists()
    assert json.loads((out / "simulated.json").read_text()) == {"seed": 2}


def test_import_needs_no_extra():
    code = (
        "import sys; sys.modules.update(anny=None, pyvista=None, vtk=None)\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('anny', 'pyvista') else find(name, *a)\n"
        "import frl_dgt_nb.simulate.samples as s\n"
        "try: s.unit_field('12')\n"
        "except ImportError as error: print(error)\n"
        "from frl_dgt_nb.simulate.render import load_pyvista\n"
        "try: load_pyvista()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("frl-dgt-nb[sim]") == 2, done.stderr


def test_no_display_is_an_error_and_not_a_crash(monkeypatch):
    pytest.importorskip("pyvista")
    import frl_dgt_nb.simulate.render as render

    monkeypatch.setattr(render, "can_render", lambda: False)
    with pytest.raises(RuntimeError, match="libegl1"):
        render.load_pyvista()


# data_samples as committed


def test_samples_hold_what_they_promise():
    from pathlib import Path

    root = Path(SAMPLES)
    database = read_folder(root)
    assert len(database.clips) == 48 and not database.excluded
    counts = {}
    for clip in database.clips:
        counts[clip.subject, clip.label] = counts.get((clip.subject, clip.label), 0) + 1
        assert len(clip.frames) == 8
        with np.load(root / "truth" / clip.subject / f"{clip.name}.npz") as truth:
            assert (
                truth["displacement"].shape == (80, 80, 2)
                and truth["displacement"].dtype == np.float16
            )
            transform = alignment_transform(truth["landmarks"], 256)
            largest = np.linalg.norm(
                align_displacement(truth["displacement"], transform), axis=0
            ).max()
            assert 0.3 < largest < 1.5, clip.clip_id
    assert len(counts) == 24 and set(counts.values()) == {2}
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) <= 12e6
    with open(root / "clips.csv", newline="") as file:
        codes = {(row["subject"], row["name"]): row["action_units"] for row in csv.DictReader(file)}
    assert all(parse_code(code) for code in codes.values())
    assert read_image(database.clips[0].frames[0]).shape == (320, 320, 3)
    assert "CC0" in (root / "LICENSE").read_text()


def test_half_of_the_samples_have_a_distractor():
    with open(f"{SAMPLES}/clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        sum(row["action_units"] not in COMBINATIONS[row["emotion"]] for row in rows)
        == len(rows) // 2
    )
