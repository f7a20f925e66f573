"""A run that is watched while it grows: oracles for what is shown, files in every state, and what each control does.
The page itself: test_pages.py."""

import asyncio
import json
import shutil
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import toy_store

from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.study.baselines import run_baseline
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.metrics import interval, scores, uar, uf1
from frl_dgt_nb.training.protocol import selection_table
from frl_dgt_nb.training.run_folder import fold_path
from frl_dgt_nb.training.settings import TrainConfig
from frl_dgt_nb.widgets import board as board_module
from frl_dgt_nb.widgets import run_watch as run_watch_module
from frl_dgt_nb.widgets.board import LosoBoard, cell_choices, clips_of_cell
from frl_dgt_nb.widgets.board_figure import (
    LOSSES,
    board_figure,
    board_still,
    draw_board,
    fold_losses,
)
from frl_dgt_nb.widgets.canvas import panel_title
from frl_dgt_nb.widgets.run_watch import (
    RunWatch,
    file_stamp,
    fold_rows,
    headline,
    read_whole,
    scores_so_far,
)

SMALL = ModelConfig(
    crop_size=4, patch=2, dim=4, heads=1, depth=1, full_size=4, dgm_size=8, dgm_width=1, dgm_depth=1
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("faces") / "toy", subjects=5)


@pytest.fixture(scope="module")
def done(store, tmp_path_factory):
    "A finished run."
    run = tmp_path_factory.mktemp("runs") / "done"
    run_loso(
        store,
        run,
        model_config=SMALL,
        train_config=TrainConfig(epochs=3, batch_size=4, pairs=3),
        device="cpu",
        threads=1,
        progress=False,
    )
    return run


@pytest.fixture
def growing(done, tmp_path):
    "A run of one fold."
    run = tmp_path / "run"
    (run / "folds").mkdir(parents=True)
    shutil.copy(done / "config.json", run)
    add(done, run, 1)
    return run


def subjects_of(run):
    return pd.read_parquet(run / "predictions.parquet").subject_id.unique().tolist()


def add(done, run, count):
    for subject in subjects_of(done)[:count]:
        for suffix in (".json", ".safetensors"):
            shutil.copy2(fold_path(done, subject, suffix), fold_path(run, subject, suffix))


def drawn(board):
    return {trace.name: trace for trace in board.figure.data}


def test_scores_so_far_are_those_of_the_clips_there_are(done, growing, store):
    "Against the run's own table, and the metrics."
    add(done, growing, 3)
    table, so_far = pd.read_parquet(done / "predictions.parquet"), scores_so_far(RunWatch(growing))
    part = table[table.subject_id.isin(subjects_of(done)[:3])]
    assert so_far["confusion"] == scores(part.label, part.prediction)["confusion"]
    assert so_far["n_clips"] == len(part)
    assert so_far["n_subjects"] == 3
    rows = RunWatch(growing).table
    assert sorted(rows.clip_id) == sorted(part.clip_id)
    for score in (uf1, uar):
        value, *ends = so_far[score.__name__]
        assert value == score(part.label, part.prediction)
        assert ends == list(interval(rows.label, rows.prediction, rows.subject_id, score))


def test_a_finished_run_shows_its_report(done):
    report, shown = json.loads((done / "report.json").read_text()), scores_so_far(RunWatch(done))
    for name in ("uf1", "uar"):
        assert shown[name][0] == report[name]
    for name in ("confusion", "n_clips"):
        assert shown[name] == report[name]
    rows = selection_table(done).query("selection == 'last' and over == 'clips'")
    table = rows.set_index("score")[["value", "low", "high"]]
    for name in ("uf1", "uar"):
        assert shown[name] == pytest.approx(tuple(table.loc[name]), abs=1e-12)
    board = LosoBoard(done)
    for text in (f"{report['uf1']:.3f}", f"{report['uar']:.3f}", "5 of 5 folds", "finished"):
        assert text in board.controls["headline"].value
    assert drawn(board)["UF1"].y[-1] == round(report["uf1"], 4)
    assert board.task is None


def test_the_reports_figures_win(done, tmp_path):
    "They are read, not computed again."
    run = shutil.copytree(done, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"uf1": 0.123}))
    assert scores_so_far(RunWatch(run))["uf1"][0] == 0.123


