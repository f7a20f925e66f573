"""Magnification: analytic cases for Eulerian, identities for the network, rendered truth for the shipped weights,
and the batches that show it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from toy_store import toy_store

from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.model.config import ModelConfig
from frl_dgt_nb.model.dgm import face_mask
from frl_dgt_nb.model.magnify import (
    WEIGHTS,
    MagnificationNet,
    MagnifiedSet,
    Manipulator,
    load_magnifier,
    magnification_loss,
    magnify_eulerian,
    magnify_learned,
    save_magnifier,
    still_head,
    train_magnifier,
    training_batch,
)
from frl_dgt_nb.model.warp import from_motion, magnify
from frl_dgt_nb.simulate.actions import random_actions
from frl_dgt_nb.simulate.heads import random_person
from frl_dgt_nb.simulate.magnified import render_magnified
from frl_dgt_nb.simulate.render import Studio, can_render
from frl_dgt_nb.training.fold import check_fit, train_fold
from frl_dgt_nb.training.precomputed import magnified_apexes
from frl_dgt_nb.training.sampling import FoldData, PairSource, draw_enlargements, fold_generator
from frl_dgt_nb.training.settings import TrainConfig

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


FACTORS = (2.0, 5.0, 10.0, 15.0)


def texture(batch=1, size=64, seed=0):
    "Smooth random frames in [0,1]."
    return F.interpolate(
        torch.rand(batch, 3, size // 6, size // 6, generator=generator(seed)),
        (size, size),
        mode="bicubic",
        align_corners=False,
    ).clamp(0, 1)


def wave(shift, wavelength=32.0, size=96, height=0.3):
    return (
        0.5 + height * torch.sin(2 * torch.pi * (torch.arange(float(size)) - shift) / wavelength)
    ).expand(1, 3, size, size)


@pytest.fixture(scope="module")
def rendered():
    "Two expressions of a head that nothing was trained on, and their magnified frames."
    if not can_render():
        pytest.skip("no OpenGL here")
    rng = np.random.default_rng([31, 7])
    with Studio(random_person(rng), rng) as studio:
        return [
            render_magnified(
                studio, replace(random_actions(emotion, rng), amplitude=1.0), (1.0, *FACTORS), rng
            )
            for emotion in ("happiness", "surprise")
        ]


@pytest.fixture(scope="module")
def store(sample_clips, tmp_path_factory):
    "Clips of two people of data_samples."
    return prepare(
        replace(sample_clips, clips=[sample_clips.clips[k] for k in (0, 1, 6, 7)]),
        tmp_path_factory.mktemp("magnify") / "store",
        progress=False,
        workers=1,
    )


def small_set(size=64, people=3):
    "Random textures moved by a known motion, two factors each."
    onset, motion = texture(people, size), torch.zeros(people, 2, size, size)
    motion[:, 0, 16:48, 16:48] = 0.8

    def as_bytes(frames):
        return (frames * 255).round().byte().movedim(1, -1)

    truths = torch.stack(
        [as_bytes(magnify(onset, from_motion(motion), factor)) for factor in (0, 2, 6)], 1
    )
    return MagnifiedSet(
        as_bytes(onset),
        as_bytes(magnify(onset, from_motion(motion), 1)),
        truths,
        torch.tensor([2.0, 6.0]).expand(people, 2),
    )


# Eulerian


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(-4, 8), moved=st.floats(0.01, 0.4), wavelength=st.floats(20, 60))
def test_eulerian_is_right_to_first_order(factor, moved, wavelength):
    "A sinusoid: off by no more than the second-order term, and linear in the factor exactly."
    found, k = (
        magnify_eulerian(wave(0, wavelength), wave(moved, wavelength), factor, sigma=0),
        2 * torch.pi / wavelength,
    )
    bound = 0.3 * ((k * moved * factor) ** 2 + abs(factor) * (k * moved) ** 2) / 2
    assert (found - wave(moved * factor, wavelength)).abs().max() <= bound + 1e-5
    torch.testing.assert_close(
        found,
        (wave(0, wavelength) + factor * (wave(moved, wavelength) - wave(0, wavelength))).clamp(
            0, 1
        ),
        atol=1e-5,
        rtol=0,
    )


def test_eulerian_moves_the_right_way():
    onset, apex = wave(0), wave(0.4)
    right, wrong = (
        (magnify_eulerian(onset, apex, 4, sigma=0) - wave(shift)).abs().mean()
        for shift in (1.6, -1.6)
    )
    assert right < 0.1 * wrong


def test_low_pass_passes_what_it_should():
    "A sinusoid leaves a Gaussian smaller by exp(-(k sigma)^2 / 2); noise hardly passes."
    onset, apex, sigma, k = wave(0, 32.0, 192), wave(0.4, 32.0, 192), 3.0, 2 * torch.pi / 32
    band = (magnify_eulerian(onset, apex, 2, sigma) - apex)[..., 24:-24]
    torch.testing.assert_close(
        band,
        (apex - onset)[..., 24:-24] * float(np.exp(-((k * sigma) ** 2) / 2)),
        atol=2e-4,
        rtol=0.01,
    )
    still = texture(size=96) * 0.5 + 0.25
    noise = still + 0.01 * torch.randn(still.shape, generator=generator())

    def spread(sigma):
        return (magnify_eulerian(still, noise, 10, sigma) - still).std()

    assert spread(2.0) < 0.25 * spread(0)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(-20, 20), sigma=st.sampled_from([0, 1.5, 4]))
def test_eulerian_ends(factor, sigma):
    onset, apex = texture() * 0.5 + 0.25, texture(seed=1) * 0.5 + 0.25
    torch.testing.assert_close(magnify_eulerian(onset, apex, 1, sigma), apex)
    torch.testing.assert_close(magnify_eulerian(onset, onset, factor, sigma), onset)
    assert (
        0 <= magnify_eulerian(onset, apex, factor, sigma).min()
        and magnify_eulerian(onset, apex, factor, sigma).max() <= 1
    )
    torch.testing.assert_close(magnify_eulerian(onset, apex, 0, 0), onset)


# The network


@pytest.mark.parametrize("width,blocks,size", [(4, 1, 32), (8, 2, 48)])
def test_shapes_and_a_fresh_net(width, blocks, size):
    net = MagnificationNet(width, blocks)
    onset, apex = texture(3, size), texture(3, size, 1)
    torch.testing.assert_close(net(onset, apex, 5), onset, atol=1e-4, rtol=0)
    coded = net.encode(onset)
    assert [tuple(one.shape) for one in coded] == [
        (3, 2 * width, size // 4, size // 4),
        (3, width, size // 2, size // 2),
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0, 30))
def test_no_change_is_no_motion(seed, factor):
    torch.manual_seed(seed)
    manipulator, shape = Manipulator(6), torch.randn(2, 6, 8, 8)
    for parameter in manipulator.parameters():
        torch.nn.init.normal_(parameter)
    assert not manipulator(shape, shape, torch.full((2, 1, 1, 1), factor)).any()
    assert (
        not manipulator(shape, shape + 1, torch.zeros(2, 1, 1, 1)).any()
        and manipulator(shape, shape + torch.randn(2, 6, 8, 8), torch.ones(2, 1, 1, 1)).any()
    )


def test_factor_for_each_sample():
    net = load_magnifier()
    onset, apex = texture(2, 64), texture(2, 64, 1)
    together = magnify_learned(onset, apex, torch.tensor([2.0, 9.0]))
    alone = torch.cat(
        [
            magnify_learned(onset[k : k + 1], apex[k : k + 1], factor, net)
            for k, factor in enumerate((2, 9))
        ]
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert not torch.allclose(together[1], magnify_learned(onset, apex, 2)[1], atol=1e-3)


@pytest.mark.parametrize(
    "onset,apex,factor,message",
    [
        ((1, 3, 64, 64), (1, 3, 64, 32), 2, "64, 32"),
        ((3, 64, 64), (3, 64, 64), 2, "B,3,H,W"),
        ((1, 3, 62, 64), (1, 3, 62, 64), 2, "divisible by 4"),
        ((2, 3, 64, 64), (2, 3, 64, 64), [1.0, 2.0, 3.0], "3 factors"),
        ((1, 3, 64, 64), (1, 3, 64, 64), float("nan"), "finite"),
        ((1, 3, 64, 64), (1, 3, 64, 64), -1, "from 0 on"),
    ],
)
def test_bad_frames_and_factors(onset, apex, factor, message):
    frames = torch.rand(onset), torch.rand(apex)
    factor = torch.tensor(factor) if isinstance(factor, list) else factor
    with pytest.raises(ValueError, match=message):
        magnify_learned(*frames, factor)
    if message in ("divisible by 4", "from 0 on"):
        return
    with pytest.raises(ValueError, match=message):
        magnify_eulerian(*frames, factor)


def test_bad_sigma():
    with pytest.raises(ValueError, match="0 or more; got -1"):
        magnify_eulerian(texture(), texture(), 2, sigma=-1)
    with pytest.raises(ValueError, match="divisible by 8"):
        still_head(torch.rand(1, 3, 60, 64), torch.rand(1, 3, 60, 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    onset, apex = texture().to(dtype), texture(seed=1).to(dtype)
    assert (
        magnify_learned(onset, apex, 3).dtype == dtype
        and 0 <= magnify_learned(onset, apex, 3).min() <= magnify_learned(onset, apex, 3).max() <= 1
    )


# Training


def test_batches_are_what_they_say():
    pairs = small_set(64)
    onset, apex, truth, factor = training_batch(pairs, 60, generator(), 48)
    assert onset.shape == apex.shape == truth.shape == (60, 3, 48, 48) and set(factor.tolist()) == {
        2.0,
        6.0,
    }

    def moved(k):
        return (truth[factor == k] - onset[factor == k]).abs().mean()

    assert moved(6) > 1.5 * moved(2) > 0
    again = training_batch(pairs, 60, generator(), 48)
    assert all(torch.equal(a, b) for a, b in zip((onset, apex, truth, factor), again))


def test_the_truth_keeps_the_onsets_noise():
    pairs = small_set(64)
    noisy = pairs._replace(
        onset=(pairs.onset.int() + torch.randint(-9, 10, pairs.onset.shape, generator=generator(3)))
        .clamp(0, 255)
        .byte()
    )
    changes = []
    for each in (pairs, noisy):
        onset, _, truth, _ = training_batch(each, 30, generator(), 48)
        changes.append(truth - onset)
    torch.testing.assert_close(*changes, atol=1e-5, rtol=0)


def test_loss_tells_texture_from_shape():
    net, (onset, apex, truth, factor) = (
        MagnificationNet(4, 1),
        training_batch(small_set(), 4, generator(), 48),
    )
    tint = torch.tensor([0.8, 1.0, 1.2]).view(1, 3, 1, 1).expand(4, 3, 1, 1)
    plain, error = magnification_loss(net, onset, apex, truth, factor, tint, weight=0)
    total, same = magnification_loss(net, onset, apex, truth, factor, tint, weight=1)
    (
        torch.testing.assert_close(error, F.l1_loss(net(onset, apex, factor), truth)),
        torch.testing.assert_close(error, same),
    )
    assert total > plain > 0 and not error.requires_grad
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in net.named_parameters())


def test_two_steps_give_the_same_bits():
    def train(seed):
        torch.manual_seed(seed)
        return train_magnifier(
            MagnificationNet(4, 1), small_set(), steps=2, batch_size=2, seed=seed, progress=False
        )

    first, second, other = (train(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first) and not all(
        torch.equal(first[name], other[name]) for name in first
    )
    assert first["decoder.motion.1.weight"].any() and not train(0).training


def test_training_learns():
    pairs = small_set()
    torch.manual_seed(0)
    net = train_magnifier(MagnificationNet(8, 1), pairs, steps=60, batch_size=4, progress=False)
    onset, apex, truth, factor = training_batch(pairs, 30, generator(9), 64)
    with torch.no_grad():
        found = net(onset, apex, factor)
    assert F.l1_loss(found, truth) < 0.85 * F.l1_loss(onset, truth)


def test_round_trip(tmp_path):
    net = MagnificationNet(6, 2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_magnifier(net, tmp_path / "net.safetensors", {"seed": 5})
    loaded = load_magnifier(tmp_path / "net.safetensors")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    with safe_open(str(tmp_path / "net.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["settings"]) == {"seed": 5}


def test_shipped_weights_say_how_they_were_made():
    with safe_open(str(WEIGHTS), "pt") as file:
        made = json.loads(file.metadata()["settings"])
    assert {"seed", "people", "scripts", "steps", "batch_size", "width", "torch"} <= set(
        made
    ) and WEIGHTS.stat().st_size < 4e6


# Rendered truth


def frames_of(pair):
    onset, apex, truths = (
        torch.from_numpy(frames).movedim(-1, -3).float() / 255 for frames in pair[:3]
    )
    face = face_mask(torch.from_numpy(pair.landmarks)[None].float()) & (
        torch.from_numpy(pair.motion).norm(dim=0) > 0.15
    )
    return (
        onset[None],
        apex[None],
        truths,
        lambda frame, truth: float((frame - truth).abs().mean(1)[face].mean() * 255),
    )


def test_rendered_frames_are_what_they_say(rendered):
    for pair in rendered:
        onset, apex, truths, error = frames_of(pair)
        assert (
            np.linalg.norm(pair.motion, axis=0).max() == pytest.approx(1, abs=0.05)
            and truths.shape[0] == 6
        )
        clean, one = truths[:1], truths[1]
        assert error(onset, clean) < 2.5  # noise and compression
        assert error(
            magnify(clean, from_motion(torch.from_numpy(pair.motion)[None].float()), 1), one
        ) < 0.7 * error(clean, one)
        assert (np.diff([error(clean, truth) for truth in truths]) > 0).all()


def test_still_head_takes_out_drift(rendered):
    for pair in rendered:
        onset, apex, truths, _ = frames_of(pair)
        face = face_mask(torch.from_numpy(pair.landmarks)[None].float())
        still = still_head(onset, apex)
        before, after = ((frame - truths[1]).abs().mean(1)[face].mean() for frame in (apex, still))
        assert after < before


@pytest.mark.parametrize("factor", FACTORS[1:])
def test_shipped_weights_beat_the_apex_as_it_is(rendered, factor):
    "Not at 2, where the apex is nearer: its motion is half of the truth, and drawing costs what it gains."
    for pair in rendered:
        onset, apex, truths, error = frames_of(pair)
        found, truth = (
            magnify_learned(onset, still_head(onset, apex), factor),
            truths[1 + (1.0, *FACTORS).index(factor)],
        )
        assert error(found, truth) < 0.95 * min(error(apex, truth), error(onset, truth))


def test_ends_of_the_factor(rendered):
    "The onset at 0 and the apex at 1 exactly; twice the same frame to a gray level, the network's own error."
    for pair in rendered:
        onset, apex, truths, error = frames_of(pair)
        still = still_head(onset, apex)
        assert error(magnify_learned(onset, onset, 15), onset) < 1
        for factor, frame in ((0, onset), (0.5, (onset + still) / 2), (1, still)):
            torch.testing.assert_close(
                magnify_learned(onset, still, factor), frame, atol=1e-5, rtol=0
            )


# Training on magnified apexes


def test_apexes_are_magnified_once(store):
    found = magnified_apexes(
        store.path, store.settings["checksum"], (2.0, 6.0), torch.device("cpu")
    )
    assert found.shape == (4, 3, 256, 256, 3) and found.dtype == torch.uint8
    onset, apex = (
        torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
        for frame in store.pair(2)
    )
    expected = (
        (magnify_learned(onset, still_head(onset, apex), 4.0) * 255).round()[0].permute(1, 2, 0)
    )
    assert (found[2, 1].float() - expected).abs().max() <= 1
    assert (
        magnified_apexes(store.path, store.settings["checksum"], (2.0, 6.0), torch.device("cpu"))
        is found
    )


def test_only_training_pairs_are_magnified(tmp_path):
    "Magnified apexes here are marked by their own bytes: 200 and more, clip and factor."
    store = toy_store(tmp_path / "toy")
    marks = torch.arange(len(store) * 2).view(len(store), 2, 1, 1, 1) + 200
    size = store.settings["size"]
    source = PairSource(store, magnified=marks.expand(-1, -1, size, size, 3).byte())
    data = FoldData(source, store.index.subject_id[0], 4, mirror=True)
    apex = torch.from_numpy((store.index.start + store.index.apex).to_numpy(copy=True))
    seen, order = [], fold_generator(0)
    for _ in range(100):
        for batch in data.batches(order):
            value = (batch.apex[:, 0, 0, 0] * 255).round().long()
            flat = (batch.apex == batch.apex[:, :1, :1, :1]).flatten(1).all(1) & (value >= 200)
            assert ((value[flat] - 200) // 2 == batch.clips[flat]).all() and (
                batch.rows[flat, 1] == apex[batch.clips[flat]]
            ).all()
            seen += [-1 if not on else int(v) % 2 for on, v in zip(flat, value)]
    shares = np.bincount(np.array(seen) + 1) / len(seen)
    assert 0.42 < shares[0] < 0.58 and abs(shares[1] - shares[2]) < 0.1
    for batch in (*data.test_batches(), data.random_pairs(30, order)):
        assert not (batch.apex == batch.apex[:, :1, :1, :1]).flatten(1).all(1).any()


def test_nothing_changes_without_it(tmp_path):
    """The batches of a fold are those of the same fold with magnification, but for the apexes that are magnified; the
    first batch's draws come first."""
    store = toy_store(tmp_path / "toy")
    size = store.settings["size"]
    zeros = torch.zeros(len(store), 2, size, size, 3, dtype=torch.uint8)
    plain, large = (
        FoldData(PairSource(store, magnified=table), store.index.subject_id[0], 4, mirror=True)
        for table in (None, zeros)
    )
    first, second = (next(data.batches(fold_generator(0))) for data in (plain, large))
    assert (
        torch.equal(first.clips, second.clips)
        and torch.equal(first.onset, second.onset)
        and torch.equal(first.boxes, second.boxes)
    )
    generators = fold_generator(0), fold_generator(0)
    torch.randperm(len(plain.train), generator=generators[0])
    assert (
        draw_enlargements(None, 9, generators[0]) is None
        and draw_enlargements(zeros, 9, generators[1]) is not None
    )


