"""FRL-DGT-S: its model."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frl_dgt_nb.model.config import PRESETS, ModelConfig
from frl_dgt_nb.model.dgm import displacement_loss, normalize_displacement
from frl_dgt_nb.model.frldgt import FRLDGT, load_model, save_weights
from frl_dgt_nb.model.sequence import (
    FRLDGTS,
    SEQUENCE_PRESETS,
    TemporalFusion,
    build_model,
    load_sequence,
    sequence_loss,
)
from frl_dgt_nb.training.settings import SEQUENCE_TRAIN_PRESETS, TRAIN_PRESETS

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
    sees=("apex", "displacement"),
)


def make(config=SMALL, steps=4, seed=0):
    "A small model whose displacement isn't zero."
    torch.manual_seed(seed)
    model = FRLDGTS(replace(config, steps=steps))
    if config.module == "plain":
        with torch.no_grad():
            model.dgm.head.weight.normal_(std=0.02)
    return model


def batch(size=3, steps=4, side=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(size, 9, 2, generator=generator) * side / 2
    return torch.rand(size, steps, 3, side, side, generator=generator), torch.cat(
        [low, low + side / 3], -1
    )


def moves(size=3, pairs=3, side=32, seed=2):
    return 0.02 * torch.randn(
        size, pairs, 2, side, side, generator=torch.Generator().manual_seed(seed)
    )


# the model


@pytest.mark.parametrize("fusion", ["before", "after"])
@pytest.mark.parametrize(
    "sees", [("apex", "displacement"), ("onset", "apex", "displacement"), ("displacement",)]
)
@pytest.mark.parametrize("classes", [4, 5])
def test_shapes_and_gradients(fusion, sees, classes):
    model = make(replace(SMALL, fusion=fusion, sees=sees, classes=classes, gradient_scale=1.0))
    output = model(*batch())
    shapes = dict(
        logits=(3, classes),
        displacement=(3, 3, 2, 32, 32),
        local_weights=(3, 3, 9, 2, 4),
        global_weights=(3, 3, 2, 9),
        full_weights=(3, 3, 2, 9),
        temporal_weights=(3, 2, 3),
        features=(3, 32),
    )
    assert {name: tuple(value.shape) for name, value in output._asdict().items()} == shapes
    if fusion == "before":
        torch.testing.assert_close(output.temporal_weights.sum(-1), torch.ones(3, 2))
    F.cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    assert all(
        any(p.grad is not None and p.grad.any() for p in part.parameters())
        for part in model.children()
    )


@pytest.mark.parametrize(
    "steps, normalize", [(2, True), (4, False)]
)  # with more pairs, a displacement is normalised by its clip
def test_each_pair_goes_the_way_of_frl_dgt(steps, normalize):
    model = make(replace(SMALL, normalize=normalize), steps).eval()
    alone = FRLDGT(replace(model.config, steps=0))
    assert all(
        name.startswith("temporal_fusion.")
        for name in alone.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    )
    frames, boxes = batch(steps=steps)
    with torch.no_grad():
        ours, theirs = (
            model(frames, boxes),
            [alone.eval()(frames[:, 0], frames[:, t], boxes) for t in range(1, steps)],
        )
        vectors = torch.stack([pair.features for pair in theirs], 1)
        torch.testing.assert_close(
            ours.features, model.temporal_fusion(vectors)[0], atol=1e-5, rtol=1e-4
        )
    for name in ("displacement", "local_weights", "global_weights", "full_weights"):
        torch.testing.assert_close(
            getattr(ours, name),
            torch.stack([getattr(pair, name) for pair in theirs], 1),
            atol=1e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize("sees", [("apex", "displacement"), ("onset", "apex", "displacement")])
def test_what_the_crops_see(sees):
    model, (frames, _), given_ = make(replace(SMALL, sees=sees)).eval(), batch(), moves()
    maps = model.look_all(frames, given_).unflatten(0, (3, 3))
    for b in range(3):
        tall = normalize_displacement(torch.cat(list(given_[b]), 1)[None])[
            0
        ]  # one size for the clip
        for pair in range(3):
            torch.testing.assert_close(maps[b, pair, -2:], tall[:, 32 * pair : 32 * (pair + 1)])
            torch.testing.assert_close(
                maps[b, pair, -5:-2], 2 * frames[b, pair + 1] - 1
            )  # the frame the displacement leads to
            if "onset" in sees:
                torch.testing.assert_close(maps[b, pair, :3], 2 * frames[b, 0] - 1)


def test_weak_and_strong_clips_look_alike_and_the_course_stays():
    model, given_ = make(replace(SMALL, sees=("displacement",))).eval(), moves()
    maps = model.look_all(None, given_)
    torch.testing.assert_close(model.look_all(None, 0.1 * given_), maps, atol=1e-4, rtol=1e-4)
    given_[:, 0] *= 0.1
    weaker = model.look_all(None, given_).unflatten(0, (3, 3))
    assert (weaker[:, 0].std((1, 2, 3)) < 0.2 * weaker[:, 1].std((1, 2, 3))).all()


def test_gradient_into_the_displacement_module_is_scaled():
    grads = []
    for scale in (1.0, 1e-6):
        model = make(replace(SMALL, gradient_scale=scale)).double()
        F.cross_entropy(
            model(*(x.double() for x in batch())).logits, torch.tensor([0, 1, 2])
        ).backward()
        grads.append((model.dgm.head.weight.grad, model.temporal_fusion.position.grad))
    torch.testing.assert_close(grads[1][0], 1e-6 * grads[0][0], rtol=1e-9, atol=1e-18)
    torch.testing.assert_close(grads[1][1], grads[0][1])
    assert grads[0][0].abs().max() > 1e-6


def test_evaluation_ignores_the_company_and_knows_the_order():
    model, (frames, boxes) = make(), batch(5)
    for seed in range(3):
        model(*batch(seed=seed))
    with torch.no_grad():
        whole, alone = model.eval()(frames, boxes), model(frames[2:3], boxes[2:3])
        for a, b in zip(whole, alone):
            torch.testing.assert_close(a[2:3], b, atol=1e-5, rtol=1e-4)
        assert (model(frames[:, [0, 3, 2, 1]], boxes).logits - whole.logits).abs().max() > 1e-4
        # without a place, and with Lin as it starts, the order of the pairs is lost
        model.temporal_fusion.position.zero_()
        model.temporal_fusion.fusion.mix.fill_(1 / 3)
        torch.testing.assert_close(
            model(frames[:, [0, 3, 2, 1]], boxes).logits,
            model(frames, boxes).logits,
            atol=1e-5,
            rtol=1e-4,
        )


def test_displacements_alone_need_no_frames():
    config = replace(SMALL, sees=("displacement",))
    frames, boxes = batch()
    for variant in (config, replace(config, module="given")):
        model = make(variant).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                model(None, boxes, moves()).logits, model(frames, boxes, moves()).logits
            )


def test_guided_module_is_frozen_and_noise_is_for_training():
    model, boxes = (
        make(
            replace(
                SMALL, module="guided", sees=("displacement",), displacement_noise=0.4, dgm_size=32
            )
        ),
        batch()[1],
    )
    assert (
        model.training
        and not model.dgm.training
        and not any(p.requires_grad for p in model.dgm.parameters())
    )
    frames = batch()[0]
    torch.testing.assert_close(
        model(frames, boxes).displacement[1, 2],
        model.displace(frames[1:2, 0], frames[1:2, 3])[0],
        atol=1e-6,
        rtol=1e-4,
    )

    def look():
        return model.look_all(None, moves())

    assert (look() - look()).abs().max() > 0.1
    model.eval()
    assert torch.equal(look(), look())


@pytest.mark.parametrize(
    "wrong, word",
    [
        (dict(frames=torch.rand(3, 5, 3, 32, 32)), "wanted \\(B,4,3,H,W\\)"),
        (dict(frames=torch.rand(4, 3, 32, 32)), "wanted \\(B,4,3,H,W\\)"),
        (dict(frames=torch.zeros(3, 4, 3, 32, 32, dtype=torch.uint8)), "divide the bytes"),
        (dict(boxes=torch.rand(2, 9, 4)), "got boxes"),
        (dict(frames=None), "got no frames"),
        (dict(displacement=torch.rand(3, 3, 2, 16, 16)), "got displacement"),
        (dict(displacement=torch.rand(3, 4, 2, 32, 32)), "got displacement"),
    ],
)
def test_forward_refuses(wrong, word):
    frames, boxes = batch()
    with pytest.raises(ValueError, match=word):
        make()(**(dict(frames=frames, boxes=boxes) | wrong))


def test_settings_refused():
    with pytest.raises(ValueError, match="steps=0.*replace\\(config, steps=10\\)"):
        FRLDGTS(SMALL)
    for steps in (1, -2):
        with pytest.raises(ValueError, match=f"steps={steps}, wanted 0 for pairs, or 2"):
            replace(SMALL, steps=steps)
    with pytest.raises(ValueError, match="no strain"):
        replace(PRESETS["flow"], steps=10)
    with pytest.raises(ValueError, match="no dynamic image"):
        replace(SMALL, module="dynamic", sees=("dynamic",), steps=10)
    with pytest.raises(ValueError, match="pass displacement="):
        make(replace(SMALL, module="given", sees=("displacement",)))(*batch())
    with pytest.raises(ValueError, match="got displacement of shape"):
        make(replace(SMALL, sees=("displacement",)))(None, batch()[1], moves(pairs=2))


@pytest.mark.parametrize("name", SEQUENCE_PRESETS)
def test_presets_show_one_frame_at_most(name):
    assert SEQUENCE_PRESETS[name].sees == (
        ("displacement",) if name == "best" else ("apex", "displacement")
    )
    assert (
        SEQUENCE_PRESETS[name].steps == 10
        and replace(SEQUENCE_PRESETS[name], sees=PRESETS[name].sees, steps=0) == PRESETS[name]
    )


def test_temporal_fusion_has_the_width_of_a_pair():
    fusion = TemporalFusion(pairs=5, dim=12, heads=3, depth=1).eval()
    vector, weights = fusion(torch.randn(2, 5, 12))
    assert vector.shape == (2, 12) and weights.shape == (2, 3, 5)
    with pytest.raises(ValueError, match="wanted|got"):
        fusion.fusion(torch.randn(2, 4, 12))


def test_loss_is_cross_entropy_plus_the_mean_of_the_pairs():
    model, (frames, boxes), labels = make(), batch(), torch.tensor([0, 2, 1])
    output = model(frames, boxes)
    total, parts = sequence_loss(output, labels, frames)
    each = [
        displacement_loss(frames[:, 0], frames[:, t + 1], output.displacement[:, t])[0]
        for t in range(3)
    ]
    torch.testing.assert_close(parts["labelled"], torch.stack(each).mean())
    torch.testing.assert_close(total, F.cross_entropy(output.logits, labels) + parts["labelled"])
    assert set(sequence_loss(output, labels)[1]) == {"classification"}


def test_it_learns_what_only_the_order_tells():
    "The same three displacements, forwards or backwards: a model that sees pairs one by one can't tell."
    torch.manual_seed(0)
    model, boxes = (
        FRLDGTS(replace(SMALL, sees=("displacement",), module="given", classes=4, steps=4)),
        batch(4)[1],
    )
    forwards = moves(2) * torch.tensor([0.2, 0.6, 1.0]).view(1, 3, 1, 1, 1)
    clips, labels = torch.cat([forwards, forwards.flip(1)]), torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(25):
        loss, _ = sequence_loss(model(None, boxes, clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_with_two_frames_time_has_nothing_to_say():
    "One token attends to itself: all weights are one, and queries and keys get no gradient."
    model = make(replace(SMALL, gradient_scale=1.0), steps=2).train()
    output = model(*batch(steps=2))
    assert (output.temporal_weights == 1).all()
    F.cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    long = make(replace(SMALL, gradient_scale=1.0), steps=4).train()
    F.cross_entropy(long(*batch()).logits, torch.tensor([0, 1, 2])).backward()
    queries, keys, values = model.temporal_fusion.attention[0].qkv.weight.grad.chunk(3)
    assert max(queries.abs().max(), keys.abs().max()) < 1e-4 * values.abs().max()
    queries, keys, values = long.temporal_fusion.attention[0].qkv.weight.grad.chunk(3)
    assert min(queries.abs().max(), keys.abs().max()) > 1e-4 * values.abs().max()


# what differs from the pair


@pytest.mark.parametrize("name", SEQUENCE_PRESETS)
def test_the_sequences_model_is_the_pairs_model_and_a_fusion_over_time(name):
    "Table 3: same parts, same weights under the same seed, `temporal_fusion` and nothing else"
    config = replace(SEQUENCE_PRESETS[name], sees=PRESETS[name].sees, classes=5)
    torch.manual_seed(0)
    pair = build_model(replace(config, steps=0))
    torch.manual_seed(0)
    whole = build_model(config)
    assert type(pair) is FRLDGT and type(whole) is FRLDGTS
    theirs, ours = pair.state_dict(), whole.state_dict()
    assert (
        all(key.startswith("temporal_fusion.") for key in ours.keys() - theirs.keys())
        and theirs.keys() < ours.keys()
    )
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_levels_are_left_out_of_sequences_too():
    for levels in (("local", "global"), ("full",), ("local", "full")):
        model = make(replace(SMALL, levels=levels)).eval()
        output = model(*batch())
        assert output.features.shape == (3, 32 if "full" in levels else 16) and (
            output.full_weights is None
        ) == ("full" not in levels)


def test_training_settings_of_sequences():
    assert SEQUENCE_TRAIN_PRESETS["paper"] == replace(
        TRAIN_PRESETS["paper"], batch_size=5, apex_jitter=0
    )
    assert SEQUENCE_TRAIN_PRESETS["best"] == replace(TRAIN_PRESETS["best"], apex_jitter=0)
    assert all(config.apex_jitter == 0 for config in SEQUENCE_TRAIN_PRESETS.values())


# files


def test_saved_and_loaded(tmp_path):
    model, data = make(replace(SMALL, classes=5), steps=6).eval(), batch(steps=6)
    again = load_sequence(save_weights(model, tmp_path / "sequence.safetensors"))
    assert (again.config, again.config.steps, again.training) == (model.config, 6, False)
    with torch.no_grad():
        assert torch.equal(again(*data).logits, model(*data).logits)


def test_the_wrong_file_is_named(tmp_path):
    pairs = save_weights(FRLDGT(SMALL), tmp_path / "pairs.safetensors")
    with pytest.raises(ValueError, match="load_model"):
        load_sequence(pairs)
    whole = save_weights(make(), tmp_path / "sequence.safetensors")
    with pytest.raises(ValueError, match="sequences of 4 frames, not of pairs; load_sequence"):
        load_model(whole)
    with pytest.raises(ValueError, match="there is no weights file"):
        load_sequence(tmp_path / "nowhere.safetensors")
    state = load_file(whole)
    with safe_open(str(whole), "pt") as file:
        about = file.metadata()
    save_file(
        {name: value for name, value in state.items() if name != "classifier.0.weight"},
        tmp_path / "torn.safetensors",
        metadata=about,
    )
    with pytest.raises(ValueError, match="don't fit"):
        load_sequence(tmp_path / "torn.safetensors")


def test_weights_from_before_there_were_sequences(tmp_path):
    path = save_weights(FRLDGT(SMALL), tmp_path / "old.safetensors")
    with safe_open(str(path), "pt") as file:
        about = json.loads(file.metadata()["frl_dgt_config"])
    assert about.pop("steps") == 0
    save_file(load_file(path), path, metadata={"frl_dgt_config": json.dumps(about)})
    assert load_model(path).config == SMALL
