import os
from dataclasses import asdict, fields, replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from frl_dgt_nb.model.config import PRESETS, ModelConfig
from frl_dgt_nb.model.dgm import normalize_displacement
from frl_dgt_nb.model.frldgt import (
    FRLDGT,
    Output,
    load_model,
    parameter_table,
    read_config,
    save_weights,
    show_displacement,
    smooth_noise,
)
from frl_dgt_nb.model.guided import load_guided

SMALL = ModelConfig(
    crop_size=10,
    patch=5,
    dim=16,
    heads=2,
    depth=1,
    full_size=15,
    dgm_size=16,
    dgm_width=4,
    dgm_depth=2,
    dropout=0.0,
)


def make(config=SMALL, seed=0, moving=True):
    "A small model whose displacement isn't zero."
    torch.manual_seed(seed)
    model = FRLDGT(config)
    if moving:
        with torch.no_grad():
            model.dgm.head.weight.normal_(std=0.02)
    return model


def batch(size=4, side=32, regions=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    onset, apex = torch.rand(2, size, 3, side, side, generator=generator)
    low = torch.rand(size, regions, 2, generator=generator) * side / 2
    return onset, apex, torch.cat([low, low + side / 3], -1)


@pytest.mark.parametrize("fusion", ["before", "after"])
@pytest.mark.parametrize(
    "sees", [("onset", "apex", "displacement"), ("displacement",), ("onset", "apex"), ("apex",)]
)
def test_shapes_and_gradients(fusion, sees):
    model = make(replace(SMALL, fusion=fusion, sees=sees, gradient_scale=1.0))
    output = model(*batch(3))
    assert isinstance(output, Output)
    shapes = dict(
        logits=(3, 3),
        displacement=(3, 2, 32, 32),
        local_weights=(3, 9, 2, 4),
        global_weights=(3, 2, 9),
        full_weights=(3, 2, 9),
        features=(3, 32),
    )
    assert {name: tuple(value.shape) for name, value in output._asdict().items()} == shapes
    F.cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    reached = {
        name: any(p.grad is not None and p.grad.any() for p in part.parameters())
        for name, part in model.named_children()
    }
    assert reached.pop("dgm") == ("displacement" in sees)
    assert all(reached.values())


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.0])
def test_gradient_into_the_displacement_module_is_scaled(scale):
    grads = []
    for s in (1.0, scale):
        model = make(replace(SMALL, gradient_scale=s)).double()
        onset, apex, boxes = (x.double() for x in batch())
        F.cross_entropy(model(onset, apex, boxes).logits, torch.tensor([0, 1, 2, 0])).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, unscaled in grads[0].items():
        torch.testing.assert_close(
            grads[1][name],
            unscaled * scale if name.startswith("dgm.") else unscaled,
            rtol=1e-9,
            atol=1e-18,
        )
    assert grads[0]["dgm.head.weight"].abs().max() > 1e-6


def test_own_loss_is_not_scaled():
    grads = []
    for scale in (1.0, 1e-6):
        model = make(replace(SMALL, gradient_scale=scale))
        model(*batch()).displacement.square().sum().backward()
        grads.append(model.dgm.head.weight.grad)
    assert torch.equal(*grads) and grads[0].any()


def test_evaluation_ignores_the_company():
    model = make()
    for seed in range(3):
        model(*batch(seed=seed))
    onset, apex, boxes = batch(5)
    together = model(onset, apex, boxes).logits[2:3]
    assert (
        together - model(onset[2:3], apex[2:3], boxes[2:3]).logits
    ).abs().max() > 1e-4  # training: it matters
    model.eval()
    whole, alone = model(onset, apex, boxes), model(onset[2:3], apex[2:3], boxes[2:3])
    for a, b in zip(whole, alone):
        torch.testing.assert_close(a[2:3], b, atol=1e-5, rtol=1e-4)
    assert torch.equal(model(onset, apex, boxes).logits, whole.logits)