def test_a_report_of_more_folds_than_there_are_is_not_believed(done, tmp_path):
    run = shutil.copytree(done, tmp_path / "run")
    fold_path(run, subjects_of(run)[0]).unlink()
    watch = RunWatch(run)
    assert watch.report is None
    assert watch.total is None
    assert scores_so_far(watch)["n_subjects"] == 4


def test_a_new_fold_is_seen_and_only_that_is_read(done, growing, monkeypatch):
    watch, asked = RunWatch(growing), []

    def noted(path):
        asked.append(path.name)
        return read_whole(path)

    monkeypatch.setattr(run_watch_module, "read_whole", noted)
    assert not watch.read()
    assert asked in ([], ["report.json"])
    asked.clear()
    add(done, growing, 2)  # writes the first one, too, anew
    first, fresh = (fold_path(growing, subject).name for subject in subjects_of(done)[:2])
    assert watch.read()
    assert len(watch.folds) == 2
    assert asked.count(fresh) == 1
    assert set(asked) <= {first, fresh}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"subject_id": "toy/01"',
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"probabilities": []}',
        b'{"subject_id": "a", "clip_ids": ["a"], "labels": [0, 1], "probabilities": [[[1, 0, 0]]]}',
        b'{"probabilities": [[["x"]]], "clip_ids": [1], "labels": [1], "subject_id": 1}',
    ],
)
def test_what_is_not_whole_counts_as_absent(growing, content):
    "And is tried again."
    watch, extra = RunWatch(growing), growing / "folds/toy__99.json"
    extra.write_bytes(content)
    assert not watch.read()
    assert len(watch.folds) == 1
    assert scores_so_far(watch)["n_subjects"] == 1
    good = json.loads(next(growing.glob("folds/toy__0*.json")).read_text())
    extra.write_text(json.dumps(good | {"subject_id": "toy/99"}))
    assert watch.read()
    assert len(watch.folds) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000))
def test_a_file_cut_anywhere_is_no_fold(done, tmp_path_factory, at):
    whole = fold_path(done, subjects_of(done)[0]).read_bytes()
    path = tmp_path_factory.mktemp("cut") / "fold.json"
    path.write_bytes(whole[: at % len(whole)])
    assert read_whole(path) is None


def test_a_fold_that_is_gone_is_forgotten(done, growing):
    add(done, growing, 2)
    watch = RunWatch(growing)
    fold_path(growing, subjects_of(done)[0]).unlink()
    assert watch.read()
    assert len(watch.folds) == 1


def test_a_fold_trained_again_is_read_again(done, growing):
    watch, path = RunWatch(growing), fold_path(growing, subjects_of(done)[0])
    fold = json.loads(path.read_text())
    other = [(label + 1) % 3 for label in fold["labels"]]
    path.write_text(json.dumps(fold | {"labels": other}))
    assert watch.read()
    assert list(watch.table.label) == other


def test_the_last_epoch_counts():
    fold = {
        "subject_id": "a",
        "clip_ids": ["a/1"],
        "labels": [0],
        "probabilities": [[[0.9, 0.1, 0]], [[0.2, 0.1, 0.7]]],
    }
    assert fold_rows(fold).iloc[0][["prediction", "confidence"]].tolist() == [2, 0.7]


def test_nothing_is_written_or_locked(done, tmp_path):
    run = shutil.copytree(done, tmp_path / "run")
    before = {path: file_stamp(path) for path in run.rglob("*")}
    board = LosoBoard(run)
    board.refresh()
    board.still()
    assert before == {path: file_stamp(path) for path in run.rglob("*")}


def test_how_many_folds_there_will_be(growing, store):
    watch = RunWatch(growing)
    assert watch.total is None
    assert "1 folds done · 3 of 15 clips" in headline(watch, scores_so_far(watch))
    assert RunWatch(growing, store).total == 5
    assert "1 of 5 folds" in headline(RunWatch(growing, store), None)


def test_a_fold_that_was_begun_is_named(growing):
    (growing / "logs/toy__02").mkdir(parents=True)
    watch = RunWatch(growing)
    assert watch.begun == ["toy/02"]
    assert "begun: toy/02" in headline(watch, None)


def test_before_the_first_fold(tmp_path, store):
    "No config yet, nothing done."
    (tmp_path / "folds").mkdir()
    board = LosoBoard(tmp_path, store)
    assert "0 of 5 folds" in board.controls["headline"].value
    assert board.controls["clips"].options == ()
    assert board.still()
    assert fold_losses(board.watch) == ("no fold is done yet", {})


