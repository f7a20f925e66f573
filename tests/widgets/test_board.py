"""A run that is watched while it grows: oracles for what is shown, files in every state, and what each control does.
The page itself: test_pages.py."""

import asyncio
import json
import shutil
from threading import Thread

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
from frl_dgt_nb.widgets.board import LosoBoard, clips_of_cell
from frl_dgt_nb.widgets.board_figure import board_figure, board_still, draw_board, fold_losses
from frl_dgt_nb.widgets.canvas import panel_title
from frl_dgt_nb.widgets.run_watch import RunWatch, fold_rows, headline, read_whole, scores_so_far

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
    table, found = pd.read_parquet(done / "predictions.parquet"), scores_so_far(RunWatch(growing))
    part = table[table.subject_id.isin(subjects_of(done)[:3])]
    assert (
        found["confusion"] == scores(part.label, part.prediction)["confusion"]
        and found["n_clips"] == len(part)
        and found["n_subjects"] == 3
    )
    by_name = part.sort_values("clip_id")
    for score in (uf1, uar):
        value, low, high = found[score.__name__]
        assert value == score(part.label, part.prediction)
        assert low <= value <= high or (low, high) != (low, low)
    rows = RunWatch(growing).table
    assert found["uf1"][1:] == interval(rows.label, rows.prediction, rows.subject_id, uf1)
    assert sorted(rows.clip_id) == list(by_name.clip_id)


def test_a_finished_run_shows_its_report(done, store):
    report, shown = json.loads((done / "report.json").read_text()), scores_so_far(RunWatch(done))
    assert (shown["uf1"][0], shown["uar"][0], shown["confusion"], shown["n_clips"]) == tuple(
        report[name] for name in ("uf1", "uar", "confusion", "n_clips")
    )
    table = (
        selection_table(done).query("selection == 'last' and over == 'clips'").set_index("score")
    )
    for name in ("uf1", "uar"):
        assert shown[name] == pytest.approx(
            tuple(table.loc[name, ["value", "low", "high"]]), abs=1e-12
        )
    board = LosoBoard(done)
    told = board.controls["headline"].value
    assert (
        f"{report['uf1']:.3f}" in told
        and f"{report['uar']:.3f}" in told
        and "5 of 5 folds" in told
        and "finished" in told
    )
    assert drawn(board)["UF1"].y[-1] == round(report["uf1"], 4) and board.task is None


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
    assert watch.report is None and scores_so_far(watch)["n_subjects"] == 4 and watch.total is None


def test_a_new_fold_is_seen_and_only_that_is_read(done, growing, monkeypatch):
    from frl_dgt_nb.widgets import run_watch as watching

    watch, asked = RunWatch(growing), []
    monkeypatch.setattr(
        watching, "read_whole", lambda path: asked.append(path.name) or read_whole(path)
    )
    assert not watch.read() and asked in ([], ["report.json"])
    add(done, growing, 2)
    asked.clear()
    fresh = fold_path(growing, subjects_of(done)[1])
    assert (
        watch.read()
        and len(watch.folds) == 2
        and asked.count(fresh.name) == 1
        and set(asked) <= {fresh.name, fold_path(growing, subjects_of(done)[0]).name}
    )


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
    assert not watch.read() and len(watch.folds) == 1 and scores_so_far(watch)["n_subjects"] == 1
    good = json.loads(next(growing.glob("folds/toy__0*.json")).read_text())
    extra.write_text(json.dumps(good | {"subject_id": "toy/99"}))
    assert watch.read() and len(watch.folds) == 2


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
    assert watch.read() and len(watch.folds) == 1


def test_a_fold_trained_again_is_read_again(done, growing):
    watch, path = RunWatch(growing), fold_path(growing, subjects_of(done)[0])
    fold = json.loads(path.read_text())
    path.write_text(json.dumps(fold | {"labels": [(label + 1) % 3 for label in fold["labels"]]}))
    assert watch.read() and list(watch.table.label) == [(label + 1) % 3 for label in fold["labels"]]


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
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    board = LosoBoard(run)
    board.refresh()
    board.still()
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")
    }


