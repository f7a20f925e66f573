"""One fold: settings, optimisers, losses, and the bits of a result."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_store import toy_store

from frl_dgt_nb.model.config import PRESETS, ModelConfig
from frl_dgt_nb.model.dgm import displacement_loss
from frl_dgt_nb.model.frldgt import FRLDGT
from frl_dgt_nb.model.guided import load_guided
from frl_dgt_nb.training import fold as training
from frl_dgt_nb.training.fold import (
    Trainer,
    class_weights,
    fold_data,
    joint_loss,
    make_optimizers,
    predict_test,
    train_fold,
    train_on,
)
from frl_dgt_nb.training.precomputed import load_frames, precomputed_displacements
from frl_dgt_nb.training.sampling import (
    FoldData,
    PairSource,
    choose_inner,
    fold_generator,
    fold_seed,
)
from frl_dgt_nb.training.settings import TRAIN_PRESETS, TrainConfig, amp_dtype, pick_device

torch.set_num_threads(1)
SMALL = ModelConfig(
    crop_size=4, patch=2, dim=8, heads=2, depth=1, full_size=4, dgm_size=8, dgm_width=2, dgm_depth=1
)
BRIEF = TrainConfig(epochs=3, batch_size=4, pairs=3)
GUIDED = replace(
    SMALL, module="guided", dgm_size=32, sees=("displacement",), displacement_noise=0.4
)
LIKE_BEST = replace(TRAIN_PRESETS["best"], epochs=3, batch_size=4)


@pytest.fixture(scope="module")
def store(toy):
    return toy


def test_the_papers_values():
    config = TrainConfig()
    assert TRAIN_PRESETS["paper"] == config and set(TRAIN_PRESETS) == set(PRESETS)
    assert (config.batch_size, config.dgm_rate, config.loss_weights) == (32, 0.002, (10, 1, 0.2))
    assert not config.mirror and not config.class_weights
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("dgm_rate", -1),
        ("fusion_rate", float("nan")),
        ("weight_decay", -1.0),
        ("pairs", -1),
        ("apex_jitter", -1),
        ("store_every", 0),
        ("amp", "fp8"),
        ("inner", -1),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(ValueError, match=name):
        TrainConfig(**{name: value})


def test_every_weight_has_one_optimizer_and_only_the_fusion_a_schedule():
    model = FRLDGT(SMALL)
    optimizers, schedule = make_optimizers(model, TrainConfig(fusion_rate=0.01), steps=8)
    owned = [
        id(p)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    for step in range(8):
        assert optimizers[0].param_groups[0]["lr"] == 0.002
        assert optimizers[1].param_groups[0]["lr"] == pytest.approx(
            0.01 * (1 + math.cos(math.pi * step / 8)) / 2
        )
        for optimizer in optimizers:
            optimizer.step()
        schedule.step()


def test_joint_loss_is_the_sum_of_its_parts(store):
    torch.manual_seed(0)
    model, data = (
        FRLDGT(replace(SMALL, dropout=0.0)).eval(),
        FoldData(store, "toy/01"),
    )  # eval: the passes don't influence each other
    batch, pairs, weight = (
        next(data.batches(fold_generator(0))),
        data.random_pairs(3, fold_generator(1)),
        torch.tensor([1.0, 2.0, 3.0]),
    )
    total, parts = joint_loss(model, batch, pairs, (3.0, 2.0, 1.0), weight)
    output = model(batch.onset, batch.apex, batch.boxes)
    expected = [
        cross_entropy(output.logits, batch.labels, weight),
        displacement_loss(batch.onset, batch.apex, output.displacement, (3.0, 2.0, 1.0))[0],
        displacement_loss(
            pairs.onset, pairs.apex, model.displace(pairs.onset, pairs.apex), (3.0, 2.0, 1.0)
        )[0],
    ]
    assert torch.allclose(
        torch.stack(list(parts.values())), torch.stack(expected)
    ) and torch.allclose(total, sum(expected))
    assert set(joint_loss(model, batch)[1]) == {"classification", "labelled"}


def test_labels_reach_the_displacement_module_scaled(store):
    torch.manual_seed(0)
    batch = next(FoldData(store, "toy/01").batches(fold_generator(0)))
    sizes = {}
    for scale in (1.0, 1e-6, 0.0):
        torch.manual_seed(1)
        model = FRLDGT(replace(SMALL, gradient_scale=scale, dropout=0.0))
        torch.nn.init.normal_(model.dgm.head.weight)
        joint_loss(model, batch)[1]["classification"].backward()
        sizes[scale] = sum(
            p.grad.abs().sum().item() for p in model.dgm.parameters() if p.grad is not None
        )
    assert (
        sizes[1.0] > 0
        and sizes[1e-6] == pytest.approx(1e-6 * sizes[1.0], rel=1e-3)
        and sizes[0.0] == 0
    )


def test_class_weights():
    weights = class_weights(torch.tensor([0] * 6 + [1] * 3 + [2]), 3)
    assert torch.allclose(weights * torch.tensor([6, 3, 1]), torch.full((3,), 10 / 3))
    assert class_weights(torch.tensor([0, 0, 2]), 4).tolist() == [0.75, 0, 1.5, 0]


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device().type == (
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    assert (
        amp_dtype("bf16", torch.device("cpu")) is None
        and amp_dtype("off", torch.device("cuda")) is None
    )
    assert (
        amp_dtype("bf16", torch.device("cuda")) is torch.bfloat16
        and amp_dtype("fp16", torch.device("cuda")) is torch.float16
    )
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            pick_device("cuda")


def test_same_seed_same_bits_whatever_runs_around_it(store):
    torch.manual_seed(5)
    first = train_fold(store, "toy/01", SMALL, BRIEF, seed=1, device="cpu", progress=False)
    train_fold(store, "play/01", SMALL, BRIEF, seed=1, device="cpu", progress=False)
    state = torch.get_rng_state()
    again = train_fold(store, "toy/01", SMALL, BRIEF, seed=1, device="cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first.probabilities, again.probabilities) and first.losses == again.losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values())
    )
    other = train_fold(store, "toy/01", SMALL, BRIEF, seed=2, device="cpu", progress=False)
    assert not np.array_equal(first.probabilities, other.probabilities)


def test_result_and_log(store, tmp_path):
    config = replace(BRIEF, epochs=5, store_every=2)
    data = fold_data(store, "play/02", SMALL, config, 0, torch.device("cpu"))
    result = train_on(data, SMALL, config, log_dir=tmp_path, progress=False)
    assert result.epochs == [2, 4, 5] and len(result.losses) == 5
    assert result.probabilities.shape == (3, 3, 3) and np.allclose(result.probabilities.sum(-1), 1)
    assert (result.predictions == result.probabilities.argmax(-1)).all()
    index = store.index.iloc[result.clips]
    assert (
        index.subject_id.unique().tolist() == ["play/02"]
        and index.label.tolist() == result.labels.tolist()
    )
    assert np.array_equal(
        predict_test(result.model, FoldData(store, "play/02")), result.probabilities[-1]
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in result.losses[0]}
    assert [event.value for event in events.Scalars("train/total")] == pytest.approx(
        [losses["total"] for losses in result.losses]
    )


def test_inner_subjects_are_predicted_and_not_trained_on(store, monkeypatch):
    "Another face for a held-out subject: the same weights and test predictions, other inner predictions"
    held = choose_inner(store.index, "toy/01", 1)
    rows = np.repeat(store.index.subject_id == held[0], store.index.n_frames).to_numpy()
    frames = load_frames(store).clone()
    other = frames.clone()
    other[torch.from_numpy(rows)] = 255 - other[torch.from_numpy(rows)]
    config = replace(BRIEF, inner=1, mirror=True, store_every=2)
    first, second = (
        train_on(
            fold_data(store, "toy/01", SMALL, config, 0, torch.device("cpu"), each),
            SMALL,
            config,
            progress=False,
        )
        for each in (frames, other)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values())
    )
    assert np.array_equal(first.probabilities, second.probabilities) and not np.array_equal(
        first.inner_probabilities, second.inner_probabilities
    )
    assert (
        first.epochs == [2, 3]
        and first.inner_probabilities.shape == (2, 3, 3)
        and np.allclose(first.inner_probabilities.sum(-1), 1)
    )
    index = store.index.iloc[first.inner_clips]
    assert (
        index.subject_id.unique().tolist() == held
        and index.label.tolist() == first.inner_labels.tolist()
    )
    assert np.array_equal(
        predict_test(
            first.model, FoldData(store, "toy/01", inner=held), torch.from_numpy(first.inner_clips)
        ),
        first.inner_probabilities[-1],
    )


def test_without_inner_subjects_nothing_is_held_out(store):
    result = train_fold(store, "toy/01", SMALL, BRIEF, device="cpu", progress=False)
    assert (
        len(result.inner_clips) == len(result.inner_labels) == len(result.inner_probabilities) == 0
    )


def test_training_learns_what_can_be_learnt(store):
    "Twelve clips of noise can be told apart by heart"
    config = TrainConfig(epochs=60, batch_size=12, pairs=0, apex_jitter=0, fusion_rate=0.01)
    result = train_fold(
        store, "toy/01", replace(SMALL, dropout=0.0), config, device="cpu", progress=False
    )
    assert "pairs" not in result.losses[0]
    assert result.losses[-1]["classification"] < 0.3 < 1 < result.losses[0]["classification"]


def test_guided_fold_trains_the_fusion_alone(tmp_path):
    store = toy_store(tmp_path / "two", subjects=2)
    result = train_fold(store, "toy/01", GUIDED, LIKE_BEST, device="cpu", progress=False)
    assert np.isfinite(result.probabilities).all() and np.allclose(result.probabilities.sum(-1), 1)
    assert all(
        math.isfinite(losses["classification"])
        and set(losses) == {"total", "classification", "fusion_rate"}
        for losses in result.losses
    )
    for name, value in load_guided().state_dict().items():
        assert torch.equal(result.model.dgm.state_dict()[name], value), name
    torch.manual_seed(fold_seed(0, "toy/01", "model"))
    fresh = FRLDGT(GUIDED)
    assert all(
        not torch.equal(p, q)
        for (name, p), q in zip(result.model.named_parameters(), fresh.parameters())
        if name.startswith("classifier")
    )


def test_guided_fold_does_not_depend_on_others(store):
    "The shared table doesn't either, whichever fold asked for it"
    precomputed_displacements.cache_clear()
    first = train_fold(store, "toy/01", GUIDED, LIKE_BEST, device="cpu", progress=False)
    precomputed_displacements.cache_clear()
    for subject in ("play/01", "toy/01"):
        again = train_fold(store, subject, GUIDED, LIKE_BEST, device="cpu", progress=False)
    assert np.array_equal(first.probabilities, again.probabilities) and first.losses == again.losses


def test_test_subjects_displacements_do_not_reach_the_training(store, monkeypatch):
    "Another table for the left-out subject: the same weights, other predictions"

    def fold(table):
        monkeypatch.setattr(training, "precomputed_displacements", lambda *_: table)
        return train_fold(store, "toy/01", GUIDED, LIKE_BEST, device="cpu", progress=False)

    table = 0.02 * torch.randn(len(store), 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    own = torch.from_numpy((store.index.subject_id == "toy/01").to_numpy(copy=True))
    first, second = (
        fold(table),
        fold(torch.where(own[:, None, None, None, None], table.flip(-2), table)),
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values())
    )
    assert not np.array_equal(first.probabilities, second.probabilities)
    third = fold(
        torch.where(own[:, None, None, None, None], table, table.flip(-2))
    )  # and the others' do reach it
    assert not torch.equal(first.model.classifier[0].weight, third.model.classifier[0].weight)


def test_guided_module_has_no_optimizer_and_takes_no_pairs(store):
    model = FRLDGT(GUIDED)
    optimizers, schedule = make_optimizers(model, LIKE_BEST, steps=4)
    owned = [
        id(p)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sorted(owned) == sorted(
        id(p) for name, p in model.named_parameters() if not name.startswith("dgm.")
    )
    assert (
        len(optimizers) == 1
        and schedule.optimizer is optimizers[0]
        and optimizers[0].param_groups[0]["weight_decay"] == 0.05
    )
    with pytest.raises(ValueError, match="pairs=3 with module='guided'.*set pairs=0"):
        train_fold(store, "toy/01", GUIDED, BRIEF, device="cpu", progress=False)


def test_given_displacements_leave_the_cross_entropy_alone(store):
    torch.manual_seed(0)
    table = torch.randn(len(store), 3, 2, 8, 8)
    model, batch = (
        FRLDGT(replace(SMALL, dropout=0.0)),
        next(FoldData(PairSource(store, displacements=table), "toy/01").batches(fold_generator(0))),
    )
    total, parts = joint_loss(model, batch)
    assert set(parts) == {"classification"} and torch.equal(total, parts["classification"])
    expected = cross_entropy(
        model(batch.onset, batch.apex, batch.boxes, batch.displacement).logits, batch.labels
    )
    assert torch.allclose(total, expected)
    total.backward()
    assert all(p.grad is None for p in model.dgm.parameters())


def test_a_mirroring_model_is_asked_about_both_sides(store):
    torch.manual_seed(0)
    model = FRLDGT(replace(SMALL, mirror=True))
    torch.nn.init.normal_(model.dgm.head.weight)
    data = FoldData(store, "play/02", batch_size=2)
    sides = []
    for mirrored in (False, True):
        with torch.no_grad():
            batches = [batch.mirrored() if mirrored else batch for batch in data.test_batches()]
            logits = [model.eval()(*batch[:3]).logits for batch in batches]
        sides.append(torch.cat(logits).softmax(1).numpy())
    assert np.abs(sides[0] - sides[1]).max() > 1e-4
    assert np.allclose(predict_test(model, data), (sides[0] + sides[1]) / 2)
    model.config = SMALL
    assert np.array_equal(predict_test(model, data), sides[0])


def test_weight_decay_pulls_towards_zero_beside_the_gradient():
    "Decoupled: a weight without a gradient of its own shrinks by rate * decay, whatever the others do"
    model = FRLDGT(SMALL)
    optimizers, _ = make_optimizers(model, TrainConfig(fusion_rate=0.1, weight_decay=0.5), steps=1)
    weight = model.classifier[0].weight
    before, weight.grad = weight.detach().clone(), torch.zeros_like(weight)
    optimizers[1].step()
    torch.testing.assert_close(weight.detach(), before * 0.95)


def test_loss_that_is_no_number_stops_before_the_step(store):
    trainer = Trainer(FRLDGT(SMALL), FoldData(store, "toy/01"), BRIEF)
    torch.nn.init.constant_(trainer.model.classifier[-1].bias, float("inf"))
    before = [p.clone() for p in trainer.model.dgm.parameters()]
    with pytest.raises(ValueError, match="no longer finite in fold toy/01 .*classification nan"):
        trainer.epoch()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.dgm.parameters()))


def test_options_run(store):
    for config in (
        replace(BRIEF, mirror=True),
        replace(BRIEF, class_weights=True),
        replace(BRIEF, pairs=0),
        replace(BRIEF, batch_size=2, weight_decay=0.1),
    ):
        assert all(
            math.isfinite(losses["total"])
            for losses in train_fold(
                store, "toy/01", SMALL, config, device="cpu", progress=False
            ).losses
        )
