"""The published flow pictures: every trap of sheet, names and files, and the way into the folds."""

import pickle
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from flow_archive import CLIPS, SUBJECTS, make_flow, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import toy_store

from frl_dgt_nb.data.flow_pictures import FACE, FlowStore, as_subject, decode, read_flow
from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.regions import MIRROR_LANDMARKS, au_boxes
from frl_dgt_nb.pictures.report import write_report
from frl_dgt_nb.training.fold import train_fold
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.sampling import FoldData, PairSource, mirror_displacement
from frl_dgt_nb.training.settings import TRAIN_PRESETS

torch.set_num_threads(1)
FOLDER = "STSNet_whole_norm_u_v_os"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    made = make_flow(tmp_path_factory.mktemp("flow") / "official")
    return made, read_flow(made.root)


@pytest.fixture
def few(tmp_path):
    "A dozen clips of five subjects, to be spoilt"
    return make_flow(
        tmp_path / "few", part=0.05, subjects={"smic": 2, "casme2": 2, "samm": 1}, seed=3
    )


def sheet(made):
    return next(made.root.glob("*.csv"))


def rows(made):
    return pd.read_csv(sheet(made), dtype=str, keep_default_na=False)


def reasons(made):
    return {one.clip_id: one.reason for one in read_flow(made.root).excluded}


def file_of(made, clip_id):
    return made.root / FOLDER / (clip_id.split("/", 1)[1].replace("/", "_") + " .png")


def test_all_442(official):
    made, store = official
    assert (len(store), store.index.subject_id.nunique(), store.excluded, store.notes) == (
        442,
        68,
        [],
        [],
    )
    assert dict(zip(store.index.clip_id, store.index.label)) == made.labels
    for database, counts in CLIPS.items():
        part = store.index[store.index.database == database]
        assert (
            tuple(part.label.value_counts().sort_index()) == counts
            and part.subject.nunique() == SUBJECTS[database]
        )
    assert set(store.index.columns) >= {
        "clip_id",
        "database",
        "subject",
        "name",
        "subject_id",
        "label",
        "emotion",
        "action_units",
        "start",
        "n_frames",
        "onset",
        "apex",
        "offset",
        "landmarks",
        "transform",
    }
    assert store.index.subject.iloc[0].startswith("s0") and store.index.subject.iloc[-1] in {
        f"{n:03}" for n in range(1, 29)
    }


def test_a_store_as_stores_are(official, tmp_path):
    face, flow = toy_store(tmp_path / "toy"), official[1]
    assert set(face.index.columns) - {"apex_source"} <= set(flow.index.columns)
    assert {
        name: flow.index[name].dtype.kind for name in ("label", "onset", "apex", "start")
    } == dict.fromkeys(("label", "onset", "apex", "start"), "i")
    assert (
        flow.landmarks.shape == (442, 68, 2)
        and flow.landmarks.dtype == face.landmarks.dtype
        and {"checksum", "size", "root"} <= set(flow.settings)
    )


def test_pictures_are_the_right_ones_in_the_right_order(official):
    made, store = official
    for i in (0, 200, 441):
        stored = cv2.cvtColor(
            cv2.imread(str(file_of(made, store.index.clip_id[i]))), cv2.COLOR_BGR2RGB
        )
        assert (store.pictures[i] == stored).all() and store.pair(i)[0] is not None
    turned = read_flow(made.root, order="svu")
    assert (turned.pictures == store.pictures[..., ::-1]).all() and turned.notes == [
        "the first channel looks like strain, not the last one; try order='uvs'"
    ]
    assert turned.settings["checksum"] != store.settings["checksum"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0, 1, 2, None]))
def test_decoding(seed, label):
    image = picture(label, np.random.default_rng(seed))[None]
    maps = decode(image)
    assert (
        maps.shape == (1, 3, 28, 28)
        and maps.dtype == np.float32
        and np.abs(np.median(maps, (2, 3))).max() < 1e-6
        and np.abs(maps).max() <= 2
    )
    assert np.allclose(np.ptp(maps, (2, 3)), 2, atol=0.01)  # stretched to all of 0..255
    mirrored = image[:, :, ::-1].copy()
    mirrored[..., 0] = 255 - mirrored[..., 0]  # the largest value of u becomes the smallest
    assert np.allclose(
        decode(mirrored), maps[..., ::-1] * np.array([-1, 1, 1])[:, None, None], atol=1e-6
    )
    mirror = mirror_displacement(torch.from_numpy(maps), torch.tensor([True]))
    assert np.allclose(decode(mirrored), mirror.numpy(), atol=1e-6)


