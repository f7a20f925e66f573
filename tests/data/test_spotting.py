"""Curves, recordings, spots: known peaks, still heads, bad files, a store that is whole or not there."""

import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from scipy.ndimage import gaussian_filter

from frl_dgt_nb.data import spotting
from frl_dgt_nb.data.curves import (
    Disturbance,
    flow_strain_curve,
    play_clip,
    region_difference,
    region_squares,
    skin_mask,
    steady,
    strain,
    strain_size,
)
from frl_dgt_nb.data.faces import FaceNotFound, align, alignment_transform, detect_landmarks
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.spotting import (
    METHODS,
    align_file,
    onset_and_offset,
    open_frames,
    plot_spot,
    read_frames,
    spot,
    spot_file,
    spot_store,
    spotted_pair,
)
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.simulate.actions import envelope


@pytest.fixture(scope="module")
def store(sample_clips, tmp_path_factory):
    four = replace(sample_clips, clips=sample_clips.clips[1:32:10])
    place = tmp_path_factory.mktemp("stores") / "store"
    return prepare(four, place, workers=1, progress=False)


@pytest.fixture(scope="module")
def landmarks(store):
    return store.landmarks[0]


@pytest.fixture(scope="module")
def calm(store):
    return play(store, drift=0)


def play(store, known=(4, 9, 15), frames=20, **disturbance):
    part = envelope(frames, *known)
    still, truth, landmarks = store.pair(0)[0], store.truth(0), store.landmarks[0]
    return play_clip(still, truth, landmarks, part, Disturbance(**disturbance))


# ---------------------------------------------------------------- curves


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("known", [(4, 9, 15), (2, 12, 18), (1, 5, 17)])
def test_the_peak_is_the_known_apex(store, landmarks, method, known):
    curve = METHODS[method](play(store, known, drift=0, noise=1), landmarks)
    assert curve.shape == (20,) and abs(curve[1:-1].argmax() + 1 - known[1]) <= 1


def test_region_difference_by_hand(landmarks):
    "Even pictures: every region has the same value, which the formula gives."
    levels = np.array([100, 102, 110, 103, 100], np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (5, 256, 256, 3)).copy()
    before = np.array([102, 100, 102, 110, 103.0])
    f = levels.astype(float)
    assert np.allclose(
        region_difference(frames, landmarks),
        (abs(f - f[0]) + abs(f - f[-1]) + 2) / (abs(f - before) + 1),
    )


def test_only_the_regions_count(calm, landmarks):
    outside = np.ones((256, 256), bool)
    for x0, y0, x1, y1 in region_squares(landmarks, 256):
        outside[y0:y1, x0:x1] = False
    loud = calm.copy()
    loud[7, outside] = 255
    assert np.array_equal(region_difference(loud, landmarks), region_difference(calm, landmarks))


def test_squares_are_where_their_names_say(landmarks):
    boxes = region_squares(landmarks, 256)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (
        boxes.shape == (10, 4) and abs(sides - (landmarks[54, 0] - landmarks[48, 0]) / 2).max() <= 2
    )
    centres = boxes.reshape(10, 2, 2).mean(1)
    assert np.allclose(centres[[7, 8]], landmarks[[48, 54]], atol=1)
    eyes = landmarks[36:48].mean(0)
    assert (centres[:3, 1] < eyes[1]).all() and (centres[5:, 1] > eyes[1]).all()


@given(
    st.floats(-0.03, 0.03), st.floats(-0.03, 0.03), st.floats(-0.03, 0.03), st.floats(-0.03, 0.03)
)
@settings(max_examples=25, deadline=None)
def test_strain_is_the_symmetric_gradient(a, b, c, d):
    "Of a linear flow; its size doesn't depend on the axes."
    y, x = np.mgrid[:48, :48].astype(np.float32)
    parts = strain(np.stack([a * x + b * y, c * x + d * y], -1).astype(np.float32))[:, 24, 24]
    assert np.allclose(parts, [a, d, (b + c) / 2], atol=1e-5)
    assert np.isclose(
        strain_size(parts), np.linalg.norm([[a, (b + c) / 2], [(b + c) / 2, d]]), atol=1e-5
    )


