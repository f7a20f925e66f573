"""What people give a program that isn't what it wants, through the command they type.

The answer is one line with the way out, or an exclusion with its reason.

Never a traceback, never a hang, never half a result taken for a whole one.
"""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frl_dgt_nb.command.cli import main
from frl_dgt_nb.data.faces import read_image
from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.config import PRESETS, ModelConfig
from frl_dgt_nb.model.frldgt import FRLDGT, save_weights
from frl_dgt_nb.training.settings import TRAIN_PRESETS, TrainConfig

SAMPLES = Path(__file__).parents[2] / "data_samples"
SMALL = ModelConfig(
    crop_size=18,
    patch=9,
    dim=16,
    heads=2,
    depth=1,
    full_size=36,
    dgm_size=64,
    dgm_width=4,
    dgm_depth=3,
)
WHOLE = sorted((SAMPLES / "frames/s01/c1").glob("*.jpg"))[0].read_bytes()


def copy_samples(root, clips):
    "Some clips of the samples, onset, apex and offset of each, as a folder of one's own."
    table = pd.read_csv(SAMPLES / "clips.csv", dtype=str).set_index(["subject", "name"])
    table = table.loc[clips].reset_index()
    for _, row in table.iterrows():
        home = SAMPLES / "frames" / row["subject"] / row["name"]
        place = root / "frames" / row["subject"] / row["name"]
        place.mkdir(parents=True)
        for path in home.iterdir():
            if str(int(path.stem)) in (row["onset"], row["apex"], row["offset"]):
                shutil.copy(path, place / f"{int(path.stem)}.jpg")
    table.to_csv(root / "clips.csv", index=False)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Three clips of two people, their store, and the weights of a model that learnt nothing."
    home = tmp_path_factory.mktemp("bad")
    copy_samples(home / "data", [("s01", "c1"), ("s01", "c2"), ("s02", "c1")])
    assert prepare(home / "data", home / "store") == 0
    save_weights(FRLDGT(SMALL), home / "weights.safetensors")
    return home


@pytest.fixture
def data(home, tmp_path):
    shutil.copytree(home / "data", tmp_path / "data")
    return tmp_path / "data"


def run(*args):
    return main([str(arg) for arg in args])


def prepare_line(data, store, database, *more):
    return ["prepare", "--data", data, "--database", database, "--store", store, *more]


def prepare(data, store, database="folder", *more):
    return run(*prepare_line(data, store, database, *more))


def is_bar(line):
    "Whether a line is a moving bar, or nothing."
    return not line.strip() or any(part in line for part in ("clip/s", "fold/s", "%|"))


def refused(capsys, *args):
    "The one line in which a command says no."
    capsys.readouterr()
    assert run(*args) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not is_bar(line)]
    assert len(lines) == 1 and lines[0].startswith("frl-dgt: ") and not said.out, said
    return lines[0]


def refused_store(capsys, data, store, database="folder", *more):
    "The one line in which prepare says no, having left nothing that passes for a store."
    line = refused(capsys, *prepare_line(data, store, database, *more))
    with pytest.raises(ValueError):
        FaceStore(store)
    return line


def clip_of(data, number=0):
    "Onset, apex and offset file of a clip."
    row = pd.read_csv(data / "clips.csv", dtype=str).iloc[number]
    return [
        data / "frames" / row["subject"] / row["name"] / f"{row[name]}.jpg"
        for name in ("onset", "apex", "offset")
    ]


def encoded(suffix, picture, *options):
    return cv2.imencode(suffix, picture, list(options))[1].tobytes()


def decoded():
    return cv2.imdecode(np.frombuffer(WHOLE, np.uint8), 1)


def pillow(**options):
    "The picture as Pillow writes it, which comes with matplotlib."
    image = pytest.importorskip("PIL.Image").fromarray(decoded()[..., ::-1])
    data = io.BytesIO()
    mode, kind = options.pop("mode", "RGB"), options.pop("format", "JPEG")
    image.convert(mode).save(data, kind, **options)
    return data.getvalue()


# pictures