def test_displacements_point_against_the_flow(official):
    "As everywhere in the package: where the apex samples the onset"
    flow, displacements = decode(official[1].pictures), official[1].displacements
    assert np.array_equal(displacements[:, :2], -flow[:, :2]) and np.array_equal(
        displacements[:, 2], flow[:, 2]
    )


def test_the_mean_face_is_a_face():
    "Eyes and mouth where they were put, symmetric, and its boxes inside the picture"
    assert FACE.shape == (68, 2) and FACE.min() >= 0 and FACE.max() <= 27
    assert np.allclose(FACE[36:42].mean(0), [7.55, 11], atol=0.15) and np.allclose(
        FACE[42:48].mean(0), [19.45, 11], atol=0.15
    )
    assert np.allclose(FACE[[48, 54], 1], 22.2, atol=0.15)
    assert np.abs(FACE[list(MIRROR_LANDMARKS)] * [-1, 1] + [27, 0] - FACE).max() < 0.7
    boxes = au_boxes(torch.from_numpy(FACE[None]), 28)[0]
    assert (
        (boxes >= 0).all()
        and (boxes <= 27).all()
        and (boxes[:, 2:] - boxes[:, :2] >= 7.99).all()
        and len(set(map(tuple, boxes.tolist()))) == 9
    )


@pytest.mark.parametrize(
    "database, sub, wanted",
    [
        ("samm", "6", "006"),
        ("samm", "006", "006"),
        ("smic", "s1", "s01"),
        ("smic", "20", "s20"),
        ("casme2", "SUB7", "sub07"),
        ("casme2", "26", "sub26"),
        ("mine", "7", "7"),
        ("samm", "anna", "anna"),
    ],
)
def test_subjects(database, sub, wanted):
    assert as_subject(database, sub) == wanted


def test_sheet_saved_by_a_spreadsheet(few):
    "Numbers for SAMM's subjects, a byte-order mark, capitals, blanks, columns in another order"
    table = rows(few)
    table.loc[table.dataset == "samm", "sub"] = table["sub"].str.lstrip("0")
    table = (
        table[["label", "filename_o", "sub", "dataset"]]
        .rename(columns={"label": " Label", "sub": "SUB "})
        .assign(dataset=table.dataset.str.upper() + " ")
    )
    sheet(few).unlink()
    table.to_csv(few.root / "mine.csv", index=False, encoding="utf-8-sig")
    store = read_flow(few.root)
    assert dict(zip(store.index.clip_id, store.index.label)) == few.labels and not store.excluded


def test_names_without_the_blank_and_in_capitals(few):
    for path in (few.root / FOLDER).iterdir():
        path.rename(path.with_name(path.name.replace(" .png", ".PNG").upper()))
    assert len(read_flow(few.root)) == len(few.labels)


def test_copies_in_folders_of_training_sets(few):
    "The folder with most of the clips is taken; a copy of the sheet is no second sheet"
    whole = read_flow(few.root)
    for path in sorted((few.root / FOLDER).iterdir())[:6]:
        write(
            few.root / "three_norm_u_v_os" / "s01" / "u_train" / path.name,
            np.zeros((28, 28, 3), np.uint8),
        )
    (few.root / "again").mkdir()
    shutil.copy(sheet(few), few.root / "again" / "sheet.csv")
    (few.root / "other.csv").write_text("a,b\n1,2\n")
    (few.root / "empty.csv").write_text("")
    (few.root / "binary.csv").write_bytes(bytes(range(256)))
    store = read_flow(few.root)
    assert store.settings["checksum"] == whole.settings["checksum"] and len(store) == len(
        few.labels
    )


def spoil_missing(path):
    path.unlink()


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_torn(path):
    path.write_bytes(path.read_bytes()[:60])


def spoil_text(path):
    path.write_text("not a picture")


def spoil_size(path):
    write(path, np.zeros((32, 28, 3), np.uint8))


def spoil_gray(path):
    cv2.imwrite(str(path), np.zeros((28, 28), np.uint8))