def test_how_many_folds_there_will_be(growing, store):
    assert RunWatch(growing).total is None and RunWatch(growing, store).total == 5
    assert "1 folds done · 3 of 15 clips" in headline(
        RunWatch(growing), scores_so_far(RunWatch(growing))
    )
    assert "1 of 5 folds" in headline(RunWatch(growing, store), None)
    (growing / "logs/toy__02").mkdir(parents=True)
    assert RunWatch(growing).begun == ["toy/02"] and "begun: toy/02" in headline(
        RunWatch(growing), None
    )


def test_before_the_first_fold(tmp_path, store):
    "No config yet, nothing done."
    (tmp_path / "folds").mkdir()
    board = LosoBoard(tmp_path, store)
    assert (
        "0 of 5 folds" in board.controls["headline"].value and board.controls["clips"].options == ()
    )
    assert board.still() and fold_losses(board.watch)[1] == {}


def test_bad_input(tmp_path, store, done):
    with pytest.raises(ValueError, match="holds no run"):
        LosoBoard(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        LosoBoard(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="made on other clips"):
        LosoBoard(done, toy_store(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="above zero"):
        LosoBoard(done, every=0)


def test_what_is_drawn(done):
    "Every loss, their mean, the scores after each fold, the counts."
    watch, figure = RunWatch(done), board_figure(widget=False)
    draw_board(watch, scores_so_far(watch), figure)
    traces, folds = {trace.name: trace for trace in figure.data}, watch.folds
    losses = np.array([[epoch["classification"] for epoch in fold["losses"]] for fold in folds])
    shown = np.array(traces["fold losses"].y, float).reshape(5, 4)
    assert np.isnan(shown[:, 3]).all() and np.allclose(shown[:, :3], losses, atol=1e-4)
    assert np.allclose(traces["mean loss"].y, losses.mean(0), atol=1e-4)
    rows = watch.table
    after = [
        uf1(
            *rows[rows.subject_id.isin([fold["subject_id"] for fold in folds[:k]])][
                ["label", "prediction"]
            ]
            .to_numpy()
            .T
        )
        for k in range(1, 6)
    ]
    assert np.allclose(traces["UF1"].y, after, atol=1e-4)
    value, low, high = scores_so_far(watch)["uf1"]
    now = traces["interval"]
    assert (
        np.allclose(
            [now.x[0], now.y[0], now.error_y.array[0], now.error_y.arrayminus[0]],
            [5, value, high - value, value - low],
            atol=1e-4,
        )
        and now.visible
        and len(now.x) == 1
    )
    counts = [[int(text.split("<br>")[0]) for text in row] for row in traces["confusion"].text]
    assert counts == scores_so_far(watch)["confusion"]
    assert len(board_still(watch).axes[0].lines) == 5


def test_folds_that_trained_for_different_times(done, growing):
    "A curve ends where its training ended."
    add(done, growing, 2)
    path = fold_path(growing, subjects_of(done)[1])
    fold = json.loads(path.read_text())
    path.write_text(json.dumps(fold | {"losses": fold["losses"][:1]}))
    board = LosoBoard(growing)
    assert (
        len(drawn(board)["mean loss"].y) == 3
        and sum(y is not None for y in drawn(board)["fold losses"].y) == 4
    )


def test_mistakes_surest_first(done):
    watch, table = RunWatch(done), pd.read_parquet(done / "predictions.parquet")
    wrong = table[table.label != table.prediction]
    sure = wrong.filter(regex="^p_").max(axis=1)
    assert [clip for _, clip in clips_of_cell(watch)] == list(
        wrong.clip_id[sure.sort_values(ascending=False, kind="stable").index]
    ) or len(set(sure)) < len(sure)
    assert {clip for _, clip in clips_of_cell(watch)} == set(wrong.clip_id)
    for true in range(3):
        for said in range(3):
            assert {clip for _, clip in clips_of_cell(watch, 3 * true + said)} == set(
                table.clip_id[(table.label == true) & (table.prediction == said)]
            )


def test_controls(done, growing, store):
    board = LosoBoard(growing, store)
    assert board.controls["live"].value is False  # no event loop in a test
    add(done, growing, 4)
    assert len(drawn(board)["UF1"].y) == 1
    board.controls["refresh"].click()
    assert len(drawn(board)["UF1"].y) == 4 and "4 of 5 folds" in board.controls["headline"].value
    cell = board.controls["cell"].options[1][1]
    board.controls["cell"].value = cell
    assert list(board.controls["clips"].options) == clips_of_cell(board.watch, cell)
    names = ["negative", "positive", "surprise"]
    board.choose_cell(type("Points", (), {"xs": [names[2]], "ys": [names[0]]}))
    assert board.controls["cell"].value == 2
    board.controls["cell"].value = -1
    clip = board.controls["clips"].options[1][1]
    board.controls["clips"].value = clip
    assert board.inspector.scene.clip["clip_id"] == clip and board.beside.children == (
        board.inspector,
    )
    assert board.inspector.scene.view.model is not None  # of the clip's fold
    inspector = board.inspector
    add(done, growing, 5)
    board.controls["refresh"].click()
    assert (
        board.controls["clips"].value == clip and board.inspector is inspector
    )  # a refresh disturbs nobody
    board.controls["clips"].value = other = next(
        each for _, each in board.controls["clips"].options if each != clip
    )
    assert board.inspector is inspector and inspector.scene.clip["clip_id"] == other


def test_without_faces_a_click_is_answered_in_words(done):
    board = LosoBoard(done)
    board.controls["clips"].value = board.controls["clips"].options[0][1]
    assert "store=" in board.status.value and not board.beside.children


def test_a_baseline(store, tmp_path):
    "Without losses, without a displacement module: the motion alone."
    run_baseline(store, tmp_path / "run", "bi-woof", device="cpu", progress=False)
    board = LosoBoard(tmp_path / "run", store)
    assert (
        "no losses" in panel_title(board.figure, "").text
        and "finished" in board.controls["headline"].value
    )
    board.controls["clips"].value = board.controls["clips"].options[0][1]
    assert "motion alone" in board.status.value and board.inspector.scene.view.model is None


def test_looks_by_itself_until_the_run_is_finished(done, growing):
    async def watch():
        board = LosoBoard(growing, every=0.01)
        assert board.controls["live"].value and not board.task.done()
        add(done, growing, 5)
        await asyncio.sleep(0.3)
        seen = len(board.watch.folds)
        for name in ("predictions.parquet", "report.json"):
            shutil.copy(done / name, growing)
        await asyncio.wait_for(board.task, 10)
        return seen, board

    seen, board = asyncio.run(watch())
    assert (
        seen == 5
        and board.controls["live"].value is False
        and "finished" in board.controls["headline"].value
    )


def test_stops_looking_when_told(growing, done):
    async def watch():
        board = LosoBoard(growing, every=0.01)
        board.controls["live"].value = False
        await asyncio.sleep(0.05)
        add(done, growing, 3)
        await asyncio.sleep(0.1)
        return board

    board = asyncio.run(watch())
    assert board.task is None and len(board.watch.folds) == 1


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
    async def watch():
        board = LosoBoard(growing, every=0.01)
        monkeypatch.setattr(
            board_module,
            "scores_so_far",
            lambda _: (_ for _ in ()).throw(OSError("the network drive is away")),
        )
        (growing / "logs/toy__09").mkdir(parents=True)
        await asyncio.sleep(0.2)
        return board, board.task.done()

    board, over = asyncio.run(watch())
    assert "network drive" in board.status.value and not over


def test_a_still_where_no_kernel_is(done):
    assert {"image/jpeg", "text/plain"} <= LosoBoard(done)._repr_mimebundle_().keys()


def test_fold_rows_is_none_for_what_is_no_fold():
    assert (
        fold_rows({}) is None
        and fold_rows(
            {
                "probabilities": [[[1.0, 0, 0]]],
                "clip_ids": ["a", "b"],
                "labels": [0],
                "subject_id": "x",
            }
        )
        is None
    )


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
