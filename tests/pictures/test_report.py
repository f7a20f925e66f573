"""The page says what the run's files say, needs nothing else, and trusts no name."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from frl_dgt_nb.data.clips import Exclusion
from frl_dgt_nb.data.databases import read_folder
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.pictures.report import (
    class_rows,
    excluded_rows,
    read_run,
    render_page,
    subject_rows,
    typical_clip,
    write_report,
)
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.settings import TrainConfig

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
ATTACK = "<img src=x onerror=alert(1)>"
NAMES = ("negative", "positive", "surprise")


class Page(HTMLParser):
    "What a browser would fetch, and the text it would show."

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.text, self.alts = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "data", "action", "background", "poster")
        ]
        self.alts += [dict(attributes).get("alt")] if tag == "img" else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "Two subjects, the name of one an attack; two epochs; two exclusions."
    home = tmp_path_factory.mktemp("report")
    database = read_folder(SAMPLES)
    subjects = sorted({clip.subject for clip in database.clips})[:2]
    clips = [
        replace(clip, subject=ATTACK if clip.subject == subjects[0] else clip.subject)
        for clip in database.clips
        if clip.subject in subjects
    ]
    excluded = [Exclusion("folder/x/1", "no <apex>"), Exclusion("folder/x/2", "no <apex>")]
    two = replace(
        database, clips=clips, excluded=excluded, root=home
    )  # no true displacements there
    store = prepare(two, home / "store", progress=False)
    run_loso(
        store,
        home / "run",
        model_config=SMALL,
        train_config=TrainConfig(epochs=2, pairs=2, batch_size=4),
        device="cpu",
        progress=False,
    )
    return home / "run", store, write_report(home / "run", store)


@pytest.fixture(scope="module")
def page(finished):
    return Page(finished[2].read_text(encoding="utf-8"))


def test_page_needs_nothing_else(finished, page):
    text = finished[2].read_text(encoding="utf-8")
    assert page.fetched
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not {"script", "link", "iframe", "object", "embed", "video"} & set(page.tags)
    words = re.sub(r"base64,[\w+/=]+", "", text)  # a picture's letters may spell anything
    assert len(words) < len(text)
    assert "url(" not in words
    assert "@import" not in words
    assert "http" not in words
    assert len(text) < 5e6


def test_page_says_what_the_files_say(finished, page):
    report = json.loads((finished[0] / "report.json").read_text())
    for key in ("uf1", "uar", "accuracy"):
        assert f"{report[key]:.3f}" in page.text
    for key in ("uf1", "uar"):
        assert f"{report['oracle'][key]:.3f}" in page.text
    assert f"{report['n_clips']} clips of {report['n_subjects']} subjects" in page.text
    for value in (*report["versions"].values(), *report["devices"]):
        assert value in page.text
    for subject in finished[1].index.subject_id.unique():
        assert subject in page.text
    assert "isn't a result" in " ".join(page.text.split())
    assert "batch_size 4" in page.text


def test_every_picture_is_described(page):
    assert len(page.alts) == 5
    assert all(page.alts)
    assert sum("of class" in alt for alt in page.alts) == 3


def test_names_are_text_and_not_markup(page):
    assert ATTACK in page.text
    assert page.tags.count("img") == 5
    assert "no <apex>" in page.text
    assert "folder/x/1, folder/x/2" in page.text


def test_page_is_made_again_from_the_files_alone(finished):
    run, store, path = finished
    before = path.read_bytes()
    path.unlink()
    assert write_report(str(run), store).read_bytes() == before


def test_another_store_is_refused(finished, tmp_path):
    run, store, _ = finished
    database = read_folder(SAMPLES)
    other = prepare(database.clips[-3:], tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="pass the store of that run"):
        write_report(run, other)


def test_an_unfinished_run_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="no finished run.*--resume"):
        read_run(tmp_path, finished[1])


def table(labels, chances):
    return pd.DataFrame(
        {"label": labels, "p_negative": chances, "p_positive": 0.0, "p_surprise": 0.0}
    )


@pytest.mark.parametrize(
    "chances, row",
    [([0.1, 0.2, 0.3], 1), ([0.3, 0.1, 0.2], 2), ([0.4, 0.1, 0.2, 0.3], 2), ([0.5], 0)],
)
def test_typical_clip_is_the_median(chances, row):
    assert typical_clip(table([0] * len(chances), chances), 0) == row


def test_typical_clip_does_not_look_at_success():
    "The rule sees the probability of the true class alone: the prediction may be anything."
    frame = table([0, 0, 0], [0.1, 0.2, 0.3])
    assert len({typical_clip(frame.assign(prediction=guess), 0) for guess in range(3)}) == 1
    assert typical_clip(frame, 1) is None


def test_class_rows_are_the_scores():
    matrix = [[237, 3, 10], [25, 76, 8], [12, 4, 67]]  # HTNet's stored predictions
    rows = class_rows(matrix, NAMES)
    assert np.mean([float(row[4]) for row in rows]) == pytest.approx(0.8313, abs=1e-3)
    assert np.mean([float(row[2]) for row in rows]) == pytest.approx(0.8175, abs=1e-3)
    assert [row[1] for row in rows] == [250, 109, 83]
    assert class_rows([[0, 1], [0, 0]], NAMES[:2])[1][2:] == ("-", "0.000", "0.000")


def test_subject_rows_count_hits():
    frame = pd.DataFrame(
        {"subject_id": ["a/1", "a/1", "a/2"], "label": [0, 2, 2], "prediction": [0, 1, 2]}
    )
    assert subject_rows(frame, NAMES) == [
        ("a/1", 2, 1, 0.5, "1/1", "-", "0/1"),
        ("a/2", 1, 1, 1.0, "-", "-", "1/1"),
    ]


def test_exclusions_are_grouped_and_none_is_lost():
    excluded = [
        {"clip": "a", "reason": "rare"},
        {"clip": "b", "reason": "others"},
        {"clip": "c", "reason": "others"},
    ]
    assert excluded_rows(excluded) == [("others", 2, "b, c"), ("rare", 1, "a")]
    assert excluded_rows([]) == []


def test_style_is_for_paper_too():
    assert "@media print" in render_page("style.css")


@pytest.mark.parametrize("inner", [None, {"uf1": 0.512, "uar": 0.634}])
def test_inner_scores_are_on_the_page_where_there_are_some(finished, tmp_path, inner):
    run, store, _ = finished
    shutil.copytree(run, tmp_path / "run")
    report = json.loads((run / "report.json").read_text()) | {"inner": inner}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    text = Page(write_report(tmp_path / "run", store).read_text(encoding="utf-8")).text
    assert ("Inner: UF1 0.512, UAR 0.634" in " ".join(text.split())) == bool(inner)