def test_the_skin_has_no_eyes_and_no_background(landmarks):
    mask = skin_mask(landmarks, 256)
    x, y = landmarks[36:48].round().astype(int).T
    assert not mask[y, x].any() and not mask[:10].any() and not mask[:, :10].any()
    assert mask[tuple(landmarks[30].round().astype(int)[::-1])]  # the tip of the nose


def test_a_head_that_comes_nearer_strains_nothing_relatively(store, landmarks):
    still = store.pair(0)[0]
    zoom = [
        cv2.warpAffine(
            still,
            cv2.getRotationMatrix2D((128, 128), 0, 1 + 0.003 * t),
            (256, 256),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for t in range(5)
    ]
    plain, relative = (
        flow_strain_curve(np.stack(zoom), landmarks, both=False, relative=r) for r in (False, True)
    )
    assert relative[4] < 0.6 * plain[4]


def test_a_blink_is_not_the_apex_of_the_strain(store, landmarks):
    clip = play(store, (3, 7, 12), blink=16, drift=0)
    assert abs(spot(clip, landmarks, steadied=False).apex - 7) <= 1


def test_steady_undoes_a_shift(store, landmarks):
    still = gaussian_filter(store.pair(0)[0], (1, 1, 0))
    moved = np.stack([np.roll(still, (0, t), (0, 1)) for t in range(4)])
    held = steady(moved, landmarks)
    inner = np.s_[60:220, 60:196]
    assert (
        abs(held[3][inner].astype(float) - still[inner]).mean()
        < 0.2 * abs(moved[3][inner].astype(float) - still[inner]).mean()
    )


# ---------------------------------------------------------------- spot


@given(
    st.integers(0, 12), st.integers(3, 14), st.integers(3, 14), st.floats(0.1, 9), st.floats(0, 5)
)
@settings(max_examples=60, deadline=None)
def test_onset_and_offset_of_any_rise_and_fall(onset, rise, fall, height, level):
    apex, offset = onset + rise, onset + rise + fall
    curve = level + height * envelope(offset + 3, onset, apex, offset)
    found = onset_and_offset(curve, apex)
    assert abs(found[0] - onset) <= 1 and abs(found[1] - offset) <= 1


@given(st.lists(st.floats(0, 1), min_size=3, max_size=30))
@settings(max_examples=60, deadline=None)
def test_onset_and_offset_stay_in_order_on_any_curve(values):
    curve = np.array(values)
    apex = 1 + int(curve[1:-1].argmax())
    onset, offset = onset_and_offset(curve, apex)
    assert 0 <= onset < apex < offset <= len(curve) - 1


def test_an_untrimmed_clip(store, landmarks):
    found = spot(play(store, (6, 12, 19), 26, drift=0.3), landmarks)
    assert abs(found.apex - 12) <= 1 and abs(found.onset - 6) <= 2 and abs(found.offset - 19) <= 3
    assert (
        found.curve.shape == (26,)
        and type(found.onset) is type(found.apex) is type(found.offset) is int
    )


def test_a_trimmed_clip_keeps_its_ends(calm, landmarks):
    found = spot(calm[4:16], landmarks, trimmed=True)
    assert (found.onset, found.offset) == (0, 11) and abs(found.apex - 5) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_noise_has_an_answer_in_order(landmarks, method):
    noise = np.random.default_rng(0).integers(0, 256, (7, 256, 256, 3), dtype=np.uint8)
    found = spot(noise, landmarks, method)
    assert 0 <= found.onset < found.apex < found.offset <= 6


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda frames, points: (np.repeat(frames[:1], 5, 0), points), "same picture"),
        (lambda frames, points: (frames[:2], points), "3 frames at least"),
        (lambda frames, points: (frames / 255.0, points), "uint8"),
        (lambda frames, points: (frames[..., 0], points), r"wanted \(T,size,size,3\)"),
        (lambda frames, points: (frames[:, :100], points), r"wanted \(T,size,size,3\)"),
        (lambda frames, points: (frames, points[:5]), r"wanted \(68, 2\)"),
        (lambda frames, points: (frames, points * np.nan), "finite"),
        (lambda frames, points: (frames, points + 900), "outside the frames|inside the frames"),
        (lambda frames, points: (None, points), "wanted"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_input_has_one_message(calm, landmarks, spoil, message, method):
    with pytest.raises(ValueError, match=message):
        spot(*spoil(calm[:5], landmarks), method, steadied=False)


def test_unknown_method(calm, landmarks):
    with pytest.raises(ValueError, match="regions, strain"):
        spot(calm, landmarks, "magic")


def test_the_picture_shows_the_three_frames(calm, landmarks):
    found = spot(calm, landmarks, "regions", steadied=False)
    axes = plot_spot(found, calm, fps=50).axes
    assert axes[0].get_xlabel() == "seconds" and np.isclose(
        axes[0].lines[0].get_xdata()[-1], 19 / 50
    )
    assert [
        np.array_equal(ax.images[0].get_array(), calm[t])
        for ax, t in zip(axes[1:], (found.onset, found.apex, found.offset))
    ] == [True] * 3
    assert plot_spot(found, calm).axes[0].get_xlabel() == "frame"


def test_the_marks_are_told_apart_without_their_colours_and_nothing_lies_on_the_curve(
    calm, landmarks
):
    figure = plot_spot(spot(calm, landmarks, "regions", steadied=False), calm, title="a clip")
    curve, *pictures = figure.axes
    assert (
        len({line.get_linestyle() for line in curve.lines[1:]})
        == len({line.get_color() for line in curve.lines[1:]})
        == 3
    )
    assert [ax.spines["left"].get_edgecolor() for ax in pictures] == [
        to_rgba(line.get_color()) for line in curve.lines[1:]
    ]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "onset",
        "apex",
        "offset",
    ] and not curve.get_legend()
    assert legend.get_window_extent().y0 >= curve.get_tightbbox().y1


