"""Preparation: parallel equals serial, kill and resume, two processes at once, other settings, full disks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

from frl_dgt_nb.data.clips import Exclusion
from frl_dgt_nb.data.faces import align, alignment_transform, detect_landmarks, read_image
from frl_dgt_nb.data.preparation import default_workers, prepare, read_journal
from frl_dgt_nb.data.store import FaceStore, clip_index
from frl_dgt_nb.files import write_atomic

SIZE = 64


def program(out, clips="::6", workers=1):
    "Another Python process that makes the same store."
    code = f"""
        from dataclasses import replace
        from frl_dgt_nb.data.databases import read_folder
        from frl_dgt_nb.data.preparation import prepare

        if __name__ == "__main__":
            whole = read_folder("data_samples")
            clips = replace(whole, clips=whole.clips[{clips}])
            store = prepare(clips, {str(out)!r}, {SIZE}, workers={workers}, progress=False)
            print(len(store), int(store.frames.sum()))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(path, n):
    end = time.monotonic() + 60
    while time.monotonic() < end and not (path.is_file() and path.read_text().count("\n") >= n):
        time.sleep(0.01)
    assert path.is_file() and path.read_text().count("\n") >= n


def test_content_is_what_the_faces_module_gives(few_clips, few_faces):
    clip, row = few_clips.clips[3], few_faces.index.iloc[3]
    onset = read_image(clip.frames[clip.onset_index])
    transform = alignment_transform(detect_landmarks(onset), SIZE)
    assert np.allclose(row["transform"], transform) and row["transform"].shape == (2, 3)
    assert np.array_equal(few_faces.pair(3)[0], align(onset, transform, SIZE))
    assert np.array_equal(
        few_faces.pair(3)[1], align(read_image(clip.frames[clip.apex_index]), transform, SIZE)
    )  # the onset's transform
    assert np.array_equal(
        few_faces.clip(3)[-1], few_faces.frames[row["start"] + row["n_frames"] - 1]
    )
    assert (
        few_faces.landmarks.shape == (len(few_faces), 68, 2)
        and few_faces.landmarks.dtype == np.float32
    )
    assert few_faces.excluded == [Exclusion("folder/x/y", "left out")]
    assert not few_faces.frames.flags.writeable


def test_without_a_root_there_is_no_truth(few_clips, tmp_path):
    assert prepare(few_clips.clips[:1], tmp_path, SIZE, progress=False).truth(0) is None


def test_parallel_equals_serial(few_clips, few_faces, tmp_path):
    both = prepare(few_clips, tmp_path, SIZE, workers=2, progress=False)
    assert np.array_equal(both.frames, few_faces.frames) and both.index["clip_id"].equals(
        few_faces.index["clip_id"]
    )


