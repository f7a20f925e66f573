"""The store: parallel equals serial, kill and resume, two processes at once, other settings, files gone bad."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from frl_dgt_nb.data.clips import Exclusion
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.faces import align, alignment_transform, detect_landmarks, read_image
from frl_dgt_nb.data.preparation import default_workers, prepare, read_journal
from frl_dgt_nb.data.store import FaceStore, clip_index, settings_of
from frl_dgt_nb.files import write_atomic

SIZE = 64


@pytest.fixture(scope="module")
def database():
    whole = read_folder("data_samples")
    return replace(whole, clips=whole.clips[::6], excluded=[Exclusion("folder/x/y", "left out")])


@pytest.fixture(scope="module")
def store(database, tmp_path_factory):
    return prepare(database, tmp_path_factory.mktemp("store"), SIZE, workers=1, progress=False)


def program(out, clips="::6", workers=1):
    "Another Python process that makes the same store."
    code = f"""
        from dataclasses import replace
        from frl_dgt_nb.data.databases import read_folder
        from frl_dgt_nb.data.preparation import prepare
        if __name__ == "__main__":
            whole = read_folder("data_samples")
            store = prepare(replace(whole, clips=whole.clips[{clips}]), {str(out)!r}, {SIZE}, workers={workers}, progress=False)
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


def test_content_is_what_the_faces_module_gives(database, store):
    clip, row = database.clips[3], store.index.iloc[3]
    onset = read_image(clip.frames[clip.onset_index])
    transform = alignment_transform(detect_landmarks(onset), SIZE)
    assert np.allclose(row["transform"], transform) and row["transform"].shape == (2, 3)
    assert np.array_equal(store.pair(3)[0], align(onset, transform, SIZE))
    assert np.array_equal(
        store.pair(3)[1], align(read_image(clip.frames[clip.apex_index]), transform, SIZE)
    )  # the onset's transform
    assert np.array_equal(store.clip(3)[-1], store.frames[row["start"] + row["n_frames"] - 1])
    assert store.landmarks.shape == (len(store), 68, 2) and store.landmarks.dtype == np.float32
    assert store.excluded == [Exclusion("folder/x/y", "left out")]
    assert not store.frames.flags.writeable


def test_index_and_truth(database, store):
    assert list(store.index["clip_id"]) == [clip.clip_id for clip in database.clips]
    assert list(store.index["start"]) == list(
        np.cumsum([0] + [len(clip.frames) for clip in database.clips[:-1]])
    )
    assert {
        "database",
        "subject",
        "name",
        "subject_id",
        "label",
        "emotion",
        "action_units",
        "onset",
        "apex",
        "offset",
        "landmarks",
    } <= set(store.index)
    truth = store.truth(0)
    assert truth.shape == (2, SIZE, SIZE) and 0.02 < np.hypot(*truth).max() < 2
    assert np.abs(truth).max() > 0


def test_without_a_root_there_is_no_truth(database, tmp_path):
    assert prepare(database.clips[:1], tmp_path, SIZE, progress=False).truth(0) is None


def test_parallel_equals_serial(database, store, tmp_path):
    both = prepare(database, tmp_path, SIZE, workers=2, progress=False)
    assert np.array_equal(both.frames, store.frames) and both.index["clip_id"].equals(
        store.index["clip_id"]
    )


def test_a_pickle_holds_the_path_and_not_the_frames(store):
    data = pickle.dumps(store)
    assert len(data) < 1000 and np.array_equal(pickle.loads(data).frames, store.frames)


