"""Look-alikes of every archive: the official counts, and what people point a reader at by mistake."""

import re
import shutil
from collections import Counter

import openpyxl
import pytest
from archives import (
    CASME2_ODD,
    FOUR_DIGITS,
    NO_APEX,
    NO_MOTION,
    STRAYS,
    casme2_rows,
    make_casme2,
    make_composite,
    make_samm,
    make_smic,
    samm_rows,
    smic_rows,
    write_frames,
)
from hypothesis import given
from hypothesis import strategies as st

from frl_dgt_nb.data.archives import (
    LAYOUTS,
    OFFICIAL,
    READERS,
    looks_like,
    read_casme2,
    read_composite,
    read_database,
    read_samm,
    read_smic,
    subject_name,
)
from frl_dgt_nb.data.clips import CLASSES, class_names
from frl_dgt_nb.data.databases import counts


def labels(database):
    return {clip.clip_id: clip.label for clip in database.clips}


def reasons(database):
    return {one.clip_id: one.reason for one in database.excluded}


def change_sheet(path, change, title=None):
    "Open a workbook, let `change` at one of its sheets, and save it."
    book = openpyxl.load_workbook(path)
    change(book[title] if title else book.active)
    book.save(path)
    return path


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return make_composite(tmp_path_factory.mktemp("official"), official=True, truth=True)


# official sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts(official, name):
    database = read_database(official.root, name)
    found = Counter(CLASSES[clip.label] for clip in database.clips)
    assert {
        **found,
        "clips": len(database.clips),
        "subjects": len({clip.subject_id for clip in database.clips}),
    } == OFFICIAL[name]
    assert database.name == name and labels(database) == {
        key: label
        for key, label in official.labels.items()
        if name in ("composite", key.split("/")[0])
    }


def test_composite_is_keyed_by_database_subject_and_name(official):
    database = read_composite(official.root)
    assert len(labels(database)) == 442 and len({clip.name for clip in database.clips}) == 428
    assert (
        len({int(re.search(r"\d+", clip.subject)[0]) for clip in database.clips}) == 35
    )  # what ints would make of 68 people
    assert (
        len(counts(database)) - 1 == 68
        and counts(database).loc["all"].tolist() == [250, 109, 83, 442]
        and "samm/006" in counts(database).index
    )
    assert set(reasons(database)) == official.excluded
    assert database.notes == [
        f"casme2/{stray}: frames without a row in the sheet" for stray in STRAYS
    ]  # and the list says nothing else
    assert Counter(clip.apex_source for clip in database.clips) == {"middle": 164, "labelled": 278}


@pytest.mark.parametrize(
    "classes, wanted",
    [
        (3, {"negative": 88, "positive": 32, "surprise": 25}),
        (4, {"negative": 97, "positive": 32, "surprise": 25, "others": 99}),
        (5, {"disgust": 62, "happiness": 32, "repression": 26, "surprise": 25, "others": 99}),
    ],
)
def test_casme2_with_three_four_and_five_classes(official, classes, wanted):
    database = read_database(official.root, "casme2", classes)
    assert Counter(class_names(classes)[clip.label] for clip in database.clips) == wanted
    assert {"casme2/" + "/".join(NO_APEX), "casme2/" + "/".join(NO_MOTION)} <= set(
        reasons(database)
    )


def test_samm_with_four_classes_takes_other_and_subject_025(official):
    database = read_samm(official.root, classes=4)
    assert (
        len(database.clips) == 159
        and not database.excluded
        and {clip.label for clip in database.clips if clip.subject == "025"} == {3}
    )


@pytest.mark.parametrize(
    "read, classes",
    [
        (read_samm, 5),
        (read_smic, 4),
        (read_smic, 5),
        (read_composite, 4),
        (read_composite, 5),
        (read_casme2, 6),
        (read_samm, 2),
    ],
)
def test_schemes_that_a_database_does_not_have(tmp_path, read, classes):
    with pytest.raises(ValueError, match=f"classes={classes}.*choose"):
        read(tmp_path, classes=classes)