def test_opening_again_changes_nothing(few_clips, few_faces):
    before = {
        path.name: path.stat().st_mtime_ns
        for path in few_faces.path.iterdir()
        if path.suffix in (".npy", ".parquet")
    }
    prepare(few_clips, few_faces.path, SIZE, progress=False)
    assert before == {
        path.name: path.stat().st_mtime_ns
        for path in few_faces.path.iterdir()
        if path.suffix in (".npy", ".parquet")
    }


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_and_resumed(few_clips, tmp_path, few_faces):
    process = program(tmp_path)
    wait_for_lines(tmp_path / "journal.jsonl", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(ValueError, match="not finished; call prepare"):
        FaceStore(tmp_path)
    done = read_journal(tmp_path, clip_index(few_clips.clips))
    assert 2 <= len(done) < len(few_clips.clips)
    with open(tmp_path / "journal.jsonl", "a") as journal:
        journal.write('{"clip": "folder/s08')  # a torn line
    resumed = prepare(few_clips, tmp_path, SIZE, progress=False)
    assert np.array_equal(resumed.frames, few_faces.frames)
    assert not (tmp_path / "journal.jsonl").exists()


def test_rows_that_are_not_as_the_journal_says_are_done_again(few_clips, few_faces, tmp_path):
    for name in ("frames.npy", "settings.json"):
        (tmp_path / name).write_bytes((few_faces.path / name).read_bytes())
    lines = [
        {
            "clip": row["clip_id"],
            "crc": zlib.crc32(few_faces.clip(i)),
            "landmarks": row["landmarks"].ravel().tolist(),
            "transform": row["transform"].ravel().tolist(),
        }
        for i, row in few_faces.index.iterrows()
    ]
    write_atomic(tmp_path / "journal.jsonl", "\n".join(json.dumps(line) for line in lines).encode())
    np.load(tmp_path / "frames.npy", mmap_mode="r+")[9, 3, 3] += 1  # a byte of the second clip
    assert set(few_faces.index["clip_id"]) - set(
        read_journal(tmp_path, clip_index(few_clips.clips))
    ) == {few_clips.clips[1].clip_id}
    assert np.array_equal(
        prepare(few_clips, tmp_path, SIZE, progress=False).frames, few_faces.frames
    )


def fields_of(pid):
    "State, parent and more of a process, from /proc."
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def children_of(pid):
    running = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [other for other in running if is_running(other) and fields_of(other)[1] == str(pid)]


def is_running(pid):
    try:
        return fields_of(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    process = program(tmp_path, "::2", workers=2)
    wait_for_lines(tmp_path / "journal.jsonl", 1)
    children = children_of(process.pid)
    assert children
    process.kill()
    process.wait()  # not for the end of its pipes, which workers that stay would hold open
    end = time.monotonic() + 10
    while time.monotonic() < end and any(map(is_running, children)):
        time.sleep(0.05)
    left = [pid for pid in children if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_two_processes_at_once_give_one_store(few_faces, tmp_path):
    pair = program(tmp_path), program(tmp_path)
    assert [process.communicate(timeout=60)[0].strip() for process in pair] == [
        f"{len(few_faces)} {int(few_faces.frames.sum())}"
    ] * 2


def test_a_second_process_says_that_it_waits(few_faces, tmp_path):
    with FileLock(tmp_path / ".lock"):  # as if another process were at it
        process = program(tmp_path)
        assert "waiting for it" in process.stderr.readline()
        assert not (tmp_path / "settings.json").exists() and process.poll() is None
    assert process.communicate(timeout=60)[0].split()[0] == str(len(few_faces))


def test_other_settings_are_named(few_clips, few_faces):
    for changes, word in (
        (dict(size=128), "size: 64 there, 128 wanted"),
        (dict(register=True), "register: False there, True wanted"),
    ):
        with pytest.raises(ValueError, match=f"{word}.*overwrite=True"):
            prepare(few_clips, few_faces.path, **{"size": SIZE, "progress": False, **changes})
    with pytest.raises(ValueError, match="clips: 8 there, 7 wanted"):
        prepare(replace(few_clips, clips=few_clips.clips[1:]), few_faces.path, SIZE, progress=False)
    relabelled = [replace(few_clips.clips[0], label=2), *few_clips.clips[1:]]
    with pytest.raises(ValueError, match="checksum"):
        prepare(replace(few_clips, clips=relabelled), few_faces.path, SIZE, progress=False)


def test_images_changed_under_the_same_names_are_noticed(few_clips, tmp_path):
    clip, folder = few_clips.clips[0], tmp_path / "frames"
    folder.mkdir()
    for path in clip.frames:
        (folder / path.name).write_bytes(path.read_bytes())
    own = [replace(clip, frames=tuple(folder / path.name for path in clip.frames))]
    prepare(own, tmp_path / "store", SIZE, progress=False)
    cv2.imwrite(str(own[0].frames[2]), np.zeros((320, 320, 3), np.uint8))
    with pytest.raises(ValueError, match="checksum"):
        prepare(own, tmp_path / "store", SIZE, progress=False)
    (tmp_path / "store/known-dis-1-0.npy").touch()
    anew = prepare(own, tmp_path / "store", SIZE, progress=False, overwrite=True)
    assert not list((tmp_path / "store").glob("known-*"))  # flows of the frames that were
    assert not anew.frames[2].any()


def test_another_version_says_what_to_do(few_clips, few_faces, tmp_path):
    prepare(few_clips.clips[:1], tmp_path, SIZE, progress=False)
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "version": 0}))
    for call in (
        lambda: FaceStore(tmp_path),
        lambda: prepare(few_clips.clips[:1], tmp_path, SIZE, progress=False),
    ):
        with pytest.raises(ValueError, match="version.*0.*overwrite=True"):
            call()


