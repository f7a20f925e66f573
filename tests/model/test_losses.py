"A trial of Eq. 4 on one pair: it finds a shift that is known, says what it was given, and is seeded."

import pytest
import torch
import torch.nn.functional as F

from frl_dgt_nb.model.dgm import displacement_loss
from frl_dgt_nb.model.losses import LOSSES, RATES, Trial
from frl_dgt_nb.model.warp import from_pixels, warp

PAPER = (10.0, 1.0, 0.2)


def shifted_pair(size=64, pixels=0.8):
    "A smooth texture and the same, shifted along x."
    coarse = torch.rand(1, 3, size // 6, size // 6, generator=torch.Generator().manual_seed(0))
    onset = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    truth = torch.zeros(1, 2, size, size)
    truth[:, 0] = pixels
    return onset, warp(onset, from_pixels(truth)), from_pixels(truth)


def test_a_known_shift_is_found():
    onset, apex, truth = shifted_pair()
    trial = Trial(onset, apex, grid=8)
    assert not trial.displacement.any() and trial.steps == 0
    for _ in range(60):
        trial.step((10.0, 0.0, 0.2), 2e-3)
    inner = (..., slice(8, -8), slice(8, -8))
    error = (trial.displacement - truth)[inner].norm(dim=1).mean()
    assert trial.steps == 60 and error < 0.2 * truth[inner].norm(dim=1).mean()


def test_losses_are_those_of_the_displacement():
    onset, apex, truth = shifted_pair()
    trial = Trial(onset, apex)
    total, parts = displacement_loss(onset, apex, truth, PAPER)
    losses = trial.losses(PAPER, truth)
    assert tuple(losses) == ("total", *LOSSES)
    assert losses["total"] == pytest.approx(float(total))
    assert losses["smoothness"] == pytest.approx(float(parts["smoothness"]), abs=1e-9)
    assert trial.losses(PAPER)["normalization"] == 0


def test_a_module_is_seeded_and_leaves_the_generator_alone():
    onset, apex, _ = shifted_pair()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    trials = [Trial(onset, apex, "module", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), wanted)
    for trial in trials:
        trial.step(PAPER, RATES["module"])
    first, again, other = (trial.displacement for trial in trials)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_cannot_be_done_is_said():
    onset, apex, _ = shifted_pair()
    with pytest.raises(ValueError, match="wanted one of"):
        Trial(onset, apex, "flow")
    trial = Trial(onset, apex)
    with pytest.raises(ValueError, match="lower the learning rate"):
        trial.step(PAPER, float("inf"))
    assert trial.steps == 0 and trial.displacement.isfinite().all()
