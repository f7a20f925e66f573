"""The readers against look-alikes of CASME II with its traps, and against tables with mistakes."""

import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frl_dgt_nb.data.archives import read_casme2, read_database
from frl_dgt_nb.data.clips import list_frames
from frl_dgt_nb.data.databases import (
    as_frame,
    as_text,
    choose_subjects,
    counts,
    find_books,
    find_subjects,
    folder_label,
    mend_offset,
    read_folder,
    walk,
)

HEADINGS = [
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


def touch_frames(folder, numbers, name="img{}.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(b"x")  # a reader looks at names only


def write_sheet(path, rows, preface=(), headings=HEADINGS):
    book = openpyxl.Workbook()
    for row in (*preface, headings, *rows):
        book.active.append(list(row))
    book.save(path)


def row(subject, name, emotion, onset=10, apex=12, offset=15, units=4):
    return [subject, name, None, onset, apex, offset, None, units, emotion]


def casme2(root, rows, folder="CASME2_RAW_selected", frames=range(10, 16), **kw):
    for cells in rows:
        touch_frames(root / folder / f"sub{int(cells[0]):02d}" / cells[1], frames)
    write_sheet(root / "CASME2-coding-20140508.xlsx", rows, **kw)
    return root


def test_every_row_is_a_clip_or_an_exclusion(tmp_path):
    rows = [
        row("01", "EP02_01f", "happiness", units="4+L10"),
        row(1, "EP01_2", "surprise", units=12),
        row(2, "EP09f", "others"),
        row(2, "EP2", "sadness"),
        row(3, "EP3", "fear"),
        row(4, "EP12_01f", "disgust", apex="/"),
        row(5, "EP09_05f", "repression", apex=10),
        row(6, "EP6", "disgust", onset=3),
        row(7, "EP7", "disgust", apex=None),
        row(7, "EP8", "disgust", apex=99, offset=120),
        row(8, "EP9", "boredom"),
        row(8, "EP10", None),
        row(1, "EP02_01f", "happiness"),
    ]
    casme2(tmp_path, rows)
    write_sheet(
        tmp_path / "CASME2-coding-20140508.xlsx", [*rows, row(9, "EP11", "disgust")]
    )  # and one without a folder
    database = read_casme2(tmp_path)
    assert [(c.clip_id, c.label, c.action_units) for c in database.clips] == [
        ("casme2/sub01/EP02_01f", 1, "4+L10"),
        ("casme2/sub01/EP01_2", 2, "12"),
    ]
    words = [
        "others",
        "sadness",
        "fear",
        "'/'",
        "equals the apex",
        "onset frame 3",
        "apex frame is not given",
        "apex frame 99",
        "boredom",
        "''",
        "repeats",
        "missing",
    ]
    assert len(database.excluded) == len(words)
    assert all(word in exclusion.reason for word, exclusion in zip(words, database.excluded))


def test_sadness_and_fear_come_back_with_more_classes(tmp_path):
    casme2(tmp_path, [row(1, "a", "sadness"), row(1, "b", "others"), row(1, "c", "disgust")])
    assert [len(read_casme2(tmp_path, classes).clips) for classes in (3, 4, 5)] == [1, 3, 2]
    with pytest.raises(ValueError, match="3, 4, 5"):
        read_casme2(tmp_path, classes=2)


def test_preface_spelling_and_order_of_headings_do_not_matter(tmp_path):
    casme2(
        tmp_path,
        [row("01", "a", "disgust")],
        preface=[["CASME II"], [], ["coded by two"]],
        headings=[
            "SUBJECT ",
            "File name",
            None,
            "Onset Frame",
            "apexframe",
            "Offset frame",
            None,
            "Action\nUnits",
            "Estimated Emotion",
        ],
    )
    (tmp_path / "CASME2-coding-20140508.xlsx").rename(tmp_path / "renamed.xlsx")
    assert read_casme2(tmp_path).clips[0].apex == 12


@pytest.mark.parametrize(
    "folder", [".", "CASME2_RAW_selected", "a/CASME2_RAW_selected/CASME2_RAW_selected"]
)
def test_depth_of_the_frames_does_not_matter(tmp_path, folder):
    clip = read_casme2(
        casme2(tmp_path, [row(1, "a", "disgust"), row(2, "a", "surprise")], folder)
    ).clips[0]
    assert (
        clip.frames[0].parts[-3:] == ("sub01", "a", "img10.jpg")
        and clip.subject_id == "casme2/sub01"
    )


def test_subject_folders_nested_or_unpadded(tmp_path):
    touch_frames(tmp_path / "raw/sub1/sub1/a", range(10, 16))
    touch_frames(tmp_path / "raw/sub2/sub2/a", range(10, 16), "reg_img{}.bmp")
    write_sheet(tmp_path / "x.xlsx", [row("01", "A ", "disgust"), row(2, "a", "disgust")])
    assert [c.subject for c in read_casme2(tmp_path).clips] == ["sub01", "sub02"]


def test_raw_frames_before_cropped_ones_and_other_folders_ignored(tmp_path):
    casme2(tmp_path, [row(1, "a", "disgust")])
    touch_frames(tmp_path / "Cropped/sub01/a", range(10, 16), "reg_img{}.jpg")
    (tmp_path / "truth/sub01").mkdir(parents=True)
    (tmp_path / "truth/sub01/a.npz").write_bytes(b"x")
    assert read_casme2(tmp_path).clips[0].frames[0].name == "img10.jpg"
    assert (
        read_casme2(tmp_path, frames=tmp_path / "Cropped").clips[0].frames[0].name
        == "reg_img10.jpg"
    )
    touch_frames(tmp_path / "another_raw/sub01/a", [1])
    with pytest.raises(ValueError, match="another_raw.*frames=FOLDER"):
        choose_subjects(tmp_path, find_subjects(tmp_path, r"sub\d+"), "sub01/a/img1.jpg")


def test_two_sheets_are_an_error_with_both_names(tmp_path):
    casme2(tmp_path, [row(1, "a", "disgust")])
    write_sheet(tmp_path / "second.xlsx", [row(1, "a", "surprise")])
    write_sheet(tmp_path / "unrelated.xlsx", [], headings=["a", "b"])
    (tmp_path / "~$second.xlsx").write_bytes(b"lock of a spreadsheet program")
    assert [path.name for path in find_books(tmp_path)] == [
        "CASME2-coding-20140508.xlsx",
        "second.xlsx",
        "unrelated.xlsx",
    ]
    with pytest.raises(
        ValueError, match=r"2 .*CASME2-coding-20140508.xlsx \[Sheet\], second.xlsx \[Sheet\]"
    ):
        read_casme2(tmp_path)
    assert read_casme2(tmp_path, sheet=tmp_path / "second.xlsx").clips[0].label == 2
    with pytest.raises(ValueError, match="unrelated.xlsx has other headings"):
        read_casme2(tmp_path, sheet=tmp_path / "unrelated.xlsx")


def test_a_walk_follows_links_but_not_for_ever(tmp_path):
    (tmp_path / "a/.hidden").mkdir(parents=True)
    (tmp_path / "a/round").symlink_to(tmp_path)
    (tmp_path / "a/x.txt").touch(), (tmp_path / "a/.x").touch()
    found = dict(walk(tmp_path, depth=4))
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        ".",
        "a",
        "a/round",
        "a/round/a",
        "a/round/a/round",
    ]
    assert found[tmp_path / "a"] == ["x.txt"]


def test_offsets_are_mended_and_noted_and_stray_folders_too(tmp_path):
    casme2(
        tmp_path,
        [
            row(1, "a", "disgust", offset=99),
            row(1, "b", "disgust", offset=0),
            row(1, "c", "disgust"),
        ],
    )
    touch_frames(tmp_path / "CASME2_RAW_selected/sub09/EP02_02f", [1])
    database = read_casme2(tmp_path)
    assert [c.offset for c in database.clips] == [15, 15, 15]
    assert (
        len(database.notes) == 3
        and "casme2/sub09/EP02_02f" in database.notes[2]
        and "99" in database.notes[0]
    )


@given(
    st.lists(st.integers(0, 40), min_size=1, unique=True).map(sorted),
    st.integers(0, 40),
    st.integers(0, 60),
)
def test_a_mended_offset_is_a_frame_at_or_after_the_apex(numbers, apex, offset):
    mended = mend_offset(numbers, apex, offset)
    if any(n >= apex for n in numbers):
        assert mended in numbers and mended >= apex
    if offset in numbers and offset >= apex:
        assert mended == offset


def test_frames_in_order_of_their_numbers(tmp_path):
    touch_frames(tmp_path, [9, 10, 100])
    (
        (tmp_path / "Thumbs.db").write_bytes(b""),
        (tmp_path / "notes7.txt").write_bytes(b""),
        (tmp_path / "cover.jpg").write_bytes(b""),
    )
    assert list(list_frames(tmp_path)) == [9, 10, 100]
    (tmp_path / "img0009.png").write_bytes(b"")
    with pytest.raises(ValueError, match="frame 9 is there twice"):
        list_frames(tmp_path)


@given(st.integers(0, 10**6))
def test_whole_numbers_read_alike(number):
    assert as_text(number) == as_text(float(number)) == as_text(f" {number} ") == str(number)


def own(root, table, frames=((("ann", "one"), range(1, 5)),)):
    for (subject, name), numbers in frames:
        touch_frames(root / "frames" / subject / name, numbers, "{}.png")
    (root / "clips.csv").write_text(table, encoding="utf-8")
    return root


def test_folder(tmp_path):
    frames = [(("01", "one"), range(8, 12)), (("01", "two"), range(1, 4))]
    own(
        tmp_path,
        "\ufeffsubject, name,emotion,onset,apex,offset,action_units\n"
        "01,one,Happiness,8,10,11,12+R6\n01,two,others,1,2,3,\n01,three,disgust,1,2,3,\n",
        frames,
    )
    database = read_folder(tmp_path, name="mine")
    (clip,) = database.clips
    assert (clip.clip_id, clip.label, clip.apex_index, clip.action_units) == (
        "mine/01/one",
        1,
        2,
        "12+R6",
    )
    assert ["others" in e.reason or "missing" in e.reason for e in database.excluded] == [
        True,
        True,
    ]
    assert counts(database).loc["all", "clips"] == 1


def test_own_labels_allow_own_words(tmp_path):
    own(tmp_path, "subject,name,emotion,onset,apex,offset,label\nann,one,smirk,1,2,3,2\n")
    assert read_folder(tmp_path).clips[0].label == 2
    own(tmp_path, "subject,name,emotion,onset,apex,offset,label\nann,one,smirk,1,2,3,3\n")
    with pytest.raises(ValueError, match="line 2: label '3'"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "table, words",
    [
        ("subject,name,emotion,onset,offset\n", "lacks the column apex"),
        ("name,emotion\n", "lacks the columns subject, onset, apex, offset"),
        (
            "subject,name,emotion,onset,apex,offset\nann,one,disgust,1,2,3\nann,one,suprise,1,2,3\n",
            "line 3: emotion 'suprise'",
        ),
        ("subject,name,emotion,onset,apex,offset\n", "empty"),
        ("subject,name,emotion,onset,apex,offset\nann,one,disgust,1,/,3\n", "apex frame is '/'"),
    ],
)
def test_mistakes_in_a_table_name_file_and_place(tmp_path, table, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_folder(own(tmp_path, table))
    assert str(tmp_path) in str(caught.value)


def test_doors_that_are_not_there(tmp_path):
    for call, words in (
        (lambda: read_folder(tmp_path), "clips.csv is missing"),
        (lambda: read_casme2(tmp_path), "there is no workbook"),
        (lambda: read_folder(tmp_path / "no"), "not a folder"),
        (
            lambda: read_database(tmp_path, "casme3"),
            "no reader.*casme2, samm, smic, composite, folder",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_data_samples():
    database = read_database("data_samples", "folder")
    table = counts(database)
    assert not database.excluded and not database.notes
    assert (
        len(table) - 1 >= 8 and (table.iloc[:, :3] > 0).all().all()
    )  # every class in every subject


def test_numbers_as_pandas_writes_them_beside_a_blank():
    assert (
        as_frame("67.0", "apex") == 67
        and folder_label(pd.Series({"label": "2.0", "emotion": ""}), 3) == 2
    )
    for wrong in ("67.5", "", "-1.0", "/"):
        with pytest.raises(ValueError, match="apex frame"):
            as_frame(wrong, "apex")
