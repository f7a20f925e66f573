"""The bench, its figure and the laboratory without a browser: losses against Eq. 4, motions against known ones, and
what each control changes. test_browser_widgets.py looks at the page."""

import asyncio
import base64
import io
import json
import time
from threading import Event, Thread

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_store import toy_store

from frl_dgt_nb.data.store import FaceStore
from frl_dgt_nb.model.dgm import displacement_loss, endpoint_error
from frl_dgt_nb.model.losses import LOSSES, RATES, Trial
from frl_dgt_nb.model.warp import from_motion, to_motion, warp
from frl_dgt_nb.pictures.pair import hold_still
from frl_dgt_nb.widgets.canvas import panel_title
from frl_dgt_nb.widgets.loss_bench import Bench, Setup, moved
from frl_dgt_nb.widgets.loss_figure import (
    CURVE_COLORS,
    CURVES,
    ERROR,
    PICTURES,
    curve_points,
    draw_losses,
    draw_pictures,
    full_color,
    lab_figure,
    lab_pictures,
    lab_still,
)
from frl_dgt_nb.widgets.losslab import STOPS, ModuleLab

SIDE = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Frames that are smooth enough for half a pixel to be seen in them."
    torch.set_num_threads(1)
    made = toy_store(tmp_path_factory.mktemp("faces") / "toy", size=SIDE)
    frames = np.load(made.path / "frames.npy")
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames]).astype(float)
    np.save(
        made.path / "frames.npy", ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    )
    return FaceStore(made.path)


@pytest.fixture
def known(store, monkeypatch):
    "A store whose truth is known: a soft push of one pixel to the right in the middle."
    y, x = np.mgrid[:SIDE, :SIDE]
    push = np.exp(-((x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2) / 200).astype(np.float32)
    truth = np.stack([push, np.zeros_like(push)])
    monkeypatch.setattr(FaceStore, "truth", lambda self, row: truth)
    return store


@pytest.fixture
def lab(known):
    return ModuleLab(known)


def traces_of(lab):
    return {trace.name: trace for trace in lab.figure.data}


def in_a_loop(made):
    return asyncio.run(made)


# one displacement


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("kind", RATES)
def test_a_trial_begins_at_no_motion_and_is_the_same_twice(kind):
    first, second = (Trial(pair(), pair(1), kind, grid=8, seed=3) for _ in range(2))
    assert first.displacement.abs().max() == 0
    difference = (pair() - pair(1)).abs().mean()
    assert np.isclose(first.losses((10, 1, 0.2))["reconstruction"], difference, atol=1e-6)
    torch.manual_seed(99)  # what others do to the generator is of no importance
    for trial in (first, second):
        for _ in range(3):
            trial.step((10, 1, 0.2), 1e-3)
    assert torch.equal(first.displacement, second.displacement)
    assert first.displacement.abs().max() > 0


def test_seeds_are_heard():
    trials = [Trial(pair(), pair(1), "module", seed=seed) for seed in (0, 1)]
    for trial in trials:
        trial.step((10, 1, 0.2), 1e-3)
    assert not torch.equal(trials[0].displacement, trials[1].displacement)


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.floats(0, 20)] * 3), st.integers(0, 4))
def test_the_losses_are_those_of_equation_4(weights, steps):
    trial = Trial(pair(), pair(1), grid=8)
    for _ in range(steps):
        trial.step(weights, 1e-3)
    losses = trial.losses(weights)
    total, parts = displacement_loss(trial.onset, trial.apex, trial.displacement, weights)
    assert np.isclose(losses["total"], float(total.detach()), atol=1e-6)
    for name in LOSSES:
        assert np.isclose(losses[name], float(parts[name]))


def test_a_step_is_a_step_of_adam():
    trial, vectors = Trial(pair(), pair(1), grid=8), torch.zeros(1, 2, 8, 8, requires_grad=True)
    adam = torch.optim.Adam([vectors])
    for weights, rate in (((10, 1, 0.2), 1e-3), ((1, 0, 5), 2e-2)):  # of the moment
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        enlarged = torch.nn.functional.interpolate(
            vectors, (32, 32), mode="bilinear", align_corners=False
        )
        displacement_loss(trial.onset, trial.apex, enlarged, weights)[0].backward()
        adam.step()
        trial.step(weights, rate)
    assert torch.allclose(trial.parameters[0], vectors, atol=1e-7)