def flipped(data):
    middle = bytearray(data)
    middle[len(data) // 2] ^= 255
    return bytes(middle)


BROKEN = {  # what a frame holds instead -> what is said about it
    "empty": (lambda: b"", "it is empty"),
    "half a jpeg": (lambda: WHOLE[: len(WHOLE) // 2], "cut short"),
    "a jpeg without its last byte": (lambda: WHOLE[:-1], "cut short"),
    "a jpeg filled up with zeros": (
        lambda: WHOLE[: len(WHOLE) // 2].ljust(len(WHOLE), b"\0"),
        "cut short",
    ),
    "the head of a jpeg": (lambda: WHOLE[:20], "cut short"),
    "half a png": (lambda: encoded(".png", decoded())[:9999], "cut short"),
    "a png with a wrong byte": (lambda: flipped(encoded(".png", decoded())), "damaged"),
    "half a bmp": (lambda: encoded(".bmp", decoded())[:9999], "cut short"),
    "the head of a bmp": (lambda: b"BM", "cut short"),
    "text": (lambda: b"subject,name\n", "no image"),
    "a web page": (lambda: b"<html>404 Not Found</html>", "no image"),
    "a pointer to a large file": (
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        "no image",
    ),
    "zeros": (lambda: bytes(5000), "no image"),
    "another kind of file": (lambda: b"PK\3\4" + bytes(99), "no image"),
    "a picture of no pixels": (
        lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(8) + b"\x08\0\0\0\0\0\0\0\0IEND",
        "damaged",
    ),
    "a picture of a billion pixels": (
        lambda: (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
            + (31000).to_bytes(4, "big") * 2
            + b"\x08\0\0\0\0\0\0\0\0IEND"
        ),
        "961,000,000 pixels",
    ),
    "one pixel": (lambda: encoded(".png", decoded()[:1, :1]), "1x1"),
    "a picture one pixel high": (lambda: encoded(".png", decoded()[:1]), "320x1"),
    "another size": (
        lambda: encoded(".jpg", decoded()[:300]),
        "320x300 pixels, but its onset 320x320",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_frame_costs_its_clip_and_no_other(data, tmp_path, capsys, kind):
    make, words = BROKEN[kind]
    clip_of(data)[1].write_bytes(make())  # the apex
    assert prepare(data, tmp_path / "store") == 0
    said, store = capsys.readouterr().out, FaceStore(tmp_path / "store")
    assert store.index["clip_id"].tolist() == ["folder/s01/c2", "folder/s02/c1"]
    (lost,) = store.excluded
    assert (
        lost.clip_id == "folder/s01/c1"
        and clip_of(data)[1].name in lost.reason
        and words in lost.reason
        and lost.reason in said
    )


@pytest.mark.parametrize("kind", ["black", "white", "noise", "one pixel", "empty", "text"])
def test_an_onset_without_a_face(data, tmp_path, kind):
    black = np.zeros((320, 320, 3), np.uint8)
    pictures = {
        "black": black,
        "white": ~black,
        "noise": np.random.default_rng(0).integers(0, 256, black.shape, np.uint8),
        "one pixel": black[:1, :1],
    }
    for path in clip_of(data, 2):
        path.write_bytes(encoded(".png", pictures[kind]) if kind in pictures else BROKEN[kind][0]())
    assert prepare(data, tmp_path / "store") == 0
    (lost,) = FaceStore(tmp_path / "store").excluded
    assert (
        lost.clip_id == "folder/s02/c1"
        and ("no face found" if kind in pictures else "can't be read") in lost.reason
        and str(clip_of(data, 2)[0]) in lost.reason
    )


@pytest.mark.parametrize("instead", ["a folder", "a link to nothing", "nothing"])
def test_a_frame_that_is_no_file(data, tmp_path, instead):
    path = clip_of(data)[1]
    path.unlink()
    if instead == "a folder":
        path.mkdir()
    if instead == "a link to nothing":
        path.symlink_to("nowhere.jpg")
    code = prepare(data, tmp_path / "store")
    if code == 0:
        (lost,) = FaceStore(tmp_path / "store").excluded
        assert lost.clip_id == "folder/s01/c1" and path.stem in lost.reason
    else:
        assert code == 2 and instead == "a link to nothing"


GOOD = {  # kinds of pictures that are read, and how near to the JPEG they come
    "gray": (lambda: encoded(".png", decoded()[..., 1]), 40),
    "16 bits": (lambda: encoded(".png", decoded().astype(np.uint16) * 257), 0),
    "gray, 16 bits": (lambda: encoded(".png", decoded()[..., 1].astype(np.uint16) * 257), 40),
    "bmp": (lambda: encoded(".bmp", decoded()), 0),
    "alpha": (lambda: encoded(".png", np.dstack([decoded(), np.zeros((320, 320), np.uint8)])), 0),
    "cmyk": (lambda: pillow(mode="CMYK", quality=95), 4),
    "a palette": (lambda: pillow(mode="P", format="PNG"), 20),
    "progressive": (lambda: encoded(".jpg", decoded(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 4),
    "bytes after its end": (lambda: WHOLE + b"made by a camera\0\0", 0),
    "a preface": (lambda: pillow(comment=b"x" * 999, quality=95), 4),
}


@pytest.mark.parametrize("kind", GOOD)
def test_unusual_pictures_are_used(data, tmp_path, kind):
    make, distance = GOOD[kind]
    for path in clip_of(data):
        path.write_bytes(make())  # named .jpg, whatever it is
    read = read_image(clip_of(data)[0])
    assert (
        read.shape == (320, 320, 3)
        and np.abs(read.astype(int) - decoded()[..., ::-1]).mean() <= distance
    )
    assert prepare(data, tmp_path / "store") == 0
    assert len(FaceStore(tmp_path / "store")) == 3


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"II*\0", b"RIFF....WEBP"]
    ),
)
def test_bytes_are_read_or_refused_by_name(tmp_path_factory, data, mark):
    path = tmp_path_factory.getbasetemp() / "any.jpg"
    path.write_bytes(mark + data)
    try:
        assert read_image(path).dtype == np.uint8
    except ValueError as error:
        assert "any.jpg can't be read: " in str(error)


# paths


@pytest.mark.parametrize(
    "name",
    [
        "m\u00fcller 2",
        " blank at both ends ",
        "\u8868\u60c5",
        "a'b\"c",
        "100% [x] {y} $HOME",
        "-dash",
        "a" * 200,
    ],
)
def test_paths_of_all_kinds(home, tmp_path, name):
    shutil.copytree(home / "data", tmp_path / name / "data")
    assert prepare(tmp_path / name / "data", tmp_path / name / "store") == 0
    assert np.array_equal(
        FaceStore(tmp_path / name / "store").frames, FaceStore(home / "store").frames
    )


@pytest.mark.parametrize(
    "subject, clip", [("Zo\u00eb", "c 1"), ("s 1", "\u7b11"), ("01", "a.b"), ("%2F", "c__1")]
)
def test_names_of_all_kinds(home, data, tmp_path, subject, clip):
    table = pd.read_csv(data / "clips.csv", dtype=str)
    table.loc[0, ["subject", "name"]] = subject, clip
    (data / "frames" / subject).mkdir()
    (data / "frames/s01/c1").rename(data / "frames" / subject / clip)
    table.to_csv(data / "clips.csv", index=False)
    assert prepare(data, tmp_path / "store") == 0
    store = FaceStore(tmp_path / "store")
    assert store.index["clip_id"][0] == f"folder/{subject}/{clip}" and np.array_equal(
        store.frames, FaceStore(home / "store").frames
    )


def test_suffixes_in_capitals(data, tmp_path):
    for path in list((data / "frames").glob("*/*/*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    assert prepare(data, tmp_path / "store") == 0
    assert len(FaceStore(tmp_path / "store")) == 3


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.write_text("mine"), "is not a folder"),
        (lambda root: root.mkdir(), "clips.csv is missing"),
        (lambda root: root.symlink_to("nowhere"), "is not a folder"),
        (lambda root: (root / "clips.csv").mkdir(parents=True), "clips.csv"),
    ],
    ids=["missing", "a file", "an empty folder", "a link to nothing", "a folder called clips.csv"],
)
def test_a_root_that_is_none(tmp_path, capsys, make, words):
    make(tmp_path / "data")
    assert words in refused_store(capsys, tmp_path / "data", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("out", ["file", "file/store"])
def test_a_store_where_a_file_is(home, tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")
    line = refused_store(capsys, home / "data", tmp_path / out)
    assert (
        f"{tmp_path / out} can't be a folder, a file is in its way; choose another" in line
        and (tmp_path / "file").read_text() == "mine"
    )


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root"
)
def test_a_store_in_a_folder_that_may_not_be_written(home, tmp_path, capsys):
    (tmp_path / "theirs").mkdir(mode=0o500)
    assert "can't be written" in refused_store(capsys, home / "data", tmp_path / "theirs/store")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_store_that_the_system_forbids(home, tmp_path, capsys, monkeypatch, code):
    def forbidden(path, *args, **more):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", forbidden)
    assert (
        f"{tmp_path / 'store'} can't be written ({os.strerror(code)}); choose a folder of your own"
        in refused_store(capsys, home / "data", tmp_path / "store")
    )


# tables

HEAD = "subject,name,emotion,onset,apex,offset,action_units\n"
TABLES = {  # clips.csv -> what is said
    "empty": (b"", "clips.csv"),
    "blank": (b"\n\n  \n", "clips.csv"),
    "headings alone": (HEAD.encode(), "empty"),
    "zeros": (bytes(300), "clips.csv"),
    "a picture": (WHOLE, "clips.csv"),
    "utf-16": ((HEAD + "s01,c1,happiness,5,8,11,\n").encode("utf-16"), "clips.csv"),
    "latin 1": ((HEAD + "M\u00fcller,c1,happiness,5,8,11,\n").encode("latin-1"), "clips.csv"),
    "semicolons": (
        (HEAD + "s01,c1,happiness,5,8,11,\n").replace(",", ";").encode(),
        "lacks the columns subject",
    ),
    "a column is missing": (
        b"subject,name,emotion,onset,offset\ns01,c1,happiness,5,11\n",
        "lacks the column apex",
    ),
    "an unknown emotion": (
        (HEAD + "s01,c1,hapiness,5,8,11,\n").encode(),
        "line 2: emotion 'hapiness' is not known",
    ),
    "no emotion": ((HEAD + "s01,c1,,5,8,11,\n").encode(), "line 2"),
    "a label out of range": (
        b"subject,name,emotion,onset,apex,offset,label\ns01,c1,happiness,5,8,11,3\n",
        "label '3'",
    ),
    "a label that is none": (
        b"subject,name,emotion,onset,apex,offset,label\ns01,c1,happiness,5,8,11,positive\n",
        "label 'positive'",
    ),
    "a cell too many in every row": (
        (HEAD + "s01,c1,happiness,5,8,11,4,7\n").encode(),
        "more cells than its first line has headings",
    ),
    "a row too long": (
        (HEAD + "s01,c1,happiness,5,8,11,,,,,,\ns01,c2,happiness,1,2,3,,,,,,,,,,\n").encode(),
        "clips.csv",
    ),
    "an open quote": ((HEAD + 's01,"c1,happiness,5,8,11,\n').encode(), "clips.csv"),
    "the sheet of another database": (
        b"Subject,Filename,Inducement Code,Onset Frame,Apex Frame,Offset Frame\n6,006_1_2,3,5562,5588,5632\n",
        "lacks the columns",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_used(data, tmp_path, capsys, kind):
    content, words = TABLES[kind]
    (data / "clips.csv").write_bytes(content)
    line = refused_store(capsys, data, tmp_path / "store")
    assert words in line and str(data) in line and not (tmp_path / "store").exists()


ROWS = {  # cells of the first row -> its reason
    "no apex": (dict(apex="/"), "apex frame is '/', not a number"),
    "an empty apex": (dict(apex=""), "apex frame is not given"),
    "a negative onset": (dict(onset="-5"), "onset frame is '-5'"),
    "a broken number": (dict(onset="5.5"), "onset frame is '5.5'"),
    "onset equal to apex": (dict(onset="8"), "no motion"),
    "apex before onset": (dict(onset="8", apex="5"), "not in time order"),
    "an apex that isn't there": (
        dict(apex="7"),
        "apex frame 7 is not among the 3 frames (5 to 11)",
    ),
    "an onset that isn't there": (dict(onset="1"), "onset frame 1 is not among"),
    "a huge number": (dict(apex="9" * 30), "is not among"),
    "no folder": (dict(name="c77"), "its folder of frames is missing"),
    "another subject": (dict(subject="s77"), "its folder of frames is missing"),
    "words": (dict(onset="five"), "onset frame is 'five'"),
    "an emotion left out": (dict(emotion="others"), "left out of the 3 classes"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_that_cannot_be_used_is_excluded(data, tmp_path, capsys, kind):
    cells, words = ROWS[kind]
    table = pd.read_csv(data / "clips.csv", dtype=str)
    table.loc[0, list(cells)] = list(cells.values())
    table.to_csv(data / "clips.csv", index=False)
    assert prepare(data, tmp_path / "store") == 0
    said, store = capsys.readouterr().out, FaceStore(tmp_path / "store")
    assert store.index["clip_id"].tolist() == ["folder/s01/c2", "folder/s02/c1"]
    assert [words in lost.reason and lost.reason in said for lost in store.excluded] == [True]


@pytest.mark.parametrize(
    "cells",
    [
        dict(subject=""),
        dict(name=""),
        dict(name="../c2"),
        dict(name="/etc"),
        dict(subject=".."),
        dict(name="."),
        dict(subject="s01/c1"),
    ],
    ids=str,
)
def test_names_that_lead_elsewhere(data, tmp_path, capsys, cells):
    table = pd.read_csv(data / "clips.csv", dtype=str)
    table.loc[0, list(cells)] = list(cells.values())
    table.to_csv(data / "clips.csv", index=False)
    assert prepare(data, tmp_path / "store") == 0
    assert FaceStore(tmp_path / "store").index["clip_id"].tolist() == [
        "folder/s01/c2",
        "folder/s02/c1",
    ]


def test_rows_that_are_there_twice(home, data, tmp_path):
    table = pd.read_csv(data / "clips.csv", dtype=str)
    pd.concat([table, table.head(1).assign(emotion="disgust")]).to_csv(
        data / "clips.csv", index=False
    )
    assert prepare(data, tmp_path / "store") == 0
    store = FaceStore(tmp_path / "store")
    assert [lost.reason for lost in store.excluded] == [
        "line 5 of clips.csv repeats line 2, which is used"
    ]
    assert store.index["label"].equals(FaceStore(home / "store").index["label"]) and np.array_equal(
        store.frames, FaceStore(home / "store").frames
    )


def test_frames_of_the_same_number(data, tmp_path):
    path = clip_of(data)[0]
    shutil.copy(path, path.with_name("005.png"))
    assert prepare(data, tmp_path / "store") == 0
    (lost,) = FaceStore(tmp_path / "store").excluded
    assert "frame 5 is there twice: 005.png and 5.jpg; remove one" in lost.reason


def test_all_clips_lost(data, tmp_path, capsys):
    shutil.rmtree(data / "frames")
    assert (
        "none of its 3 clips can be used. folder/s01/c1: its folder of frames is missing"
        in refused_store(capsys, data, tmp_path / "store")
    )


def test_all_pictures_broken(data, tmp_path, capsys):
    for path in (data / "frames").glob("*/*/*"):
        path.write_bytes(b"")
    line = refused_store(capsys, data, tmp_path / "store")
    assert "none of the 3 clips can be used" in line and "it is empty" in line


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=9),
        max_size=5,
    ),
    st.sampled_from([",", ";", "\t"]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_table_is_refused_in_one_line(tmp_path_factory, capsys, rows, separator):
    root = tmp_path_factory.getbasetemp() / "any"
    root.mkdir(exist_ok=True)
    (root / "clips.csv").write_bytes(
        (HEAD + "\n".join(separator.join(cells) for cells in rows)).encode()
    )
    refused(capsys, "prepare", "--data", root, "--database", "folder", "--store", root / "store")


# sheets of CASME II


def workbook(*sheets):
    "An .xlsx of sheets, each a list of rows."
    import openpyxl

    book, data = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"Sheet{number}")
        for row in rows:
            sheet.append(row)
    book.save(data)
    return data.getvalue()


CASME2 = [
    "Subject",
    "Filename",
    None,
    "OnsetFrame",
    "ApexFrame",
    "OffsetFrame",
    None,
    "Action Units",
    "Estimated Emotion",
]
CODED = [
    ["01", "EP01_1", None, 5, 8, 11, None, "12", "happiness"],
    ["02", "EP01_2", None, 5, 8, 11, None, "4", "disgust"],
]
SAMM = [
    "Subject",
    "Filename",
    "Inducement Code",
    "Onset Frame",
    "Apex Frame",
    "Offset Frame",
    "Duration",
    "Micro",
    "Action Units",
    "Estimated Emotion",
    "Objective Classes",
    "Notes",
]
BOOKS = {  # what the workbook is -> what is said
    "empty": (lambda: b"", "sheet.xlsx"),
    "text": (lambda: b"Subject,Filename\n", "sheet.xlsx"),
    "cut short": (lambda: workbook([CASME2, *CODED])[:-900], "sheet.xlsx"),
    "another zip": (lambda: b"PK\5\6" + bytes(18), "sheet.xlsx"),
    "an older format": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "sheet.xlsx"),
    "no rows at all": (lambda: workbook([]), "sheet.xlsx"),
    "headings alone": (lambda: workbook([CASME2]), "sheet.xlsx"),
    "other headings": (lambda: workbook([["Name", "Age"], ["A", 3]]), "sheet.xlsx"),
    "the sheet of SAMM": (
        lambda: workbook(
            [[]] * 13
            + [SAMM, [6, "006_1_2", 3, 5562, 5588, 5632, None, "Micro", "4", "Anger", 1, None]]
        ),
        "sheet.xlsx",
    ),
    "a column is missing": (
        lambda: workbook([[*CASME2[:4], None, *CASME2[5:]], *CODED]),
        "sheet.xlsx",
    ),
    "two that differ": (lambda: workbook([CASME2, *CODED], [CASME2, *CODED[:1]]), "sheet.xlsx"),
}


@pytest.fixture(scope="module")
def casme2(tmp_path_factory):
    "The frames of two clips in the layout of CASME II."
    root = tmp_path_factory.mktemp("casme2")
    for subject, name, _, *numbers in (row[:6] for row in CODED):
        (root / f"raw/sub{subject}/{name}").mkdir(parents=True)
        for number in numbers:
            (root / f"raw/sub{subject}/{name}/img{number}.jpg").write_bytes(WHOLE)
    return root


@pytest.mark.parametrize("kind", BOOKS)
def test_a_workbook_that_cannot_be_used(casme2, tmp_path, capsys, kind):
    make, words = BOOKS[kind]
    shutil.copytree(casme2, tmp_path / "data")
    (tmp_path / "data/sheet.xlsx").write_bytes(make())
    line = refused_store(capsys, tmp_path / "data", tmp_path / "store", "casme2")
    assert words in line or str(tmp_path / "data") in line


def test_rows_of_a_sheet_that_are_there_twice(casme2, tmp_path):
    shutil.copytree(casme2, tmp_path / "data")
    (tmp_path / "data/sheet.xlsx").write_bytes(workbook([CASME2, *CODED, CODED[0]]))
    assert prepare(tmp_path / "data", tmp_path / "store", "casme2") == 0
    store = FaceStore(tmp_path / "store")
    assert store.index["clip_id"].tolist() == ["casme2/sub01/EP01_1", "casme2/sub02/EP01_2"] and [
        "repeats this clip" in lost.reason for lost in store.excluded
    ] == [True]


@pytest.mark.parametrize("cell", [None, "", "/", "x", -1, 8.5, 1e30, True, "8 "])
def test_any_cell_for_an_apex(casme2, tmp_path, cell):
    shutil.copytree(casme2, tmp_path / "data")
    row = [*CODED[0][:4], cell, *CODED[0][5:]]
    (tmp_path / "data/sheet.xlsx").write_bytes(workbook([CASME2, row, CODED[1]]))
    assert prepare(tmp_path / "data", tmp_path / "store", "casme2") == 0
    store = FaceStore(tmp_path / "store")
    assert len(store) + len(store.excluded) == 2 and len(store) == (
        2 if str(cell).strip() == "8" else 1
    )


# stores

DAMAGE = {
    "gone": None,
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "text": lambda whole: b"hello",
}


@pytest.mark.parametrize("name", ["settings.json", "index.parquet", "frames.npy", "lost.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_refused_or_made_whole(home, tmp_path, capsys, name, damage):
    shutil.copytree(home / "store", tmp_path / "store")
    path, change = tmp_path / "store" / name, DAMAGE[damage]
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    if damage == "gone" and name in (
        "settings.json",
        "index.parquet",
    ):  # not finished: prepare goes on with it
        code = prepare(home / "data", tmp_path / "store")
    else:
        assert "--overwrite" in refused_store(capsys, home / "data", tmp_path / "store")
        code = prepare(home / "data", tmp_path / "store", "folder", "--overwrite")
    assert code == 0 and np.array_equal(
        FaceStore(tmp_path / "store").frames, FaceStore(home / "store").frames
    )


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_store_of_another_version(home, tmp_path, capsys, version):
    shutil.copytree(home / "store", tmp_path / "store")
    path = tmp_path / "store/settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    line = refused_store(capsys, home / "data", tmp_path / "store")
    assert f"version: {version} there, 1 wanted" in line and "--overwrite" in line


def test_a_store_of_other_clips(home, data, tmp_path, capsys):
    shutil.copytree(home / "store", tmp_path / "store")
    table = pd.read_csv(data / "clips.csv", dtype=str)
    table.tail(2).to_csv(data / "clips.csv", index=False)
    assert "clips: 3 there, 2 wanted" in refused(
        capsys, "prepare", "--data", data, "--database", "folder", "--store", tmp_path / "store"
    )
    assert np.array_equal(
        FaceStore(tmp_path / "store").frames, FaceStore(home / "store").frames
    )  # as it was


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "call, after",
    [
        ("os.posix_fallocate", 0),
        ("numpy.lib.format.open_memmap", 0),
        *((call, n) for call in ("os.fsync", "os.replace") for n in range(4)),
    ],
)
def test_a_disk_that_runs_full(home, tmp_path, capsys, monkeypatch, call, after):
    module, name = call.rsplit(".", 1)
    module = np.lib.format if module.startswith("numpy") else os
    if not hasattr(module, name):
        pytest.skip(f"no {call} here")
    real, calls = getattr(module, name), []

    def full(*args, **more):
        calls.append(args)
        if len(calls) > after:
            raise FULL
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        line = refused_store(capsys, home / "data", tmp_path / "store")
        assert (
            f"the disk is full (No space left on device) while writing {tmp_path / 'store'}; make room"
            in line
        )
    assert prepare(home / "data", tmp_path / "store") == 0  # there is room again
    assert np.array_equal(
        FaceStore(tmp_path / "store").frames, FaceStore(home / "store").frames
    ) and not list((tmp_path / "store").glob("*.part"))


def test_too_little_space_is_told_beforehand(home, tmp_path, capsys, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    assert "0.0 GB are free; choose another folder" in refused_store(
        capsys, home / "data", tmp_path / "store"
    )


# runs


@pytest.fixture
def mini(monkeypatch):
    monkeypatch.setitem(PRESETS, "mini", SMALL)
    monkeypatch.setitem(TRAIN_PRESETS, "mini", TrainConfig(epochs=1, pairs=2, batch_size=4))


def loso(data, out, *more):
    line = "--database folder --preset mini --device cpu".split()
    return ["loso", "--data", data, *line, "--out", out, *more]


@pytest.fixture(scope="module")
def few(home):
    "Four clips of three people: two have one clip each, and nobody has a surprised one."
    copy_samples(home / "few", [("s01", "c1"), ("s01", "c4"), ("s02", "c1"), ("s03", "c1")])
    table = pd.read_csv(home / "few/clips.csv", dtype=str)
    table.assign(emotion=["happiness", "disgust", "happiness", "disgust"]).to_csv(
        home / "few/clips.csv", index=False
    )
    assert prepare(home / "few", home / "few store") == 0
    return home / "few", home / "few store"


@pytest.fixture(scope="module")
def finished(home, few):
    "A run over them."
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "mini", SMALL)
        patch.setitem(TRAIN_PRESETS, "mini", TrainConfig(epochs=1, pairs=2, batch_size=4))
        assert run(*loso(few[0], home / "run", "--store", few[1])) == 0
    return home / "run"


def test_subjects_with_one_clip_and_a_class_with_none(finished):
    report, table = (
        json.loads((finished / "report.json").read_text()),
        pd.read_parquet(finished / "predictions.parquet"),
    )
    assert table["subject"].value_counts().to_dict() == {"s01": 2, "s02": 1, "s03": 1} and sorted(
        table["label"]
    ) == [0, 0, 1, 1]
    assert (
        report["n_clips"] == 4
        and report["n_subjects"] == 3
        and 0 <= report["uf1"] <= 1
        and (finished / "report.html").is_file()
    )


def test_one_subject_alone(data, tmp_path, capsys, mini):
    pd.read_csv(data / "clips.csv", dtype=str).head(2).to_csv(data / "clips.csv", index=False)
    assert "takes two or more, the store has 1" in refused(
        capsys, *loso(data, tmp_path / "run", "--store", tmp_path / "store")
    )
    assert not (tmp_path / "run/report.json").exists()


def test_one_clip_left_to_train_on(home, tmp_path, capsys, mini):
    assert "1 clips are left to train on" in refused(
        capsys, *loso(home / "data", tmp_path / "run", "--store", home / "store")
    )
    assert not (tmp_path / "run/report.json").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "folds/folder__s01.json", "folds/folder__s01.safetensors"]
)
@pytest.mark.parametrize("damage", ["gone", "half", "text"])
def test_a_run_that_was_damaged_is_refused_or_made_whole(
    few, finished, tmp_path, capsys, mini, name, damage
):
    shutil.copytree(finished, tmp_path / "run")
    path, change = tmp_path / "run" / name, DAMAGE[damage]
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    for made in ("predictions.parquet", "report.json"):
        (tmp_path / "run" / made).unlink()
    capsys.readouterr()
    code = run(*loso(few[0], tmp_path / "run", "--resume", "--store", few[1]))
    said = capsys.readouterr().err
    if code == 0:
        assert pd.read_parquet(tmp_path / "run/predictions.parquet").equals(
            pd.read_parquet(finished / "predictions.parquet")
        )
    else:  # weights are only opened for the pictures of the report; the scores come from the JSON beside them
        assert (
            code == 2
            and Path(name).name in said.splitlines()[-1]
            and (tmp_path / "run/report.json").exists() == name.endswith("safetensors")
        )


def test_a_run_with_other_settings(few, finished, capsys, mini):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("[!.]*")}
    assert "seed was 0, now 7" in refused(
        capsys, *loso(few[0], finished, "--resume", "--seed", 7, "--store", few[1])
    )
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("[!.]*")}


def test_a_run_whose_disk_is_full(home, tmp_path, capsys, monkeypatch, mini):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("frl_dgt_nb.files.write_atomic", full)
    assert "the disk is full (No space left on device) while writing" in refused(
        capsys, *loso(home / "data", tmp_path / "run", "--store", home / "store")
    )
    assert not (tmp_path / "run/report.json").exists()


# experiments


def experiment(name, data, out, *more):
    line = "--database folder --device cpu".split()
    return ["experiment", name, "--data", data, *line, "--out", out, *more]


@pytest.mark.parametrize(
    "name, rows, words",
    [
        ("table2", ["M17"], "table2 has no row M17; choose from M0, M1, M2, M3"),
        ("table2", ["M9", "m4", "M17"], "table2 has no row m4, M17"),
        ("table1", ["EMRNet"], "table1 has no row EMRNet; choose from lbp-top"),
        ("table3", ["FRL-DGT-4"], "table3 has no row FRL-DGT-4; choose from M9, FRL-DGT-S-3"),
        ("figures", ["M9"], "figures has no row M9; leave out --rows"),
    ],
)
def test_an_experiment_without_such_a_row(home, tmp_path, capsys, name, rows, words):
    "Said before a single face is aligned: the folder isn't even there."
    assert words in refused(
        capsys, *experiment(name, tmp_path / "nowhere", tmp_path / "out", "--rows", *rows)
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "stores").exists()


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "sensitivity", "figures"])
def test_an_experiment_of_nothing_into_nothing(home, tmp_path, capsys, name):
    (tmp_path / "file").write_text("mine")
    assert "file is a file; --out wants a folder" in refused(
        capsys, *experiment(name, home / "data", tmp_path / "file", "--store", home / "store")
    )
    assert "nowhere is not a folder" in refused(
        capsys, *experiment(name, tmp_path / "nowhere", tmp_path / "out")
    )
    line = refused(
        capsys,
        "experiment",
        name,
        "--data",
        home / "data",
        "--database",
        "samm",
        "--out",
        tmp_path / "out",
    )
    assert "samm" in line and str(home / "data") in line and "--database folder" in line
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "out").exists()


