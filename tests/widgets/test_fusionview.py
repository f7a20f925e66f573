"""Weights of the fusions without a browser: against the model's output, with attention skipped by hand, and what each control of the view changes. tests/test_browser_widgets.py looks at the page."""

import base64
import io
import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_store import toy_store

from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.model.regions import REGION_NAMES
from frl_dgt_nb.pictures.pair import PairView
from frl_dgt_nb.pictures.plots import patch_map
from frl_dgt_nb.training.loso import run_loso
from frl_dgt_nb.training.settings import TrainConfig
from frl_dgt_nb.widgets.fusionview import (
    FusionView,
    doublings,
    draw_bars,
    draw_faces,
    draw_region,
    fusion_figure,
    fusion_still,
    hover_text,
    share_colors,
)
from frl_dgt_nb.widgets.head_weights import LEVELS, MEAN, Fusions, both_weights, skip_attention

SMALL = ModelConfig(
    module="guided",
    sees=("displacement",),
    crop_size=6,
    patch=2,
    dim=8,
    heads=2,
    depth=1,
    full_size=8,
)
SIDE = 64
KINDS = {
    "before": {},
    "after": dict(fusion="after"),
    "no local": dict(levels=("global", "full")),
    "no global": dict(levels=("local", "full")),
    "no full": dict(levels=("local", "global")),
    "grid": dict(boxes="grid"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    return toy_store(tmp_path_factory.mktemp("faces") / "toy", size=SIDE)


def model(seed=0, **changes):
    "Fresh, but with weights far enough from zero to be told apart."
    torch.manual_seed(seed)
    made = FRLDGT(replace(SMALL, **changes)).eval()
    for name, values in made.named_parameters():
        if not name.startswith("dgm"):
            torch.nn.init.normal_(values, std=0.5)
    return made


@pytest.fixture(scope="module")
def judge():
    return model()


@pytest.fixture
def view(store, judge):
    return FusionView(store, judge)


# the numbers


@pytest.mark.parametrize("kind", KINDS)
def test_weights_with_attention_are_the_models(store, kind):
    seen = Fusions(store, model(**KINDS[kind]))
    (onset, apex), boxes = seen.view.pair, torch.as_tensor(seen.view.boxes)[None]
    with torch.no_grad():
        out = seen.view.model(onset, apex, boxes)
    assert np.allclose(seen.after.patches, out.local_weights[0], atol=1e-6) and np.allclose(
        seen.after.regions, out.global_weights[0], atol=1e-6
    )
    assert (seen.after.face is None) == (kind == "no full") and (
        kind == "no full" or np.allclose(seen.after.face, out.full_weights[0], atol=1e-6)
    )
    assert np.allclose(seen.chances, out.logits.softmax(-1)[0], atol=1e-6)
    if kind == "no local":
        assert np.allclose(seen.after.patches, 1 / 9)
    if kind == "no global":
        assert np.allclose(seen.after.regions, 1 / 9)


@pytest.mark.parametrize("kind", ("before", "after"))
def test_weights_without_attention_are_those_of_the_tokens_before_it(store, kind):
    made = model(**KINDS[kind])
    seen = Fusions(store, made)
    blocks = [
        *(module.attention for module in made.local_fusion.regions),
        made.full_fusion.attention,
    ]
    kept, (onset, apex), boxes = {}, seen.view.pair, torch.as_tensor(seen.view.boxes)[None]
    hooks = [
        block.register_forward_hook(lambda block, given, result: kept.__setitem__(block, given[0]))
        for block in [*blocks, made.global_fusion.attention]
    ]
    with torch.no_grad():
        made(onset, apex, boxes)
        for hook in hooks:
            hook.remove()
        for k, module in enumerate(made.local_fusion.regions):
            assert np.allclose(
                seen.without.patches[k], module.fusion(kept[module.attention])[1][0], atol=1e-6
            )
        assert np.allclose(
            seen.without.regions,
            made.global_fusion.fusion(kept[made.global_fusion.attention])[1][0],
            atol=1e-6,
        )
        assert np.allclose(
            seen.without.face,
            made.full_fusion.fusion(kept[made.full_fusion.attention])[1][0],
            atol=1e-6,
        )
    for before, after in zip(seen.without, seen.after):
        assert np.abs(before - after).max() > 1e-3


def test_skipping_leaves_the_model_as_it_was(store, judge):
    view = PairView(store, 0, model=judge)
    (onset, apex), boxes = view.pair, torch.as_tensor(view.boxes)[None]
    with torch.no_grad():
        before, maps = (
            judge(onset, apex, boxes).logits,
            judge.look(onset, apex, view.displacement()),
        )
        skip_attention(judge, maps, boxes)
        with pytest.raises(ValueError):
            skip_attention(judge, maps, boxes[:, :4])  # a mistake in the middle
        assert torch.equal(judge(onset, apex, boxes).logits, before)


def test_a_pair_is_asked_once(store, judge, monkeypatch):
    view = PairView(store, 0, model=judge)
    first = both_weights(view)
    monkeypatch.setattr(judge, "forward", None)
    assert both_weights(view)[1] is first[1]


# what is looked at


def test_levels_are_ratios_to_uniform(store, judge):
    seen = Fusions(store, judge)
    seen.level, seen.head = "patches", 1
    assert np.allclose(
        np.nan_to_num(seen.ratios()[1]),
        np.nan_to_num(patch_map(seen.view.boxes, seen.after.patches[:, 1], SIDE)),
    )
    seen.level = "patches × regions"
    assert np.allclose(
        seen.shares(seen.after)[1], seen.after.patches[:, 1] * seen.after.regions[1][:, None] * 9
    )
    seen.head = MEAN
    seen.level = "regions"
    alone = np.array([[0, 0, 7, 7]])
    k = 8
    seen.view.boxes[:] = 0, 0, 5, 5
    seen.view.boxes[k] = 40, 40, 60, 60
    assert (
        np.allclose(seen.ratios()[1][40:60, 40:60], seen.after.regions.mean(0)[k] * 9)
        and patch_map(alone, np.ones((1, 1)), 8).max() == 1
    )
    seen.level = "full face"
    assert np.isclose(np.nanmean(seen.ratios()[1]), 1, atol=0.01)
    seen.view._kept.pop("boxes")


@pytest.mark.parametrize("level", LEVELS)
def test_uniform_weights_are_grey(store, level):
    if level == "full face":
        return
    seen = Fusions(store, model(levels=("full",)))
    seen.level = level
    colors = share_colors(seen.ratios()[1], np.full((SIDE, SIDE, 3), 128, np.uint8)).astype(int)
    assert np.ptp(colors.reshape(-1, 3), 0).max() <= 2 and np.ptp(colors, -1).max() <= 4


@settings(max_examples=40, deadline=None)
@given(st.floats(-5, 5))
def test_doublings_are_symmetric_and_bounded(power):
    up, down = doublings(np.array([2.0**power, 2.0**-power]))
    assert up == pytest.approx(-down) and up == pytest.approx(np.clip(power, -2, 2))


def test_a_share_below_zero_is_blue():  # mixed rows of fusion after attention can be
    red, green, blue = share_colors(np.array([[-1.0]]), np.full((1, 1, 3), 255, np.uint8))[
        0, 0
    ].astype(int)
    assert blue > red and doublings(np.array(-1.0)) == -2 and doublings(np.array(np.nan)) == 0


def test_the_mouse_reads_the_models_numbers(store, judge):
    seen = Fusions(store, judge)
    seen.head = 0
    told, (without, after) = hover_text(seen)
    assert told.shape == (SIDE // 4, SIDE // 4) and after.shape == (*told.shape, 4)
    for y, x in zip(*np.nonzero(told != "no region")):
        region, patch = told[y, x].removeprefix("region ").split(", patch ")
        k, n = REGION_NAMES.index(region), int(patch) - 1
        assert np.allclose(
            after[y, x],
            100 * np.array([seen.after.patches[k, 0, n], 1 / 9, seen.after.regions[0, k], 1 / 9]),
            atol=0.006,
        )
        assert np.allclose(without[y, x, 0], 100 * seen.without.patches[k, 0, n], atol=0.006)
        x0, y0, x1, y1 = seen.view.boxes[k]
        at = 4 * np.array([x, y]) + 1.5
        assert (
            abs((at - [x0, y0]) / [x1 - x0, y1 - y0] - (np.array([n % 3, n // 3]) + 0.5) / 3)
            < 1 / 6 + 1e-6
        ).all()  # inside of that patch
    seen.level = "full face"
    told, (_, after) = hover_text(seen)
    assert (
        told[0, 0] == "full face, patch 1"
        and told[-1, -1] == "full face, patch 16"
        and np.isclose(after[-1, -1, 0], 100 * seen.after.face[0, 15], atol=0.006)
    )


def test_the_figure_holds_what_was_computed(store, judge):
    seen, figure = Fusions(store, judge), fusion_figure(SIDE, widget=False)
    for part in (draw_faces, draw_region, draw_bars):
        part(seen, figure)
    traces = {trace.name: trace for trace in figure.data}
    assert np.allclose(
        traces["with attention"].y, 100 * seen.after.regions.mean(0), atol=1e-3
    ) and np.allclose(traces["without attention"].y, 100 * seen.without.regions.mean(0), atol=1e-3)
    assert np.allclose(
        np.array(traces["heads × regions"].customdata), 100 * seen.after.regions
    ) and np.allclose(np.array(traces["heads × regions"].z), doublings(seen.after.regions * 9))
    assert np.allclose(
        np.array(traces["heads × patches"].customdata), 100 * seen.after.patches[seen.region]
    )
    assert np.allclose(traces["uniform"].y, 100 / 9, atol=1e-3) and len(traces) == len(figure.data)
    picture = cv2.imdecode(
        np.frombuffer(base64.b64decode(traces["after"].source.split(",")[1]), np.uint8),
        cv2.IMREAD_COLOR,
    )[..., ::-1].astype(int)
    assert (
        np.abs(picture - share_colors(seen.ratios()[1], seen.view.frames[seen.view.apex])).mean()
        < 12
    )
    bars = fusion_still(seen).axes[3].patches
    assert [bar.get_height() for bar in bars[:9]] == pytest.approx(
        seen.after.regions.mean(0).tolist()
    )


# who may speak


def test_faces_alone_have_no_weights(store):
    with pytest.raises(ValueError, match="pass model=, or open a run"):
        FusionView(store)
    with pytest.raises(ValueError, match="there is no clip"):
        FusionView(store, model(), clip="x")


def test_of_a_run_each_subject_is_seen_by_its_own_model(store, tmp_path):
    out = tmp_path / "run"
    run_loso(
        store,
        out,
        model_config=SMALL,
        train_config=TrainConfig(epochs=1, batch_size=4, pairs=0, apex_jitter=0),
        device="cpu",
        threads=1,
        progress=False,
    )
    view = FusionView(out, store=store)
    first = view.seen.view.model
    view.controls["subject"].value = "02"
    assert (
        view.seen.view.model is not first
        and view.seen.store.index["subject_id"].iloc[view.seen.row] == "toy/02"
    )
    (out / "folds" / "play__01.safetensors").unlink()
    view.controls["database"].value = "play"
    assert (
        "no model of the fold of play/01" in view.status.value
        and view.controls["subject"].value == "02"
        and view.seen.store.index["subject_id"].iloc[view.seen.row] == "toy/02"
    )


# the widget

SEEN = {
    "without": "source",
    "after": "source",
    "crops": "source",
    "with attention": "y",
    "heads × patches": "z",
    "chosen 2": "x",
}
ALL = "without after crops with attention heads × patches chosen 2"
CHANGES = [
    ("clip", 1, set(SEEN)),
    ("subject", "02", set(SEEN)),
    ("database", "play", set(SEEN)),
    ("head", 1, {"without", "after", "crops", "with attention"}),
    ("level", "regions", {"without", "after"}),
    ("level", "patches × regions", {"without", "after"}),
    ("level", "full face", {"without", "after"}),
    ("region", 5, {"crops", "heads × patches", "chosen 2"}),
]


@pytest.mark.parametrize(
    "name, value, changes", CHANGES, ids=[f"{name} {value}" for name, value, _ in CHANGES]
)
def test_each_control_changes_what_it_should_and_nothing_else(view, name, value, changes):
    view.controls["region"].value = 2
    kept = lambda: {part: str(getattr(view.traces[part], how)) for part, how in SEEN.items()}
    before = kept()
    view.controls[name].value = value
    after = kept()
    assert {part for part in SEEN if after[part] != before[part]} == changes
    assert name in view.redraw_ms and "#b00020" not in view.status.value


def test_clicks_choose_regions_and_heads(view):
    middle = (view.seen.view.boxes[6, :2] + view.seen.view.boxes[6, 2:]) / 2
    view.choose_at(SimpleNamespace(xs=[middle[0]], ys=[middle[1]]))
    assert view.controls["region"].value == view.seen.region == 6
    view.choose_at(SimpleNamespace(xs=[], ys=[]))
    view.choose_at(SimpleNamespace(xs=[-9.0], ys=[-9.0]))
    assert view.controls["region"].value == 6
    view.choose_named(
        SimpleNamespace(xs=["2"], ys=["2"], trace_name="heads × patches"), region=False
    )
    assert view.controls["head"].value == 1 == view.seen.head and view.controls["region"].value == 6
    view.choose_named(
        SimpleNamespace(xs=["1L"], ys=["1"], trace_name="heads × regions"), region=True
    )
    assert (view.controls["head"].value, view.controls["region"].value) == (0, 0)
    view.choose_named(
        SimpleNamespace(xs=["5R"], ys=[3.0], trace_name="with attention"), region=True
    )
    assert (view.controls["head"].value, view.controls["region"].value) == (
        0,
        REGION_NAMES.index("5R"),
    )


def test_the_status_tells_the_models_numbers(view):
    view.controls["head"].value, view.controls["region"].value = 1, 3
    weight, patches = view.seen.after.regions[1, 3], view.seen.after.patches[3, 1]
    assert (
        view.status.value.startswith(f"3L (left lower lid): {weight:.1%} of the regions")
        and f"{patches.min():.1%} to {patches.max():.1%} (uniform 11.1%)" in view.status.value
    )
    assert f"({view.seen.chances.max():.2f})" in view.controls["told"].value


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_looked_at(store, kind):
    view = FusionView(store, model(**KINDS[kind]))
    assert ("full face" in view.controls["level"].options) == (kind != "no full")
    for view.controls["level"].value in view.controls["level"].options:
        for view.controls["head"].value in (0, 1, MEAN):
            assert "#b00020" not in view.status.value
    if kind == "grid":
        assert (
            view.controls["region"].options[0] == ("1", 0)
            and view.status.value.split(":")[0] in "123456789"
        )


def test_a_model_that_does_not_fit_is_refused(store):
    with pytest.raises(ValueError, match="2 classes for a store of 3"):
        FusionView(store, model(classes=2))


def test_without_a_kernel_a_still_is_shown(view):
    bundle = view._repr_mimebundle_()
    assert (
        set(bundle) == {"text/plain", "image/jpeg"}
        and Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"]))).size[0] > 600
    )


def test_a_redraw_takes_less_than_150_ms(view):
    spent = {}
    for _ in range(2):
        for name, values in dict(
            head=(1, 0), level=("regions", "patches"), region=(3, 7), clip=(1, 0)
        ).items():
            for value in values:
                began = time.process_time()
                view.controls[name].value = value
                spent[name] = min(spent.get(name, 9.0), time.process_time() - began)
    assert max(spent.values()) < 0.15, spent


def test_the_figure_is_never_built_again(view):
    figure, traces = view.figure, tuple(map(id, view.figure.data))
    for name, value in (("clip", 1), ("level", "regions"), ("head", 0), ("scale", 1.5)):
        view.controls[name].value = value
    assert (
        view.figure is figure
        and tuple(map(id, figure.data)) == traces
        and figure.layout.width == 846 * 1.5
    )