def test_vanishing_subjects(official):
    people = {clip.subject_id for clip in read_composite(official.root).clips}
    assert (
        not {"casme2/sub10", "casme2/sub18", "samm/025"} & people
        and {"samm/010", "smic/s18", "casme2/sub25"} <= people
    )


# CASME II -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trap",
    [
        dict(subjects="int"),
        dict(subjects="mixed"),
        dict(preface=4),
        dict(sheet="deep/er/LABELS (1).XLSX"),
        dict(nested=True),
        dict(sets=("cropped",)),
        dict(sets=("raw", "cropped")),
        dict(sets=("raw", "cropped"), nested=True, subjects="int"),
        dict(strays=False),
        dict(wrong_offset=True),
        dict(lost_apexes=2),
    ],
)
def test_casme2_comes_out_as_it_was_built(tmp_path, trap):
    made = make_casme2(tmp_path, **trap)
    database = read_casme2(tmp_path)
    assert labels(database) == made.labels and set(reasons(database)) == made.excluded
    assert sum("frames without a row" in note for note in database.notes) == (
        2 if trap.get("strays", True) else 0
    )


def test_casme2_rows_that_do_not_count_say_why(tmp_path):
    make_casme2(tmp_path, lost_apexes=1, wrong_offset=True)
    database = read_casme2(tmp_path)
    found = {key.split("/", 1)[1]: reason for key, reason in reasons(database).items()}
    assert (
        "'/'" in found["/".join(NO_APEX)]
        and "equals the apex" in found["/".join(NO_MOTION)]
        and "apex frame is not given" in found["sub01/EP02_01f"]
    )
    assert all(
        word in found[key]
        for key, word in (
            ("sub02/EP13_04", "sadness"),
            ("sub18/EP08_01", "fear"),
            ("sub10/EP01_01", "others"),
        )
    )
    clip = next(clip for clip in database.clips if clip.name == "EP03_02")
    assert clip.offset == clip.numbers[-1] and database.notes[0].startswith(
        f"{clip.clip_id}: offset frame"
    )


def test_casme2_odd_names_and_action_units_stay_as_they_are(tmp_path):
    make_casme2(tmp_path)
    found = {(clip.subject, clip.name): clip.action_units for clip in read_casme2(tmp_path).clips}
    assert set(CASME2_ODD) <= set(found) and {"12", "4+L10", "?"} <= set(found.values())


def test_raw_frames_before_cropped_ones_wherever_the_word_stands(tmp_path):
    make_casme2(tmp_path / "a", sets=("raw", "cropped"))
    assert read_casme2(tmp_path / "a").clips[0].frames[0].name.startswith("img")
    (tmp_path / "a/Cropped").rename(tmp_path / "a/one")
    (tmp_path / "a/CASME2_RAW_selected").rename(tmp_path / "a/two")  # now only reg_img46.jpg tells
    assert read_casme2(tmp_path / "a").clips[0].frames[0].parts[-4] == "two"
    shutil.copytree(
        tmp_path / "a/two", tmp_path / "a/raw three"
    )  # of two that are not cropped, the one that is called raw
    assert read_casme2(tmp_path / "a").clips[0].frames[0].parts[-4] == "raw three"
    shutil.copytree(tmp_path / "a/two", tmp_path / "a/raw four")
    with pytest.raises(ValueError, match="4 folders.*one, raw four, raw three, two.*frames=FOLDER"):
        read_casme2(tmp_path / "a")
    assert len(read_casme2(tmp_path / "a", frames=tmp_path / "a/two").clips) == 6


def test_copy_without_21_apexes(tmp_path):
    made = make_casme2(tmp_path, official=True, lost_apexes=21)
    database = read_casme2(tmp_path)
    assert (
        len(database.clips) == 145 - 21 == made.clips
        and sum("apex frame is not given" in reason for reason in reasons(database).values()) == 21
    )