def spoil_alpha(path):
    cv2.imwrite(str(path), np.zeros((28, 28, 4), np.uint8))


def spoil_deep(path):
    cv2.imwrite(str(path), np.zeros((28, 28, 3), np.uint16))


def spoil_twice(path):
    shutil.copy(path, path.with_name(path.name.replace(" .png", ".png")))


def spoil_folder(path):
    path.unlink(), path.mkdir()


@pytest.mark.parametrize(
    "spoil, told",
    [
        (spoil_missing, "its picture is missing"),
        (spoil_empty, "no readable picture"),
        (spoil_torn, "no readable picture"),
        (spoil_text, "no readable picture"),
        (spoil_size, "32x28x3 of uint8, wanted 28x28x3"),
        (spoil_gray, "28x28 of uint8"),
        (spoil_alpha, "28x28x4"),
        (spoil_deep, "28x28x3 of uint16"),
        (spoil_twice, "2 pictures are named"),
        (spoil_folder, ""),
    ],
)
def test_one_bad_picture_costs_one_clip(few, spoil, told):
    clip = list(few.labels)[4]
    spoil(file_of(few, clip))
    store = read_flow(few.root)
    assert len(store) == len(few.labels) - 1 and clip not in set(store.index.clip_id)
    assert [one.clip_id for one in store.excluded] == [clip] and told in store.excluded[0].reason


@pytest.mark.parametrize(
    "column, value, told",
    [
        ("label", "3", "label is '3', wanted 0 negative"),
        ("label", "", "label is ''"),
        ("label", "happy", "wanted 0 negative"),
        ("filename_o", "nowhere", "missing"),
        ("filename_o", "", "must not be empty"),
        ("sub", "", "must not be empty"),
        ("dataset", "", "must not be empty"),
        ("filename_o", "a/b", "hold a '/'"),
    ],
)
def test_one_bad_row_costs_one_clip(few, column, value, told):
    table = rows(few)
    table.loc[2, column] = value
    table.to_csv(sheet(few), index=False)
    found = reasons(few)
    assert (
        len(found) == 1
        and told in next(iter(found.values()))
        and len(read_flow(few.root)) == len(few.labels) - 1
    )


def test_repeated_rows_and_pictures_without_a_row(few):
    table = rows(few)
    pd.concat([table[1:], table[1:3].assign(label="0")]).to_csv(sheet(few), index=False)
    store = read_flow(few.root)
    n = len(few.labels)
    assert [one.reason for one in store.excluded] == [
        f"row {n + 1} of the sheet repeats this clip",
        f"row {n + 2} of the sheet repeats this clip",
    ]
    assert len(store) == n - 1 and store.notes == ["pictures without a row in the sheet: 1"]
    assert (
        dict(zip(store.index.clip_id, store.index.label)).items() <= few.labels.items()
    )  # the first row counts


