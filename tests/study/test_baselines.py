"""LBP-TOP and Bi-WOOF against scikit-image and plain loops; baselines through folds: independence, resume, files."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from skimage.feature import local_binary_pattern
from toy_store import toy_store

from frl_dgt_nb.study import baselines
from frl_dgt_nb.study.baselines import (
    BASELINES,
    BaselineConfig,
    baseline_settings,
    clip_flows,
    clip_inputs,
    fit_fold,
    flow_pictures,
    run_baseline,
)
from frl_dgt_nb.study.features import (
    PLANES,
    bi_woof,
    crop_face,
    fit_svm,
    gray_volume,
    lbp_top,
    outline,
    pattern_codes,
    uniform_bins,
)
from frl_dgt_nb.training.metrics import scores
from frl_dgt_nb.training.run_folder import fold_path, load_fold, read_settings
from frl_dgt_nb.training.sampling import choose_inner

torch.set_num_threads(1)
BRIEF = {
    "ststnet": dict(epochs=4, batch_size=8),
    "off-apexnet": dict(epochs=1, batch_size=16),
    "rcn-a": dict(epochs=1, batch_size=16),
    "capsulenet": dict(epochs=1, batch_size=16),
}


def random_volume(shape=(12, 22, 20), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# ---- LBP-TOP


@pytest.mark.parametrize("points, radius", [(4, 1), (8, 1), (8, 2), (8, 3)])
@pytest.mark.parametrize("plane", PLANES)
def test_codes_are_those_of_skimage(plane, points, radius):
    volume, rim = random_volume(), slice(radius, -radius)
    codes = pattern_codes(volume, plane, (radius,) * 3, points)
    across, along = PLANES[plane]
    axis = ({0, 1, 2} - {across, along}).pop()
    for i in range(volume.shape[axis]):
        theirs = local_binary_pattern(volume.take(i, axis), points, radius)
        np.testing.assert_array_equal(codes.take(i, axis)[rim, rim], theirs[rim, rim])


@pytest.mark.parametrize(
    "plane, steps",
    [
        ("XY", ((0, 0, 2), (0, -1, 0))),
        ("XT", ((0, 0, 2), (-3, 0, 0))),
        ("YT", ((0, 1, 0), (-3, 0, 0))),
    ],
)
def test_ellipse(plane, steps):
    "With 4 neighbours and whole radii nothing is interpolated: each bit compares with the volume moved by voxels."
    volume = random_volume().astype(int)
    wanted = sum(
        (np.roll(volume, [-sign * step for step in steps[p % 2]], (0, 1, 2)) >= volume).astype(int)
        << p
        for p, sign in enumerate((1, 1, -1, -1))
    )
    np.testing.assert_array_equal(
        pattern_codes(volume, plane, (2, 1, 3))[3:-3, 1:-1, 2:-2], wanted[3:-3, 1:-1, 2:-2]
    )


@pytest.mark.parametrize("points", [4, 8])
def test_uniform_bins(points):
    bins = uniform_bins(points)
    assert bins.max() + 1 == points * (points - 1) + 3  # as in scikit-image's nri_uniform
    for code, found in enumerate(bins):
        text = f"{code:0{points}b}"
        turns = sum(a != b for a, b in zip(text, text[1:] + text[:1]))
        assert (turns > 2) == (found == bins.max())
    assert len(set(bins[bins < bins.max()])) == bins.max() == (bins < bins.max()).sum()


@pytest.mark.parametrize("points", [4, 8])
def test_constant_clip(points):
    found = lbp_top(np.full((10, 24, 24), 93, np.uint8), points=points).reshape(25, 3, -1)
    assert (found[:, :, uniform_bins(points)[2**points - 1]] == 1).all() and found.sum() == 75


def test_histograms_block_by_block():
    volume, bins = random_volume(), uniform_bins(4)
    found = lbp_top(volume, blocks=2, radii=(2, 1, 3)).reshape(2, 2, 3, 15)
    for i, plane in enumerate(PLANES):
        inner = bins[pattern_codes(volume, plane, (2, 1, 3))[3:-3, 1:-1, 2:-2]]  # (6,20,16)
        for row in range(2):
            for column in range(2):
                part = inner[:, 10 * row : 10 * row + 10, 8 * column : 8 * column + 8]
                np.testing.assert_allclose(
                    found[row, column, i], np.bincount(part.ravel(), minlength=15) / part.size
                )


def test_patterns_see_no_light():
    "Brighter by a factor and a shift: the same."
    np.testing.assert_array_equal(
        lbp_top(random_volume()), lbp_top(random_volume().astype(float) * 1.7 + 20)
    )


@pytest.mark.parametrize(
    "shape, options, told",
    [
        ((8, 24, 24), {}, "8 frames are too few for a radius of 4: 9 wanted"),
        ((12, 6, 24), {}, "6 rows"),
        ((12, 24, 6), {}, "6 columns"),
        ((12, 24), {}, "want a gray clip"),
        ((12, 24, 24), dict(radii=(0, 1, 1)), "must be 1 or more"),
        ((12, 24, 24), dict(blocks=0), "must be 1 or more"),
    ],
)
def test_bad_volumes(shape, options, told):
    with pytest.raises(ValueError, match=told):
        lbp_top(np.zeros(shape), **options)


def test_volume_in_time(store):
    clip, points = store.clip(0), torch.from_numpy(store.landmarks[0])
    same = gray_volume(clip, points, len(clip), 20)
    double = gray_volume(clip, points, 2 * len(clip) - 1, 20)
    np.testing.assert_allclose(double[::2], same, atol=1e-5)
    np.testing.assert_allclose(double[1::2], (same[1:] + same[:-1]) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="two frames or more, got 1"):
        gray_volume(clip[:1], points)


# ---- Bi-WOOF


def woof(motion, strain, blocks, bins):
    "One clip, a pixel at a time"
    _, height, width = motion.shape
    total = np.zeros((blocks, blocks, bins))
    for row in range(blocks):
        for column in range(blocks):
            weight = 0.0
            for y in (y for y in range(height) if y * blocks // height == row):
                for x in (x for x in range(width) if x * blocks // width == column):
                    u, v = motion[:, y, x]
                    total[
                        row,
                        column,
                        min(int((math.atan2(v, u) + math.pi) / (2 * math.pi / bins)), bins - 1),
                    ] += math.hypot(u, v)
                    weight += strain[y, x]
            total[row, column] *= weight / max(total[row, column].sum(), 1e-12)
    return (total / np.linalg.norm(total)).ravel()


@pytest.mark.parametrize("blocks, bins", [(5, 8), (3, 4), (1, 2)])
def test_bi_woof(blocks, bins):
    generator = torch.Generator().manual_seed(blocks)
    motion, strain = (
        torch.randn(2, 2, 13, 17, generator=generator, dtype=torch.float64),
        torch.rand(2, 13, 17, generator=generator, dtype=torch.float64),
    )
    for found, m, s in zip(bi_woof(motion, strain, blocks, bins), motion, strain):
        np.testing.assert_allclose(found, woof(m.numpy(), s.numpy(), blocks, bins), atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_bi_woof_has_no_scale(faster, looser):
    generator = torch.Generator().manual_seed(0)
    motion, strain = (
        torch.randn(1, 2, 10, 10, generator=generator, dtype=torch.float64),
        torch.rand(1, 10, 10, generator=generator, dtype=torch.float64),
    )
    torch.testing.assert_close(bi_woof(motion * faster, strain * looser), bi_woof(motion, strain))


def test_stillness():
    assert (bi_woof(torch.zeros(2, 2, 10, 10), torch.zeros(2, 10, 10)) == 0).all()


@pytest.mark.parametrize(
    "motion, strain",
    [
        ((2, 3, 9, 9), (2, 9, 9)),
        ((2, 2, 9, 9), (2, 9, 8)),
        ((2, 9, 9), (2, 9, 9)),
        ((2, 2, 4, 9), (2, 4, 9)),
    ],
)
def test_bad_motion(motion, strain):
    with pytest.raises(ValueError, match="want motion"):
        bi_woof(torch.zeros(motion), torch.zeros(strain))


# ---- the face


def test_crop():
    "A square of the outline: its corners are where the landmarks end; outside the hull nothing."
    landmarks = torch.full((1, 68, 2), 16.0)
    landmarks[0, 0], landmarks[0, 8], landmarks[0, 16], landmarks[0, 30] = (
        torch.tensor([6.0, 16]),
        torch.tensor([16.0, 26]),
        torch.tensor([26.0, 16]),
        torch.tensor([16.0, 6]),
    )
    landmarks[0, 36] = landmarks[0, 45]  # brows are raised by nothing
    x = torch.arange(32.0).expand(1, 1, 32, 32)
    cut = crop_face(x, landmarks, 21, mask=False)
    torch.testing.assert_close(cut[0, 0], torch.arange(6.0, 27).expand(21, 21))
    masked = crop_face(torch.ones(1, 1, 32, 32), landmarks, 21)[0, 0]
    y, x = torch.meshgrid(*[torch.arange(-10.0, 11)] * 2, indexing="ij")
    assert (masked[x.abs() + y.abs() < 9] == 1).all() and (
        masked[x.abs() + y.abs() > 12] == 0
    ).all()


def test_outline():
    landmarks = torch.rand(2, 68, 2) * 100
    points = outline(landmarks)
    apart = (landmarks[:, 36] - landmarks[:, 45]).norm(dim=1)
    torch.testing.assert_close(points[:, :68], landmarks)
    torch.testing.assert_close(
        landmarks[:, 17:27, 1] - points[:, 68:, 1], 0.25 * apart[:, None].expand(-1, 10)
    )
    with pytest.raises(ValueError, match="want landmarks"):
        outline(landmarks[:, 1:])


# ---- the classifier


def test_svm_is_the_one_of_sklearn():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    generator = np.random.default_rng(0)
    x, y, others = generator.normal(size=(40, 6)), np.arange(40) % 3, generator.normal(size=(9, 6))
    fitted = fit_svm(x, y, [others, others[:0]])
    theirs = make_pipeline(StandardScaler(), LinearSVC(random_state=0, max_iter=20_000)).fit(x, y)
    np.testing.assert_array_equal(fitted.probabilities[0][0].argmax(1), theirs.predict(others))
    weights = {key: value.numpy() for key, value in fitted.weights.items()}
    margins = (others - weights["mean"]) / weights["scale"] @ weights["coefficients"].T + weights[
        "intercepts"
    ]
    np.testing.assert_allclose(
        np.exp(margins) / np.exp(margins).sum(1, keepdims=True), fitted.probabilities[0][0]
    )
    assert fitted.probabilities[1].shape == (1, 0, 3) and fitted.epochs == [1]


@pytest.mark.parametrize("shown", [(0, 2), (1, 2), (0, 1)])
def test_a_class_that_is_not_shown(shown):
    generator = np.random.default_rng(0)
    y = np.array(shown * 10)
    x = generator.normal(size=(20, 4)) + 4 * y[:, None]
    chances = fit_svm(x, y, [x]).probabilities[0][0]
    np.testing.assert_array_equal(chances.argmax(1), y)
    assert (chances[:, [c for c in range(3) if c not in shown]] == 0).all()
    with pytest.raises(ValueError, match=r"show \[1\]"):
        fit_svm(x, y * 0 + 1, [x])


# ---- through the folds


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("toy") / "store", subjects=3, frames=6, size=48)


class Pictures:
    "A store of flow pictures, as far as baselines look at it"

    def __init__(self, store):
        self.index, self.path, self.settings, self.excluded, self.landmarks = (
            store.index,
            store.path,
            store.settings,
            store.excluded,
            store.landmarks,
        )
        self.displacements = (
            np.random.default_rng(0).normal(size=(len(store), 3, 28, 28)).astype(np.float32)
        )

    def __len__(self):
        return len(self.index)


@pytest.fixture(scope="module", params=BASELINES)
def run(request, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    return (
        request.param,
        out,
        run_baseline(
            store, out, request.param, progress=False, device="cpu", **BRIEF.get(request.param, {})
        ),
    )


def test_files_of_a_run(run, store):
    "What every run leaves, and what readers of runs take from it"
    name, out, report = run
    table = pd.read_parquet(out / "predictions.parquet")
    assert table.clip_id.tolist() == store.index.clip_id.tolist() and report == json.loads(
        (out / "report.json").read_text()
    )
    assert {key: report[key] for key in ("uf1", "uar", "confusion")} == {
        key: value
        for key, value in scores(table.label, table.prediction).items()
        if key in ("uf1", "uar", "confusion")
    }
    assert (
        report["selection"] == "last"
        and report["n_subjects"] == 3
        and report["n_clips"] == 9
        and "inner" not in report
    )
    config = read_settings(out)
    assert (
        config["model"]["baseline"] == name
        and config["model"]["classes"] == 3
        and ("flow" in config["model"]) == BASELINES[name].flow
    )
    for subject, rows in store.index.groupby("subject_id"):
        fold = load_fold(out, subject)
        assert fold["clip_ids"] == rows.clip_id.tolist() and fold["labels"] == rows.label.tolist()
        assert np.shape(fold["probabilities"]) == (len(fold["epochs"]), len(rows), 3)
        np.testing.assert_allclose(np.sum(fold["probabilities"], -1), 1, atol=1e-5)
        assert load_file(fold_path(out, subject, ".safetensors"))
    np.testing.assert_allclose(
        table[[c for c in table if c.startswith("p_")]].sum(axis=1), 1, atol=1e-5
    )


def test_readers_of_runs(run, tmp_path):
    protocol = pytest.importorskip("frl_dgt_nb.training.protocol")
    name, out, report = run
    told = protocol.compare_runs(out, out)
    assert isinstance(told, dict)


def test_the_last_epoch_is_the_headline(store, tmp_path):
    run_baseline(
        store,
        tmp_path / "run",
        "ststnet",
        epochs=5,
        batch_size=8,
        store_every=2,
        progress=False,
        device="cpu",
    )
    fold = load_fold(tmp_path / "run", "toy/01")
    assert fold["epochs"] == [2, 4, 5] and len(fold["losses"]) == 5
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet").set_index("clip_id")
    assert (
        table.loc[fold["clip_ids"], "prediction"].tolist()
        == np.argmax(fold["probabilities"][-1], -1).tolist()
    )


def settings_of(store, name, **changed):
    return baseline_settings(store, BaselineConfig(name, **changed, **BRIEF.get(name, {})))


@pytest.mark.parametrize("name", ["bi-woof", "ststnet"])
def test_a_fold_knows_nothing_of_its_test_clips(store, name):
    "Whatever these clips look like and whatever their labels are, no weight changes. Anybody else's clips do."
    inputs, index, told = clip_inputs(store, name), store.index.copy(), settings_of(store, name)
    before, test, _ = fit_fold(inputs, index, "toy/01", told)
    assert index.clip_id[test.tolist()].str.startswith("toy/01/").all() and len(test) == 3
    others, relabelled = inputs.clone(), index.copy()
    others[test] = torch.randn_like(others[test])
    relabelled.loc[test.tolist(), "label"] = (relabelled.label[test.tolist()] + 1) % 3
    after, _, _ = fit_fold(others, relabelled, "toy/01", told)
    assert all(torch.equal(after.weights[key], value) for key, value in before.weights.items())
    assert not np.array_equal(before.probabilities[0], after.probabilities[0])
    others = inputs.clone()
    train = index.index[index.subject_id != "toy/01"][0]
    others[train] = torch.randn_like(others[train])
    after, _, _ = fit_fold(others, index, "toy/01", told)
    assert not all(torch.equal(after.weights[key], value) for key, value in before.weights.items())


def test_inner_subjects_are_neither_trained_on_nor_tested(store):
    inputs, told = clip_inputs(store, "ststnet"), settings_of(store, "ststnet", inner=1)
    before, test, inner = fit_fold(inputs, store.index, "toy/01", told)
    assert set(store.index.subject_id[inner.tolist()]) == set(
        choose_inner(store.index, "toy/01", 1, 0)
    ) and not set(test.tolist()) & set(inner.tolist())
    others = inputs.clone()
    others[inner] = torch.randn_like(others[inner])
    after, _, _ = fit_fold(others, store.index, "toy/01", told)
    assert all(torch.equal(after.weights[key], value) for key, value in before.weights.items())


def test_inner_report(store, tmp_path):
    report = run_baseline(
        store,
        tmp_path / "run",
        "ststnet",
        inner=1,
        progress=False,
        device="cpu",
        **BRIEF["ststnet"],
    )
    assert 0 <= report["inner"]["uf1"] <= 1 and "inner_prediction" in pd.read_parquet(
        tmp_path / "run" / "predictions.parquet"
    )


def test_inputs_are_of_the_clip_alone(store):
    "Nothing passes from one clip to another, such as a mean over all: each clip alone is what it is among the others."
    for name in BASELINES:
        inputs = clip_inputs(store, name)
        one = toy_part(store, 4)
        torch.testing.assert_close(clip_inputs(one, name)[0], inputs[4], msg=name)


def toy_part(store, i):
    from copy import copy

    part = copy(store)
    part.index, part.landmarks = (
        store.index.iloc[i : i + 1].reset_index(drop=True),
        store.landmarks[i : i + 1],
    )
    return part


def test_stopped_and_resumed(store, tmp_path, monkeypatch):
    "The second fold fails; resumed, the first is kept, inputs aren't computed again, and the end is the same."
    whole = run_baseline(
        store, tmp_path / "whole", "ststnet", progress=False, device="cpu", **BRIEF["ststnet"]
    )
    real, calls = baselines.fit_fold, []

    def failing(inputs, index, subject, *rest):
        calls.append(subject)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(inputs, index, subject, *rest)

    monkeypatch.setattr(baselines, "fit_fold", failing)
    with pytest.raises(KeyboardInterrupt):
        run_baseline(
            store, tmp_path / "run", "ststnet", progress=False, device="cpu", **BRIEF["ststnet"]
        )
    first = fold_path(tmp_path / "run", calls[0])
    kept = first.read_bytes()
    monkeypatch.setattr(baselines, "clip_flows", lambda *_: pytest.fail("computed again"))
    resumed = run_baseline(
        store,
        tmp_path / "run",
        "ststnet",
        resume=True,
        progress=False,
        device="cpu",
        **BRIEF["ststnet"],
    )
    assert first.read_bytes() == kept and len(calls) == 4 and calls.count(calls[0]) == 1
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {
        k: v for k, v in whole.items() if k != "seconds"
    }
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("run", "whole"))
    )


def test_what_is_never_written_over(store, tmp_path):
    out = tmp_path / "run"
    run_baseline(store, out, "bi-woof", progress=False)
    with pytest.raises(ValueError, match="not empty"):
        run_baseline(store, out, "bi-woof", progress=False)
    for name, changed, told in (
        ("bi-woof", dict(flow="farneback"), "model.flow was dis, now farneback"),
        ("bi-woof", dict(seed=1), "seed was 0, now 1"),
        ("lbp-top", {}, "model.baseline was bi-woof, now lbp-top"),
    ):
        with pytest.raises(ValueError, match=told):
            run_baseline(store, out, name, resume=True, progress=False, **changed)
    assert run_baseline(store, out, "bi-woof", resume=True, progress=False)["n_clips"] == 9


def test_seeds(store):
    "The run's seed and the subject's name make the numbers, whatever was drawn before."

    def fitted(seed):
        torch.rand(3)
        return fit_fold(
            clip_inputs(store, "ststnet"),
            store.index,
            "toy/01",
            settings_of(store, "ststnet", seed=seed),
        )[0]

    one, same, other = map(fitted, (0, 0, 1))
    np.testing.assert_array_equal(one.probabilities[0], same.probabilities[0])
    assert not np.array_equal(one.probabilities[0], other.probabilities[0])


@pytest.mark.parametrize(
    "name, options, told",
    [
        ("vgg", {}, "there is no baseline 'vgg'; choose from lbp-top, bi-woof"),
        ("ststnet", dict(flow="horn"), "there is no flow 'horn'"),
        ("ststnet", dict(epochs=0), "epochs must be at least 1, got 0"),
        ("ststnet", dict(batch_size=1), "batch_size must be at least 2"),
        ("ststnet", dict(rate=0.0), "rate must be positive"),
        ("ststnet", dict(store_every=0), "store_every must be at least 1"),
        ("bi-woof", dict(epochs=3), "has no epochs; leave it out"),
        ("ststnet", dict(inner=-1), "inner must be at least 0"),
        ("ststnet", dict(inner=2), "lower inner"),
        ("ststnet", dict(device="cuda:99"), "no GPU"),
    ],
)
def test_bad_settings(store, tmp_path, name, options, told):
    if "device" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=told):
        run_baseline(store, tmp_path / "run", name, progress=False, **{"device": "cpu"} | options)


def test_bad_subject(store):
    with pytest.raises(ValueError, match="no subject 'toy/77'"):
        fit_fold(
            clip_inputs(store, "bi-woof"),
            store.index,
            "toy/77",
            settings_of(store, "bi-woof"),
        )


def test_one_subject(tmp_path):
    with pytest.raises(ValueError, match="takes two or more, the store has 1"):
        run_baseline(
            toy_store(tmp_path / "store", subjects=1), tmp_path / "run", "bi-woof", progress=False
        )


def test_flow_pictures_without_frames(store, tmp_path):
    "A store that brings flows serves those that look at flows, and says so to the others."
    pictures = Pictures(store)
    torch.testing.assert_close(clip_flows(pictures), torch.from_numpy(pictures.displacements))
    for size in (28, 60):
        assert flow_pictures(clip_flows(pictures), size).shape == (9, 3, size, size)
    with pytest.raises(ValueError, match="leave out steady"):
        clip_flows(pictures, steady=True)
    for name in ("bi-woof", "ststnet"):
        assert (
            run_baseline(
                pictures, tmp_path / name, name, progress=False, device="cpu", **BRIEF.get(name, {})
            )["n_clips"]
            == 9
        )
    for name in ("lbp-top", "capsulenet"):
        with pytest.raises(
            ValueError, match=f"{name} looks at frames.*choose bi-woof, off-apexnet, ststnet, rcn-a"
        ):
            run_baseline(pictures, tmp_path / name, name, progress=False, device="cpu")


def test_flow_of_a_known_motion(tmp_path):
    "A texture moved by one pixel, right in one clip and down in the other: no strain, and without drift nothing."
    store = toy_store(tmp_path / "store", subjects=2, clips=1, frames=4, size=64)
    rows, columns = np.mgrid[:80, :80]
    texture = (
        127
        + 60 * np.sin(rows / 3.1) * np.cos(columns / 2.7)
        + 40 * np.sin(columns / 4.3 + rows / 5)
    ).astype(np.uint8)
    frames = np.lib.format.open_memmap(store.path / "frames.npy", mode="r+")
    for row, (down, right) in zip(store.index.itertuples(), ((0, 1), (1, 0))):
        frames[row.start + row.onset] = texture[8:72, 8:72, None]
        frames[row.start + row.apex] = texture[8 - down : 72 - down, 8 - right : 72 - right, None]
    frames.flush()
    flows = clip_flows(store)
    middle = flows[..., 60:108, 60:108].flatten(2).median(2).values
    torch.testing.assert_close(middle, torch.tensor([[1.0, 0, 0], [0, 1, 0]]), atol=0.08, rtol=0)
    for i in range(2):
        assert flow_pictures(flows)[i, i, 11:17, 11:17].median() == pytest.approx(1, abs=0.15)
    assert (
        clip_flows(store, steady=True)[..., 60:108, 60:108].flatten(2).median(2).values.abs().max()
        < 0.05
    )