def test_without_reconstruction_everything_comes_to_rest(known):
    bench = Bench(known, setup=Setup(apex="moved"))
    bench.advance(80)
    far = bench.trial.displacement.abs().mean().item()
    bench.setup.reconstruction = 0.0
    bench.advance(150)
    assert bench.trial.displacement.abs().mean().item() < 0.1 * far


def test_a_known_motion_is_found_by_reconstruction_alone(known):
    bench = Bench(known, setup=Setup(apex="moved", normalization=0.0, smoothness=0.0, rate=2e-3))
    bench.advance(120)
    first, last = bench.history[0], bench.history[-1]
    assert last["reconstruction"] < 0.3 * first["reconstruction"]
    assert last["error"] < 0.3 * first["error"]


def test_a_displacement_that_is_no_number_is_refused_and_the_last_one_kept():
    trial = Trial(pair(), pair(1), grid=8)
    trial.step((10, 1, 0.2), 1e-3)
    kept = trial.displacement.detach().clone()
    with torch.no_grad():
        trial.parameters[0][0, 0, 0, 0] = torch.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="no number any more after step 2; lower"):
            trial.step((10, 1, 0.2), 1e-3)
    assert trial.steps == 1
    assert torch.equal(trial.displacement, kept)


@pytest.mark.parametrize("noise", (0.0, 4.0))
def test_a_pair_that_is_moved(noise):
    displacement = torch.full((1, 2, 32, 32), 0.02)
    apex = moved(pair(), displacement, noise, seed=1)
    rest = apex - warp(pair(), displacement)
    assert np.isclose(rest.std().item() * 255, noise, rtol=0.05, atol=1e-6)
    assert torch.equal(apex, moved(pair(), displacement, noise, seed=1))


# the bench


def test_errors_are_in_pixels_of_the_aligned_face(known):
    bench = Bench(known, side=32)
    bench.advance(7)
    motion = to_motion(bench.trial.displacement.detach()) * 2  # 64 pixels optimised as 32
    truth = to_motion(bench.truth) * 2
    last, held = bench.history[-1], hold_still(motion, bench.face)
    assert np.isclose(last["error"], endpoint_error(motion, truth, bench.face).item())
    assert np.isclose(last["less the head"], endpoint_error(held, truth, bench.face).item())
    assert truth.abs().max().item() == pytest.approx(1, abs=0.05)
    measured = [record["step"] for record in bench.history if "error" in record]
    assert measured == [0, 5, 7]
    assert [record["step"] for record in bench.history] == list(range(8))


def test_without_a_truth_the_flow_is_shown_and_no_error(store):
    bench = Bench(store)
    assert not bench.measured
    assert bench.errors() == {}
    assert "error" not in bench.history[0]
    flow = torch.as_tensor(bench.view.motion("optical flow"))
    assert torch.allclose(bench.motion(bench.truth)[0], flow, atol=1e-4)
    bench.setup.apex = "moved"
    bench.reset()
    assert bench.measured
    assert set(bench.errors()) == {"error"}  # a motion that was made is known


def test_reference_losses_are_those_of_no_motion_and_of_the_truth(known):
    bench = Bench(known, setup=Setup(apex="moved"))
    reference = bench.reference_losses()
    assert np.isclose(reference["no motion"], bench.history[0]["total"])
    of_truth = bench.trial.losses(bench.setup.weights, bench.truth)["total"]
    assert np.isclose(reference["truth"], of_truth)
    assert reference["truth"] < reference["no motion"]


def test_what_is_no_kind_of_displacement_is_refused():
    with pytest.raises(ValueError, match="wanted one of"):
        Trial(pair(), pair(1), "flow")


# the figure


def decoded(source):
    "A picture as the page gets it."
    data = np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


@pytest.fixture
def drawn(known):
    "A bench after twelve steps, its figure, and the traces by name."
    bench, figure = Bench(known, setup=Setup(apex="moved")), lab_figure(SIDE, widget=False)
    bench.advance(12)
    draw_losses(bench, figure)
    draw_pictures(bench, figure)
    traces = {trace.name: trace for trace in figure.data}
    assert len(traces) == len(figure.data)
    return bench, figure, traces


