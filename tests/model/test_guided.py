"Guided module: known motions as oracles, batches, seeds, the shipped weights."

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from textures import generator, inside, texture

from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.model.dgm import face_mask
from frl_dgt_nb.model.evidence import (
    SHRINK,
    evidence,
    least_squares,
    pull,
)
from frl_dgt_nb.model.guided import (
    GuidedModule,
    GuidedTraining,
    known_pairs,
    load_guided,
    mirror_known,
    push_motions,
    save_guided,
    train_guided,
    turn_and_scale,
)
from frl_dgt_nb.model.warp import to_motion


@pytest.fixture(scope="module")
def samples(sample_clips, tmp_path_factory):
    "A clip of each of four people: frames, true motion, landmarks."
    store = prepare(
        replace(sample_clips, clips=sample_clips.clips[:24:6]),
        tmp_path_factory.mktemp("guided") / "store",
        progress=False,
        workers=1,
    )
    frames = [
        torch.from_numpy(np.stack([store.pair(i)[k] for i in range(len(store))]))
        .movedim(-1, 1)
        .float()
        / 255
        for k in (0, 1)
    ]
    return (
        *frames,
        torch.from_numpy(np.stack([store.truth(i) for i in range(len(store))])).float(),
        torch.from_numpy(np.array(store.landmarks)),
    )


def people(count=2, times=3, size=64):
    "Noisy textures as people at rest."
    still = texture(count, size)[:, None] + 0.01 * torch.randn(
        count, times, 3, size, size, generator=generator(5)
    )
    frames = (still.clamp(0, 1) * 255).byte().movedim(2, -1)
    return frames, torch.rand(count, 68, 2, generator=generator(6)) * size * 0.6 + size * 0.2


def test_flat_frames_are_no_trouble():
    flat = torch.full((1, 3, 64, 64), 0.5)
    assert torch.isfinite(evidence(flat, flat)).all() and load_guided()(flat, flat).isfinite().all()


@pytest.mark.parametrize(
    "onset,apex,message",
    [
        ((1, 3, 64, 64), (1, 3, 64, 32), "64, 32"),
        ((3, 64, 64), (3, 64, 64), "B,3,H,W"),
        ((1, 1, 64, 64), (1, 1, 64, 64), "B,3,H,W"),
        ((1, 3, 48, 64), (1, 3, 48, 64), "divisible by 32"),
    ],
)
def test_bad_frames(onset, apex, message):
    with pytest.raises(ValueError, match=message):
        GuidedModule(4)(torch.rand(onset), torch.rand(apex))
    if "divisible" not in message:
        with pytest.raises(ValueError, match=message):
            evidence(torch.rand(onset), torch.rand(apex))


def test_bad_training():
    frames, landmarks = people()
    with pytest.raises(ValueError, match="T >= 2"):
        next(known_pairs(frames[:, :1], landmarks, 2, generator()))
    with pytest.raises(ValueError, match="2 people x 3 pairs"):
        train_guided(GuidedModule(4), frames, landmarks, GuidedTraining(each=3), progress=False)


def test_mirrored_evidence_is_evidence_of_mirrored_frames():
    onset, motion = texture(size=256), torch.rand(1, 2, 8, 8, generator=generator(2)) - 0.5
    apex = pull(onset, F.interpolate(motion, (256, 256), mode="bicubic", align_corners=False))
    sums, mirrored = mirror_known(evidence(onset, apex), motion)
    torch.testing.assert_close(sums, evidence(onset.flip(-1), apex.flip(-1)), atol=2e-3, rtol=0.02)
    assert (
        sums[:, 1].abs().mean() > 0.002 < sums[:, 3].abs().mean()
    )  # the channels that change sign aren't empty
    torch.testing.assert_close(
        least_squares(sums),
        least_squares(evidence(onset, apex)).flip(-1) * torch.tensor([-1, 1]).view(2, 1, 1),
    )
    torch.testing.assert_close(
        mirrored[..., 0], motion.flip(-1)[..., 0] * torch.tensor([-1.0, 1])[:, None]
    )
    twice = mirror_known(sums, mirrored)
    assert torch.equal(twice[0], evidence(onset, apex)) and torch.equal(twice[1], motion)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), pushes=st.integers(1, 4), size=st.sampled_from([64, 256]))
