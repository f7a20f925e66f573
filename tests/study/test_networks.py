"""The networks of Table 1: published sizes, routing and attention against loops, and that everything in them learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from frl_dgt_nb.study.networks import (
    NETWORKS,
    RCNA,
    CapsuleNet,
    OFFApexNet,
    Recipe,
    STSTNet,
    class_attention,
    count_parameters,
    fit_network,
    make_optimizer,
    margin_loss,
    resnet_trunk,
    route,
    squash,
)

torch.set_num_threads(1)
SHAPES = {
    "ststnet": (3, 28, 28),
    "off-apexnet": (2, 28, 28),
    "capsulenet": (3, 112, 112),
    "rcn-a": (3, 60, 60),
}


@pytest.mark.parametrize(
    "name, count", [("ststnet", 1_683), ("off-apexnet", 2_664_475), ("rcn-a", 15_331)]
)
def test_size(name, count):
    assert count_parameters(NETWORKS[name].make(3)) == count


def test_size_of_the_original_capsules():
    network = CapsuleNet(size=224, width=64, kernel=9, kinds=32)
    trunk = 11_689_512 - 8_393_728 - 513_000  # ResNet-18 less its last stage and its classifier
    assert count_parameters(network.trunk) == trunk == count_parameters(resnet_trunk())
    assert count_parameters(network) == trunk + 2 * (256 * 256 * 81 + 256) + 32 * 6 * 6 * 3 * 16 * 8


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name, batch, classes):
    network = NETWORKS[name].make(classes).eval()
    logits = network(torch.randn(batch, *SHAPES[name]))
    assert logits.shape == (batch, classes) and logits.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_weight(name):
    torch.manual_seed(0)
    network = NETWORKS[name].make(3).train()
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    NETWORKS[name].loss(
        network(torch.randn(4, *SHAPES[name])), torch.tensor([0, 1, 2, 0])
    ).backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_bad_pictures(name):
    network, (channels, side, _) = NETWORKS[name].make(3), SHAPES[name]
    for bad in (
        torch.rand(2, channels + 1, side, side),
        torch.rand(channels, side, side),
        torch.rand(2, channels, 8, 8),
        torch.zeros(2, channels, side, side, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match=rf"want floats \(B,{channels},H,W\)"):
            network(bad)


@pytest.mark.parametrize("options", [dict(size=64), dict(size=100), dict(size=112, kernel=9)])
def test_no_capsule_is_left(options):
    with pytest.raises(ValueError, match="leaves no capsule"):
        CapsuleNet(**options)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6))
def test_squash(values):
    vector = torch.tensor(values, dtype=torch.float64)
    squashed, length = squash(vector), vector.norm().item()
    assert squashed.norm() < 1 and squashed.norm().item() == pytest.approx(
        length**2 / (1 + length**2), abs=1e-6
    )
    assert (
        torch.linalg.vector_norm(
            torch.nn.functional.normalize(vector, dim=0) * squashed.norm() - squashed
        )
        < 1e-6
    )


def routed(votes, rounds):
    "Procedure 1 of Sabour et al., one number at a time"
    lower, classes, size = votes.shape
    agreement = np.zeros((lower, classes))
    for _ in range(rounds):
        heard = np.exp(agreement) / np.exp(agreement).sum(1, keepdims=True)
        found = np.zeros((classes, size))
        for k in range(classes):
            total = sum(heard[i, k] * votes[i, k] for i in range(lower))
            square = (total**2).sum()
            found[k] = square / (1 + square) * total / np.sqrt(square)
        for i in range(lower):
            for k in range(classes):
                agreement[i, k] += votes[i, k] @ found[k]
    return found


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_routing(rounds):
    votes = torch.randn(
        2, 7, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(rounds)
    )
    found = route(votes, rounds)
    for one, each in zip(votes, found):
        np.testing.assert_allclose(each, routed(one.numpy(), rounds), atol=1e-10)


def test_how_much_is_heard_is_not_learnt():
    "The gradient is that of the last round's sum, with its weights held fixed."
    votes = torch.randn(1, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(route(votes, 2).sum(), votes)
    with torch.no_grad():
        weights = torch.einsum("blkd,bkd->blk", votes, route(votes, 1)).softmax(2)
    (theirs,) = torch.autograd.grad(squash((weights[..., None] * votes).sum(1)).sum(), votes)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("votes, rounds", [(torch.rand(2, 3, 4), 1), (torch.rand(2, 3, 4, 5), 0)])
def test_bad_votes(votes, rounds):
    with pytest.raises(ValueError, match="want votes"):
        route(votes, rounds)


def test_margin():
    lengths = torch.tensor([[0.995, 0.005, 0.5], [0.2, 0.9, 0.01]])
    assert margin_loss(lengths.log(), torch.tensor([0, 0])).item() == pytest.approx(
        (0.5 * 0.49**2 + 0.79**2 + 0.5 * 0.89**2) / 2, rel=1e-5
    )


def test_attention():
    maps, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 48)
    found = class_attention(maps, weight)
    assert found.shape == (2, 1, 4, 4) and (found >= 0).all() and (found <= 1).all()
    wanted = torch.zeros(4, 4)
    for row in weight:
        evidence = (row.view(3, 4, 4) * maps[1]).mean(0)
        wanted += (evidence - evidence.min()) / (evidence.max() - evidence.min()) / 5
    torch.testing.assert_close(found[1, 0], wanted)
    assert (
        class_attention(torch.zeros(1, 3, 4, 4), weight).isfinite().all()
    )  # nothing anywhere: no division by zero


def test_attention_has_no_parameters_and_matters():
    torch.manual_seed(0)
    network, pictures = RCNA().eval(), torch.randn(3, 3, 60, 60)
    assert count_parameters(network) == sum(
        map(count_parameters, (network.first, network.project, network.again, network.classifier))
    )
    maps = network.first(pictures)
    twice = network.again(maps + network.again(maps + network.project(maps)))
    last, first = (
        torch.nn.functional.adaptive_avg_pool2d(each, 5) for each in (network.shrink(twice), maps)
    )
    torch.testing.assert_close(
        network(pictures),
        network.classifier((last * class_attention(first, network.classifier.weight)).flatten(1)),
    )
    assert not torch.allclose(network(pictures), network.classifier(last.flatten(1)))


def pair(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 28, 28, generator=generator), torch.arange(count) % 3


def fit(seed=0, **how):
    pictures, labels = pair()
    torch.manual_seed(seed)
    return fit_network(
        replace(NETWORKS["ststnet"], **dict(epochs=5, batch_size=4, rate=1e-3) | how),
        pictures,
        labels,
        [pair(7, 1)[0], pictures[:0]],
        torch.Generator().manual_seed(seed),
        store_every=2,
    )


def test_what_a_fit_leaves():
    fitted = fit()
    assert fitted.epochs == [2, 4, 5] and len(fitted.losses) == 5
    assert fitted.probabilities[0].shape == (3, 7, 3) and fitted.probabilities[1].size == 0
    np.testing.assert_allclose(fitted.probabilities[0].sum(-1), 1, atol=1e-6)
    network = STSTNet()
    network.load_state_dict(fitted.weights)
    np.testing.assert_allclose(
        network.eval()(pair(7, 1)[0]).softmax(1).detach(), fitted.probabilities[0][-1], atol=1e-6
    )


def test_same_seed_same_bits():
    assert all((fit().weights[key] == value).all() for key, value in fit().weights.items())
    assert not torch.equal(fit(1).weights["classifier.weight"], fit().weights["classifier.weight"])


def test_asking_changes_nothing():
    "What is predicted on the way has no say in what is learnt."
    pictures, labels = pair()
    weights = []
    for asked in ([], [pictures], [torch.randn(9, 3, 28, 28)]):
        torch.manual_seed(0)
        how = replace(NETWORKS["ststnet"], epochs=3, batch_size=4)
        weights.append(
            fit_network(how, pictures, labels, asked, torch.Generator().manual_seed(0)).weights
        )
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in other)


@pytest.mark.parametrize(
    "clips, batch_size, wanted", [(12, 11, [6, 6]), (3, 2, [3]), (5, 2, [3, 2]), (12, 256, [12])]
)
def test_batches_of_two_or_more(clips, batch_size, wanted):
    sizes = []
    how = replace(
        NETWORKS["ststnet"],
        epochs=1,
        batch_size=batch_size,
        loss=lambda logits, labels: sizes.append(len(labels)) or cross_entropy(logits, labels),
    )
    fit_network(how, *pair(clips), [], torch.Generator())
    assert sizes == wanted


def test_too_few_clips():
    with pytest.raises(ValueError, match="two training clips or more, got 1"):
        fit_network(NETWORKS["ststnet"], *(part[:1] for part in pair()), [], torch.Generator())


def test_a_loss_that_is_no_number_stops():
    with pytest.raises(ValueError, match="no longer finite"):
        fit_network(NETWORKS["ststnet"], pair()[0] * float("nan"), pair()[1], [], torch.Generator())


@pytest.mark.parametrize("momentum, kind", [(0.0, torch.optim.Adam), (0.9, torch.optim.SGD)])
def test_rate_falls(momentum, kind):
    optimizer, schedule = make_optimizer(
        OFFApexNet(), Recipe(OFFApexNet, 9, 8, 0.1, momentum, decay=0.5, decay_epochs=3)
    )
    assert type(optimizer) is kind
    rates = []
    for _ in range(7):
        rates.append(schedule.get_last_lr()[0]), optimizer.step(), schedule.step()
    assert rates == pytest.approx([0.1] * 3 + [0.05] * 3 + [0.025])