def test_an_experiment_on_one_clip_left_to_train_on(home, tmp_path, capsys):
    assert "1 clips are left to train on" in refused(
        capsys,
        *experiment(
            "table2", home / "data", tmp_path / "out", "--store", home / "store", "--rows", "M9"
        ),
    )
    assert pd.read_csv(tmp_path / "out/table2.csv").state.unique().tolist() == ["not started"]


def test_an_experiment_goes_on_and_refuses_what_does_not_belong(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", SMALL)
    monkeypatch.setitem(TRAIN_PRESETS, "tiny", TrainConfig(epochs=1, pairs=2, batch_size=4))
    line = experiment(
        "table2", few[0], tmp_path / "out", "--store", few[1], "--preset", "tiny", "--rows", "M9"
    )
    assert run(*line) == 0
    said, before = (
        capsys.readouterr().out,
        {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out/M9/**/*")},
    )
    assert (
        "M9 0." in said
        and "not started" in said
        and said.splitlines()[-3:]
        == [str(tmp_path / f"out/table2.{kind}") for kind in ("csv", "html", "png")]
    )
    assert run(*line) == 0
    refused_line = refused(capsys, *line, "--seed", 7)
    assert (
        f"{tmp_path / 'out/M9'} holds a run with other settings: seed was 0, now 7" in refused_line
    )
    assert f"{tmp_path / 'out/M9'} holds a run with other settings" in refused(
        capsys,
        *experiment("figures", few[0], tmp_path / "out", "--store", few[1], "--preset", "best"),
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (tmp_path / "out/M9/config.json").write_text("{")
    assert "config.json" in refused(capsys, *line)


# predictions


def predict(home, tmp_path, onset=None, apex=None, weights=None, *more):
    paths = clip_of(home / "data")
    pair, weights = [onset or paths[0], apex or paths[1]], weights or home / "weights.safetensors"
    return ["predict", *pair, "--weights", weights, "--device", "cpu", *more]


def test_a_prediction(home, tmp_path, capsys):
    assert run(*predict(home, tmp_path)) == 0


@pytest.mark.parametrize(
    "which, kind",
    [("apex", kind) for kind in BROKEN]
    + [("onset", kind) for kind in ("empty", "half a jpeg", "one pixel")],
)
def test_a_prediction_from_a_broken_picture(home, tmp_path, capsys, kind, which):
    (tmp_path / "broken.jpg").write_bytes(BROKEN[kind][0]())
    assert "broken.jpg" in refused(
        capsys, *predict(home, tmp_path, **{which: tmp_path / "broken.jpg"})
    )


@pytest.mark.parametrize(
    "kind, content",
    [
        ("missing", None),
        ("empty", b""),
        ("text", b"hello"),
        ("a picture", WHOLE),
        ("zeros", bytes(999)),
        ("a long header", b"\xff" * 99),
        ("a header of nothing", (2).to_bytes(8, "little") + b"{}"),
        ("cut short", 0),
    ],
)
def test_a_prediction_from_weights_that_are_none(home, tmp_path, capsys, kind, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(
            content or (home / "weights.safetensors").read_bytes()[:-999] if content != b"" else b""
        )
    assert "weights.safetensors" in refused(capsys, *predict(home, tmp_path, weights=path))


@pytest.mark.parametrize(
    "flag, place",
    [
        ("--json", "no/such/folder/x.json"),
        ("--picture", "no/such/folder/x.png"),
        ("--picture", "x.exe"),
        ("--json", ""),
    ],
)
def test_a_prediction_that_cannot_be_written(home, tmp_path, flag, place):
    assert run(*predict(home, tmp_path, None, None, None, flag, tmp_path / place)) == 2


# the check


@pytest.mark.parametrize(
    "kind", ["half a jpeg", "empty", "text", "another size", "a picture of a billion pixels"]
)
def test_the_check_tells_what_prepare_will_leave_out(data, tmp_path, capsys, kind):
    clip_of(data)[1].write_bytes(BROKEN[kind][0]())
    assert run("check", "folder", data, "--json", tmp_path / "check.json") == 1
    said, told = capsys.readouterr().out, json.loads((tmp_path / "check.json").read_text())
    assert (
        "frames/s01/c1/8.jpg" in said
        and BROKEN[kind][1] in said
        and told["clips"] == 2
        and told["by_class"] == {"negative": 0, "positive": 1, "surprise": 1}
    )
    assert [
        (problem["path"], problem["clip_id"], problem["done"])
        for problem in told["problems"]
        if problem["done"] == "excluded"
    ] == [
        ("frames/s01/c1/8.jpg", "folder/s01/c1", "excluded")
    ]  # and frames between the three that there are, which are ignored


@pytest.mark.parametrize("kind", TABLES)
def test_the_check_of_a_table_that_cannot_be_used(data, capsys, kind):
    content, words = TABLES[kind]
    (data / "clips.csv").write_bytes(content)
    assert run("check", "folder", data) == 2
    said = capsys.readouterr()
    assert words in said.out + said.err and "Traceback" not in said.err


@pytest.mark.parametrize("database", ["casme2", "samm", "smic", "composite", "flow"])
def test_the_check_of_another_database(home, capsys, database):
    assert run("check", database, home / "data") == 2
    assert str(home / "data") in capsys.readouterr().out