def test_clips_that_cannot_be_used_become_exclusions(few_clips, tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((320, 320, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "3.png"), np.zeros((200, 320, 3), np.uint8))
    (tmp_path / "2.png").write_bytes(b"broken")
    clip = few_clips.clips[0]

    def frames_with(n, k):
        "The frames of the clip with number n of our files in place of the k-th."
        return tuple(
            tmp_path / f"{n}.png" if i == k else path for i, path in enumerate(clip.frames)
        )

    bad = [
        replace(clip, name="dark", frames=frames_with(1, clip.onset_index)),
        replace(clip, name="broken", frames=frames_with(2, 5)),
        replace(clip, name="small", frames=frames_with(3, 5)),
    ]
    before = [Exclusion("a/b/c", "before")]
    mixed = replace(few_clips, clips=[*bad, clip], excluded=before)
    made = prepare(mixed, tmp_path / "store", SIZE, progress=False)
    assert list(made.index["name"]) == [clip.name] and made.index["start"][0] == 24
    assert [e.clip_id.split("/")[-1] for e in made.excluded] == ["c", "dark", "broken", "small"]
    for exclusion, words in zip(
        made.excluded[1:], ("no face found in", "can't be read", "320x200")
    ):
        assert words in exclusion.reason and ".png" in exclusion.reason
    with pytest.raises(ValueError, match="none of the 3 clips can be used. no face"):
        prepare(bad, tmp_path / "none", SIZE, progress=False)


def test_registered_frames_move_less(few_clips, few_faces, tmp_path):
    still = prepare(few_clips.clips[:3], tmp_path, SIZE, progress=False, register=True)
    for i in range(3):
        onset = few_faces.index["onset"][i]
        assert np.array_equal(still.clip(i)[onset], few_faces.clip(i)[onset])
    change = [
        np.mean([np.abs(np.subtract(*s.pair(i), dtype=float)).mean() for i in range(3)])
        for s in (still, few_faces)
    ]
    assert change[0] < change[1]


@pytest.mark.parametrize("size", [8, 64.0, "64"])
def test_sizes_and_clips_that_make_no_sense(few_clips, tmp_path, size):
    with pytest.raises(ValueError, match="wanted a whole number"):
        prepare(few_clips, tmp_path, size)
    with pytest.raises(ValueError, match="more than once: folder/"):
        prepare([few_clips.clips[0]] * 2, tmp_path)
    with pytest.raises(ValueError, match="got 0"):
        prepare([], tmp_path)


def test_a_full_disk_is_an_error_before_the_work(few_clips, tmp_path, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(10))
    with pytest.raises(ValueError, match="0.0 GB are free"):
        prepare(few_clips, tmp_path, SIZE, progress=False)


@pytest.mark.parametrize("fails", ["lost.json", "index.parquet"])
def test_a_disk_that_fills_up_at_the_end_costs_nothing_that_is_done(
    few_clips, few_faces, tmp_path, monkeypatch, fails
):
    real = os.replace

    def full(part, path):
        if str(path).endswith(fails):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(part, path)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(
            ValueError, match=f"the disk is full .* while writing {tmp_path}; make room"
        ):
            prepare(few_clips, tmp_path, SIZE, progress=False)
    with pytest.raises(ValueError, match="not finished; call prepare"):
        FaceStore(tmp_path)
    monkeypatch.setattr("frl_dgt_nb.data.preparation.align_clip", None)  # nothing is left to do
    assert np.array_equal(
        prepare(few_clips, tmp_path, SIZE, progress=False).frames, few_faces.frames
    )
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_in_the_journal(few_clips, few_faces, tmp_path, monkeypatch):
    real = json.dumps

    def full(value, **more):
        if isinstance(value, dict) and value.get("clip") == few_clips.clips[4].clip_id:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(value, **more)

    with monkeypatch.context() as patch:
        patch.setattr("frl_dgt_nb.data.preparation.json.dumps", full)
        with pytest.raises(ValueError, match="the disk is full"):
            prepare(few_clips, tmp_path, SIZE, workers=1, progress=False)
    assert len(read_journal(tmp_path, clip_index(few_clips.clips))) == 4
    assert np.array_equal(
        prepare(few_clips, tmp_path, SIZE, progress=False).frames, few_faces.frames
    )


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "[]",
        "null",
        "{}",
        '{"clip": "folder/no/such", "crc": 1}',
        '{"clip": ["a"], "crc": 1}',
        '{"clip": 1}',
        "\udcff\udcfe",
        "\0" * 40,
    ],
)
def test_a_journal_gone_bad_is_done_again(few_clips, few_faces, tmp_path, line):
    for name in ("frames.npy", "settings.json"):
        (tmp_path / name).write_bytes((few_faces.path / name).read_bytes())
    whole = {
        "clip": few_clips.clips[0].clip_id,
        "crc": zlib.crc32(few_faces.clip(0)),
        "landmarks": [0.0] * 136,
        "transform": [0.0] * 6,
    }
    short = {
        **whole,
        "clip": few_clips.clips[1].clip_id,
        "crc": zlib.crc32(few_faces.clip(1)),
        "landmarks": [0.0] * 2,
    }
    (tmp_path / "journal.jsonl").write_text(
        "\n".join([line, json.dumps(whole), json.dumps(short), json.dumps(whole)[:70]]),
        errors="surrogateescape",
    )
    assert list(read_journal(tmp_path, clip_index(few_clips.clips))) == [whole["clip"]]


def test_a_finished_store_that_may_only_be_read_is_opened(
    few_clips, few_faces, tmp_path, monkeypatch
):
    shutil.copytree(few_faces.path, tmp_path / "theirs")
    before = sorted(
        (path.name, path.stat().st_mtime_ns) for path in (tmp_path / "theirs").iterdir()
    )
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert len(prepare(few_clips, tmp_path / "theirs", SIZE, progress=False)) == len(few_faces)
    assert before == sorted(
        (path.name, path.stat().st_mtime_ns) for path in (tmp_path / "theirs").iterdir()
    )
    with pytest.raises(ValueError, match="size: 64 there"):
        prepare(few_clips, tmp_path / "theirs", 128, progress=False)


def test_a_file_in_the_way(few_clips, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/store"):
        with pytest.raises(ValueError, match="a file is in its way"):
            prepare(few_clips, out, SIZE, progress=False)


def test_few_frames_need_no_workers():
    assert default_workers(0) == default_workers(500) == 1 and default_workers(10**6) >= 1
