"""Fusion weights without a browser: against the model's output, with attention skipped by hand, and what each
control changes. test_browser_widgets.py looks at the page."""

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
from frl_dgt_nb.widgets.canvas import PANELS, panel_title
from frl_dgt_nb.widgets.fusion_figure import (
    doublings,
    draw_bars,
    draw_faces,
    draw_region,
    fusion_figure,
    fusion_still,
    hover_percents,
    hover_places,
    hover_texts,
    ratio_colors,
)
from frl_dgt_nb.widgets.fusionview import FusionView
from frl_dgt_nb.widgets.head_weights import (
    LEVELS,
    MEAN_HEAD,
    ClipWeights,
    both_weights,
    skip_attention,
)

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
    clip = ClipWeights(store, model(**KINDS[kind]))
    (onset, apex), boxes = clip.view.pair, torch.as_tensor(clip.view.boxes)[None]
    with torch.no_grad():
        out = clip.view.model(onset, apex, boxes)
    weights = clip.with_attention
    assert np.allclose(weights.patches, out.local_weights[0], atol=1e-6)
    assert np.allclose(weights.regions, out.global_weights[0], atol=1e-6)
    assert (weights.face is None) == (kind == "no full")
    if kind != "no full":
        assert np.allclose(weights.face, out.full_weights[0], atol=1e-6)
    assert np.allclose(clip.probabilities, out.logits.softmax(-1)[0], atol=1e-6)
    if kind == "no local":
        assert np.allclose(weights.patches, 1 / 9)
    if kind == "no global":
        assert np.allclose(weights.regions, 1 / 9)


@pytest.mark.parametrize("kind", ("before", "after"))
def test_weights_without_attention_are_those_of_the_tokens_before_it(store, kind):
    made = model(**KINDS[kind])
    clip = ClipWeights(store, made)
    modules = [*made.local_fusion.regions, made.full_fusion, made.global_fusion]
    tokens, (onset, apex), boxes = {}, clip.view.pair, torch.as_tensor(clip.view.boxes)[None]

    def keep_input(block, inputs, output):
        tokens[block] = inputs[0]

    hooks = [module.attention.register_forward_hook(keep_input) for module in modules]
    with torch.no_grad():
        made(onset, apex, boxes)
        for hook in hooks:
            hook.remove()
        *regions, face, all_regions = (
            module.fusion(tokens[module.attention])[1][0] for module in modules
        )
    weights = clip.without_attention
    for patches, expected in zip(weights.patches, regions):
        assert np.allclose(patches, expected, atol=1e-6)
    assert np.allclose(weights.regions, all_regions, atol=1e-6)
    assert np.allclose(weights.face, face, atol=1e-6)
    for before, after in zip(clip.without_attention, clip.with_attention):
        assert np.abs(before - after).max() > 1e-3


def test_skipping_leaves_the_model_as_it_was(store, judge):
    view = PairView(store, 0, model=judge)
    (onset, apex), boxes = view.pair, torch.as_tensor(view.boxes)[None]
    with torch.no_grad():
        before = judge(onset, apex, boxes).logits
        maps = judge.look(onset, apex, view.displacement())
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
    clip = ClipWeights(store, judge)
    weights, boxes = clip.with_attention, clip.view.boxes
    clip.level, clip.head = "patches", 1
    expected = patch_map(boxes, weights.patches[:, 1], SIDE)
    assert np.allclose(clip.ratio_map(weights), expected, equal_nan=True)
    clip.level = "patches × regions"
    expected = weights.patches[:, 1] * weights.regions[1][:, None] * 9
    assert np.allclose(clip.drawn_weights(weights)[1], expected)
    clip.head = MEAN_HEAD
    clip.level = "full face"
    assert np.isclose(np.nanmean(clip.ratio_map(weights)), 1, atol=0.01)


def test_a_region_alone_has_its_own_ratio(store, judge):
    clip = ClipWeights(store, judge)
    clip.level = "regions"
    clip.view.boxes[:] = 0, 0, 5, 5
    clip.view.boxes[8] = 40, 40, 60, 60
    alone = clip.ratio_map(clip.with_attention)[40:60, 40:60]
    clip.view._kept.pop("boxes")
    assert np.allclose(alone, clip.with_attention.regions.mean(0)[8] * 9)


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "full face"])
def test_uniform_weights_are_grey(store, level):
    clip = ClipWeights(store, model(levels=("full",)))
    clip.level = level
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    colors = ratio_colors(clip.ratio_map(clip.with_attention), grey).astype(int)
    assert np.ptp(colors.reshape(-1, 3), 0).max() <= 2
    assert np.ptp(colors, -1).max() <= 4


@settings(max_examples=40, deadline=None)
@given(st.floats(-5, 5))
def test_doublings_are_symmetric_and_bounded(power):
    up, down = doublings(np.array([2.0**power, 2.0**-power]))
    assert up == pytest.approx(-down)
    assert up == pytest.approx(np.clip(power, -2, 2))