def test_opening_again_changes_nothing(database, store):
    before = {
        path.name: path.stat().st_mtime_ns
        for path in store.path.iterdir()
        if path.suffix in (".npy", ".parquet")
    }
    prepare(database, store.path, SIZE, progress=False)
    assert before == {
        path.name: path.stat().st_mtime_ns
        for path in store.path.iterdir()
        if path.suffix in (".npy", ".parquet")
    }


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_and_resumed(database, tmp_path, store):
    process = program(tmp_path)
    wait_for_lines(tmp_path / "journal.jsonl", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(ValueError, match="not finished; call prepare"):
        FaceStore(tmp_path)
    done = read_journal(tmp_path, clip_index(database.clips))
    assert 2 <= len(done) < len(database.clips)
    with open(tmp_path / "journal.jsonl", "a") as journal:
        journal.write('{"clip": "folder/s08')  # a torn line
    resumed = prepare(database, tmp_path, SIZE, progress=False)
    assert np.array_equal(resumed.frames, store.frames)
    assert not (tmp_path / "journal.jsonl").exists()


def test_rows_that_are_not_as_the_journal_says_are_done_again(database, store, tmp_path):
    for name in ("frames.npy", "settings.json"):
        (tmp_path / name).write_bytes((store.path / name).read_bytes())
    lines = [
        {
            "clip": row["clip_id"],
            "crc": zlib.crc32(store.clip(i)),
            "landmarks": row["landmarks"].ravel().tolist(),
            "transform": row["transform"].ravel().tolist(),
        }
        for i, row in store.index.iterrows()
    ]
    write_atomic(tmp_path / "journal.jsonl", "\n".join(json.dumps(line) for line in lines).encode())
    np.load(tmp_path / "frames.npy", mmap_mode="r+")[9, 3, 3] += 1  # a byte of the second clip
    assert set(store.index["clip_id"]) - set(
        read_journal(tmp_path, clip_index(database.clips))
    ) == {database.clips[1].clip_id}
    assert np.array_equal(prepare(database, tmp_path, SIZE, progress=False).frames, store.frames)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    from pathlib import Path

    parent_of = lambda: {
        int(p.name): int(p.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
        for p in Path("/proc").iterdir()
        if p.name.isdigit()
    }
    process = program(tmp_path, "::2", workers=2)
    wait_for_lines(tmp_path / "journal.jsonl", 1)
    children = [pid for pid, parent in parent_of().items() if parent == process.pid]
    assert children
    process.kill()
    process.wait()  # not for the end of its pipes, which workers that stay would hold open
    gone = lambda pid: (
        not Path(f"/proc/{pid}").exists()
        or Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    )
    end = time.monotonic() + 10
    while time.monotonic() < end and not all(gone(pid) for pid in children):
        time.sleep(0.05)
    left = [pid for pid in children if not gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_two_processes_at_once_give_one_store(store, tmp_path):
    pair = program(tmp_path), program(tmp_path)
    assert [process.communicate(timeout=60)[0].strip() for process in pair] == [
        f"{len(store)} {int(store.frames.sum())}"
    ] * 2


def test_a_second_process_says_that_it_waits(store, tmp_path):
    with FileLock(tmp_path / ".lock"):  # as if another process were at it
        process = program(tmp_path)
        assert "waiting for it" in process.stderr.readline()
        assert not (tmp_path / "settings.json").exists() and process.poll() is None
    assert process.communicate(timeout=60)[0].split()[0] == str(len(store))


def test_other_settings_are_named(database, store):
    for changes, word in (
        (dict(size=128), "size: 64 there, 128 wanted"),
        (dict(register=True), "register: False there, True wanted"),
    ):
        with pytest.raises(ValueError, match=f"{word}.*overwrite=True"):
            prepare(database, store.path, **{"size": SIZE, "progress": False, **changes})
    with pytest.raises(ValueError, match="clips: 8 there, 7 wanted"):
        prepare(replace(database, clips=database.clips[1:]), store.path, SIZE, progress=False)
    relabelled = [replace(database.clips[0], label=2), *database.clips[1:]]
    with pytest.raises(ValueError, match="checksum"):
        prepare(replace(database, clips=relabelled), store.path, SIZE, progress=False)


def test_images_changed_under_the_same_names_are_noticed(database, tmp_path):
    clip, folder = database.clips[0], tmp_path / "frames"
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


def test_another_version_says_what_to_do(database, store, tmp_path):
    prepare(database.clips[:1], tmp_path, SIZE, progress=False)
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "version": 0}))
    for call in (
        lambda: FaceStore(tmp_path),
        lambda: prepare(database.clips[:1], tmp_path, SIZE, progress=False),
    ):
        with pytest.raises(ValueError, match="version.*0.*overwrite=True"):
            call()


