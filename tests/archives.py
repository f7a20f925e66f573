"""Look-alikes of CASME II, SAMM and SMIC-HS with their traps, every trap a keyword.

`official=True` gives their true sizes. No licensed file is in here.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import openpyxl

CLASSES = ("negative", "positive", "surprise")
LABELS = {
    "disgust": 0,
    "repression": 0,
    "anger": 0,
    "contempt": 0,
    "fear": 0,
    "sadness": 0,
    "happiness": 1,
    "surprise": 2,
}
CASME2_HEADINGS = [
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
SAMM_HEADINGS = [
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
NO_APEX, NO_MOTION = (
    ("sub04", "EP12_01f"),
    ("sub05", "EP09_05f"),
)  # of CASME II: apex '/', onset equal to apex
STRAYS = ("sub09/EP02_02f", "sub24/EP02_07")  # folders of CASME II without a row
FOUR_DIGITS = ("013_1_12", "013_1_8", "017_3_2", "026_1_1", "026_1_2", "035_7_2")  # clips of SAMM
CASME2_ODD = (("sub03", "EP01_2"), ("sub07", "EP06_02_01"), ("sub09", "EP09f"))
CASME2_OFFICIAL = {
    "others": 99,
    "disgust": 63,
    "happiness": 32,
    "repression": 27,
    "surprise": 25,
    "sadness": 7,
    "fear": 2,
}
SAMM_OFFICIAL = {
    "Anger": 57,
    "Contempt": 12,
    "Disgust": 9,
    "Fear": 8,
    "Sadness": 6,
    "Happiness": 26,
    "Surprise": 15,
    "Other": 26,
}
SMIC_OFFICIAL = {"negative": 70, "positive": 51, "surprise": 43}
SMIC_SHORT = {"negative": "ne", "positive": "po", "surprise": "sur"}
SAMM_SUBJECTS = [
    f"{n:03d}" for n in (*range(6, 8), *range(9, 25), 26, 28, *range(30, 38))
]  # and 025, all of whose clips are Other
SMIC_SUBJECTS = [f"s{n:02d}" for n in (1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 15, 18, 19, 20)]


@dataclass
class Made:
    "What was written: the folder, the 3-class label of every clip that counts, and the clips that don't."

    root: Path
    labels: dict[str, int] = field(default_factory=dict)  # clip_id -> label
    excluded: set[str] = field(default_factory=set)

    @property
    def clips(self) -> int:
        return len(self.labels)

    @property
    def subjects(self) -> int:
        return len({clip_id.rpartition("/")[0] for clip_id in self.labels})

    @property
    def by_class(self) -> dict[str, int]:
        found = Counter(self.labels.values())
        return {name: found[label] for label, name in enumerate(CLASSES)}


def picture(suffix=".jpg", size=8, value=128):
    "A file's bytes: one gray, `size` pixels square."
    return cv2.imencode(suffix, np.full((size, size, 3), value, np.uint8))[1].tobytes()


def write_frames(folder, names, pictures):
    "Write one file a name; `pictures` are bytes, used again from the first when they run out."
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(names):
        (folder / name).write_bytes(pictures[position % len(pictures)])


def key_frames(first, frames, position):
    "Numbers of the frames, and of onset, apex, offset. Clips differ in where they start."
    numbers = list(range(first + position % 40, first + position % 40 + frames))
    return numbers, numbers[0], numbers[frames // 2], numbers[-1]


def write_book(path, sheets):
    "A workbook; `sheets` is name -> rows of cells."
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for cells in rows:
            sheet.append(list(cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def spelled(digits, spelling, position):
    "A subject as text `01`, as a number 1, or, mixed, now as the one and now as the other."
    return digits if spelling == "text" or spelling == "mixed" and position % 2 else int(digits)


# CASME II -----------------------------------------------------------------------------------------


def casme2_rows(official=False):
    "(subject, name, emotion) of every row; the small set has each kind of row once."
    if not official:
        rows = [
            ("sub01", "EP02_01f", "happiness"),
            ("sub01", "EP03_02", "surprise"),
            *((*odd, "disgust") for odd in CASME2_ODD),
            ("sub02", "EP13_04", "sadness"),
            ("sub02", "EP02_01f", "disgust"),
            ("sub10", "EP01_01", "others"),
            ("sub18", "EP08_01", "fear"),
            (*NO_APEX, "disgust"),
            (*NO_MOTION, "repression"),
        ]
        return sorted(rows)
    kept = [
        emotion
        for emotion in ("disgust", "happiness", "repression", "surprise")
        for _ in range(CASME2_OFFICIAL[emotion])
    ]
    kept.remove("disgust"), kept.remove("repression")  # the two below
    subjects = [f"sub{n:02d}" for n in range(1, 27) if n not in (10, 18)]
    rows = [
        (subjects[i % 24], casme2_name(i - 1 if i and i < 29 and i % 2 == 0 else i), emotion)
        for i, emotion in enumerate(kept)
    ]  # 14 names are there twice
    for subject, name in CASME2_ODD:
        place = next(i for i, row in enumerate(rows) if row[0] == subject and i > 30)
        rows[place] = (subject, name, rows[place][2])
    left = [
        emotion
        for emotion in ("others", "sadness", "fear")
        for _ in range(CASME2_OFFICIAL[emotion])
    ]
    rows += [
        (f"sub{i % 26 + 1:02d}", casme2_name(300 + i), emotion) for i, emotion in enumerate(left)
    ]
    return sorted([*rows, (*NO_APEX, "disgust"), (*NO_MOTION, "repression")])


def casme2_name(number):
    return f"EP{1 + number // 20:02d}_{1 + number % 20:02d}{'f' * (number % 2)}"


def make_casme2(
    folder,
    official=False,
    subjects="text",
    preface=0,
    sheet="CASME2-coding-20140508.xlsx",
    nested=False,
    sets=("raw",),
    strays=True,
    lost_apexes=0,
    wrong_offset=False,
    sheet_only=False,
    frames=3,
    size=8,
    pictures=None,
    first=46,
) -> Made:
    """CASME II.

    `subjects` "text", "int" or "mixed" cells; `nested` the first folder twice; `sets` of "raw", "cropped";
    `strays` the two folders without a row; `lost_apexes` the copy whose first so many usable rows have no
    apex; `wrong_offset` one offset before its onset (the clip stays);
    `sheet_only` writes no frames.
    """
    made, lines, lost = Made(Path(folder)), [], 0
    pictures = pictures or [picture(".jpg", size)]
    sets = () if sheet_only else sets
    homes = {
        "raw": "CASME2_RAW_selected/CASME2_RAW_selected" if nested else "CASME2_RAW_selected",
        "cropped": "Cropped/Cropped" if nested else "Cropped",
    }
    for position, (subject, name, emotion) in enumerate(casme2_rows(official)):
        numbers, onset, apex, offset = key_frames(first, frames, position)
        usable = emotion in ("disgust", "repression", "happiness", "surprise") and (
            subject,
            name,
        ) not in (NO_APEX, NO_MOTION)
        if usable and lost < lost_apexes:
            lost, usable, apex = lost + 1, False, None
        if (subject, name) == NO_APEX:
            apex = "/"
        if (subject, name) == NO_MOTION:
            apex = onset
        if usable and wrong_offset:
            wrong_offset, offset = False, onset - 7
        units = (12, "4+L10", "?", "R1+2", 4)[position % 5]
        lines.append(
            [
                spelled(subject[3:], subjects, position),
                name,
                None,
                onset,
                apex,
                offset,
                None,
                units,
                emotion,
            ]
        )
        for kind in sets:
            write_frames(
                made.root / homes[kind] / subject / name,
                [f"{'reg_' * (kind == 'cropped')}img{n}.jpg" for n in numbers],
                pictures,
            )
        if usable:
            made.labels[f"casme2/{subject}/{name}"] = LABELS[emotion]
        else:
            made.excluded.add(f"casme2/{subject}/{name}")
    for stray in STRAYS if strays else ():
        for kind in sets:
            write_frames(
                made.root / homes[kind] / stray,
                [f"{'reg_' * (kind == 'cropped')}img{n}.jpg" for n in range(first, first + frames)],
                pictures,
            )
    write_book(made.root / sheet, {"Sheet1": [*[["CASME II"]] * preface, CASME2_HEADINGS, *lines]})
    return made


# SAMM ---------------------------------------------------------------------------------------------


def samm_rows(official=False):
    "(subject, name, emotion) of every row; 025 has nothing but Other."
    if not official:
        return [
            ("006", "006_1_2", "Anger"),
            ("006", "006_1_3", "Happiness"),
            ("007", "007_3_1", "Contempt"),
            ("013", "013_1_12", "Surprise"),
            ("013", "013_1_8", "Fear"),
            ("025", "025_3_1", "Other"),
            ("026", "026_1_1", "Sadness"),
            ("037", "037_3_1", "Other"),
        ]
    special = {name: name[:3] for name in FOUR_DIGITS}
    emotions = [
        emotion
        for emotion, count in SAMM_OFFICIAL.items()
        if emotion != "Other"
        for _ in range(count)
    ]
    kept = [SAMM_SUBJECTS[i % len(SAMM_SUBJECTS)] for i in range(len(emotions))]
    others = ["025"] * 5 + [SAMM_SUBJECTS[i] for i in range(SAMM_OFFICIAL["Other"] - 5)]
    rows, used = [], Counter()
    for subject, emotion in zip(kept + others, emotions + ["Other"] * len(others)):
        name = next(
            (name for name, owner in special.items() if owner == subject),
            f"{subject}_6_{used[subject] + 1}",
        )
        special.pop(name, None)
        used[subject] += 1
        rows.append((subject, name, emotion))
    return sorted(rows)


def make_samm(
    folder,
    official=False,
    subjects="text",
    preface=13,
    sheet="SAMM_Micro_FACS_Codes_v2.xlsx",
    title="MICRO_ONLY",
    other_sheets=True,
    formulas=True,
    nested=False,
    sets=("raw",),
    four_digits=True,
    frames=3,
    size=8,
    pictures=None,
    first=5562,
) -> Made:
    """SAMM.

    `preface` lines above the headings; `other_sheets` before and after the one that counts;
    `formulas` the Duration as a formula without a stored value;
    `four_digits` six clips whose file names have 4 digits, not 5;
    `sets` of "raw", "cropped" (folders SAMM and SAMM_CROP).
    """
    made, lines = Made(Path(folder)), []
    pictures = pictures or [picture(".jpg", size)]
    homes = {"raw": "SAMM/SAMM" if nested else "SAMM", "cropped": "SAMM_CROP"}
    for position, (subject, name, emotion) in enumerate(samm_rows(official)):
        numbers, onset, apex, offset = key_frames(first, frames, position)
        row = preface + 2 + position
        duration = f"=F{row}-D{row}+1" if formulas else offset - onset + 1
        lines.append(
            [
                spelled(subject, subjects, position),
                name,
                position % 7 + 1,
                onset,
                apex,
                offset,
                duration,
                "Micro - 1/2",
                (12, "4+R14", "A1B+2B")[position % 3],
                emotion,
                position % 5 + 1,
                None,
            ]
        )
        digits = 4 if four_digits and name in FOUR_DIGITS else 5
        for kind in sets:
            write_frames(
                made.root / homes[kind] / subject / name,
                [f"{subject}_{n:0{digits}d}.jpg" for n in numbers],
                pictures,
            )
        if emotion.lower() in LABELS:
            made.labels[f"samm/{subject}/{name}"] = LABELS[emotion.lower()]
        else:
            made.excluded.add(f"samm/{subject}/{name}")
    about = (
        {
            "READ ME": [["SAMM"], ["See the paper."]],
            "Emotions": [["Inducement Code", "Estimated Emotion"], [1, "Contempt"], [2, "Disgust"]],
        }
        if other_sheets
        else {}
    )
    after = (
        {"Classes": [["Objective Classes", "Action Units"], [1, "6, 12"]]} if other_sheets else {}
    )
    write_book(
        made.root / sheet,
        {
            **about,
            title: [*[[f"line {n} of the preface"] for n in range(preface)], SAMM_HEADINGS, *lines],
            **after,
        },
    )
    return made


# SMIC ---------------------------------------------------------------------------------------------


def smic_rows(official=False):
    "(subject, name, class) of every clip."
    counts, subjects = (
        (SMIC_OFFICIAL, SMIC_SUBJECTS)
        if official
        else ({"negative": 3, "positive": 2, "surprise": 2}, SMIC_SUBJECTS[:3])
    )
    places = enumerate(name for name, count in counts.items() for _ in range(count))
    used, rows = Counter(), []
    for position, name in places:
        subject = subjects[position % len(subjects)]
        used[subject, name] += 1
        rows.append((subject, f"{subject}_{SMIC_SHORT[name]}_{used[subject, name]:02d}", name))
    return sorted(rows)


def make_smic(
    folder,
    official=False,
    padded=True,
    suffix=".bmp",
    nested=False,
    sets=("raw",),
    cameras=False,
    non_micro=True,
    extended="no",
    frames=3,
    size=8,
    pictures=None,
    first=139224,
) -> Made:
    """SMIC-HS.

    `padded` False writes s1 and s1_ne_01; `nested` puts it in SMIC_all_raw/; `cameras` NIR and VIS lie beside HS;
    `non_micro` each subject has a folder of clips without expression; `extended` "beside" or "only": the 157
    longer clips of SMIC-E-HS; `sets` of "raw", "cropped".
    """
    made = Made(Path(folder))
    pictures = pictures or [picture(suffix, size)]
    homes = {kind: f"SMIC_all_{kind}/" if nested or len(sets) > 1 else "" for kind in sets}
    for position, (subject, name, kind_of) in enumerate(smic_rows(official)):
        numbers, *_ = key_frames(first, frames, position)
        short = subject if padded else f"s{int(subject[1:])}"
        written = short + name[len(subject) :]
        for kind in sets if extended != "only" else ():
            files = [f"{'reg_' * (kind == 'cropped')}image{n:06d}{suffix}" for n in numbers]
            for camera in ("HS", "NIR", "VIS") if cameras else ("HS",):
                write_frames(
                    made.root / homes[kind] / camera / short / "micro" / kind_of / written,
                    files,
                    pictures,
                )
            if non_micro:
                write_frames(
                    made.root / homes[kind] / "HS" / short / "non_micro" / f"{short}_n_01",
                    files[:1],
                    pictures,
                )
        if extended != "no" and (not official or position < 157):
            write_frames(
                made.root / "SMIC-E/SMIC-E-HS" / short / "micro" / kind_of / written,
                [f"image{n:06d}{suffix}" for n in range(numbers[0] - 5, numbers[-1] + 6)],
                pictures,
            )
        made.labels[f"smic/{subject}/{name}"] = CLASSES.index(kind_of)
    return made


# all of them --------------------------------------------------------------------------------------


def write_truth(path, labels):
    "The official list as it is spelled: no header, SAMM's subjects without zeros."
    rows = []
    for clip_id, label in labels.items():
        database, subject, name = clip_id.split("/")
        rows.append(f"{database},{int(subject) if database == 'samm' else subject},{name},{label}")
    path.write_text("\n".join(rows) + "\n")


def make_composite(
    folder, official=True, truth=False, casme2=None, samm=None, smic=None, **shared
) -> Made:
    """The three side by side; `casme2`, `samm`, `smic` are keywords for theirs, `shared` (frames, size) for all.

    `truth` adds combined_3class_gt.csv.
    """
    root, labels, excluded = Path(folder), {}, set()
    for make, name, own in (
        (make_casme2, "CASME II", casme2),
        (make_samm, "SAMM", samm),
        (make_smic, "SMIC", smic),
    ):
        part = make(root / name, official, **{**shared, **(own or {})})
        labels |= part.labels
        excluded |= part.excluded
    if truth:
        write_truth(root / "combined_3class_gt.csv", labels)
    return Made(root, labels, excluded)