def test_nothing_to_read(few, tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_flow(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a folder"):
        read_flow(sheet(few))
    with pytest.raises(ValueError, match="order is 'rgb', wanted 'uvs' or 'svu'"):
        read_flow(few.root, order="rgb")
    with pytest.raises(ValueError, match="0 different tables .*no .csv file has"):
        read_flow(few.root / FOLDER)
    shutil.copytree(few.root, tmp_path / "two")
    rows(few)[:4].to_csv(tmp_path / "two" / "a.csv", index=False)
    with pytest.raises(ValueError, match="2 different tables .*a.csv.*keep one"):
        read_flow(tmp_path / "two")
    shutil.copytree(few.root, tmp_path / "bare", ignore=shutil.ignore_patterns("*.png"))
    with pytest.raises(ValueError, match="no .png under .* is named as a row"):
        read_flow(tmp_path / "bare")
    rows(few)[:0].to_csv(tmp_path / "bare" / sheet(few).name, index=False)
    with pytest.raises(ValueError, match="no .png under"):
        read_flow(tmp_path / "bare")
    rows(few).assign(label="9").to_csv(sheet(few), index=False)
    with pytest.raises(ValueError, match="none of the .* clips .* can be used. label is '9'"):
        read_flow(few.root)


def test_checksum_tells_labels_and_pictures(few):
    before = read_flow(few.root).settings["checksum"]
    assert read_flow(few.root).settings["checksum"] == before
    path = file_of(few, list(few.labels)[0])
    image = cv2.imread(str(path))
    image[0, 0] ^= 1
    cv2.imwrite(str(path), image)
    changed = read_flow(few.root).settings["checksum"]
    table = rows(few)
    table.loc[0, "label"] = "0" if table.label[0] != "0" else "1"
    table.to_csv(sheet(few), index=False)
    assert len({before, changed, read_flow(few.root).settings["checksum"]}) == 3


def test_workers_get_the_same_store(official):
    store = pickle.loads(pickle.dumps(official[1]))
    assert (
        isinstance(store, FlowStore)
        and store.settings == official[1].settings
        and store.index.equals(official[1].index)
    )
    assert (
        np.array_equal(store.displacements, official[1].displacements)
        and len(pickle.dumps(official[1])) < 8e6
    )


def test_batches_bring_pictures_and_no_frames(official):
    store = official[1]
    displacements = torch.from_numpy(store.displacements)[:, None]
    source = PairSource(store, displacements=displacements, needs_frames=False)
    data = FoldData(source, "smic/s01", apex_jitter=0, mirror=True)
    batch = next(data.test_batches())
    assert (
        batch.onset is None and batch.apex is None and batch.displacement.shape[1:] == (3, 28, 28)
    )
    assert torch.equal(batch.displacement, torch.from_numpy(store.displacements)[batch.clips])
    mirrored = batch.mirrored()
    assert torch.equal(
        mirrored.displacement[:, 0], -batch.displacement[:, 0].flip(-1)
    ) and torch.equal(mirrored.displacement[:, 1:], batch.displacement[:, 1:].flip(-1))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    "Ninety clips of four subjects in which the class shows, and as many in which it doesn't"
    home, found = tmp_path_factory.mktemp("learnt"), {}
    for signal, epochs in ((True, 8), (False, 2)):
        store = read_flow(
            make_flow(
                home / str(signal), signal, part=0.2, subjects={"smic": 2, "casme2": 1, "samm": 1}
            ).root
        )
        brief = replace(TRAIN_PRESETS["flow"], epochs=epochs, batch_size=16, store_every=epochs)
        found[signal] = (
            store,
            home / f"run {signal}",
            run_loso(
                store,
                home / f"run {signal}",
                "flow",
                train_config=brief,
                device="cpu",
                threads=1,
                progress=False,
            ),
        )
    return found


def test_it_learns_what_is_there_and_nothing_else(learnt):
    assert learnt[True][2]["uf1"] > 0.75 and learnt[False][2]["uf1"] < 0.5
    assert learnt[True][2]["n_clips"] == len(learnt[True][0])


def test_the_report_of_a_flow_run(learnt):
    store, out, _ = learnt[True]
    text = write_report(out, store).read_text(encoding="utf-8")
    assert "flow picture" in text and text.count("data:image/png") == 5 and "samm" in text


def test_a_pickled_store_trains_to_the_same_bits(few):
    "A worker process gets the store so; one fold, with an inner subject"
    store, brief = read_flow(few.root), replace(TRAIN_PRESETS["flow"], epochs=1, inner=1)
    one, two = (
        train_fold(each, "samm/001", PRESETS["flow"], brief, device="cpu", progress=False)
        for each in (store, pickle.loads(pickle.dumps(store)))
    )
    assert np.array_equal(one.probabilities, two.probabilities) and np.array_equal(
        one.inner_probabilities, two.inner_probabilities
    )


def test_presets_and_stores_that_do_not_fit(few, tmp_path):
    flow, face = read_flow(few.root), toy_store(tmp_path / "toy")
    for preset in ("tiny", "best"):
        with pytest.raises(
            ValueError, match="has a displacement for each clip and no frames; preset 'flow'"
        ):
            run_loso(flow, tmp_path / "run", preset, device="cpu", progress=False)
    with pytest.raises(
        ValueError, match="module='given' with a store that has frames and no displacements"
    ):
        run_loso(face, tmp_path / "run", "flow", device="cpu", progress=False)
    for name in ("pairs", "apex_jitter"):
        with pytest.raises(ValueError, match=f"got {name}=2 with module='given'.*set {name}=0"):
            train_fold(
                flow,
                "smic/s01",
                PRESETS["flow"],
                replace(TRAIN_PRESETS["flow"], **{name: 2}),
                device="cpu",
                progress=False,
            )
    assert not (tmp_path / "run").exists()
