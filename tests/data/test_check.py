"""The check against archives of known content: whole ones, and ones with each fault put in on purpose."""

import json
import re
import shutil
from dataclasses import asdict, replace

import cv2
import numpy as np
import openpyxl
import pandas as pd
import pytest
from archives import make_casme2, make_composite, make_samm, make_smic
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.data.archives import OFFICIAL, read_database
from frl_dgt_nb.data.check import check_database, count_parts, count_problems
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.data.problems import Problem, home_of, missing_frames, picture_problems

MAKERS = {"casme2": make_casme2, "samm": make_samm, "smic": make_smic, "composite": make_composite}


def check(root, database, **more):
    return check_database(root, database, progress=False, **more)


def told(found):
    "Problems as (path, done), without what counts say."
    return sorted((problem.path, problem.done) for problem in found.problems if problem.path != ".")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_composite(tmp_path_factory.mktemp("whole"), frames=3, size=8)


@pytest.fixture
def casme2(tmp_path):
    return make_casme2(tmp_path / "casme2").root


@pytest.fixture
def mine(tmp_path, samples_folder):
    "Two subjects of the samples."
    table = pd.read_csv(samples_folder / "clips.csv", dtype=str)
    table = table[table["subject"].isin(["s01", "s02"])]
    for subject in ("s01", "s02"):
        shutil.copytree(samples_folder / "frames" / subject, tmp_path / "mine/frames" / subject)
    table.to_csv(tmp_path / "mine/clips.csv", index=False)
    return tmp_path / "mine"


def test_a_whole_composite_is_clean(whole):
    found = check(whole.root, "composite")
    assert found.status == 0 and found.problems == [] and found.error == ""
    assert (
        (found.clips, found.subjects, found.by_class)
        == (whole.clips, whole.subjects, whole.by_class)
        == (442, 68, {"negative": 250, "positive": 109, "surprise": 83})
    )
    assert found.found == found.official == OFFICIAL
    assert (
        sum(sum(counts.values()) for counts in found.by_subject.values()) == 442
        and len(found.by_subject) == 68
    )
    assert sum(found.left_out.values()) == 99 + 7 + 2 + 1 + 1 + 26 + 2


@pytest.mark.parametrize("database", ["casme2", "samm", "smic"])
def test_a_part_of_it_is_clean_too(whole, database):
    found = check(whole.root, database)
    assert found.status == 0 and found.found == found.official == {database: OFFICIAL[database]}


@pytest.mark.parametrize("database", MAKERS)
@pytest.mark.parametrize("traps", [{}, dict(nested=True), dict(sets=("raw", "cropped"))], ids=str)
def test_small_look_alikes_have_the_counts_they_were_made_with(tmp_path, database, traps):
    if database == "composite":
        traps = dict(casme2=traps, samm=traps, smic=traps, official=False)
    made = MAKERS[database](tmp_path / "made", **traps)
    found = check(made.root, database)
    assert (found.clips, found.subjects, found.by_class) == (
        made.clips,
        made.subjects,
        made.by_class,
    )
    assert found.status == 1 and told(found) == []  # too few, and nothing else
    assert all(" instead of " in problem.what for problem in found.problems)


def test_other_schemes_of_classes_have_no_official_counts(tmp_path):
    make_casme2(tmp_path, official=True)
    # others 99 and, with 4 classes, sadness and fear; less the two that every copy lacks
    for classes, clips in ((4, 255 - 2), (5, 63 + 32 + 27 + 25 + 99 - 2)):
        found = check(tmp_path, "casme2", classes=classes)
        assert found.official == {} and found.status == 0 and found.clips == clips


def test_every_copy_lacks_the_same(casme2):
    found = check(casme2, "casme2")
    assert told(found) == [] and {
        "frames without a row in the sheet",
        "apex frame is '/', not a number",
    } <= set(found.left_out)
    shutil.rmtree(next(casme2.rglob("sub04/EP12_01f")))  # left out, but not for a missing folder
    assert told(check(casme2, "casme2")) == [("CASME2_RAW_selected/sub04/EP12_01f", "excluded")]


def clip_folder(root, name):
    return next(path for path in root.rglob(name) if path.is_dir())


def cut(folder, position):
    (path := sorted(folder.iterdir())[position]).write_bytes(path.read_bytes()[:-9])
    return path


