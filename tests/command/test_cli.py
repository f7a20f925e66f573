"""The command, used rightly and, mostly, wrongly: status 2, one line, no traceback."""

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import frl_dgt_nb
from frl_dgt_nb.command import cli
from frl_dgt_nb.command.cli import main
from frl_dgt_nb.command.recordings import sparkline
from frl_dgt_nb.command.sources import default_store
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Two subjects of the samples as a database, one row of it without frames, and weights that learnt nothing."
    home = tmp_path_factory.mktemp("cli")
    clips = pd.read_csv(SAMPLES / "clips.csv", dtype=str)
    subjects = sorted(clips.subject.unique())[:2]
    for subject in subjects:
        shutil.copytree(SAMPLES / "frames" / subject, home / "data/frames" / subject)
    kept = clips[clips.subject.isin(subjects)]
    pd.concat([kept, kept.tail(1).assign(name="lost")]).to_csv(home / "data/clips.csv", index=False)
    save_weights(FRLDGT(SMALL), home / "weights.safetensors")
    return home


@pytest.fixture(scope="module")
def pair(home):
    "Raw onset and apex of a clip."
    row = pd.read_csv(home / "data/clips.csv", dtype=str).iloc[0]
    frames = {
        int(path.stem): path
        for path in (home / "data/frames" / row.subject / row["name"]).iterdir()
    }
    return frames[int(row.onset)], frames[int(row.apex)]


@pytest.fixture(scope="module")
def finished(home):
    "A run of the command with a preset of two epochs."
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "mini", SMALL)
        patch.setitem(TRAIN_PRESETS, "mini", TrainConfig(epochs=2, pairs=2, batch_size=4))
        yield loso(home, home / "run"), home / "run"


def run(line, **paths):
    "The status of a command. Names in braces are paths, which may hold blanks."
    return main([word.format(**paths) for word in line.split()])


LOSO = "loso --data {data} --database folder --preset mini --device cpu --out {out} "


def loso(home, out, more=""):
    return run(LOSO + more, data=home / "data", out=out)


def wrong(capsys, line, **paths):
    "The one line that a wrong command says."
    assert run(line, **paths) == 2
    said = capsys.readouterr()
    (last,) = said.err.strip().splitlines()[-1:]
    assert last.startswith("frl-dgt: ") and "Traceback" not in said.err and not said.out
    return last


def test_help_needs_no_torch():
    code = """
        import sys
        from frl_dgt_nb.command.cli import make_parser
        make_parser().format_help()
        print({"torch", "kornia", "pandas", "cv2"} & set(sys.modules))
    """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "line", [*(f"{word} --help" for word in cli.COMMANDS), "--help", "--version"]
)
def test_help_and_version(line, capsys):
    with pytest.raises(SystemExit) as stop:
        run(line)
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "frl-dgt" in out
    assert "<class" not in out and "Literal" not in out


def test_a_command_is_not_called_like_the_function_of_the_package():
    "Or the parser would look them up there, and load torch for a line of help."
    for command in cli.COMMANDS.values():
        assert command.__name__ not in frl_dgt_nb.__all__