def test_seed_fixes_the_start():
    first, second, other = (make(seed=s, moving=False).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.0.weight"], other["classifier.0.weight"])


def test_given_displacement_replaces_the_module():
    model, (onset, apex, boxes) = make().eval(), batch()
    model.dgm.forward = None  # must not be called
    given = torch.randn(4, 2, 32, 32) * 0.01
    output = model(onset, apex, boxes, displacement=given)
    assert output.displacement is given
    model = make(replace(SMALL, normalize=False)).eval()
    assert (
        model(onset, apex, boxes, displacement=given).logits
        - model(onset, apex, boxes, displacement=2 * given).logits
    ).abs().max() > 1e-7
    model = make().eval()  # normalised: size doesn't matter
    torch.testing.assert_close(
        model(onset, apex, boxes, displacement=given).logits,
        model(onset, apex, boxes, displacement=2 * given).logits,
    )


def test_what_is_shown_is_normalised_or_in_pixels():
    field = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.1, 0.01, 0.001]
    ).view(3, 1, 1, 1)
    assert torch.equal(show_displacement(field), normalize_displacement(field))
    torch.testing.assert_close(
        show_displacement(field, normalize=False), field * 16
    )  # 32 pixels wide: 1.0 is 16 of them
    for normalize in (True, False):
        torch.manual_seed(3)
        noise = show_displacement(field, normalize, 0.4) - show_displacement(field, normalize)
        own = show_displacement(field, normalize).norm(dim=1).flatten(1).quantile(0.95, dim=1)
        torch.manual_seed(3)
        wanted = (
            0.4 * smooth_noise(field) * own.view(3, 1, 1, 1)
        )  # as large as the motion is, whatever the unit
        torch.testing.assert_close(noise, wanted, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    "levels", [("local",), ("global", "full"), ("local", "full"), ("full",), ("local", "global")]
)
def test_levels_left_out(levels, tmp_path):
    model = make(replace(SMALL, levels=levels))
    output = model(*batch(3))
    assert output.features.shape == (3, 32 if "full" in levels else 16) and (
        output.full_weights is None
    ) == ("full" not in levels)

    def alike(weights):
        return (weights == 1 / weights.shape[-1]).all().item()

    assert alike(output.local_weights) == ("local" not in levels) and alike(
        output.global_weights
    ) == ("global" not in levels)
    F.cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    assert all(
        p.grad is not None for name, p in model.named_parameters() if not name.startswith("dgm")
    )
    again = load_model(save_weights(model.eval(), tmp_path / "m.safetensors"))
    assert again.config == model.config and torch.equal(
        again(*batch(3)).logits, model(*batch(3)).logits
    )


def test_frames_need_not_be_there_where_nobody_looks():
    (onset, apex, boxes), field = (
        batch(),
        torch.randn(4, 2, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    model = make(replace(SMALL, sees=("displacement",))).eval()
    assert torch.equal(
        model(None, None, boxes, field).logits, model(onset, apex, boxes, field).logits
    )
    with pytest.raises(ValueError, match="got no frames"):
        model(None, None, boxes)
    for sees in (("apex",), ("onset", "displacement")):
        with pytest.raises(ValueError, match="got no frames"):
            make(replace(SMALL, sees=sees))(None, None, boxes, field)
        with pytest.raises(ValueError, match="got no frames"):
            make(replace(SMALL, sees=sees))(onset, None, boxes, field)
    flags = {name: (config.shows_frames, config.needs_frames) for name, config in PRESETS.items()}
    assert flags == {
        "paper": (True, True),
        "tiny": (True, True),
        "best": (False, False),
        "flow": (False, False),
    }
    assert replace(SMALL, sees=("displacement",)).needs_frames  # its module learns from them


def test_given_module_is_none():
    config, boxes = replace(SMALL, module="given", sees=("displacement", "strain")), batch()[2]
    model, field = (
        FRLDGT(config),
        torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    )
    assert (
        config.channels == 3
        and "dgm" not in parameter_table(model).index
        and not any(name.startswith("dgm") for name in model.state_dict())
    )
    output = model.train()(None, None, boxes, field)
    F.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0])).backward()
    assert output.displacement is field and all(p.grad is not None for p in model.parameters())
    seen = model.eval().look(None, None, field)
    assert torch.equal(seen[:, :2], normalize_displacement(field[:, :2])) and torch.equal(
        seen[:, 2:], field[:, 2:]
    )
    with pytest.raises(ValueError, match="pass displacement="):
        model(*batch())
    for wrong in (field[:, :2], field[0], field.to(torch.uint8)):
        with pytest.raises(ValueError, match="got displacement of"):
            model(None, None, boxes, wrong)
    with pytest.raises(ValueError, match="got boxes of shape"):
        model(None, None, boxes[:, :8], field)
    assert FRLDGT(replace(config, sees=("displacement",)))(
        None, None, boxes, field[:, :2]
    ).logits.shape == (4, 3)


def test_given_model_is_saved_without_a_module(tmp_path):
    model = FRLDGT(replace(SMALL, module="given", sees=("strain",))).eval()
    again, field = (
        load_model(save_weights(model, tmp_path / "m.safetensors")),
        torch.rand(4, 3, 32, 32),
    )
    assert again.config == model.config and torch.equal(
        again(None, None, batch()[2], field).logits, model(None, None, batch()[2], field).logits
    )


def test_displacement_keeps_its_units_when_resampled():
    class Constant(nn.Module):
        def forward(self, onset, apex):
            assert onset.shape[-2:] == (16, 16)
            return onset.new_tensor([0.03, -0.01]).view(1, 2, 1, 1).expand(len(onset), 2, 16, 16)

    model = make()
    model.dgm = Constant()
    field = model.displace(*batch()[:2])
    assert field.shape == (4, 2, 32, 32)
    torch.testing.assert_close(field, torch.tensor([0.03, -0.01]).view(1, 2, 1, 1).expand_as(field))