FAULTS = {  # what is done to a clip's folder -> where it is told, what is said, what is done
    "cut short": (lambda folder: cut(folder, 1), "cut short", "excluded"),
    "empty": (
        lambda folder: sorted(folder.iterdir())[2].write_bytes(b""),
        "it is empty",
        "excluded",
    ),
    "text": (
        lambda folder: sorted(folder.iterdir())[0].write_text("hello"),
        "no image",
        "excluded",
    ),
    "another size": (
        lambda folder: cv2.imwrite(str(sorted(folder.iterdir())[2]), np.zeros((9, 9, 3), np.uint8)),
        "9x9 pixels, but its onset 8x8",
        "excluded",
    ),
    "apex gone": (
        lambda folder: sorted(folder.iterdir())[1].unlink(),
        "apex frame .* is not among",
        "excluded",
    ),
    "offset gone": (
        lambda folder: sorted(folder.iterdir())[2].unlink(),
        "offset frame .* is missing",
        "offset mended",
    ),
    "folder gone": (shutil.rmtree, "folder of frames is missing", "excluded"),
    "folder emptied": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "there must be frames",
        "excluded",
    ),
    "twice": (
        lambda folder: shutil.copy(path := sorted(folder.iterdir())[0], path.with_suffix(".png")),
        "is there twice",
        "excluded",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("database, name", [("casme2", "EP03_02"), ("samm", "006_1_3")])
def test_each_fault_is_told_with_its_place(tmp_path, fault, database, name):
    MAKERS[database](tmp_path)
    before = check(tmp_path, database)
    do, words, done = FAULTS[fault]
    folder = clip_folder(tmp_path, name)
    do(folder)
    found = check(tmp_path, database)
    (problem,) = [problem for problem in found.problems if problem.path != "."]
    assert (
        (tmp_path / problem.path == folder or (tmp_path / problem.path).parent == folder)
        and problem.clip_id.endswith(f"/{name}")
        and problem.done == done
    )
    assert (
        re.search(words, problem.what) and str(tmp_path) not in problem.what and found.status == 1
    )
    assert (
        before.clips - found.clips == (done == "excluded")
        and sum(found.by_class.values()) == found.clips
    )


def test_frames_lost_between_onset_and_offset(tmp_path):
    made = make_smic(tmp_path, frames=12)
    folder = clip_folder(tmp_path, "s01_ne_01")
    for position in (7, 3, 2):
        sorted(folder.iterdir())[position].unlink()
    (problem,) = [problem for problem in check(tmp_path, "smic").problems if problem.path != "."]
    assert (
        tmp_path / problem.path == folder
        and problem.done == "ignored"
        and "are missing between onset" in problem.what
    )
    assert check(tmp_path, "smic").clips == made.clips


def test_a_row_that_is_there_twice(casme2):
    path = next(casme2.rglob("*.xlsx"))
    book = openpyxl.load_workbook(path)
    rows = [[cell.value for cell in row] for row in book.active.iter_rows()]
    book.active.append(next(row for row in rows if "EP03_02" in row))
    book.save(path)
    before = check(make_casme2(casme2.parent / "other").root, "casme2")
    found = check(casme2, "casme2")
    assert (
        told(found) == [("CASME2_RAW_selected/sub01/EP03_02", "ignored")]
        and found.clips == before.clips
    )


def test_a_folder_without_a_row(casme2):
    shutil.copytree(clip_folder(casme2, "EP03_02"), casme2 / "CASME2_RAW_selected/sub01/EP99_99")
    assert told(check(casme2, "casme2")) == [("CASME2_RAW_selected/sub01/EP99_99", "ignored")]


def test_clips_lost_without_a_trace_show_in_the_counts(tmp_path):
    make_smic(tmp_path, official=True)
    shutil.rmtree(clip_folder(tmp_path, "s06"))
    found = check(tmp_path, "smic")
    (problem,) = found.problems
    assert (
        found.status == 1
        and problem.path == "."
        and "15 subjects instead of 16" in problem.what
        and "154 clips instead of 164" in problem.what
    )


def test_exclusions_that_explain_the_counts_are_told_once(tmp_path):
    make_samm(tmp_path, official=True)
    shutil.rmtree(clip_folder(tmp_path, "014"))
    found = check(tmp_path, "samm")
    assert (
        {problem.done for problem in found.problems} == {"excluded"}
        and found.clips + len(found.problems) == 133
        and found.subjects == 27
    )


def test_counts_that_exclusions_do_not_explain():
    official, good = {"smic": OFFICIAL["smic"]}, OFFICIAL["smic"]
    lost = [
        Problem("x", f"smic/s01/{n}", "", "excluded") for n in (1, 1, 2)
    ]  # two clips, one with two broken pictures
    assert count_problems({"smic": good}, official, []) == []
    assert count_problems({"smic": good | {"clips": 162, "negative": 68}}, official, lost) == []
    assert len(count_problems({"smic": good | {"clips": 161, "negative": 67}}, official, lost)) == 1
    assert len(count_problems({"smic": good | {"negative": 69, "positive": 52}}, official, [])) == 1
    assert "0 clips instead of 164" in count_problems({}, official, [])[0].what


def test_subjects_of_one_name_in_two_databases_are_two():
    rows = pd.DataFrame(
        [("a", "a/1", 0), ("a", "a/1", 1), ("b", "b/1", 1)],
        columns=["database", "subject_id", "label"],
    )
    assert count_parts(rows, "composite", ("x", "y")) == {
        "a": {"x": 1, "y": 1, "clips": 2, "subjects": 1},
        "b": {"x": 0, "y": 1, "clips": 1, "subjects": 1},
        "composite": {"x": 1, "y": 2, "clips": 3, "subjects": 2},
    }


def test_another_edition_of_the_sheet(tmp_path):
    made = make_casme2(tmp_path, official=True, lost_apexes=21, wrong_offset=True)
    found = check(tmp_path, "casme2")
    assert found.clips == made.clips == 145 - 21 and found.by_class == made.by_class
    assert sorted(problem.done for problem in found.problems) == ["excluded"] * 21 + [
        "offset mended"
    ]


def test_a_folder_of_ones_own(mine):
    found = check(mine, "folder")
    assert (
        found.status == 0
        and found.clips == 12
        and found.subjects == 2
        and found.official == {}
        and str(found).count("\n") < 12
    )
    shutil.copytree(mine / "frames/s01/c1", mine / "frames/s01/c1 (copy)")
    (mine / "frames/s02/c2").rename(mine / "frames/s02/C2.old")
    found = check(mine, "folder")
    assert told(found) == [
        ("frames/s01/c1 (copy)", "ignored"),
        ("frames/s02/C2.old", "ignored"),
        ("frames/s02/c2", "excluded"),
    ]


def test_prepare_uses_what_the_check_says_it_will(mine, tmp_path):
    frames = sorted((mine / "frames/s01/c2").iterdir())
    frames[0].write_bytes(frames[0].read_bytes()[:999])
    cv2.imwrite(str(sorted((mine / "frames/s02/c4").iterdir())[-1]), np.zeros((9, 9, 3), np.uint8))
    shutil.rmtree(mine / "frames/s02/c5")
    found, store = (
        check(mine, "folder"),
        prepare(read_folder(mine), tmp_path / "store", 64, progress=False),
    )
    assert found.clips == len(store) == 9 and {problem.clip_id for problem in found.problems} == {
        one.clip_id for one in store.excluded
    }
    assert found.by_subject == {
        subject: {
            name: int((rows["label"] == label).sum()) for label, name in enumerate(found.by_class)
        }
        for subject, rows in store.index.groupby("subject_id")
    }


def test_nothing_is_written(whole):
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.root.rglob("*"))
    check(whole.root, "smic")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in whole.root.rglob("*"))