# ---------------------------------------------------------------- files


def write_video(path, frames, codec="MJPG"):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 50, frames.shape[2:0:-1])
    for frame in frames:
        video.write(frame[..., ::-1])
    video.release()


@pytest.fixture(scope="module")
def raw(calm):
    return np.pad(calm, ((0, 0), (60, 40), (80, 80), (0, 0)), "edge")


@pytest.mark.parametrize("name, codec", [("clip one ü.avi", "MJPG"), ("clip.mp4", "mp4v")])
def test_a_video_and_its_pictures_give_the_same_clip(tmp_path, raw, name, codec):
    write_video(tmp_path / name, raw, codec)
    read, fps = read_frames(tmp_path / name)
    assert (
        read.shape == raw.shape
        and read.dtype == np.uint8
        and fps == 50
        and abs(read.astype(int) - raw).mean() < 4
    )
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(read):
        cv2.imwrite(str(tmp_path / "frames" / f"img{number + 5}.png"), frame[..., ::-1])  # 5..24
    (tmp_path / "frames" / "Thumbs.db").write_text("x")
    (tmp_path / "frames" / "._img5.png").write_text("x")
    pictures, unknown = read_frames(tmp_path / "frames")
    assert np.array_equal(pictures, read) and np.isnan(unknown)