def test_what_a_mac_adds_to_a_zip_is_passed_over(tmp_path):
    made = make_casme2(tmp_path)
    write_frames(
        tmp_path / "__MACOSX/CASME2_RAW_selected/sub01/EP02_01f",
        ["._img46.jpg", "img46.jpg"],
        [b"x"],
    )
    (tmp_path / "._CASME2-coding-20140508.xlsx").write_bytes(b"x")
    assert labels(read_casme2(tmp_path)) == made.labels


# SAMM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trap",
    [
        dict(subjects="int"),
        dict(subjects="mixed"),
        dict(preface=0),
        dict(preface=30),
        dict(sheet="codes.xlsx"),
        dict(title="Tabelle1"),
        dict(other_sheets=False),
        dict(formulas=False),
        dict(nested=True),
        dict(sets=("cropped",)),
        dict(sets=("raw", "cropped"), nested=True),
        dict(four_digits=False),
    ],
)
def test_samm_comes_out_as_it_was_built(tmp_path, trap):
    made = make_samm(tmp_path, **trap)
    database = read_samm(tmp_path)
    assert (
        labels(database) == made.labels
        and set(reasons(database)) == made.excluded
        and not database.notes
    )
    assert all(
        "CROP" not in str(path.relative_to(tmp_path))
        for clip in database.clips
        for path in clip.frames
    ) or trap == dict(sets=("cropped",))


def test_samm_label_is_the_estimated_emotion_and_nothing_else(tmp_path):
    book = tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx"
    made = make_samm(tmp_path)

    def mislead(sheet):  # were either of these taken, every label would be another
        for row in range(15, 15 + len(samm_rows())):
            emotion = sheet.cell(row, 10).value
            sheet.cell(row, 3).value = sheet.cell(row, 11).value = (
                "Surprise" if emotion != "Surprise" else "Anger"
            )
            sheet.cell(row, 10).value = emotion.upper()

    change_sheet(book, mislead, "MICRO_ONLY")
    assert labels(read_samm(tmp_path)) == made.labels


def test_samm_four_digits(tmp_path):
    make_samm(tmp_path, official=True)
    found = {clip.name: clip for clip in read_samm(tmp_path).clips}
    assert set(FOUR_DIGITS) <= set(found)
    for name, clip in found.items():
        digits = clip.frames[clip.apex_index].stem.split("_")[-1]
        assert len(digits) == (4 if name in FOUR_DIGITS else 5) and int(digits) == clip.apex