@pytest.mark.parametrize("database", ["casme2", "samm", "smic", "composite", "folder", "flow"])
@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
def test_what_cannot_be_used_says_why(tmp_path, database, kind):
    root = tmp_path / "root"
    if kind != "missing":
        root.write_text("x") if kind == "a file" else root.mkdir()
    found = check(root, database)
    assert (
        found.status == 2
        and str(root) in found.error
        and found.error in str(found)
        and found.clips == 0
        and json.loads(found.to_json())["status"] == 2
    )


def test_a_copy_without_a_sound_clip(mine):
    for path in (mine / "frames").glob("*/*/*"):
        path.write_bytes(b"")
    found = check(mine, "folder")
    assert (
        found.status == 2
        and found.error == "none of its clips can be used"
        and len(found.problems) == 96
        and "and 66 more" in str(found)
        and str(found).count("it is empty") == 30
    )


def test_one_subject_is_not_enough(mine):
    table = pd.read_csv(mine / "clips.csv", dtype=str)
    table[table["subject"] == "s01"].to_csv(mine / "clips.csv", index=False)
    shutil.rmtree(mine / "frames/s02")
    found = check(mine, "folder")
    assert found.status == 2 and "one subject" in found.error and found.clips == 6


def test_a_class_without_a_clip_is_noted(mine):
    table = pd.read_csv(mine / "clips.csv", dtype=str)
    table.assign(emotion="happiness").to_csv(mine / "clips.csv", index=False)
    found = check(mine, "folder")
    assert (
        found.status == 0
        and len(found.notes) == 2
        and "no clip of the class surprise" in str(found)
    )