def test_what_is_not_seen_does_not_matter():
    model, (onset, apex, boxes) = make(replace(SMALL, sees=("displacement",))).eval(), batch()
    given = torch.randn(4, 2, 32, 32)
    assert torch.equal(
        model(onset, apex, boxes, given).logits, model(1 - onset, apex**2, boxes, given).logits
    )


def test_paper_preset_is_the_papers():
    c = PRESETS["paper"]
    assert c == ModelConfig()
    assert (
        c.classes,
        c.regions,
        c.crop_size,
        c.patch,
        c.dim,
        c.heads,
        c.alpha,
        c.gradient_scale,
    ) == (3, 9, 90, 18, 256, 8, 0.2, 1e-6)
    assert (c.crop_size // c.patch) ** 2 == 25 and c.channels == 8


def test_best_preset_is_small_and_sees_motion_alone():
    c = PRESETS["best"]
    assert (c.module, c.sees, c.channels, (c.crop_size // c.patch) ** 2) == (
        "guided",
        ("displacement",),
        2,
        4,
    )
    table = parameter_table(FRLDGT(c))
    assert table.parameters["dgm"] == sum(p.numel() for p in load_guided().parameters())
    assert (
        table.parameters["all"] - table.parameters["dgm"]
        < parameter_table(FRLDGT(PRESETS["tiny"])).parameters["all"] / 4
    )


def test_flow_preset_is_the_best_one_on_pictures_of_28():
    c, best = PRESETS["flow"], PRESETS["best"]
    assert (c.module, c.sees, c.channels, (c.crop_size // c.patch) ** 2) == (
        "given",
        ("displacement", "strain"),
        3,
        4,
    )
    assert (c.dim, c.heads, c.depth, c.dropout, c.displacement_noise) == (
        best.dim,
        best.heads,
        best.depth,
        best.dropout,
        best.displacement_noise,
    )


def test_noise_is_smooth_and_of_unit_size():
    torch.manual_seed(0)
    noise = smooth_noise(torch.zeros(40, 2, 64, 64, dtype=torch.float64))
    assert noise.shape == (40, 2, 64, 64) and noise.dtype == torch.float64
    assert abs(noise.mean()) < 0.02 and 0.4 < noise.var() < 0.8  # one at the cells, less between
    assert (
        noise.diff(dim=-1).std() < 0.5 * noise.std()
        and noise.diff(dim=-2).std() < 0.5 * noise.std()
    )
    assert (
        abs((noise[:, 0] * noise[:, 1]).mean()) < 0.02
    )  # x and y have nothing to do with each other
    torch.manual_seed(0)
    cells = smooth_noise(torch.zeros(500, 2, 16, 16))  # as many pixels as cells: nothing between
    assert abs(cells.std() - 1) < 0.01


def test_noise_is_for_training_only():
    model, (onset, apex, _), given = (
        make(replace(SMALL, displacement_noise=0.4)),
        batch(),
        torch.randn(4, 2, 32, 32) * 0.01,
    )
    model.eval()
    quiet = model.look(onset, apex, given)
    assert torch.equal(quiet, model.look(onset, apex, given)) and torch.equal(
        quiet[:, 6:], normalize_displacement(given)
    )
    model.train()
    first, second = model.look(onset, apex, given), model.look(onset, apex, given)
    assert torch.equal(first[:, :6], quiet[:, :6]) and not torch.equal(
        first, second
    )  # frames stay as they are
    torch.manual_seed(5)
    loud = model.look(onset, apex, given)[:, 6:]
    torch.manual_seed(5)
    torch.testing.assert_close(
        loud, quiet[:, 6:] + 0.4 * smooth_noise(given)
    )  # .4 of the *normalised* displacement
    still = make().train()
    assert torch.equal(still.look(onset, apex, given), quiet)  # none unless asked for


def test_guided_module_is_frozen():
    model, (onset, apex, boxes) = FRLDGT(replace(SMALL, module="guided", dgm_size=32)), batch()
    shipped = load_guided()
    quarter = F.interpolate(
        F.avg_pool2d(shipped(onset, apex), 4), onset.shape[-2:], mode="bilinear"
    )
    torch.testing.assert_close(
        model.displace(onset, apex), quarter
    )  # right after building, in training mode
    F.cross_entropy(model.train()(onset, apex, boxes).logits, torch.tensor([0, 1, 2, 0])).backward()
    assert (
        model.training
        and model.local_fusion.training
        and not any(part.training for part in model.dgm.modules())
    )
    assert (
        all(p.grad is None for p in model.dgm.parameters())
        and model.classifier[0].weight.grad.any()
    )
    for name, value in shipped.state_dict().items():
        assert torch.equal(model.dgm.state_dict()[name], value), name
    assert not model.eval().training and make().train().dgm.training  # the plain one learns


def test_guided_model_is_saved_with_its_module(tmp_path):
    model = FRLDGT(replace(SMALL, module="guided", dgm_size=32, displacement_noise=0.3)).eval()
    with torch.no_grad():
        model.dgm.head.bias += 0.5  # another one than is shipped
    again = load_model(save_weights(model, tmp_path / "m.safetensors"))
    assert again.config == model.config
    assert torch.equal(again(*batch()).displacement, model(*batch()).displacement)


def test_parameter_table_adds_up():
    model = make()
    table = parameter_table(model)
    assert (
        table.parameters["all"]
        == sum(p.numel() for p in model.parameters())
        == table.parameters.drop("all").sum()
    )
    assert set(table.index) == {name for name, _ in model.named_children()} | {"all"}


@pytest.mark.parametrize(
    "settings",
    [
        dict(patch=7),
        dict(full_size=16),
        dict(heads=3),
        dict(fusion="during"),
        dict(dropout=1.0),
        dict(dropout=-0.1),
        dict(dim=0),
        dict(regions=0),
        dict(dgm_size=18),
        dict(sees=()),
        dict(sees="apex"),
        dict(sees=("apex", "apex")),
        dict(sees=("offset",)),
        dict(module="flow"),
        dict(module=""),
        dict(sees=("displacement", "strain")),
        dict(displacement_noise=-0.1),
        dict(displacement_noise=float("nan")),
        dict(levels=()),
        dict(levels="local"),
        dict(levels=("local", "local")),
        dict(levels=("whole",)),
        dict(boxes="cells"),
        dict(boxes="grid", regions=4),
        dict(module="dynamic"),
        dict(module="dynamic", sees=("dynamic",), normalize=False),
        dict(sees=("dynamic",)),
        dict(module="raft"),
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        replace(SMALL, **settings)


def test_config_is_frozen():
    with pytest.raises(AttributeError):
        SMALL.dim = 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda o, a, b: (o[:, :2], a, b),
        lambda o, a, b: (o[0], a, b),
        lambda o, a, b: (o, a[:2], b),
        lambda o, a, b: (o, a[..., :30], b),
        lambda o, a, b: (o, a, b[:, :8]),
        lambda o, a, b: (o, a, b[0]),
        lambda o, a, b: (o, a, b, torch.zeros(4, 3, 32, 32)),
        lambda o, a, b: ((o * 255).byte(), a, b),
    ],
)
def test_bad_batch(wrong):
    with pytest.raises(ValueError, match="wanted"):
        make()(*wrong(*batch()))


def test_save_and_load(tmp_path):
    model = make(replace(SMALL, sees=("displacement", "apex"), classes=5))
    for seed in range(2):
        model(*batch(seed=seed))  # running statistics, too
    path = save_weights(model, tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]  # nothing left beside it
    again = load_model(str(path))
    assert (
        again.config == model.config == read_config(path)
        and isinstance(again.config.sees, tuple)
        and not again.training
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(again(*batch()).logits, model.eval()(*batch()).logits)


def test_bad_files(tmp_path):
    good = save_weights(make(), tmp_path / "good.safetensors")
    (tmp_path / "text").write_text("no weights")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="there is no weights file"):
        load_model(tmp_path / "nowhere")
    for name in ("text", "foreign", "."):
        with pytest.raises(ValueError, match="no weights file of FRL-DGT"):
            load_model(tmp_path / name)
    import json

    config = asdict(SMALL)
    for settings, message in (
        ({**config, "colour": 1}, "colour"),
        ({**config, "dim": 32}, "don't fit"),
        ({**config, "heads": 3}, "heads"),
    ):
        save_file(
            load_file(good), tmp_path / "edited", metadata={"frl_dgt_config": json.dumps(settings)}
        )
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "edited")


def test_every_setting_says_where_it_comes_from():
    import inspect

    source = inspect.getsource(ModelConfig)
    for field in fields(ModelConfig):
        line = next(
            line for line in source.splitlines() if line.strip().startswith(f"{field.name}:")
        )
        comment = line.split("#", 1)[1]
        assert "Guess" in comment or any(c.isdigit() for c in comment), line


def test_weights_can_be_read_by_whoever_can_read_the_folder(tmp_path):
    (tmp_path / "beside").touch()
    assert (
        save_weights(make(), tmp_path / "m.safetensors").stat().st_mode
        == (tmp_path / "beside").stat().st_mode
    )


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing(tmp_path, monkeypatch):
    good = save_weights(make(), tmp_path / "m.safetensors").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(make(), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == good and len(list(tmp_path.iterdir())) == 1
