import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frl_dgt_nb.model.fusion import (
    FullFaceFusion,
    GlobalFusion,
    LocalFusion,
    RegionFusion,
    fusion_layer,
    patchify,
)

SMALL = dict(dim=16, heads=2, depth=1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@settings(max_examples=30, deadline=None)
@given(
    patch=st.integers(1, 5),
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    channels=st.integers(1, 3),
    batch=st.integers(1, 2),
)
def test_patchify_is_unfold(patch, rows, cols, channels, batch):
    images = torch.randn(batch, channels, rows * patch, cols * patch)
    theirs = F.unfold(images, patch, stride=patch)  # (B, M*P*P, N), channels slowest
    theirs = theirs.unflatten(1, (channels, patch * patch)).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(patchify(images, patch), theirs)


@pytest.mark.parametrize("patch", [0, -3, 7, 20])
def test_patchify_bad_patch(patch):
    with pytest.raises(ValueError, match="don't tile"):
        patchify(torch.zeros(1, 3, 18, 18), patch)


def test_the_mean_has_no_say():
    layer, tokens = fusion_layer("mean", 16, 2, 9), torch.randn(3, 9, 16)
    vector, weights = layer(tokens)
    assert (
        not list(layer.parameters())
        and torch.equal(vector, tokens.mean(1))
        and torch.equal(weights, torch.full((3, 2, 9), 1 / 9))
    )
    region = RegionFusion(5, 12, 4, 16, heads=2, depth=0, fusion="mean")
    crop = torch.randn(3, 5, 12, 12)
    torch.testing.assert_close(
        region(crop)[0],
        F.layer_norm(region.embed(patchify(crop, 4)) + region.position, (16,)).mean(1),
    )


@pytest.mark.parametrize("fusion", ["before", "after", "mean"])
def test_every_module_returns_vector_and_weights(fusion):
    local = LocalFusion(3, channels=5, size=12, patch=4, fusion=fusion, **SMALL)
    vectors, weights = local(torch.randn(2, 3, 5, 12, 12))
    assert vectors.shape == (2, 3, 16) and weights.shape == (2, 3, 2, 9)
    vector, weights = GlobalFusion(3, fusion=fusion, **SMALL)(vectors)
    assert vector.shape == (2, 16) and weights.shape == (2, 2, 3)
    vector, weights = FullFaceFusion(5, 16, patch=4, fusion=fusion, **SMALL)(
        torch.randn(2, 5, 40, 30)
    )
    assert vector.shape == (2, 16) and weights.shape == (2, 2, 16)
    assert (weights.sum(-1) - 1).abs().max() < 1e-5


def test_local_is_each_region_on_its_own_crop():
    local, crops = (
        LocalFusion(3, channels=2, size=8, patch=4, **SMALL).eval(),
        torch.randn(2, 3, 2, 8, 8),
    )
    vectors, weights = local(crops)
    for k, region in enumerate(local.regions):
        torch.testing.assert_close((vectors[:, k], weights[:, k]), region(crops[:, k]))


def test_gradients_stay_within_their_region():
    local, crops = (
        LocalFusion(3, channels=2, size=8, patch=4, **SMALL),
        torch.randn(2, 3, 2, 8, 8, requires_grad=True),
    )
    local(crops)[0][:, 1].sin().sum().backward()
    assert crops.grad[:, 1].abs().sum() > 0 and crops.grad[:, [0, 2]].abs().sum() == 0
    assert all(
        p.grad is None or not p.grad.any() for k in (0, 2) for p in local.regions[k].parameters()
    )
    assert all(p.grad is not None for p in local.regions[1].parameters())


def test_regions_start_different():
    a, b = LocalFusion(2, channels=2, size=8, patch=4, **SMALL).regions
    assert not torch.equal(a.embed.weight, b.embed.weight) and not torch.equal(
        a.position, b.position
    )


def test_vmap_agrees_with_the_loop():
    local, crops = (
        LocalFusion(3, channels=2, size=8, patch=4, **SMALL).eval(),
        torch.randn(2, 3, 2, 8, 8),
    )
    state = torch.func.stack_module_state(list(local.regions))

    def one(p, b, crop):
        return torch.func.functional_call(local.regions[0], (p, b), (crop,))

    torch.testing.assert_close(
        torch.func.vmap(one, in_dims=(0, 0, 1), out_dims=1)(*state, crops), local(crops)
    )


def test_full_face_at_its_size_is_a_region():
    full, face = FullFaceFusion(2, 16, patch=4, **SMALL).eval(), torch.randn(2, 2, 16, 16)
    torch.testing.assert_close(full(face), RegionFusion.forward(full, face), atol=1e-5, rtol=1e-4)


def test_double_and_gradcheck():
    region = RegionFusion(1, 4, 2, dim=4, heads=2, depth=1).double().eval()
    crop = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: region(x), (crop,))


@pytest.mark.parametrize(
    "shape", [(2, 2, 2, 8, 8), (2, 3, 8, 8), (2, 3, 1, 8, 8), (2, 3, 2, 8, 12)]
)
def test_bad_crops(shape):
    with pytest.raises(ValueError, match="got (crops|a crop) of shape"):
        LocalFusion(3, channels=2, size=8, patch=4, **SMALL)(torch.zeros(shape))


def test_bad_vectors_and_fusion_name():
    with pytest.raises(ValueError, match="got tokens of shape"):
        GlobalFusion(3, **SMALL)(torch.zeros(2, 4, 16))
    with pytest.raises(ValueError, match="'before'"):
        fusion_layer("during", 16, 2, 3)
