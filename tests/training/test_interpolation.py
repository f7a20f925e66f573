"""Interpolation of a clip, and the store of clips that are sequences."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import toy_store

from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.training import interpolation
from frl_dgt_nb.training.interpolation import (
    interpolate,
    interpolation_weights,
    path_sines,
    read_sequence,
    sequence_index,
    sequence_store,
)

lengths = st.integers(2, 40)
patient = settings(max_examples=30, deadline=None)


# interpolation


@given(n=lengths)
@patient
def test_sines_are_the_eigenvectors_of_the_path(n):
    ties = np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    laplacian, sines = np.diag(ties.sum(1)) - ties, path_sines(n, torch.arange(n)).numpy()
    eigenvalues = 2 - 2 * np.cos(np.pi * np.arange(1, n) / n)
    assert np.allclose(laplacian @ sines, sines * eigenvalues, atol=1e-10)
    assert (np.diff(eigenvalues) > 0).all() and np.allclose(
        sines.T @ sines, np.eye(n - 1) * n / 2, atol=1e-10
    )


@pytest.mark.parametrize("n, steps", [(3, 10), (8, 10), (8, 8), (30, 10)])
def test_weights_are_the_published_recipe(n, steps):
    "Mean out, SVD, regression of the curve on the frames' coordinates, inverse: Zhou et al. 2011, in numpy"
    frames = np.random.default_rng(n).normal(size=(n, 50))
    mean = frames.mean(0)
    U, S, Vt = np.linalg.svd((frames - mean).T, full_matrices=False)
    U, S, Vt = U[:, : n - 1], S[: n - 1], Vt[: n - 1]

    def curve(t):
        return np.stack(
            [np.sin(np.pi * k * t + np.pi * (n - k) / (2 * n)) for k in range(1, n)]
        )  # t from 1/n to 1

    map_ = np.linalg.lstsq((np.diag(S) @ Vt).T, curve(np.arange(1, n + 1) / n).T, rcond=None)[0]
    published = (U @ np.linalg.inv(map_.T) @ curve(np.linspace(1 / n, 1, steps))).T + mean
    assert np.allclose(
        interpolation_weights(n, steps, straight=False).numpy() @ frames, published, atol=1e-9
    )


@given(n=lengths, steps=lengths, seed=st.integers(0, 99))
@patient
def test_a_linear_motion_is_reproduced_exactly(n, steps, seed):
    start, step = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))

    def ramp(places):
        return start + step * places.view(-1, 1, 1)

    made = interpolate(ramp(torch.arange(n)), steps)
    torch.testing.assert_close(
        made, ramp(torch.linspace(0, n - 1, steps)), atol=1e-5 * n, rtol=1e-5
    )


def test_a_sliding_slope_is_where_it_should_be():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def view(t):
        return 0.01 * (x - 0.4 * t) + 0.02 * (
            y + 0.3 * t
        )  # brightness slope moving by (.4,-.3) pixels a frame

    made = interpolate(torch.stack([view(t) for t in range(8)]), 10)
    torch.testing.assert_close(
        made, torch.stack([view(t) for t in np.linspace(0, 7, 10)]), atol=1e-5, rtol=0
    )


def test_the_published_curve_stays_on_the_line_but_not_at_its_pace():
    ramp = torch.arange(8.0)[:, None] * torch.tensor([1.0, -2.0])
    made = interpolate(ramp, 50, straight=False)
    torch.testing.assert_close(made[:, 1], -2 * made[:, 0], atol=1e-5, rtol=0)
    assert 0.03 < (made[:, 0] - torch.linspace(0, 7, 50)).abs().max() < 0.06


@given(n=lengths, times=st.integers(1, 5), straight=st.booleans(), double=st.booleans())
@patient
def test_original_frames_are_interpolated_through(n, times, straight, double):
    frames = torch.rand(n, 2, 4, dtype=torch.float64 if double else torch.float32)
    made = interpolate(frames, times * (n - 1) + 1, straight)
    assert made.dtype == frames.dtype
    torch.testing.assert_close(
        made[::times], frames, atol=1e-5, rtol=0
    )  # times == 1: T = n gives the frames back


@given(n=lengths, steps=lengths, straight=st.booleans())
@patient
def test_weights_sum_to_one_and_know_no_direction_of_time(n, steps, straight):
    weights = interpolation_weights(n, steps, straight)
    torch.testing.assert_close(weights.sum(1), torch.ones(steps, dtype=torch.float64))
    torch.testing.assert_close(weights.flip(0, 1), weights, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        weights[[0, -1]], torch.eye(n, dtype=torch.float64)[[0, -1]], atol=1e-10, rtol=0
    )


def test_there_and_back_makes_no_difference_to_straight():
    frames = torch.rand(9, 4)
    frames[-1] = frames[0]
    torch.testing.assert_close(interpolate(frames, 10), interpolate(frames, 10, straight=False))


def test_smooth_course_is_closer_than_between_neighbours():
    def course(n):
        return np.sin(np.pi * np.linspace(0, 1, n)) ** 2

    made = interpolate(torch.tensor(course(8)), 10).numpy()
    assert (
        np.abs(made - course(10)).max()
        < 0.3 * np.abs(np.interp(np.linspace(0, 7, 10), np.arange(8), course(8)) - course(10)).max()
    )


def test_ten_frames_unless_told():
    assert interpolation_weights(5).shape == (10, 5) and interpolate(torch.rand(5, 2)).shape == (
        10,
        2,
    )


def test_interpolate_is_differentiable():
    assert torch.autograd.gradcheck(
        lambda frames: interpolate(frames, 4),
        torch.rand(3, 2, 2, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize(
    "frames, steps, word",
    [
        (torch.rand(1, 3), 10, "got 1 frames"),
        (torch.rand(5, 3), 1, "to bring to 1"),
        (torch.zeros(5, 3, dtype=torch.uint8), 10, "divide bytes by 255"),
    ],
)
def test_interpolate_refuses(frames, steps, word):
    with pytest.raises(ValueError, match=word):
        interpolate(frames, steps)


# from a store


def test_read_sequence_goes_from_onset_to_offset(tmp_path):
    store = toy_store(tmp_path / "store")
    index = store.index.copy()
    index.loc[1, ["onset", "offset"]] = [1, 4]
    store.index = index
    scaled = [
        torch.tensor(store.clip(1)[place].copy()).permute(2, 0, 1) / 255 for place in (1, 2, 3, 4)
    ]
    assert read_sequence(store, 1).shape == (10, 3, 32, 32)
    torch.testing.assert_close(
        read_sequence(store, 1, steps=4), torch.stack(scaled), atol=1e-5, rtol=0
    )
    seven = read_sequence(store, 1, steps=7)
    torch.testing.assert_close(seven[::2], torch.stack(scaled), atol=1e-5, rtol=0)
    assert seven.min() >= 0 and seven.max() <= 1  # noise overshoots; pictures must not


# a store of them


@pytest.fixture
def store(tmp_path):
    "Twelve clips of five to seven frames, onset at the first or second."
    return toy_store(tmp_path / "store")


@pytest.mark.parametrize("steps, straight", [(10, True), (4, True), (6, False)])
def test_every_clip_is_its_sequence(store, tmp_path, steps, straight):
    made = sequence_store(store, tmp_path / "made", steps, straight, progress=False)
    assert made.frames.shape == (12 * steps, 32, 32, 3) and made.settings["sequence"] == {
        "steps": steps,
        "straight": straight,
        "rule": interpolation.SEQUENCE_RULE,
    }
    for clip in range(12):
        wanted = (read_sequence(store, clip, steps, straight) * 255).permute(0, 2, 3, 1).numpy()
        assert np.abs(made.clip(clip) - wanted).max() <= 0.5 + 1e-3  # rounded, not cut off
        first, last = (
            store.clip(clip)[store.index[moment][clip]] for moment in ("onset", "offset")
        )
        assert np.array_equal(made.clip(clip)[0], first) and np.array_equal(
            made.clip(clip)[-1], last
        )
        assert np.array_equal(made.pair(clip)[1], made.clip(clip)[made.index.apex[clip]])
        assert (made.index.onset[clip], made.index.offset[clip], made.index.n_frames[clip]) == (
            0,
            steps - 1,
            steps,
        )
    same = [
        "clip_id",
        "database",
        "subject",
        "name",
        "subject_id",
        "label",
        "emotion",
        "action_units",
        "apex_source",
    ]
    assert (
        made.index[same].equals(store.index[same])
        and np.array_equal(made.landmarks, store.landmarks)
        and made.excluded == store.excluded
    )
    assert made.truth(0) is None and made.settings["checksum"] == store.settings["checksum"]
    torch.testing.assert_close(
        read_sequence(made, 3, steps),
        read_sequence(store, 3, steps, straight),
        atol=0.51 / 255,
        rtol=0,
    )


@given(
    onset=st.integers(0, 20),
    to_apex=st.integers(1, 40),
    to_offset=st.integers(0, 40),
    steps=st.integers(2, 12),
)
@patient
def test_the_apex_is_the_nearest_frame_but_never_the_onset(onset, to_apex, to_offset, steps):
    from pandas import DataFrame

    index = DataFrame(
        {
            "start": [7],
            "n_frames": [200],
            "onset": [onset],
            "apex": [onset + to_apex],
            "offset": [onset + to_apex + to_offset],
        }
    )
    made = sequence_index(index, steps).iloc[0]
    places = np.linspace(onset, onset + to_apex + to_offset, steps)
    away = np.abs(places - onset - to_apex)
    assert 1 <= made.apex <= steps - 1 and away[made.apex] <= away[1:].min() + 1e-9


def test_opened_and_not_made_again(store, tmp_path, monkeypatch):
    made = sequence_store(store, tmp_path / "made", 4, progress=False)
    before = os.stat(made.path / "frames.npy").st_mtime_ns
    monkeypatch.setattr(interpolation, "write_sequences", None)
    assert (
        sequence_store(store, tmp_path / "made", 4, progress=False).path == made.path
        and os.stat(made.path / "frames.npy").st_mtime_ns == before
    )
    assert not (tmp_path / "made.part").exists()


def test_stopped_half_way_there_is_no_store(store, tmp_path, monkeypatch):
    real, calls = interpolation.read_sequence, []

    def stop_at_third(*what):
        calls.append(what)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*what)

    monkeypatch.setattr(interpolation, "read_sequence", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        sequence_store(store, tmp_path / "made", 4, progress=False)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match="no store"):
        FaceStore(tmp_path / "made.part")
    made = sequence_store(
        store, tmp_path / "made", 5, progress=False
    )  # what is left over, of another length, is no hindrance
    assert len(made.frames) == 60 and np.array_equal(made.clip(11)[0], store.pair(11)[0])


def test_only_a_store_of_frames_becomes_one_of_sequences(store, tmp_path):
    with pytest.raises(ValueError, match="steps=1"):
        sequence_store(store, tmp_path / "made", 1)
    made = sequence_store(store, tmp_path / "made", 4, progress=False)
    with pytest.raises(
        ValueError, match="something else.*sequences of 5 frames; choose another folder"
    ):
        sequence_store(store, tmp_path / "made", 5)
    with pytest.raises(ValueError, match="something else"):
        sequence_store(store, tmp_path / "made", 4, straight=False)
    with pytest.raises(ValueError, match="sequences of 4 frames already"):
        sequence_store(made, tmp_path / "again", 4)
    with pytest.raises(ValueError, match="something else"):
        sequence_store(store, store.path, 4)
    store.displacements = np.zeros((12, 3, 8, 8))
    with pytest.raises(ValueError, match="flow pictures"):
        sequence_store(store, tmp_path / "flow", 4)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "made",
        "store",
    ]


def test_a_store_of_spotted_apexes_says_so(store, tmp_path):
    from frl_dgt_nb.data.spotting import spot_store

    spotted = spot_store(store, tmp_path / "spotted", "missing", progress=False)
    made = sequence_store(spotted, tmp_path / "made", 4, progress=False)
    assert (
        made.settings["spotting"] == spotted.settings["spotting"]
        and json.loads((made.path / "settings.json").read_text()) == made.settings
    )