@pytest.mark.parametrize("bad", [dict(database="casme3"), dict(database="samm", classes=7)])
def test_mistakes_of_the_caller(tmp_path, bad):
    with pytest.raises(ValueError, match="there are"):
        check_database(tmp_path, **bad)


def test_json_holds_it_all(whole):
    found = check(whole.root, "samm")
    data = json.loads(found.to_json())
    assert (
        {"clips", "subjects", "by_class", "problems"} <= set(data)
        and data["clips"] == 133
        and data["subjects"] == 28
        and data["by_class"] == {"negative": 92, "positive": 26, "surprise": 15}
    )
    assert {name: value for name, value in data.items() if name != "status"} == json.loads(
        json.dumps(asdict(found))
    )


def test_the_report_is_short_and_plain(whole):
    text = str(check(whole.root, "composite"))
    assert (
        max(map(len, text.splitlines())) < 115
        and len(text.splitlines()) < 45
        and "\u00a0" not in text
    )
    assert [line.split() for line in text.splitlines() if line.startswith("composite ")][1:] == [
        ["composite", "found", "250", "109", "83", "442", "68"]
    ]


@pytest.fixture(scope="module")
def any_clip(sample_clips):
    return sample_clips.clips[0]


@settings(deadline=None)
@given(numbers=st.sets(st.integers(1, 60), min_size=3, max_size=60).map(sorted))
def test_missing_frames_are_the_complement(any_clip, numbers):
    moments = {"onset": numbers[0], "apex": numbers[1], "offset": numbers[-1]}
    frames = {"numbers": tuple(numbers), "frames": any_clip.frames[:1] * len(numbers)}
    parts = missing_frames(replace(any_clip, **moments, **frames)).split(", ")
    spans = [tuple(map(int, part.split("-"))) for part in parts if part]
    lost = {n for span in spans for n in range(span[0], span[-1] + 1)}
    assert lost == set(range(numbers[0], numbers[-1] + 1)) - set(numbers)
    assert all(later[0] > earlier[-1] + 1 for earlier, later in zip(spans, spans[1:]))


@pytest.mark.parametrize(
    "database, traps",
    [
        ("casme2", dict(nested=True)),
        ("samm", dict(nested=True)),
        ("smic", dict(padded=False)),
        ("smic", dict(cameras=True)),
    ],
)
def test_the_home_of_a_clip_holds_all_subjects(tmp_path, database, traps):
    clips = read_database(MAKERS[database](tmp_path, **traps).root, database).clips
    (home,) = {home_of(clip) for clip in clips}
    assert len({clip.frames[0].relative_to(home).parts[0] for clip in clips}) == len(
        {clip.subject for clip in clips}
    )


def test_notes_about_no_clip_are_no_problems(tmp_path):
    make_smic(tmp_path, official=True, extended="beside")
    found = check(tmp_path, "smic")
    assert (
        found.status == 0
        and ["SMIC-E-HS, not used" in note for note in found.notes] == [True]
        and found.notes[0] in str(found)
    )
    mended = check(make_casme2(tmp_path / "casme2", wrong_offset=True).root, "casme2")
    assert mended.notes == [] and [done for _, done in told(mended)] == ["offset mended"]


def test_a_clip_of_smic_is_found_where_it_lies(tmp_path):
    make_smic(tmp_path, padded=False)
    folder = clip_folder(tmp_path, "s1_ne_01")
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    found = check(tmp_path, "smic")
    assert told(found) == [(folder.relative_to(tmp_path).as_posix(), "excluded")]


def test_a_subject_nested_in_its_own_name_has_the_same_home(casme2):
    raw = casme2 / "CASME2_RAW_selected"
    (raw / "sub01").rename(raw / "inner")
    (raw / "inner").rename((raw / "sub01").mkdir() or raw / "sub01/sub01")
    (raw / "sub01/sub01/EP99_99").mkdir()
    clips = read_database(casme2, "casme2").clips
    assert {home_of(clip) for clip in clips} == {raw}
    assert told(check(casme2, "casme2")) == [("CASME2_RAW_selected/sub01/sub01/EP99_99", "ignored")]


def test_an_interrupt_ends_it_soon(whole, monkeypatch):
    opened = []

    def read(path):
        opened.append(path)
        raise KeyboardInterrupt if len(opened) == 5 else ValueError(f"{path} can't be read")

    monkeypatch.setattr("frl_dgt_nb.data.problems.read_image", read)
    with pytest.raises(KeyboardInterrupt):
        picture_problems(read_database(whole.root, "smic").clips, whole.root, progress=False)
    assert len(opened) < 300