def test_a_weight_below_zero_is_blue():  # mixed rows of fusion after attention can be
    white = np.full((1, 1, 3), 255, np.uint8)
    red, green, blue = ratio_colors(np.array([[-1.0]]), white)[0, 0].astype(int)
    assert blue > red
    assert doublings(np.array(-1.0)) == -2
    assert doublings(np.array(np.nan)) == 0


def hovered(clip):
    "What the mouse reads: texts, and percents without and with attention."
    places = hover_places(clip)
    percents = [hover_percents(clip, weights, *places) for weights in clip.both.values()]
    return hover_texts(clip, *places), *percents


def test_the_mouse_reads_the_models_numbers(store, judge):
    clip = ClipWeights(store, judge)
    clip.head = 0
    texts, without, attended = hovered(clip)
    weights = clip.with_attention
    assert texts.shape == (SIDE // 4, SIDE // 4)
    assert attended.shape == (*texts.shape, 4)
    for y, x in zip(*np.nonzero(texts != "no region")):
        region, patch = texts[y, x].removeprefix("region ").split(", patch ")
        k, n = REGION_NAMES.index(region), int(patch) - 1
        shares = np.array([weights.patches[k, 0, n], 1 / 9, weights.regions[0, k], 1 / 9])
        assert np.allclose(attended[y, x], 100 * shares, atol=0.006)
        expected = 100 * clip.without_attention.patches[k, 0, n]
        assert np.isclose(without[y, x, 0], expected, atol=0.006)
        x0, y0, x1, y1 = clip.view.boxes[k]
        place = (4 * np.array([x, y]) + 1.5 - [x0, y0]) / [x1 - x0, y1 - y0]
        middle = (np.array([n % 3, n // 3]) + 0.5) / 3
        assert (abs(place - middle) < 1 / 6 + 1e-6).all()  # inside of that patch
    assert (attended[texts == "no region"] == 0).all()


def test_the_mouse_reads_the_full_face(store, judge):
    clip = ClipWeights(store, judge)
    clip.level, clip.head = "full face", 0
    texts, _, attended = hovered(clip)
    assert texts[0, 0] == "full face, patch 1"
    assert texts[-1, -1] == "full face, patch 16"
    assert np.isclose(attended[-1, -1, 0], 100 * clip.with_attention.face[0, 15], atol=0.006)


def decoded(source):
    "A picture as the page gets it."
    data = np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


@pytest.fixture
def filled(store, judge):
    "A clip, and the traces of a figure that shows it."
    clip, figure = ClipWeights(store, judge), fusion_figure(SIDE, widget=False)
    for draw in (draw_faces, draw_region, draw_bars):
        draw(clip, figure)
    traces = {trace.name: trace for trace in figure.data}
    assert len(traces) == len(figure.data)
    return clip, traces, [panel_title(figure, panel).text for panel in PANELS]


def test_the_figure_holds_what_was_computed(filled):
    clip, traces, _ = filled
    for name, weights in clip.both.items():
        expected = 100 * weights.regions.mean(0)
        assert np.allclose(traces[f"regions {name}"].y, expected, atol=1e-3)
        colors = ratio_colors(clip.ratio_map(weights), clip.view.frames[clip.view.apex])
        assert np.abs(decoded(traces[f"face {name}"].source) - colors).mean() < 12
    weights, table = clip.with_attention, traces["heads × regions"]
    assert np.allclose(np.array(table.customdata), 100 * weights.regions)
    assert np.allclose(np.array(table.z), doublings(weights.regions * 9))
    patches = np.array(traces["heads × patches"].customdata)
    assert np.allclose(patches, 100 * weights.patches[clip.region])
    assert np.allclose(traces["uniform"].y, 100 / 9, atol=1e-3)


def test_titles_say_what_is_shown(filled):
    clip, _, titles = filled
    assert all(titles)
    assert titles[1] == "with attention, mean of the heads"
    assert titles[2] == f"region {clip.region_names[clip.region]}"


def test_the_still_has_the_models_bars(store, judge):
    clip = ClipWeights(store, judge)
    heights = [bar.get_height() for bar in fusion_still(clip).axes[3].patches[:9]]
    assert heights == pytest.approx(clip.with_attention.regions.mean(0).tolist())


# who may speak


def test_faces_alone_have_no_weights(store):
    with pytest.raises(ValueError, match="pass model=, or open a run"):
        FusionView(store)
    with pytest.raises(ValueError, match="there is no clip"):
        FusionView(store, model(), clip="x")


def test_of_a_run_each_subject_is_seen_by_its_own_model(store, tmp_path):
    out = tmp_path / "run"
    settings = TrainConfig(epochs=1, batch_size=4, pairs=0, apex_jitter=0)
    few = dict(device="cpu", threads=1, progress=False)
    run_loso(store, out, model_config=SMALL, train_config=settings, **few)
    view = FusionView(out, store=store)
    shown = view.clip_weights
    first = shown.view.model
    view.controls["subject"].value = "02"
    assert shown.view.model is not first
    assert store.index["subject_id"].iloc[shown.row] == "toy/02"
    (out / "folds" / "play__01.safetensors").unlink()
    view.controls["database"].value = "play"
    assert "no model of the fold of play/01" in view.status.value
    assert view.controls["subject"].value == "02"  # the clip before stays
    assert store.index["subject_id"].iloc[shown.row] == "toy/02"


# the widget

WATCHED = {  # trace -> its attribute
    "face without attention": "source",
    "face with attention": "source",
    "crops": "source",
    "regions with attention": "y",
    "heads × patches": "z",
    "chosen box with attention": "x",
}
FACES = {"face without attention", "face with attention"}
CHANGES = [
    ("clip", 1, set(WATCHED)),
    ("subject", "02", set(WATCHED)),
    ("database", "play", set(WATCHED)),
    ("head", 1, FACES | {"crops", "regions with attention"}),
    ("level", "regions", FACES),
    ("level", "patches × regions", FACES),
    ("level", "full face", FACES),
    ("region", 5, {"crops", "heads × patches", "chosen box with attention"}),
]


def watched(view):
    return {part: str(getattr(view.traces[part], how)) for part, how in WATCHED.items()}


@pytest.mark.parametrize(
    "name, value, changes", CHANGES, ids=[f"{name} {value}" for name, value, _ in CHANGES]
)
def test_each_control_changes_what_it_should_and_nothing_else(view, name, value, changes):
    view.controls["region"].value = 2
    before = watched(view)
    view.controls[name].value = value
    after = watched(view)
    assert {part for part in WATCHED if after[part] != before[part]} == changes
    assert name in view.redraw_ms
    assert "#b00020" not in view.status.value


def click(view, trace, x, y):
    "As the page tells the kernel of it."
    points = SimpleNamespace(xs=[x], ys=[y], point_inds=[0], trace_name=trace, trace_index=0)
    view.traces[trace]._dispatch_on_click(points, None)


def chosen(view):
    "Head and region."
    return view.controls["head"].value, view.controls["region"].value


def test_clicks_on_a_face_choose_a_region(view):
    boxes = view.clip_weights.view.boxes
    for name in ("without attention", "with attention"):
        view.controls["region"].value = 0
        click(view, f"hover {name}", *(boxes[6, :2] + boxes[6, 2:]) / 2)
        assert view.controls["region"].value == view.clip_weights.region == 6
    click(view, "hover with attention", -9.0, -9.0)  # beside the face
    view.traces["hover with attention"]._dispatch_on_click(SimpleNamespace(xs=[], ys=[]), None)
    assert view.controls["region"].value == 6


def test_clicks_on_tables_and_bars_choose_heads_and_regions(view):
    view.controls["region"].value = 6
    click(view, "heads × patches", "2", "2")
    assert chosen(view) == (1, 6)
    assert view.clip_weights.head == 1
    click(view, "heads × regions", "1L", "1")
    assert chosen(view) == (0, 0)
    click(view, "regions with attention", "5R", 3.0)
    assert chosen(view) == (0, REGION_NAMES.index("5R"))


def test_the_status_tells_the_models_numbers(view):
    view.controls["head"].value, view.controls["region"].value = 1, 3
    clip = view.clip_weights
    weight, patches = clip.with_attention.regions[1, 3], clip.with_attention.patches[3, 1]
    assert view.status.value.startswith(f"3L (left lower lid): {weight:.1%} of the regions")
    assert f"{patches.min():.1%} to {patches.max():.1%} (uniform 11.1%)" in view.status.value
    assert f"({clip.probabilities.max():.2f})" in view.controls["verdict"].value


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_looked_at(store, kind):
    view = FusionView(store, model(**KINDS[kind]))
    assert ("full face" in view.controls["level"].options) == (kind != "no full")
    for level in view.controls["level"].options:
        view.controls["level"].value = level
        for head in (0, 1, MEAN_HEAD):
            view.controls["head"].value = head
            assert "#b00020" not in view.status.value
    if kind == "grid":
        assert view.controls["region"].options[0] == ("1", 0)
        assert view.status.value.split(":")[0] in "123456789"


def test_a_model_that_does_not_fit_is_refused(store):
    with pytest.raises(ValueError, match="2 classes for a store of 3"):
        FusionView(store, model(classes=2))


def test_without_a_kernel_a_still_is_shown(view):
    bundle = view._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/jpeg"}
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"])))
    assert picture.size[0] > 600


def test_a_redraw_takes_less_than_150_ms(view):
    turns = dict(head=(1, 0), level=("regions", "patches"), region=(3, 7), clip=(1, 0))
    spent = {}
    for _ in range(2):
        for name, values in turns.items():
            for value in values:
                began = time.process_time()
                view.controls[name].value = value
                spent[name] = min(spent.get(name, 9.0), time.process_time() - began)
    assert max(spent.values()) < 0.15, spent


def test_the_figure_is_never_built_again(view):
    figure, traces = view.figure, tuple(map(id, view.figure.data))
    for name, value in (("clip", 1), ("level", "regions"), ("head", 0), ("scale", 1.5)):
        view.controls[name].value = value
    assert view.figure is figure
    assert tuple(map(id, figure.data)) == traces
    assert figure.layout.width == 846 * 1.5