def test_the_curves_are_the_history(drawn):
    bench, figure, traces = drawn
    for name in ("total", *LOSSES):
        expected = [record[name] for record in bench.history[1:]]
        assert np.allclose(traces[name].y[1:], expected, rtol=1e-3), name
    assert traces["normalization"].y[0] is None  # zero has no place on a logarithmic scale
    assert traces["error"].y[12] == pytest.approx(bench.history[12]["error"], rel=1e-3)
    assert traces["error"].y[11] is None
    assert all(value is None for value in traces["less the head"].y)
    reference = bench.reference_losses()
    assert tuple(traces["total of no motion"].y) == (reference["no motion"],) * 2
    assert tuple(traces["total of the truth"].y) == (reference["truth"],) * 2
    assert set(CURVES) == set(CURVE_COLORS)
    assert "px" in panel_title(figure, ERROR).text


def test_the_pictures_are_the_displacements(drawn):
    bench, _, traces = drawn
    cell = traces["displacement hover"].customdata[8][8][:2]
    motion = bench.motion(bench.trial.displacement)[0, :, 32:36, 32:36].mean((1, 2))
    assert np.allclose(cell, motion, atol=0.006)
    made = warp(bench.trial.onset, bench.trial.displacement.detach())[0].permute(1, 2, 0) * 255
    assert np.abs(decoded(traces["reconstructed"].source) - made.numpy()).mean() < 6


def test_before_the_first_step_there_are_points_to_see(known):
    bench, figure = Bench(known, setup=Setup(apex="moved")), lab_figure(SIDE, widget=False)
    traces = {trace.name: trace for trace in figure.data}
    for steps, mode in ((0, "markers"), (1, "lines")):
        bench.advance(steps)
        draw_losses(bench, figure)
        assert {traces[name].mode for name in CURVES} == {mode}
        assert traces["total"].y[0] > 0


def test_pictures_that_are_white_have_frames(known):
    figure = lab_figure(SIDE, widget=False)
    for panel in PICTURES.values():
        for axis in (figure.layout[f"xaxis{panel}"], figure.layout[f"yaxis{panel}"]):
            assert axis.visible is not False
            assert axis.mirror
            assert axis.linewidth
            assert not axis.showticklabels
    for ax in lab_still(Bench(known)).axes:
        assert ax.axison or not ax.images or "rim" in ax.get_title()


def test_displacement_and_truth_share_their_colours(known):
    bench = Bench(known, setup=Setup(apex="moved"))
    bench.trial.displacement = bench.truth.clone()
    pictures = lab_pictures(bench, full_color(bench))
    assert set(pictures) == set(PICTURES)
    assert (pictures["displacement"][0] == pictures["true displacement"][0]).all()
    assert (pictures["difference"][0].astype(int) > 235).all()  # nothing is left: white
    assert full_color(bench) < 5
    paler = lab_pictures(bench, 5.0)["displacement"][0]
    assert paler.mean() > pictures["displacement"][0].mean()


@given(st.integers(1, 3000), st.integers(2, 400))
def test_a_thinned_curve_keeps_its_ends_and_its_order(length, most):
    kept = curve_points([{"step": step} for step in range(length)], most)
    steps = [record["step"] for record in kept]
    assert (steps[0], steps[-1]) == (0, length - 1)
    assert len(steps) <= most
    assert steps == sorted(set(steps))


def test_the_still_shows_the_curves(known):
    bench = Bench(known)
    bench.advance(5)
    lines = {line.get_label(): line for ax in lab_still(bench).axes for line in ax.lines}
    assert np.allclose(lines["total"].get_ydata(), [record["total"] for record in bench.history])
    assert {"error", "less the head", "truth", "smoothness"} <= set(lines)


# the widget

WATCHED = {  # trace -> its attribute
    "difference": "source",
    "displacement": "source",
    "true displacement": "source",
    "total": "y",
}
EVERYTHING = {"difference", "displacement", "total"}
CHANGES = [
    ("clip", 1, EVERYTHING),
    ("subject", "02", EVERYTHING),
    ("database", "play", EVERYTHING),
    ("apex", "moved", EVERYTHING),
    ("kind", "module", {"displacement", "total"}),
    ("times", 4, EVERYTHING),
    ("noise", 4, EVERYTHING),
    ("reconstruction", 1, {"total"}),
    ("normalization", 5, {"total"}),
    ("smoothness", 10, {"total"}),
    ("rate", 0.01, set()),
    ("limit", 5.0, {"displacement", "true displacement"}),
]
MAY_CHANGE = {  # other boxes around the same truth; nothing was moved yet
    "clip": {"true displacement"},
    "subject": {"true displacement"},
    "database": {"true displacement"},
    "kind": {"difference"},
}