def test_pushes_are_seeded_and_limited(seed, pushes, size):
    landmarks = torch.rand(6, 68, 2, generator=generator(1)) * size
    motion = push_motions(landmarks, size, generator(seed), pushes, largest=1.2)
    assert motion.shape == (6, 2, size // SHRINK, size // SHRINK) and motion.dtype == torch.float32
    assert motion.norm(dim=1).max() <= 1.2 * 2 * pushes  # each with its mirror image
    assert torch.equal(motion, push_motions(landmarks, size, generator(seed), pushes, largest=1.2))
    assert (
        not torch.equal(
            motion, push_motions(landmarks, size, generator(seed + 1), pushes, largest=1.2)
        )
        or not motion.any()
    )


def test_pushes_reach_their_size_and_rest_too():
    motion = (
        push_motions(torch.full((400, 68, 2), 128.0), 256, generator(), pushes=1, largest=1.5)
        .norm(dim=1)
        .amax((1, 2))
    )
    assert 0.3 < (motion == 0).float().mean() < 0.7  # with one push at most, half of the faces rest
    assert 1.3 < motion.max() <= 3 and (motion[motion > 0] > 0.1).float().mean() > 0.7


def test_a_landmark_stays_with_its_texture():
    "Blobs at the landmarks: wherever a blob's centre of mass goes, there the landmark must be."
    size, centre = 128, torch.tensor([[50.0, 70.0], [80.0, 60.0], [64.0, 90.0]])
    steps = torch.arange(size, dtype=torch.float32)
    blobs = torch.exp(
        -((steps - centre[:, :1, None]).square() + (steps[:, None] - centre[:, 1:, None]).square())
        / 18
    )[:, None]
    channels = blobs.permute(1, 0, 2, 3).expand(8, -1, -1, -1)  # three channels, a blob each
    moved, points = turn_and_scale(channels, centre.expand(8, -1, -1), generator(4))
    weight = moved.clamp(min=0) / moved.clamp(min=0).sum((2, 3), keepdim=True)
    mass = torch.stack([(weight * steps).sum((2, 3)), (weight * steps[:, None]).sum((2, 3))], -1)
    assert (mass - points).norm(dim=-1).max() < 0.1
    assert (points - centre).norm(dim=-1).mean() > 3


def test_known_pairs_are_what_they_say():
    "Least squares, which knows nothing of the draw, finds the motion they come with; another seed gives another draw."
    frames, landmarks = people(2, 2, 256)
    sums, motion = map(torch.cat, zip(*known_pairs(frames, landmarks, 6, generator(2))))
    assert (
        sums.shape == (12, 5, 64, 64) and motion.shape == (12, 2, 64, 64) and not sums.requires_grad
    )
    found = least_squares(sums, 0.003)
    assert np.corrcoef(inside(found).flatten(), inside(motion).flatten())[0, 1] > 0.7
    again = next(known_pairs(frames, landmarks, 6, generator(2)))
    assert torch.equal(again[0], sums[:6]) and not torch.equal(
        next(known_pairs(frames, landmarks, 6, generator(3)))[1], motion[:6]
    )


def test_training_is_seeded_and_learns():
    frames, landmarks = people(2, 2, 64)

    def train():
        torch.manual_seed(0)
        settings = GuidedTraining(rounds=1, each=8, epochs=2, batch_size=8)
        return train_guided(GuidedModule(4), frames, landmarks, settings, progress=False)

    first, second = train().state_dict(), train().state_dict()
    assert (
        all(torch.equal(first[name], second[name]) for name in first) and first["head.weight"].any()
    )
    assert not train().training


def test_gradients_and_zero_start():
    module, onset = GuidedModule(4), texture(2, 64)
    assert not module(onset, texture(2, 64, 1)).any()
    torch.nn.init.normal_(module.head.weight, std=0.1)
    module(onset, texture(2, 64, 1)).square().mean().backward()
    assert (
        all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        and module.stem[0][0].weight.grad.any()
    )


def test_round_trip(tmp_path):
    module = GuidedModule(6)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1)
    save_guided(module, tmp_path / "guided.safetensors")
    loaded = load_guided(tmp_path / "guided.safetensors")
    assert not loaded.training and all(p.dtype == torch.float32 for p in loaded.parameters())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    save_guided(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "guided.safetensors"
    ).read_bytes()


@torch.no_grad()
def test_shipped_weights_find_the_motion(samples):
    onset, apex, truth, landmarks = samples
    estimate, face = to_motion(load_guided()(onset, apex)), face_mask(landmarks)
    moving = face & (truth.norm(dim=1) > 0.2)
    cosine = F.cosine_similarity(
        *[(field * moving[:, None]).flatten(1) for field in (estimate, truth)]
    )
    error = (estimate - truth).norm(dim=1)[face].mean()
    assert cosine.min() > 0.65 and cosine.mean() > 0.85
    assert error < 0.7 * truth.norm(dim=1)[face].mean()
    swapped = to_motion(load_guided()(apex, onset))
    assert (
        F.cosine_similarity(*[(field * moving[:, None]).flatten(1) for field in (swapped, truth)])
        < -0.5
    ).all()


@torch.no_grad()
def test_samples_do_not_see_each_other(samples):
    onset, apex, module = *samples[:2], load_guided()
    together, alone = (
        module(onset, apex),
        torch.cat([module(a, b) for a, b in zip(onset.split(1), apex.split(1))]),
    )
    torch.testing.assert_close(to_motion(together), to_motion(alone), atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_answers_in_float32(dtype):
    onset, apex, module = (
        texture(size=64).to(dtype),
        texture(size=64, seed=1).to(dtype),
        load_guided(),
    )
    assert module(onset, apex).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(onset, apex)
    assert torch.equal(mixed, module(onset, apex))