@pytest.mark.parametrize(
    "line, words",
    [
        ("", "want a command, one of {check,prepare,loso,compare,spot"),
        ("train", "invalid choice: 'train'"),
        ("loso", "required: --data, --database, --out"),
        ("predict a.jpg", "required: --weights"),
        ("predict --weights w.safetensors", "w.safetensors"),
        ("check", "required: database, root"),
        ("check smik x", "invalid choice: 'smik'"),
        ("check folder x --classes 2", "--classes"),
        ("compare one", "required: other"),
        ("spot", "required: clip"),
        ("spot x --method phase", "--method: Expected one of ['strain', 'regions']"),
        (
            "loso --data x --database smik --out y",
            "--database: Expected one of ['casme2', 'samm', 'smic', 'composite', 'flow', 'folder']. Got value: smik",
        ),
        (
            "loso --data x --database folder --out y --spot some",
            "--spot: Expected one of ['none', 'missing', 'all']",
        ),
        (
            "loso --data x --database folder --out y --inner -1",
            "--inner: want a whole number, 0 or more",
        ),
        (
            "loso --data x --database folder --out y --device gpu",
            "--device: Expected one of ['auto', 'cpu', 'cuda']",
        ),
        (
            "loso --data x --database folder --out y --seed abc",
            "--seed: want a whole number, 0 or more",
        ),
        (
            "loso --data x --database folder --out y --seed -1",
            "--seed: want a whole number, 0 or more",
        ),
        (
            "loso --data x --database folder --out y --seed 1.5",
            "--seed: want a whole number, 0 or more",
        ),
        (
            "loso --data x --database folder --out y --workers 0",
            "--workers: want a whole number above 0",
        ),
        ("loso --data x --database folder --out y --epochs 3", "--epochs"),
        ("loso --data x --database folder --out", "--out"),
        (
            "prepare --data x --database folder --store y --workers -2",
            "--workers: want a whole number, 0 or more",
        ),
        ("experiment", "required: name, --data, --database, --out"),
        (
            "experiment tabel2 --data x --database folder --out y",
            "name: invalid choice: 'tabel2' (choose from",
        ),
        (
            "experiment table2 --data x --database flow --out y",
            "--database: Expected one of ['casme2', 'samm', 'smic', 'composite', 'folder']. Got value: flow",
        ),
        (
            "experiment table2 --data x --database folder --out y --preset flow",
            "--preset: Expected one of ['tiny', 'best', 'paper']. Got value: flow",
        ),
        (
            "experiment table2 --data x --database folder --out y --flow lucas",
            "--flow: Expected one of ['tvl1', 'dis']",
        ),
        (
            "experiment table2 --data x --database folder --out y --rows",
            "--rows: expected at least one argument",
        ),
        ("experiment table2 --data x --database folder --out y --resume", "--resume"),
    ],
)
def test_mistyped(line, words, capsys):
    assert words in wrong(capsys, line)


PLAIN = "loso --data {data} --database folder --out {out} "


def test_missing_folder(capsys, tmp_path):
    line = wrong(capsys, PLAIN, data=tmp_path / "nowhere", out=tmp_path / "run")
    assert "nowhere" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("database", ["casme2", "folder"])
def test_folder_of_another_layout(database, capsys, tmp_path):
    (tmp_path / "data").mkdir()
    line = f"prepare --data {{data}} --database {database} --store {{store}}"
    assert str(tmp_path / "data") in wrong(
        capsys, line, data=tmp_path / "data", store=tmp_path / "store"
    )