def bad_files(folder, raw):
    write_video(folder / "whole.avi", raw)
    data = (folder / "whole.avi").read_bytes()
    (folder / "cut.avi").write_bytes(data[: len(data) // 2])
    (folder / "header.avi").write_bytes(data[:500])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video" * 99)
    (folder / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "none").mkdir()
    (folder / "broken").mkdir()
    (folder / "mixed").mkdir()
    for name, frame in (("1.png", raw[0]), ("2.png", raw[1][:99])):
        cv2.imwrite(str(folder / "mixed" / name), frame)
    cv2.imwrite(str(folder / "broken" / "1.png"), raw[0])
    (folder / "broken" / "2.png").write_text("not a picture")


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.mp4", "is not there"),
        ("cut.avi", "breaks off after"),
        ("header.avi", "no frame that can be decoded|no video"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "no video that can be read"),
        ("noise.avi", "no video that can be read"),
        ("none", "holds no pictures"),
        ("broken", "2.png"),
        ("mixed", "frame 1 is"),
        ("mixed/1.png", "is a picture"),
    ],
)
def test_a_bad_file_is_named(tmp_path, raw, name, message, capfd):
    bad_files(tmp_path, raw)
    with pytest.raises(ValueError, match=message) as error:
        read_frames(tmp_path / name)
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1


def test_too_many_frames(tmp_path, raw):
    write_video(tmp_path / "long.avi", raw)
    with pytest.raises(ValueError, match="more than 19 frames"):
        read_frames(tmp_path / "long.avi", max_frames=19)
    assert len(read_frames(tmp_path / "long.avi", max_frames=20)[0]) == 20


def test_frames_are_read_one_by_one(tmp_path, raw):
    write_video(tmp_path / "clip.avi", raw)
    frames, _ = open_frames(tmp_path / "clip.avi")
    assert next(frames).shape == raw[0].shape


def test_from_a_file_to_the_models_frames(tmp_path, raw):
    write_video(tmp_path / "clip.avi", raw)
    found, frames, fps = spot_file(tmp_path / "clip.avi")
    assert frames.shape == (20, 256, 256, 3) and fps == 50 and abs(found.apex - 9) <= 1
    read, _ = read_frames(tmp_path / "clip.avi")
    onset, apex, landmarks = spotted_pair(tmp_path / "clip.avi", found)
    points = detect_landmarks(read[found.onset])
    transform = alignment_transform(points)
    assert np.array_equal(onset, align(read[found.onset], transform)) and np.array_equal(
        apex, align(read[found.apex], transform)
    )
    assert landmarks.shape == (68, 2) and np.allclose(
        landmarks, points @ transform[:, :2].T + transform[:, 2]
    )


def test_a_video_without_a_face(tmp_path):
    write_video(tmp_path / "dark.avi", np.zeros((5, 120, 160, 3), np.uint8))
    with pytest.raises(FaceNotFound, match="the first frame of .*dark.avi"):
        align_file(tmp_path / "dark.avi")


# ---------------------------------------------------------------- stores


def sourced(store, folder, sources):
    "A copy of the store whose clips say other sources of their apex."
    shutil.copytree(store.path, folder)
    copy = FaceStore(folder)
    index = copy.index.assign(
        apex_source=sources,
        **{
            key: [v.ravel().tolist() for v in copy.index[key]] for key in ("landmarks", "transform")
        },
    )
    index.to_parquet(folder / "index.parquet", index=False)
    return FaceStore(folder)


def test_all_apexes_of_a_store(store, tmp_path):
    spotted = spot_store(store, tmp_path / "new", "all", progress=False)
    assert (spotted.index.apex - store.index.apex).abs().max() <= 1 and (
        spotted.index.apex_source == "spotted"
    ).all()
    assert (spotted.index.apex > spotted.index.onset).all() and (
        spotted.index.apex <= spotted.index.offset
    ).all()
    same = [
        column
        for column in store.index
        if column not in ("apex", "apex_source", "landmarks", "transform")
    ]
    assert spotted.index[same].equals(store.index[same]) and np.allclose(
        spotted.landmarks, store.landmarks
    )
    assert os.path.samefile(spotted.path / "frames.npy", store.path / "frames.npy")
    assert (
        spotted.settings["spotting"]["method"] == "strain"
        and spotted.settings != store.settings
        and spotted.truth(0) is None
    )
    assert not (tmp_path / "new.part").exists() and len(FaceStore(tmp_path / "new")) == len(store)


