"""Table 2: a row differs from the whole model in the part it names, in weights and in results, and in nothing else."""

from dataclasses import asdict

import pytest
import torch

from frl_dgt_nb.model.config import PRESETS
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.study.ablations import VARIANTS, variant
from frl_dgt_nb.training.settings import TRAIN_PRESETS

ALL = {"dgm", "local_fusion", "global_fusion", "full_fusion", "classifier"}
MODEL = {
    "M0": {"module", "normalize"},
    "M1": {"module"},
    "M2": {"module", "sees"},
    "M3": set(),
    "M4": {"fusion"},
    "M5": {"boxes"},
    "M6": {"levels"},
    "M7": {"levels"},
    "M8": {"levels"},
    "M9": set(),
    "M9-plain": set(),
}
TRAIN = {"M0": {"pairs"}, "M1": {"pairs"}, "M2": {"pairs"}, "M3": {"pairs", "loss_weights"}}
OTHER_PARTS = {
    "M0": {"dgm"},
    "M1": {"dgm"},
    "M2": {"dgm", "local_fusion", "full_fusion"},
    "M4": {"local_fusion", "global_fusion", "full_fusion"},
    "M6": {"full_fusion", "classifier"},
    "M7": {"local_fusion"},
    "M8": {"global_fusion"},
}


def differing(old, new):
    return {name for name, value in asdict(old).items() if getattr(new, name) != value}


def shapes(part):
    return {name: tuple(value.shape) for name, value in part.state_dict().items()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_settings_differ_in_the_named_part(name, preset):
    model, train = variant(name, PRESETS[preset], TRAIN_PRESETS[preset])
    assert differing(PRESETS[preset], model) == MODEL[name] and differing(
        TRAIN_PRESETS[preset], train
    ) == TRAIN.get(name, set())


@pytest.mark.parametrize("name", VARIANTS)
def test_with_best_too(name):
    "Whose module comes trained: there M3 and M9-plain are the paper's module, untaught and taught by itself"
    model, train = variant(name, PRESETS["best"], TRAIN_PRESETS["best"])
    plain = {"module", "dgm_size", "dgm_width"} if name in ("M3", "M9-plain") else set()
    assert differing(PRESETS["best"], model) == MODEL[name] | plain
    assert differing(TRAIN_PRESETS["best"], train) == {
        "M3": {"loss_weights"},
        "M9-plain": {"pairs"},
    }.get(name, set())
    one, other = (
        variant(row, PRESETS["best"], TRAIN_PRESETS["best"]) for row in ("M3", "M9-plain")
    )
    assert one[0] == other[0] and differing(one[1], other[1]) == {"pairs", "loss_weights"}


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_differ_where_they_should(name):
    whole, row = (
        FRLDGT(variant(one, PRESETS["tiny"], TRAIN_PRESETS["tiny"])[0]) for one in ("M9", name)
    )
    parts = [dict(model.named_children()) for model in (whole, row)]
    assert {
        part
        for part in ALL
        if part not in parts[1] or shapes(parts[0][part]) != shapes(parts[1][part])
    } == OTHER_PARTS.get(name, set())


@pytest.mark.parametrize("name", ["M4", "M6", "M7", "M8"])
def test_the_graph_differs_behind_the_named_part_alone(name):
    "With the weights of the whole model wherever the row has the part: what comes before the change stays the same."
    torch.manual_seed(0)
    whole, row = (
        FRLDGT(variant(one, PRESETS["tiny"], TRAIN_PRESETS["tiny"])[0]).eval()
        for one in ("M9", name)
    )
    shared = {
        key: value
        for key, value in whole.state_dict().items()
        if key in row.state_dict() and row.state_dict()[key].shape == value.shape
    }
    row.load_state_dict(shared, strict=False)
    onset, apex, field = (
        torch.rand(2, 3, 128, 128),
        torch.rand(2, 3, 128, 128),
        torch.randn(2, 2, 128, 128) * 0.01,
    )
    boxes = torch.tensor([20.0, 20, 90, 90]).expand(2, 9, 4)
    with torch.no_grad():
        a, b = whole(onset, apex, boxes, field), row(onset, apex, boxes, field)
    same = {
        "M4": [],
        "M6": ["local_weights", "global_weights"],
        "M7": ["full_weights"],
        "M8": ["local_weights", "full_weights"],
    }[name]
    for output in same:
        torch.testing.assert_close(getattr(a, output), getattr(b, output))
    if name == "M6":
        torch.testing.assert_close(a.features[:, : b.features.shape[1]], b.features)
    if name == "M7":
        torch.testing.assert_close(a.features[:, 64:], b.features[:, 64:])  # the full face
    if name == "M8":
        torch.testing.assert_close(a.features[:, 64:], b.features[:, 64:])
    assert (a.logits - b.logits).abs().max() > 1e-4


def test_a_level_left_out_is_a_plain_mean():
    torch.manual_seed(0)
    model = FRLDGT(variant("M8", PRESETS["tiny"], TRAIN_PRESETS["tiny"])[0]).eval()
    vectors = torch.randn(3, 9, 64)
    whole, weights = model.global_fusion(vectors)
    torch.testing.assert_close(whole, torch.nn.functional.layer_norm(vectors, (64,)).mean(1))
    torch.testing.assert_close(weights, torch.full((3, 4, 9), 1 / 9))


def test_what_is_not_in_the_table_is_refused():
    with pytest.raises(ValueError, match="no row 'm9' in Table 2; choose from M0, M1"):
        variant("m9", PRESETS["best"], TRAIN_PRESETS["best"])
    with pytest.raises(ValueError, match="another preset than flow"):
        variant("M1", PRESETS["flow"], TRAIN_PRESETS["flow"])
    with pytest.raises(ValueError, match="got module='raft'"):
        variant("M1", PRESETS["best"], TRAIN_PRESETS["best"], flow="raft")