def test_samples_are_no_casme2(home, capsys, tmp_path):
    line = "loso --data {data} --database casme2 --out {out}"
    assert "workbook" in wrong(capsys, line, data=home / "data", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_preset_is_told_before_any_work(home, capsys, tmp_path):
    line = wrong(capsys, PLAIN + "--preset huge", data=home / "data", out=tmp_path / "run")
    assert "'huge'" in line and "paper" in line and "tiny" in line and not list(tmp_path.iterdir())


def test_no_gpu(home, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = wrong(capsys, PLAIN + "--device cuda", data=home / "data", out=tmp_path / "run")
    assert "GPU" in line and "cpu" in line and not list(tmp_path.iterdir())


def test_out_is_a_file_or_taken(home, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = wrong(capsys, PLAIN, data=home / "data", out=tmp_path / "file")
    assert "wants a folder" in line
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("mine")
    assert "--resume" in wrong(capsys, PLAIN, data=home / "data", out=tmp_path / "taken")
    assert (tmp_path / "taken/thesis.tex").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_resume_with_other_settings(home, finished, capsys):
    _, out = finished
    line = wrong(capsys, LOSO + "--resume --seed 7", data=home / "data", out=out)
    assert "seed was 0, now 7" in line


def test_store_of_other_data(home, capsys, finished, tmp_path):
    store = default_store(home / "data", "folder", finished[1])
    shutil.copytree(home / "data", tmp_path / "data")
    table = pd.read_csv(tmp_path / "data/clips.csv", dtype=str)
    table[:-3].to_csv(tmp_path / "data/clips.csv", index=False)
    line = "prepare --data {data} --database folder --store {store}"
    assert "--overwrite" in wrong(capsys, line, data=tmp_path / "data", store=store)


PREDICT = "predict {onset} {apex} --weights {weights} --device cpu"


@pytest.mark.parametrize(
    "content", [None, b"", b"not weights", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"]
)
def test_weights_that_are_none(content, pair, capsys, tmp_path):
    path = tmp_path / "some.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert "some.safetensors" in wrong(capsys, PREDICT, onset=pair[0], apex=pair[1], weights=path)


def test_text_named_jpg(home, pair, capsys, tmp_path):
    (tmp_path / "face.jpg").write_text("I am a text")
    weights = home / "weights.safetensors"
    for bad in (tmp_path / "face.jpg", tmp_path / "none.jpg", tmp_path):
        for onset, apex in ((bad, pair[1]), (pair[0], bad)):
            assert str(bad) in wrong(capsys, PREDICT, onset=onset, apex=apex, weights=weights)


def test_pictures_that_are_no_pair(home, pair, capsys, tmp_path):
    gray, noise = tmp_path / "gray.png", tmp_path / "noise.png"
    values = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    cv2.imwrite(str(gray), np.full((240, 320, 3), 128, np.uint8))
    cv2.imwrite(str(noise), values)

    def answer(onset, apex):
        return wrong(capsys, PREDICT, onset=onset, apex=apex, weights=home / "weights.safetensors")

    assert "want one size" in answer(pair[0], gray)
    assert "same picture" in answer(pair[0], pair[0])
    assert "gray.png" in answer(gray, noise)


@pytest.mark.parametrize(
    "more", ["--json {no}/why.json", "--picture {no}/why.png", "--picture {no}.xyz"]
)
def test_results_into_nowhere(home, pair, capsys, tmp_path, more):
    paths = dict(onset=pair[0], apex=pair[1], weights=home / "weights.safetensors")
    assert run(f"{PREDICT} {more}", **paths, no=tmp_path / "no") == 2
    assert capsys.readouterr().err.startswith("frl-dgt: ")


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("FRL_DGT_DEBUG", "1")
    line = "prepare --data {out}/nowhere --database folder --store {out}/store"
    with pytest.raises(ValueError):
        run(line, out=tmp_path)


def test_our_own_mistakes_are_not_hidden(monkeypatch):
    def broken(store: str = ""):
        raise TypeError("ours")

    monkeypatch.setitem(cli.COMMANDS, "prepare", broken)
    broken.__doc__ = "Fails."
    monkeypatch.setitem(cli.BY_HAND, "prepare", {})
    with pytest.raises(TypeError):
        main(["prepare"])


def test_interrupted(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt("3 of 8 folds")

    stopped.__doc__ = "Stops."
    monkeypatch.setitem(cli.COMMANDS, "prepare", stopped)
    monkeypatch.setitem(cli.BY_HAND, "prepare", {})
    assert main(["prepare"]) == 130 and "3 of 8 folds" in capsys.readouterr().err

    def silent():
        raise KeyboardInterrupt

    silent.__doc__ = "Stops."
    monkeypatch.setitem(cli.COMMANDS, "prepare", silent)
    assert main(["prepare"]) == 130 and capsys.readouterr().err == "frl-dgt: stopped\n"


def test_loso_writes_all_of_a_run(finished):
    status, out = finished
    assert status == 0
    wanted = {"config.json", "folds", "predictions.parquet", "report.json", "report.html"}
    assert wanted <= {path.name for path in out.iterdir()}
    report = json.loads((out / "report.json").read_text())
    table = pd.read_parquet(out / "predictions.parquet")
    assert report["selection"] == "last" and set(report["oracle"]) == {"uf1", "uar"}
    assert report["n_clips"] == len(table) == 12 and report["n_subjects"] == 2
    (lost,) = report["excluded"]
    assert lost["clip"].endswith("/lost") and lost["reason"]
    assert "lost" in (out / "report.html").read_text(encoding="utf-8")


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_resume_trains_nothing_again(home, finished, capsys):
    _, out = finished
    before = times_of(out / "folds")
    assert loso(home, out, "--resume") == 0
    assert before == times_of(out / "folds")
    report = json.loads((out / "report.json").read_text())
    assert f"UF1 {report['uf1']:.3f}" in capsys.readouterr().out


def test_runs_share_a_store(home, finished):
    store = default_store(home / "data", "folder", finished[1])
    assert (store / "index.parquet").exists()
    assert store == default_store(f"{home}/data/../data", "folder", home / "other")
    assert store != default_store(home / "data2", "folder", finished[1])
    assert store != default_store(home / "data", "casme2", finished[1])


def probabilities(result):
    return json.loads(result.read_text())["probabilities"]


def test_predict_goes_the_way_of_the_run(finished, pair, capsys, tmp_path):
    "From raw frames, the model of a fold gives the probabilities that the run has stored for that clip."
    _, out = finished
    row = pd.read_parquet(out / "predictions.parquet").iloc[0]
    weights = out / "folds" / f"folder__{row.subject}.safetensors"
    line = f"{PREDICT} --json {{here}}/why.json --picture {{here}}/why.png"
    assert run(line, onset=pair[0], apex=pair[1], weights=weights, here=tmp_path) == 0
    said, result = capsys.readouterr().out, json.loads((tmp_path / "why.json").read_text())
    for name, p in result["probabilities"].items():
        assert p == pytest.approx(row[f"p_{name}"], abs=2e-4) and f"{name:9} {p:.3f}" in said
    assert sum(result["regions"].values()) == pytest.approx(1, abs=1e-2)
    assert said.splitlines()[0].startswith(result["prediction"])
    assert cv2.imread(f"{tmp_path}/why.png").std() > 10


def test_predict_goes_the_way_of_a_run_of_best(home, pair, tmp_path, monkeypatch):
    "The same, where the run has its displacements from a table and looks at both sides of the mirror."
    monkeypatch.setitem(TRAIN_PRESETS, "best", replace(TRAIN_PRESETS["best"], epochs=3))
    assert run(PLAIN + "--device cpu", data=home / "data", out=home / "best") == 0
    row = pd.read_parquet(home / "best/predictions.parquet").iloc[0]
    weights = home / "best/folds" / f"folder__{row.subject}.safetensors"
    paths = dict(onset=pair[0], apex=pair[1], weights=weights, json=tmp_path / "why.json")
    assert run(PREDICT + " --json {json}", **paths) == 0
    for name, p in probabilities(tmp_path / "why.json").items():
        assert p == pytest.approx(row[f"p_{name}"], abs=2e-4)


def test_prepare_names_what_it_leaves_out(home, capsys, tmp_path):
    line = "prepare --data {data} --database folder --store {store} --workers 1"
    paths = dict(data=home / "data", store=tmp_path / "store")
    assert run(line, **paths) == 0
    out = capsys.readouterr().out
    assert out.startswith("12 clips of 2 subjects") and "1 excluded" in out and "/lost: " in out
    assert run(line + " --overwrite", **paths) == 0


def test_check_tells_and_its_status_can_be_acted_on(home, capsys, tmp_path):
    path = tmp_path / "check.json"
    assert run("check folder {data} --json {path}", data=home / "data", path=path) == 1
    said, found = capsys.readouterr().out, json.loads(path.read_text())
    assert found["clips"] == 12 and found["subjects"] == 2
    assert sum(found["by_class"].values()) == 12 and "lost" in said
    assert ["lost" in problem["clip_id"] for problem in found["problems"]] == [True]
    assert run("check folder {data}", data=SAMPLES) == 0
    assert run("check casme2 {data}", data=SAMPLES) == 2
    assert "can't be used" in capsys.readouterr().out


def test_compare_two_runs(home, finished, capsys, tmp_path):
    _, out = finished
    assert run("compare {out} {out}", out=out) == 0
    assert "can't be told apart" in capsys.readouterr().out
    assert "no finished run" in wrong(capsys, "compare {out} {other}", out=out, other=tmp_path)


def test_inner_epochs_are_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TRAIN_PRESETS, "best", replace(TRAIN_PRESETS["best"], epochs=2))
    subjects, data, out = ["s01", "s02", "s03"], tmp_path / "data", tmp_path / "run"
    for subject in subjects:
        shutil.copytree(SAMPLES / "frames" / subject, data / "frames" / subject)
    clips = pd.read_csv(SAMPLES / "clips.csv", dtype=str)
    clips[clips.subject.isin(subjects)].to_csv(data / "clips.csv", index=False)
    assert run(PLAIN + "--device cpu --inner 1", data=data, out=out) == 0
    report = json.loads((out / "report.json").read_text())
    table = pd.read_parquet(out / "predictions.parquet")
    assert set(report["inner"]) == {"uf1", "uar"} and report["selection"] == "last"
    assert table.inner_prediction.isin(range(3)).all()


def test_too_many_inner_subjects(home, capsys):
    "Two subjects leave one to train on: none can be held out, and the line says so."
    line = PLAIN + "--preset tiny --device cpu --inner 1"
    assert "inner" in wrong(capsys, line, data=home / "data", out=home / "inner")


@pytest.fixture(scope="module")
def clip(home):
    row = pd.read_csv(home / "data/clips.csv", dtype=str).iloc[0]
    return home / "data/frames" / row.subject / row["name"]


def test_spot_prints_and_plots(clip, capsys, tmp_path):
    assert run("spot {clip} --picture {out}/curve.png", clip=clip, out=tmp_path) == 0
    assert "apex at frame" in capsys.readouterr().out
    assert cv2.imread(f"{tmp_path}/curve.png").std() > 10
    (tmp_path / "text.mp4").write_text("no video")
    for bad in (tmp_path / "text.mp4", tmp_path / "none.mp4", tmp_path):
        assert str(bad) in wrong(capsys, "spot {bad}", bad=bad)


def write_video(path, folder):
    "The frames of a folder as a video."
    files = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    frames = [cv2.imread(str(file)) for file in files]
    codec, size = cv2.VideoWriter_fourcc(*"MJPG"), frames[0].shape[1::-1]
    video = cv2.VideoWriter(str(path), codec, 50, size)
    for frame in frames:
        video.write(frame)
    video.release()


def test_predict_from_a_video(home, clip, capsys, tmp_path):
    write_video(tmp_path / "my clip.avi", clip)
    line = "predict --weights {home}/weights.safetensors --device cpu "
    paths = dict(home=home, video=tmp_path / "my clip.avi", json=tmp_path / "why.json", clip=clip)
    assert run(line + "--video {video} --json {json}", **paths) == 0
    assert "apex at frame" in capsys.readouterr().out
    assert sum(probabilities(paths["json"]).values()) == pytest.approx(1, abs=1e-3)
    for more in ("", "{clip}", "--video {video} {clip} {clip}"):
        assert "ONSET and APEX" in wrong(capsys, line + more, **paths)


def test_a_curve_in_a_line():
    bars, marks = sparkline(np.array([0.0, 1, 2, 7, 3, 0]), {0: "<", 3: "^", 5: ">"}).splitlines()
    assert bars == "▁▂▃█▄▁" and marks == "<  ^ >"
    bars, marks = sparkline(np.r_[np.zeros(500), 1, np.zeros(500)], {500: "^"}, 50).splitlines()
    assert len(bars) == 50 and bars[marks.index("^")] == "█" and bars.count("▁") == 49
    assert sparkline(np.zeros(3), {}).splitlines()[0] == "▁▁▁"


def test_composite_from_the_archives_to_the_report(tmp_path, monkeypatch):
    "Sheets and folders of three databases, one run, scores of parts; SMIC's apexes are spotted, the others' are coded."
    import archives

    files = sorted((SAMPLES / "frames/s03/c1").iterdir(), key=lambda path: int(path.stem))
    made = archives.make_composite(
        tmp_path / "data",
        official=False,
        frames=len(files),
        pictures=[path.read_bytes() for path in files],
    )
    monkeypatch.setitem(TRAIN_PRESETS, "best", replace(TRAIN_PRESETS["best"], epochs=1))
    line = "loso --data {data} --database composite --spot missing --device cpu --out {out}"
    assert run(line, data=tmp_path / "data", out=tmp_path / "run") == 0

    table = pd.read_parquet(tmp_path / "run/predictions.parquet").set_index("clip_id")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert table.label.to_dict() == made.labels
    assert set(report["per_database"]) == {"casme2", "samm", "smic"}

    (path,) = (tmp_path / "stores").glob("*-spotted-missing/index.parquet")
    sources = pd.read_parquet(path).groupby("database").apex_source.unique().map(list).to_dict()
    assert sources == {"casme2": ["labelled"], "samm": ["labelled"], "smic": ["spotted"]}