def test_clips_that_cannot_be_used_become_exclusions(database, tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((320, 320, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "3.png"), np.zeros((200, 320, 3), np.uint8))
    (tmp_path / "2.png").write_bytes(b"broken")
    clip = database.clips[0]
    frame = lambda n, k: tuple(
        tmp_path / f"{n}.png" if i == k else path for i, path in enumerate(clip.frames)
    )
    bad = [
        replace(clip, name="dark", frames=frame(1, clip.onset_index)),
        replace(clip, name="broken", frames=frame(2, 5)),
        replace(clip, name="small", frames=frame(3, 5)),
    ]
    before = [Exclusion("a/b/c", "before")]
    mixed = replace(database, clips=[*bad, clip], excluded=before)
    made = prepare(mixed, tmp_path / "store", SIZE, progress=False)
    assert list(made.index["name"]) == [clip.name] and made.index["start"][0] == 24
    assert [e.clip_id.split("/")[-1] for e in made.excluded] == ["c", "dark", "broken", "small"]
    for exclusion, words in zip(
        made.excluded[1:], ("no face found in", "can't be read", "320x200")
    ):
        assert words in exclusion.reason and ".png" in exclusion.reason
    with pytest.raises(ValueError, match="none of the 3 clips can be used. no face"):
        prepare(bad, tmp_path / "none", SIZE, progress=False)


def test_registered_frames_move_less(database, store, tmp_path):
    still = prepare(database.clips[:3], tmp_path, SIZE, progress=False, register=True)
    for i in range(3):
        onset = store.index["onset"][i]
        assert np.array_equal(still.clip(i)[onset], store.clip(i)[onset])
    change = [
        np.mean([np.abs(np.subtract(*s.pair(i), dtype=float)).mean() for i in range(3)])
        for s in (still, store)
    ]
    assert change[0] < change[1]


@pytest.mark.parametrize("size", [8, 64.0, "64"])
def test_sizes_and_clips_that_make_no_sense(database, tmp_path, size):
    with pytest.raises(ValueError, match="wanted a whole number"):
        prepare(database, tmp_path, size)
    with pytest.raises(ValueError, match="more than once: folder/"):
        prepare([database.clips[0]] * 2, tmp_path)
    with pytest.raises(ValueError, match="got 0"):
        prepare([], tmp_path)


def test_a_folder_without_a_store(tmp_path):
    with pytest.raises(ValueError, match="holds no store"):
        FaceStore(tmp_path)


def test_a_full_disk_is_an_error_before_the_work(database, tmp_path, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(10))
    with pytest.raises(ValueError, match="0.0 GB are free"):
        prepare(database, tmp_path, SIZE, progress=False)


@pytest.mark.parametrize("fails", ["lost.json", "index.parquet"])
def test_a_disk_that_fills_up_at_the_end_costs_nothing_that_is_done(
    database, store, tmp_path, monkeypatch, fails
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
            prepare(database, tmp_path, SIZE, progress=False)
    with pytest.raises(ValueError, match="not finished; call prepare"):
        FaceStore(tmp_path)
    monkeypatch.setattr("frl_dgt_nb.data.preparation.align_clip", None)  # nothing is left to do
    assert np.array_equal(prepare(database, tmp_path, SIZE, progress=False).frames, store.frames)
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_in_the_journal(database, store, tmp_path, monkeypatch):
    real = json.dumps

    def full(value, **more):
        if isinstance(value, dict) and value.get("clip") == database.clips[4].clip_id:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(value, **more)

    with monkeypatch.context() as patch:
        patch.setattr("frl_dgt_nb.data.preparation.json.dumps", full)
        with pytest.raises(ValueError, match="the disk is full"):
            prepare(database, tmp_path, SIZE, workers=1, progress=False)
    assert len(read_journal(tmp_path, clip_index(database.clips))) == 4
    assert np.array_equal(prepare(database, tmp_path, SIZE, progress=False).frames, store.frames)


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
def test_a_journal_gone_bad_is_done_again(database, store, tmp_path, line):
    for name in ("frames.npy", "settings.json"):
        (tmp_path / name).write_bytes((store.path / name).read_bytes())
    whole = {
        "clip": database.clips[0].clip_id,
        "crc": zlib.crc32(store.clip(0)),
        "landmarks": [0.0] * 136,
        "transform": [0.0] * 6,
    }
    short = {
        **whole,
        "clip": database.clips[1].clip_id,
        "crc": zlib.crc32(store.clip(1)),
        "landmarks": [0.0] * 2,
    }
    (tmp_path / "journal.jsonl").write_text(
        "\n".join([line, json.dumps(whole), json.dumps(short), json.dumps(whole)[:70]]),
        errors="surrogateescape",
    )
    assert list(read_journal(tmp_path, clip_index(database.clips))) == [whole["clip"]]


def damaged(store, folder, name, content):
    "A copy of a store in which one file holds something else; None removes it."
    shutil.copytree(store.path, folder, dirs_exist_ok=True)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(
        content(store.path.joinpath(name).read_bytes())
    )
    return folder


@pytest.mark.parametrize(
    "name", ["settings.json", "index.parquet", "frames.npy", "lost.json", "excluded.json"]
)
@pytest.mark.parametrize(
    "content",
    [
        None,
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: bytes(len(whole)),
        lambda whole: b"{}",
    ],
    ids=["gone", "empty", "half", "all but one byte", "zeros", "{}"],
)
def test_a_damaged_store_is_never_opened(store, tmp_path, name, content):
    with pytest.raises(ValueError, match="overwrite=True|call prepare"):
        FaceStore(damaged(store, tmp_path, name, content))


def test_an_index_of_other_frames_or_columns_is_refused(store, tmp_path):
    index = pd.read_parquet(store.path / "index.parquet")
    for other in (
        index.assign(start=index["start"] + 1),
        index.drop(columns="landmarks"),
        index.assign(n_frames=-9),
        index.iloc[:0],
    ):
        damaged(store, tmp_path, "index.parquet", lambda whole: other.to_parquet(index=False))
        with pytest.raises(ValueError, match="is damaged .*overwrite=True"):
            FaceStore(tmp_path)


def test_an_array_of_another_size_is_refused(store, tmp_path):
    damaged(store, tmp_path, "frames.npy", lambda whole: whole)
    for other in (store.frames[:, :32, :32], np.concatenate([store.frames, store.frames[:1]])):
        np.save(tmp_path / "frames.npy", other)
        with pytest.raises(ValueError, match="is damaged .*overwrite=True"):
            FaceStore(tmp_path)


def test_a_store_cut_short_can_be_made_anew(database, store, tmp_path):
    damaged(store, tmp_path, "frames.npy", lambda whole: whole[:-9])
    with pytest.raises(ValueError, match="damaged"):
        prepare(database, tmp_path, SIZE, progress=False)
    assert np.array_equal(
        prepare(database, tmp_path, SIZE, progress=False, overwrite=True).frames, store.frames
    )


def test_where_the_apex_comes_from(database, store, tmp_path):
    assert set(store.index["apex_source"]) == {"labelled"}
    old = pd.read_parquet(store.path / "index.parquet").drop(
        columns="apex_source"
    )  # as made before there was the column
    assert set(
        FaceStore(
            damaged(store, tmp_path, "index.parquet", lambda whole: old.to_parquet(index=False))
        ).index["apex_source"]
    ) == {"labelled"}
    middle = [replace(database.clips[0], apex_source="middle"), *database.clips[1:]]
    with pytest.raises(ValueError, match="other settings .checksum"):
        prepare(replace(database, clips=middle), store.path, SIZE, progress=False)
    assert list(clip_index(middle)["apex_source"][:2]) == ["middle", "labelled"]


def test_the_checksum_of_labelled_clips_is_as_it_always_was(database):
    told = [
        [
            c.clip_id,
            c.label,
            c.emotion,
            c.action_units,
            c.onset,
            c.apex,
            c.offset,
            c.numbers,
            [[path.name, path.stat().st_size] for path in c.frames],
        ]
        for c in database.clips
    ]
    assert (
        settings_of(database.clips, SIZE, False, None)["checksum"]
        == hashlib.sha256(json.dumps(told).encode()).hexdigest()
    )


def test_a_finished_store_that_may_only_be_read_is_opened(database, store, tmp_path, monkeypatch):
    shutil.copytree(store.path, tmp_path / "theirs")
    before = sorted(
        (path.name, path.stat().st_mtime_ns) for path in (tmp_path / "theirs").iterdir()
    )
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert len(prepare(database, tmp_path / "theirs", SIZE, progress=False)) == len(store)
    assert before == sorted(
        (path.name, path.stat().st_mtime_ns) for path in (tmp_path / "theirs").iterdir()
    )
    with pytest.raises(ValueError, match="size: 64 there"):
        prepare(database, tmp_path / "theirs", 128, progress=False)


def test_a_file_in_the_way(database, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/store"):
        with pytest.raises(ValueError, match="a file is in its way"):
            prepare(database, out, SIZE, progress=False)


def test_few_frames_need_no_workers():
    assert default_workers(0) == default_workers(500) == 1 and default_workers(10**6) >= 1