def test_tables_that_do_not_fit_are_refused(tmp_path):
    store = toy_store(tmp_path / "toy")
    size = store.settings["size"]
    good = torch.zeros(len(store), 2, size, size, 3, dtype=torch.uint8)
    for changed in (
        dict(magnified=good[1:]),
        dict(magnified=good[:, 0]),
        dict(magnified=good, needs_frames=False),
    ):
        with pytest.raises(ValueError, match="got magnified apexes of shape"):
            FoldData(PairSource(store, **changed), store.index.subject_id[0])


@pytest.mark.parametrize("bounds", [(0.5, 3), (6, 2), (2, 40), (2,), (1, float("nan"))])
def test_bad_bounds(bounds):
    with pytest.raises(ValueError, match="between 1 and 18"):
        TrainConfig(magnify=bounds)


def test_bounds_are_a_tuple_again():
    assert (
        TrainConfig(magnify=[2, 6]).magnify == (2.0, 6.0)
        and TrainConfig().magnify is None
        and hash(TrainConfig(magnify=[2, 6]))
    )


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(module="guided"), "guided"),
        (dict(module="tvl1"), "tvl1"),
        (dict(steps=4), "sequences"),
    ],
)
def test_known_displacements_and_sequences_are_refused(tmp_path, changes, message):
    store = toy_store(tmp_path / "toy")
    with pytest.raises(ValueError, match=f"magnify=.*{message}.*leave magnify out"):
        check_fit(
            store, ModelConfig(**changes), TrainConfig(magnify=(2, 6), pairs=0, apex_jitter=0)
        )


def test_a_fold_trains_on_them(tmp_path, monkeypatch):
    "The table is asked for once; with it the training is another one, and the same twice."
    store, asked = toy_store(tmp_path / "toy"), []
    size = store.settings["size"]

    def table(*arguments):
        asked.append(arguments)
        return torch.randint(0, 255, (len(store), 3, size, size, 3), generator=generator(1)).byte()

    monkeypatch.setattr("frl_dgt_nb.training.fold.magnified_apexes", table)
    model = ModelConfig(
        crop_size=18,
        patch=9,
        dim=16,
        heads=2,
        depth=1,
        full_size=18,
        dgm_size=16,
        dgm_width=4,
        dgm_depth=2,
    )

    def run(magnify):
        return train_fold(
            store,
            store.index.subject_id[0],
            model,
            TrainConfig(epochs=2, pairs=2, batch_size=4, magnify=magnify),
            device="cpu",
            progress=False,
        )

    plain, first, second = run(None), run((2, 6)), run((2, 6))
    assert len(asked) == 2 and asked[0][:3] == (store.path, store.settings["checksum"], (2.0, 6.0))
    assert np.array_equal(first.probabilities, second.probabilities) and not np.array_equal(
        plain.probabilities, first.probabilities
    )