@pytest.mark.parametrize("name, value, changes", CHANGES, ids=[name for name, *_ in CHANGES])
def test_each_control_changes_what_it_should_and_nothing_else(lab, name, value, changes):
    lab.advance(3)
    traces = traces_of(lab)
    before = {part: getattr(traces[part], how) for part, how in WATCHED.items()}
    lab.controls[name].value = value
    after = {part: getattr(traces[part], how) for part, how in WATCHED.items()}
    changed = {part for part in WATCHED if after[part] != before[part]}
    allowed = MAY_CHANGE.get(name, set())
    assert changed - allowed == changes - allowed
    assert name in lab.redraw_ms
    assert "#b00020" not in lab.status.value


def test_the_status_is_the_loss_of_the_displacement_that_is_shown(lab):
    lab.advance(4)
    lab.controls["smoothness"].value = 10
    trial = lab.bench.trial
    displacement = trial.displacement.detach()
    total, parts = displacement_loss(trial.onset, trial.apex, displacement, (10, 1, 10))
    assert f"<b>{total:.4f}</b>" in lab.status.value
    assert all(f"{part:.5f}" in lab.status.value for part in parts.values())
    assert lab.status.value.startswith("step 4: 10 ×")
    assert traces_of(lab)["total"].y[-1] == pytest.approx(total.item(), rel=1e-3)


def test_step_and_reset(lab):
    lab.controls["step"].click()
    assert lab.bench.trial.steps == 1
    assert traces_of(lab)["total"].x[-1] == 1
    lab.controls["reset"].click()
    assert lab.bench.trial.steps == 0
    assert len(traces_of(lab)["total"].x) == 1
    assert lab.bench.trial.displacement.abs().max() == 0


def test_run_runs_until_paused_and_hears_the_sliders(lab):
    lab.max_steps = 10**9

    async def play():
        lab.controls["run"].click()
        await asyncio.sleep(0.6)
        running, lab.controls["smoothness"].value = lab.bench.trial.steps, 10  # while it runs
        await asyncio.sleep(0.6)
        assert lab.controls["run"].disabled
        assert not lab.controls["pause"].disabled
        lab.controls["pause"].click()
        await asyncio.wait_for(lab.task, 20)
        paused = lab.bench.trial.steps
        await asyncio.sleep(0.4)
        return running, paused, lab.bench.trial.steps

    running, paused, after = in_a_loop(play())
    assert 0 < running < paused == after
    assert lab.bench.setup.smoothness == 10
    assert not lab.running
    assert lab.controls["pause"].disabled
    assert traces_of(lab)["total"].x[-1] == paused
    assert "10 ×" in lab.status.value


def test_pause_is_heard_from_another_thread(lab):
    "In the middle of a slice, as JupyterLab passes it on: steps on one thread, the page on another."
    lab.max_steps, pausing = 10**9, []
    advance = lab.bench.advance

    def advanced(steps):
        advance(steps)
        if lab.bench.trial.steps >= 20 and not pausing:
            pausing.append(Thread(target=lab.controls["pause"].click))
            pausing[0].start()

    lab.bench.advance = advanced

    async def play():
        lab.controls["run"].click()
        await asyncio.wait_for(lab.task, 20)

    in_a_loop(play())
    pausing[0].join()
    assert lab.bench.trial.steps >= 20
    assert not lab.running
    assert lab.controls["pause"].disabled
    assert not lab.controls["run"].disabled
    assert f"step {lab.bench.trial.steps}:" in lab.status.value
    assert traces_of(lab)["total"].x[-1] == lab.bench.trial.steps


def test_one_answers_at_a_time(lab):
    "A control that is moved while a callback is at work is neither lost nor answered in between."
    order, begun = [], Event()
    quick = lab.timed_callback("quick", lambda: order.append("answered"))

    def slow():
        with lab.silently():
            order.append("begun")
            begun.set()
            time.sleep(0.2)
            order.append("done")

    def move():
        begun.wait(5)
        quick()

    other = Thread(target=move)
    other.start()
    lab.timed_callback("slow", slow)()
    other.join()
    assert order == ["begun", "done", "answered"]