def test_only_the_missing_ones(store, tmp_path):
    mixed = sourced(store, tmp_path / "mixed", ["labelled", "middle", "labelled", "middle"])
    mixed.index["apex"] = mixed.index["onset"] + 1
    spotted = spot_store(mixed, tmp_path / "new", progress=False)
    assert spotted.index.apex_source.tolist() == ["labelled", "spotted", "labelled", "spotted"]
    assert spotted.index.apex[[0, 2]].tolist() == mixed.index.apex[[0, 2]].tolist()
    assert (spotted.index.apex - store.index.apex)[[1, 3]].abs().max() <= 1


def test_where_nothing_moves_the_middle_is_taken(store, tmp_path):
    still = sourced(store, tmp_path / "still", ["labelled"] * 4)
    frames = np.load(tmp_path / "still" / "frames.npy")
    frames[:8] = frames[0]
    np.save(tmp_path / "still" / "frames.npy", frames)
    spotted = spot_store(FaceStore(still.path), tmp_path / "new", "all", "regions", progress=False)
    row = spotted.index.iloc[0]
    assert (row.apex_source, row.apex) == ("middle", (row.onset + row.offset) // 2) and set(
        spotted.index.apex_source[1:]
    ) == {"spotted"}


def test_a_copy_where_there_are_no_links(store, tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError("no links here")

    monkeypatch.setattr(spotting.os, "link", refuse)
    spotted = spot_store(store, tmp_path / "new", "missing", progress=False)
    assert not os.path.samefile(
        spotted.path / "frames.npy", store.path / "frames.npy"
    ) and np.array_equal(spotted.frames, store.frames)


def test_interrupted_and_resumed(store, tmp_path, monkeypatch):
    whole = spot_store(store, tmp_path / "whole", "all", "regions", progress=False)
    real, calls = spotting.spotted_apex, []

    def stop_at_third(store, row, **how):
        calls.append(row)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(store, row, **how)

    monkeypatch.setattr(spotting, "spotted_apex", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        spot_store(store, tmp_path / "new", "all", "regions", progress=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="no store"):
        FaceStore(tmp_path / "new.part")
    with open(tmp_path / "new.part" / "spots.jsonl", "a") as journal:
        journal.write('["torn')
    calls.extend([None] * 9)
    resumed = spot_store(store, tmp_path / "new", "all", "regions", progress=False)
    assert calls[-2:] == [2, 3] and resumed.index.apex.tolist() == whole.index.apex.tolist()


def test_a_journal_of_other_settings_is_not_taken(store, tmp_path, monkeypatch):
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part" / "spots.jsonl").write_text(
        json.dumps({"spotting": "another"})
        + "\n"
        + json.dumps([store.index.clip_id[0], [1, "spotted"]])
        + "\n"
    )
    seen = []
    monkeypatch.setattr(
        spotting,
        "spotted_apex",
        lambda store, row, **how: seen.append(row) or (int(store.index.apex[row]), "spotted"),
    )
    spot_store(store, tmp_path / "new", "all", progress=False)
    assert seen == [0, 1, 2, 3]


def test_another_content_of_the_folder_is_left_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr(
        spotting, "spotted_apex", lambda store, row, **how: (int(store.index.apex[row]), "spotted")
    )
    spot_store(store, tmp_path / "new", "all", progress=False)
    with pytest.raises(ValueError, match="holds something else"):
        spot_store(store, tmp_path / "new", "all", "regions", progress=False)
    with pytest.raises(ValueError, match="holds something else"):
        spot_store(store, store.path, "all", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        spot_store(store, tmp_path / "mine", progress=False)
    with pytest.raises(ValueError, match="wanted missing or all"):
        spot_store(store, tmp_path / "other", "some")
    with pytest.raises(ValueError, match="regions, strain"):
        spot_store(store, tmp_path / "other", method="magic")
