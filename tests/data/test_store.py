"""The store: what it holds, files gone bad, where its apexes come from."""

import hashlib
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.store import FaceStore, clip_index, derive, settings_of, write_metadata

SIZE = 64


def test_index_and_truth(few_clips, few_faces):
    assert list(few_faces.index["clip_id"]) == [clip.clip_id for clip in few_clips.clips]
    assert list(few_faces.index["start"]) == list(
        np.cumsum([0] + [len(clip.frames) for clip in few_clips.clips[:-1]])
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
    } <= set(few_faces.index)
    truth = few_faces.truth(0)
    assert truth.shape == (2, SIZE, SIZE) and 0.02 < np.hypot(*truth).max() < 2
    assert np.abs(truth).max() > 0


def test_a_pickle_holds_the_path_and_not_the_frames(few_faces):
    data = pickle.dumps(few_faces)
    assert len(data) < 1000 and np.array_equal(pickle.loads(data).frames, few_faces.frames)


def test_a_folder_without_a_store(tmp_path):
    with pytest.raises(ValueError, match="holds no store"):
        FaceStore(tmp_path)


def damaged(store, folder, name, content):
    "A copy of a store in which one file holds something else; None removes it."
    shutil.copytree(store.path, folder, dirs_exist_ok=True)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content((store.path / name).read_bytes()))
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
def test_a_damaged_store_is_never_opened(few_faces, tmp_path, name, content):
    with pytest.raises(ValueError, match="overwrite=True|call prepare"):
        FaceStore(damaged(few_faces, tmp_path, name, content))


def test_an_index_of_other_frames_or_columns_is_refused(few_faces, tmp_path):
    index = pd.read_parquet(few_faces.path / "index.parquet")
    for other in (
        index.assign(start=index["start"] + 1),
        index.drop(columns="landmarks"),
        index.assign(n_frames=-9),
        index.iloc[:0],
    ):
        damaged(few_faces, tmp_path, "index.parquet", lambda whole: other.to_parquet(index=False))
        with pytest.raises(ValueError, match="is damaged .*overwrite=True"):
            FaceStore(tmp_path)


def test_an_array_of_another_size_is_refused(few_faces, tmp_path):
    damaged(few_faces, tmp_path, "frames.npy", lambda whole: whole)
    for other in (
        few_faces.frames[:, :32, :32],
        np.concatenate([few_faces.frames, few_faces.frames[:1]]),
    ):
        np.save(tmp_path / "frames.npy", other)
        with pytest.raises(ValueError, match="is damaged .*overwrite=True"):
            FaceStore(tmp_path)


def test_a_store_cut_short_can_be_made_anew(few_clips, few_faces, tmp_path):
    damaged(few_faces, tmp_path, "frames.npy", lambda whole: whole[:-9])
    with pytest.raises(ValueError, match="damaged"):
        prepare(few_clips, tmp_path, SIZE, progress=False)
    assert np.array_equal(
        prepare(few_clips, tmp_path, SIZE, progress=False, overwrite=True).frames, few_faces.frames
    )


def test_where_the_apex_comes_from(few_clips, few_faces, tmp_path):
    assert set(few_faces.index["apex_source"]) == {"labelled"}
    index = pd.read_parquet(few_faces.path / "index.parquet")
    old = index.drop(columns="apex_source").to_parquet(index=False)  # before there was the column
    opened = FaceStore(damaged(few_faces, tmp_path, "index.parquet", lambda whole: old))
    assert set(opened.index["apex_source"]) == {"labelled"}
    middle = [replace(few_clips.clips[0], apex_source="middle"), *few_clips.clips[1:]]
    with pytest.raises(ValueError, match="other settings .checksum"):
        prepare(replace(few_clips, clips=middle), few_faces.path, SIZE, progress=False)
    assert list(clip_index(middle)["apex_source"][:2]) == ["middle", "labelled"]


def test_the_checksum_of_labelled_clips_is_as_it_always_was(few_clips):
    facts = [
        [
            clip.clip_id,
            clip.label,
            clip.emotion,
            clip.action_units,
            clip.onset,
            clip.apex,
            clip.offset,
            clip.numbers,
            [[path.name, path.stat().st_size] for path in clip.frames],
        ]
        for clip in few_clips.clips
    ]
    checksum = settings_of(few_clips.clips, SIZE, False, None)["checksum"]
    assert checksum == hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def test_a_store_made_from_another_is_whole_or_not_there(few_faces, tmp_path):
    settings = few_faces.settings | {"clips": 1, "frames": 8}

    def fill(part):
        np.save(part / "frames.npy", few_faces.frames[:8])
        write_metadata(few_faces, part, few_faces.index[:1], settings)

    def fail(part):
        np.save(part / "frames.npy", few_faces.frames[:8])
        raise KeyboardInterrupt

    out = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        derive(out, settings, "one clip", fail)
    assert not out.exists()
    made = derive(out, settings, "one clip", fill)
    assert len(made) == 1 and np.array_equal(made.clip(0), few_faces.clip(0))
    assert made.excluded == few_faces.excluded
    assert derive(out, settings, "one clip", fail).path == out  # opened, not made again
    with pytest.raises(ValueError, match="something else than this store with two clips"):
        derive(out, settings | {"clips": 2}, "two clips", fill)