def test_a_run_ends_by_itself_and_a_second_lab_ends_the_first(known):
    first, second = ModuleLab(known), ModuleLab(known, max_steps=12)

    async def play():
        first.controls["run"].click()
        await asyncio.sleep(0.1)
        second.controls["run"].click()
        await asyncio.gather(first.task, second.task)

    in_a_loop(play())
    assert second.bench.trial.steps == 12
    assert not first.running
    assert not second.running
    assert not first.controls["run"].disabled
    assert first.controls["pause"].disabled  # it can be run again


def test_reset_and_run_at_once_leave_one_run(lab):
    async def play():
        lab.controls["run"].click()
        await asyncio.sleep(0.1)
        old = lab.task
        lab.controls["reset"].click()
        lab.controls["run"].click()
        await asyncio.sleep(0.1)
        assert old.done()
        assert not lab.task.done()
        lab.controls["pause"].click()
        await lab.task

    in_a_loop(play())


def test_a_run_that_is_wrecked_stops_and_says_so(lab):
    async def play():
        lab.controls["run"].click()
        await asyncio.sleep(0.3)
        with torch.no_grad():
            lab.bench.trial.parameters[0].fill_(torch.nan)
        await lab.task

    in_a_loop(play())
    assert not lab.running
    assert "#b00020" in lab.status.value
    assert "lower the learning rate" in lab.status.value
    assert not lab.controls["run"].disabled
    lab.controls["reset"].click()
    assert "#b00020" not in lab.status.value
    assert lab.bench.trial.displacement.isfinite().all()


def test_without_a_loop_run_says_what_to_do(lab):
    lab.controls["run"].click()
    assert "call advance(steps) instead" in lab.status.value
    assert not lab.running


def test_the_widget_is_the_same_twice(known):
    labs = [ModuleLab(known, kind="module", apex="moved", noise=2, seed=5) for _ in range(2)]
    for lab in labs:
        lab.advance(3)
    assert torch.equal(labs[0].bench.trial.displacement, labs[1].bench.trial.displacement)
    assert labs[0].status.value == labs[1].status.value


def test_controls_show_what_is_seen_from_the_start(known):
    setup = dict(kind="module", rate=1e-3, smoothness=2, apex="moved", times=2, noise=1)
    lab = ModuleLab(known, clip="play/02/c1", **setup)
    for name in ("kind", "apex", "times", "noise", "rate", *LOSSES):
        assert lab.controls[name].value == getattr(lab.bench.setup, name), name
    assert lab.bench.store.index["clip_id"].iloc[lab.bench.row] == "play/02/c1"
    assert lab.controls["clip"].value == lab.bench.row


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(smoothness=3), "got smoothness=3"),
        (dict(rate=0.7), "got rate=0.7"),
        (dict(clip="c9"), "there is no clip"),
    ],
)
def test_what_no_slider_has_is_refused(known, more, message):
    with pytest.raises(ValueError, match=message):
        ModuleLab(known, **more)


def test_every_default_is_a_stop():
    for name, stops in STOPS.items():
        assert getattr(Setup(), name) in stops
        assert list(stops) == sorted(stops)
    for rate in RATES.values():
        assert rate in STOPS["rate"]


def test_the_figure_is_never_built_again(lab):
    figure, traces = lab.figure, tuple(map(id, lab.figure.data))
    for name, value in (("clip", 1), ("kind", "module"), ("scale", 1.5)):
        lab.controls[name].value = value
    lab.advance(2)
    assert lab.figure is figure
    assert tuple(map(id, figure.data)) == traces
    assert figure.layout.width == 846 * 1.5


def test_without_a_kernel_a_still_is_shown(lab):
    bundle = lab._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/jpeg"}
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"]))).size[0] > 600


def test_a_redraw_takes_less_than_150_ms(lab):
    lab.advance(400)
    spent = []
    for _ in range(3):
        began = time.process_time()
        lab.show()
        spent.append(time.process_time() - began)
    assert min(spent) < 0.15


def test_a_redraw_is_small(lab):
    lab.advance(5)
    assert (
        len(
            json.dumps(
                [list(trace.y or []) for trace in lab.figure.data if trace.type == "scatter"]
            )
        )
        < 5000
    )
    assert sum(len(traces_of(lab)[name].source) for name in PICTURES) < 200_000
    assert from_motion(to_motion(lab.bench.truth)).allclose(lab.bench.truth)