def test_samm_sheet_with_a_second_one_of_the_same_headings(tmp_path):
    book = openpyxl.load_workbook(
        tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx" if make_samm(tmp_path) else ""
    )
    extra = book.copy_worksheet(book["MICRO_ONLY"])
    extra.title = "MICRO_AND_MACRO"
    extra.append(["006", "006_9_9", 1, 1, 2, 3, 3, "Macro", 4, "Anger", 1, None])
    book.save(tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx")
    assert not any("006_9_9" in key for key in reasons(read_samm(tmp_path)))
    book["MICRO_ONLY"].title = "A"
    book.save(tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx")
    with pytest.raises(
        ValueError, match=r"2 coding sheets of samm.*\[A\].*\[MICRO_AND_MACRO\].*sheet=FILE"
    ):
        read_samm(tmp_path)


def test_the_same_sheet_beside_both_archives_is_one_sheet(tmp_path):
    made = make_samm(tmp_path, sets=("raw", "cropped"))
    shutil.copy(tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx", tmp_path / "SAMM_CROP/copy.XLSX")
    assert labels(read_samm(tmp_path)) == made.labels
    change_sheet(
        shutil.copy(tmp_path / "SAMM_CROP/copy.XLSX", tmp_path / "other.xlsx"),
        lambda sheet: sheet.cell(15, 5, 1),
        "MICRO_ONLY",
    )
    with pytest.raises(ValueError, match="2 coding sheets of samm.*that differ"):
        read_samm(tmp_path)
    assert labels(read_samm(tmp_path, sheet=tmp_path / "SAMM_CROP/copy.XLSX")) == made.labels


# SMIC ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trap",
    [
        dict(padded=False),
        dict(suffix=".jpg"),
        dict(nested=True),
        dict(sets=("cropped",)),
        dict(sets=("raw", "cropped")),
        dict(cameras=True),
        dict(non_micro=False),
        dict(extended="beside"),
        dict(extended="beside", padded=False, nested=True, cameras=True, sets=("raw", "cropped")),
    ],
)
def test_smic_comes_out_as_it_was_built(tmp_path, trap):
    made = make_smic(tmp_path, **trap)
    database = read_smic(tmp_path)
    assert labels(database) == made.labels and not database.excluded
    assert all(
        "/HS/" in path.as_posix() and ("reg_" in path.name) == (trap == dict(sets=("cropped",)))
        for clip in database.clips
        for path in clip.frames
    )
    assert ["SMIC-E-HS, not used" in note for note in database.notes] == [True] * (
        "extended" in trap
    )


@pytest.mark.parametrize("frames, middle", [(2, 1), (3, 1), (4, 2), (9, 4)])
def test_smic_apex_is_the_middle_of_first_and_last(tmp_path, frames, middle):
    make_smic(tmp_path, frames=frames)
    for clip in read_smic(tmp_path).clips:
        assert (clip.onset_index, clip.apex_index, clip.offset_index, clip.apex_source) == (
            0,
            middle,
            frames - 1,
            "middle",
        )


@pytest.mark.parametrize("place", ["SMIC-E/SMIC-E-HS", "SMIC-HS-E", "HS_long/HS", "SMIC_E_raw/HS"])
@pytest.mark.parametrize("with_classes", [True, False])
def test_the_extended_smic_alone_is_an_error_that_says_so(tmp_path, place, with_classes):
    for subject, name, kind in smic_rows():
        write_frames(
            tmp_path / place / subject / (f"micro/{kind}" if with_classes else "") / name,
            [f"image{n:06d}.bmp" for n in range(20)],
            [b"x"],
        )
    with pytest.raises(ValueError, match=r"SMIC-E-HS alone.*put SMIC-HS \(164 clips\)"):
        read_smic(tmp_path)
    with pytest.raises(ValueError, match="SMIC-E-HS alone"):
        read_smic(tmp_path, frames=tmp_path / place.split("/")[0])


def test_157_clips_under_a_plain_name_are_noted(tmp_path):
    make_smic(tmp_path, official=True)
    assert not read_smic(tmp_path).notes
    for subject, name, kind in smic_rows(official=True)[157:]:
        shutil.rmtree(tmp_path / "HS" / subject / "micro" / kind / name)
    assert "157 clips, as many as SMIC-E-HS" in read_smic(tmp_path).notes[0]


def test_other_cameras_are_not_hs(tmp_path):
    make_smic(tmp_path, cameras=True)
    shutil.rmtree(tmp_path / "HS")
    with pytest.raises(ValueError, match="no folder under"):
        read_smic(tmp_path)


def test_smic_folders_that_are_no_clip(tmp_path):
    root = tmp_path / "micro/of/HS"  # a folder of that name above the archive is none of its own
    root.mkdir(parents=True)
    made = make_smic(root)
    home = root / "HS/s01/micro"
    write_frames(home / "negative/s01_ne_08", ["image000001.bmp"], [b"x"])
    (home / "negative/s01_ne_09").mkdir()
    write_frames(home / "tense/s01_te_01", ["image1.bmp", "image2.bmp"], [b"x"])
    write_frames(
        home / "positive/s01_ne_01", ["image1.bmp", "image2.bmp"], [b"x"]
    )  # a second time, in another class
    write_frames(home / "negative/s01_ne_01/thumbnails", ["image1.bmp", "image2.bmp"], [b"x"])
    write_frames(root / "HS/s01/non_micro/negative/s01_ne_02", ["image1.bmp", "image2.bmp"], [b"x"])
    database = read_smic(root / "HS")
    assert labels(database) == made.labels
    found = {key.rpartition("/")[2]: reason for key, reason in reasons(database).items()}
    assert len(database.excluded) == len(found) == 4
    assert (
        "frames is 1" in found["s01_ne_08"]
        and "frames is 0" in found["s01_ne_09"]
        and "'tense'" in found["s01_te_01"]
        and "repeats" in found["s01_ne_01"]
    )


# the composite ------------------------------------------------------------------------------------


def test_composite_of_the_worst_copies(tmp_path):
    made = make_composite(
        tmp_path,
        official=True,
        casme2=dict(
            subjects="mixed", nested=True, sets=("raw", "cropped"), preface=2, wrong_offset=True
        ),
        samm=dict(subjects="int", nested=True, sets=("raw", "cropped")),
        truth=True,
        smic=dict(
            padded=False, suffix=".jpg", cameras=True, extended="beside", sets=("raw", "cropped")
        ),
    )
    database = read_composite(tmp_path)
    assert labels(database) == made.labels and len(database.clips) == 442
    assert (
        len(database.notes) == 4
    )  # an offset, two strays, the extended set: the list agrees in all clips


def test_links_to_archives_elsewhere(tmp_path):
    made = make_composite(tmp_path / "disk", official=False)
    (tmp_path / "here").mkdir()
    for name in ("CASME II", "SAMM", "SMIC"):
        (tmp_path / "here" / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "here/SAMM/loop").symlink_to(tmp_path / "here")
    assert labels(read_composite(tmp_path / "here")) == made.labels


def test_the_official_list_is_compared(tmp_path):
    made = make_composite(tmp_path, official=False, truth=True)
    path = tmp_path / "combined_3class_gt.csv"
    before = read_composite(tmp_path)
    assert not any("combined" in note for note in before.notes)
    text = path.read_text()
    assert "samm,6,006_1_2,0\n" in text
    path.write_text(
        "\ufeff"
        + text.replace("samm,6,006_1_2,0\n", "SAMM,6,006_1_2,1\n").replace(
            "smic,s01,s01_ne_01,0\n", ""
        )
        + "casme2,sub04,EP12_01f,0\n\nDatabase,Subject,Clip,Class\nnonsense\n",
        encoding="utf-8",
    )
    after = read_composite(tmp_path)
    assert labels(after) == made.labels  # the sheets decide
    said = after.notes[len(before.notes) :]
    assert [
        f"line {len(made.labels) + 2}: 'Database," in said[0],
        "'nonsense' is not database,subject,clip,label" in said[1],
    ] == [True, True]
    assert said[2:] == [
        "casme2/sub04/EP12_01f: negative in combined_3class_gt.csv, left out here",
        "samm/006/006_1_2: positive in combined_3class_gt.csv, negative here",
        "smic/s01/s01_ne_01: not there in combined_3class_gt.csv, negative here",
    ]


@pytest.mark.parametrize(
    "gone, words",
    [
        ("CASME II", "casme2, a part.*no coding sheet"),
        ("SAMM", "samm, a part.*no coding sheet.*CASME2-coding.*another database"),
        ("SMIC", "smic, a part.*no folder"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, gone, words):
    make_composite(tmp_path, official=False)
    shutil.rmtree(tmp_path / gone)
    with pytest.raises(ValueError, match=words):
        read_composite(tmp_path)


# wrong doors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["casme2", "samm", "smic", "composite", "folder"])
@pytest.mark.parametrize("there", ["casme2", "samm", "smic"])
def test_the_root_of_another_database_is_recognised(tmp_path, wanted, there):
    {"casme2": make_casme2, "samm": make_samm, "smic": make_smic}[there](tmp_path)
    if wanted == there:
        assert read_database(tmp_path, wanted).name == there
        return
    with pytest.raises(ValueError, match=f"this looks like {there}: use --database {there}$"):
        read_database(tmp_path, wanted)


def test_own_folder_is_recognised_and_nothing_is_nothing(tmp_path):
    assert (
        looks_like("data_samples") == ["folder"]
        and looks_like(tmp_path) == looks_like(tmp_path / "no") == []
    )
    with pytest.raises(ValueError, match="this looks like folder"):
        read_database("data_samples", "smic")
    for name in READERS:
        for root in (tmp_path, tmp_path / "no"):
            with pytest.raises(ValueError) as caught:
                read_database(root, name)
            assert "looks like" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_sheet_of_another_database(tmp_path):
    make_casme2(tmp_path / "c")
    make_samm(tmp_path / "s")
    with pytest.raises(
        ValueError, match="no coding sheet of samm.*CASME2-coding-20140508.xlsx.*another database"
    ):
        read_samm(tmp_path / "s", sheet=tmp_path / "c/CASME2-coding-20140508.xlsx")
    (tmp_path / "s/SAMM_Micro_FACS_Codes_v2.xlsx").rename(
        tmp_path / "c/CASME2-coding-20140508.xlsx"
    )
    with pytest.raises(
        ValueError, match=r"no coding sheet of casme2.*\[MICRO_ONLY\] is of another database"
    ):
        read_casme2(tmp_path / "c")


def test_an_empty_sheet_and_one_that_is_no_workbook(tmp_path):
    book = tmp_path / "CASME2-coding-20140508.xlsx"
    make_casme2(tmp_path)
    whole = book.read_bytes()
    change_sheet(book, lambda sheet: sheet.delete_rows(2, 99))
    with pytest.raises(ValueError, match="has the headings but no row below them"):
        read_casme2(tmp_path)
    for content in (b"", b"Subject,Filename\n", whole[: len(whole) // 2]):
        book.write_bytes(content)
        with pytest.raises(ValueError, match="can't be read as an Excel workbook"):
            read_casme2(tmp_path)
    (tmp_path / "good.xlsx").write_bytes(whole)  # a broken file beside it does no harm
    assert len(read_casme2(tmp_path).clips) == 6


def test_repeated_rows(tmp_path):
    made = make_casme2(tmp_path)

    def repeat(sheet):
        rows = [[cell.value for cell in row] for row in sheet.iter_rows(min_row=2)]
        sheet.append(rows[0])
        sheet.append([*rows[0][:8], "surprise"])

    change_sheet(tmp_path / "CASME2-coding-20140508.xlsx", repeat)
    database = read_casme2(tmp_path)
    first = f"casme2/sub01/{casme2_rows()[0][1]}"
    assert labels(database) == made.labels
    assert [one.reason for one in database.excluded if one.clip_id == first] == [
        "row 13 of the sheet repeats this clip of row 2",
        "row 14 of the sheet repeats this clip of row 2 with other values; the first is used",
    ]


def test_names_with_blanks_and_letters_of_the_world(tmp_path):
    made = make_composite(tmp_path / "données für 微表情 (1)", official=False)
    assert labels(read_composite(made.root)) == made.labels


def test_a_folder_of_frames_that_is_not_there(tmp_path):
    made = make_samm(tmp_path)
    shutil.rmtree(tmp_path / "SAMM/006/006_1_2")
    database = read_samm(tmp_path)
    assert (
        reasons(database)["samm/006/006_1_2"] == "its folder of frames is missing"
        and len(database.clips) == made.clips - 1
    )
    with pytest.raises(ValueError, match="not a folder"):
        read_samm(tmp_path, frames=tmp_path / "nowhere")


@given(st.sampled_from(list(LAYOUTS)), st.integers(1, 99))
def test_every_spelling_of_a_subject_is_one(database, number):
    start = LAYOUTS[database][0]
    written = [
        str(number),
        f"{number:02d}",
        f"{number:03d}",
        f"{start}{number}",
        f"{start}{number:02d}",
    ]
    assert (
        len({subject_name(database, text) for text in written})
        == 1
        == len(
            {
                subject_name(database, subject_name(database, written[0])),
                subject_name(database, written[1]),
            }
        )
    )