def test_bad_input(tmp_path, store, done):
    with pytest.raises(ValueError, match="holds no run"):
        LosoBoard(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        LosoBoard(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="made on other clips"):
        LosoBoard(done, toy_store(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="above zero"):
        LosoBoard(done, every=0)


@pytest.fixture
def filled(done):
    "A finished run, and the traces of a figure that shows it."
    watch, figure = RunWatch(done), board_figure(widget=False)
    draw_board(watch, scores_so_far(watch), figure)
    return watch, {trace.name: trace for trace in figure.data}


def test_every_loss_is_drawn_and_their_mean(filled):
    watch, traces = filled
    losses = [[epoch["classification"] for epoch in fold["losses"]] for fold in watch.folds]
    lines = np.array(traces["fold losses"].y, float).reshape(5, 4)
    assert np.isnan(lines[:, 3]).all()  # gaps
    assert np.allclose(lines[:, :3], losses, atol=1e-4)
    assert np.allclose(traces["mean loss"].y, np.mean(losses, 0), atol=1e-4)
    *folds, mean = board_still(watch).axes[0].lines
    assert np.allclose([line.get_ydata() for line in folds], losses)
    assert np.allclose(mean.get_ydata(), np.mean(losses, 0))


def test_the_scores_after_each_fold_and_the_interval(filled):
    watch, traces = filled
    rows, subjects = watch.table, [fold["subject_id"] for fold in watch.folds]
    for count, drawn_score in enumerate(traces["UF1"].y, start=1):
        part = rows[rows.subject_id.isin(subjects[:count])]
        assert drawn_score == pytest.approx(uf1(part.label, part.prediction), abs=1e-4)
    value, low, high = scores_so_far(watch)["uf1"]
    bar = traces["interval"]
    assert bar.visible
    assert list(bar.x) == [5]
    ends = [bar.y[0], bar.error_y.array[0], bar.error_y.arrayminus[0]]
    assert ends == pytest.approx([value, high - value, value - low], abs=1e-4)


def test_the_matrix_counts(filled):
    watch, traces = filled
    texts = traces["confusion"].text
    counts = [[int(text.split("<br>")[0]) for text in row] for row in texts]
    assert counts == scores_so_far(watch)["confusion"]


def test_folds_that_trained_for_different_times(done, growing):
    "A curve ends where its training ended."
    add(done, growing, 2)
    path = fold_path(growing, subjects_of(done)[1])
    fold = json.loads(path.read_text())
    path.write_text(json.dumps(fold | {"losses": fold["losses"][:1]}))
    board = LosoBoard(growing)
    assert len(drawn(board)["mean loss"].y) == 3
    assert sum(y is not None for y in drawn(board)["fold losses"].y) == 4


def test_mistakes_surest_first(done):
    watch = RunWatch(done)
    table = watch.table.set_index("clip_id")
    wrong = table[table.label != table.prediction]
    clips = [clip for _, clip in clips_of_cell(watch)]
    assert sorted(clips) == sorted(wrong.index)
    assert wrong.confidence[clips].is_monotonic_decreasing


def test_the_clips_of_every_cell(done):
    watch, table = RunWatch(done), pd.read_parquet(done / "predictions.parquet")
    for true in range(3):
        for predicted in range(3):
            part = table[(table.label == true) & (table.prediction == predicted)]
            clips = {clip for _, clip in clips_of_cell(watch, 3 * true + predicted)}
            assert clips == set(part.clip_id)


def test_cells_are_offered_fullest_mistakes_first():
    choices = cell_choices([[9, 2, 0], [3, 8, 1], [0, 0, 7]])
    assert [number for _, number in choices] == [-1, 3, 1, 5, 2, 6, 7, 0, 4, 8]
    assert choices[1][0] == "positive → negative (3)"


def test_refresh_shows_the_new_folds(done, growing, store):
    board = LosoBoard(growing, store)
    assert board.controls["live"].value is False  # no event loop in a test
    add(done, growing, 4)
    assert len(drawn(board)["UF1"].y) == 1
    board.controls["refresh"].click()
    assert len(drawn(board)["UF1"].y) == 4
    assert "4 of 5 folds" in board.controls["headline"].value


def test_a_cell_lists_its_clips(done):
    board = LosoBoard(done)
    cell = board.controls["cell"].options[1][1]
    board.controls["cell"].value = cell
    assert list(board.controls["clips"].options) == clips_of_cell(board.watch, cell)
    points = SimpleNamespace(xs=["surprise"], ys=["negative"])
    drawn(board)["confusion"]._dispatch_on_click(points, None)
    assert board.controls["cell"].value == 2


def test_a_clip_opens_in_one_inspector(done, growing, store):
    add(done, growing, 4)
    board = LosoBoard(growing, store)
    clips = board.controls["clips"]
    _, clip = clips.options[1]
    clips.value = clip
    inspector = board.inspector
    assert inspector.scene.clip["clip_id"] == clip
    assert board.beside.children == (inspector,)
    assert inspector.scene.view.model is not None  # of the clip's fold
    add(done, growing, 5)
    board.controls["refresh"].click()
    assert clips.value == clip  # a refresh disturbs nobody
    other = next(each for _, each in clips.options if each != clip)
    clips.value = other
    assert board.inspector is inspector
    assert inspector.scene.clip["clip_id"] == other


def test_without_faces_a_click_is_answered_in_words(done):
    board = LosoBoard(done)
    board.controls["clips"].value = board.controls["clips"].options[0][1]
    assert "store=" in board.status.value
    assert not board.beside.children


def test_a_baseline(store, tmp_path):
    "Without losses, without a displacement module: the motion alone."
    run_baseline(store, tmp_path / "run", "bi-woof", device="cpu", progress=False)
    board = LosoBoard(tmp_path / "run", store)
    assert "no losses" in panel_title(board.figure, LOSSES).text
    assert "finished" in board.controls["headline"].value
    board.controls["clips"].value = board.controls["clips"].options[0][1]
    assert "motion alone" in board.status.value
    assert board.inspector.scene.view.model is None


def test_looks_by_itself_until_the_run_is_finished(done, growing):
    async def watch():
        board = LosoBoard(growing, every=0.01)
        assert board.controls["live"].value
        assert not board.task.done()
        add(done, growing, 5)
        await asyncio.sleep(0.3)
        seen = len(board.watch.folds)
        for name in ("predictions.parquet", "report.json"):
            shutil.copy(done / name, growing)
        await asyncio.wait_for(board.task, 10)
        return seen, board

    seen, board = asyncio.run(watch())
    assert seen == 5
    assert board.controls["live"].value is False
    assert "finished" in board.controls["headline"].value


def test_stops_looking_when_told(growing, done):
    async def watch():
        board = LosoBoard(growing, every=0.01)
        board.controls["live"].value = False
        await asyncio.sleep(0.05)
        add(done, growing, 3)
        await asyncio.sleep(0.1)
        return board

    board = asyncio.run(watch())
    assert board.task is None
    assert len(board.watch.folds) == 1


def test_told_twice_it_looks_once(growing):
    async def watch():
        board = LosoBoard(growing, every=0.01)
        old = board.task
        board.controls["live"].value = False
        board.controls["live"].value = True
        await asyncio.sleep(0.1)
        return old.done(), board.task.done()

    assert asyncio.run(watch()) == (True, False)


def test_a_failing_look_is_told_and_not_the_last(growing, monkeypatch):
    def fail(watch):
        raise OSError("the network drive is away")

    async def watch():
        board = LosoBoard(growing, every=0.01)
        monkeypatch.setattr(board_module, "scores_so_far", fail)
        (growing / "logs/toy__09").mkdir(parents=True)
        await asyncio.sleep(0.2)
        return board, board.task.done()

    board, over = asyncio.run(watch())
    assert "network drive" in board.status.value
    assert not over


def test_a_still_where_no_kernel_is(done):
    assert {"image/jpeg", "text/plain"} <= LosoBoard(done)._repr_mimebundle_().keys()


def test_fold_rows_is_none_for_what_is_no_fold():
    fold = {"probabilities": [[[1.0, 0, 0]]], "labels": [0], "subject_id": "x"}
    assert fold_rows({}) is None
    assert fold_rows(fold | {"clip_ids": ["a", "b"]}) is None
    assert fold_rows(fold | {"clip_ids": ["a"]}) is not None


def test_read_in_a_cell_while_the_page_is_answered(growing):
    "Two threads look at one board, and neither sees it half read."
    board, failed = LosoBoard(growing), []

    def look():
        try:
            for _ in range(100):
                board.shown = None  # something new
                board.refresh()
                assert board.watch.folds
        except Exception as error:
            failed.append(error)

    lookers = [Thread(target=look) for _ in range(2)]
    for each in lookers:
        each.start()
    for each in lookers:
        each.join()
    assert not failed
