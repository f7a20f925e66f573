import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frl_dgt_nb.model.attention import (
    AttentionBlock,
    FusionAfter,
    FusionBefore,
    TransformerLayer,
    check_heads,
)

FUSIONS = [FusionBefore, FusionAfter]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def fuse_plain(layer, tokens):
    "Oracle: Eq. 5-7 sample by sample and head by head, batch normalisation by its definition (training)."
    queries, keys, values = (
        [[x @ w[k].T for k in range(len(w))] for x in tokens]
        for w in (layer.query, layer.key, layer.value)
    )
    logits = torch.stack(
        [
            torch.stack([(layer.mix[k] @ q[k]) @ key[k].T for k in range(len(q))])
            for q, key in zip(queries, keys)
        ]
    )
    mean, var = logits.mean((0, 2), keepdim=True), logits.var((0, 2), unbiased=False, keepdim=True)
    scaled = (logits - mean) / (var + layer.norm.eps).sqrt() * layer.norm.weight[
        :, None
    ] + layer.norm.bias[:, None]
    weights = scaled.exp() / scaled.exp().sum(-1, keepdim=True)
    return torch.stack(
        [torch.cat([p[k] @ v[k] for k in range(len(v))]) for p, v in zip(weights, values)]
    ), weights


def randomized(layer):
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.1 * torch.randn_like(p)
    return layer


@pytest.mark.parametrize(
    "dim,heads,count,batch", [(256, 8, 25, 3), (64, 4, 9, 5), (12, 3, 2, 2), (8, 1, 7, 4)]
)
def test_absorbed_is_plain_in_values_and_gradients(dim, heads, count, batch):
    layer = randomized(FusionBefore(dim, heads, count).double())
    tokens = torch.randn(batch, count, dim, dtype=torch.float64, requires_grad=True)
    found = []
    for form in (layer, lambda x: fuse_plain(layer, x)):
        fused, weights = form(tokens)
        grads = torch.autograd.grad(
            fused.sin().sum() + (weights**2).sum(), [tokens, *layer.parameters()]
        )
        found.append([fused, weights, *grads])
    for absorbed, plain in zip(*found):
        assert (absorbed - plain).abs().max() < 1e-10


@pytest.mark.parametrize("form", FUSIONS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(form, training):
    layer = randomized(form(6, 2, 3).double()).train(training)
    if training and form is FusionBefore:
        layer.norm.track_running_stats = False  # gradcheck calls many times
    tokens = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x), (tokens,))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    count=st.integers(2, 30),
    heads=st.sampled_from([1, 2, 4]),
    scale=st.floats(0.01, 100),
    form=st.sampled_from(FUSIONS),
)
def test_weights_sum_to_one(batch, count, heads, scale, form):
    fused, weights = form(16, heads, count)(scale * torch.randn(batch, count, 16))
    assert fused.shape == (batch, 16) and weights.shape == (batch, heads, count)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, heads))


def test_equal_fusion_weights_are_the_mean():
    layer, tokens = FusionBefore(32, 4, 9).double(), torch.randn(5, 9, 32, dtype=torch.float64)
    with torch.no_grad():
        layer.norm.weight.zero_()
    fused, _ = layer(tokens)
    torch.testing.assert_close(
        fused, torch.einsum("hcd,bd->bhc", layer.value, tokens.mean(1)).flatten(1)
    )


def test_equal_lin_is_the_mean_query():
    layer, tokens = FusionBefore(32, 4, 9).double(), torch.randn(5, 9, 32, dtype=torch.float64)
    mean = torch.einsum("hcd,bd->bhc", layer.query, tokens.mean(1))
    keys = torch.einsum("hcd,bnd->bhnc", layer.key, tokens)
    torch.testing.assert_close(layer.logits(tokens), torch.einsum("bhc,bhnc->bhn", mean, keys))


def test_after_with_one_token_is_its_value():
    layer, tokens = FusionAfter(16, 2, 1), torch.randn(3, 1, 16)
    fused, weights = layer(tokens)
    torch.testing.assert_close(weights, torch.ones(3, 2, 1))
    torch.testing.assert_close(fused, layer.qkv(tokens[:, 0])[:, 32:])


def test_after_is_pytorchs_attention_then_lin():
    layer, tokens = randomized(FusionAfter(16, 2, 5)), torch.randn(3, 5, 16)
    q, k, v = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in layer.qkv(tokens).chunk(3, -1))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(
        layer(tokens)[0],
        torch.stack([layer.mix[k] @ attended[:, k] for k in range(2)], 1).flatten(1),
    )


def test_evaluation_ignores_the_company():
    layer, tokens = FusionBefore(32, 4, 9), torch.randn(6, 9, 32)
    for _ in range(3):
        layer(torch.randn(8, 9, 32))
    assert (layer(tokens)[1][:1] - layer(tokens[:1])[1]).abs().max() > 1e-4  # training: it matters
    layer.eval()
    torch.testing.assert_close(layer(tokens)[0][:1], layer(tokens[:1])[0])


def test_layer_is_pytorchs_pre_norm_encoder_layer():
    ours = TransformerLayer(32, 4).eval()
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True
    ).eval()
    pairs = [
        (theirs.self_attn.in_proj_weight, ours.qkv.weight),
        (theirs.self_attn.in_proj_bias, ours.qkv.bias),
        (theirs.self_attn.out_proj.weight, ours.out.weight),
        (theirs.self_attn.out_proj.bias, ours.out.bias),
        (theirs.linear1.weight, ours.mlp[0].weight),
        (theirs.linear1.bias, ours.mlp[0].bias),
        (theirs.linear2.weight, ours.mlp[-1].weight),
        (theirs.linear2.bias, ours.mlp[-1].bias),
    ]
    with torch.no_grad():
        for to, source in pairs:
            to.copy_(source)
        x = torch.randn(2, 7, 32)
        torch.testing.assert_close(ours(x), theirs(x))


def test_block_depth_and_dropout():
    assert sum(isinstance(m, TransformerLayer) for m in AttentionBlock(32, 4, depth=3)) == 3
    block, x = AttentionBlock(32, 4, depth=1, dropout=0.5), torch.randn(2, 5, 32)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize(
    "form",
    [
        lambda: TransformerLayer(16, 2),
        lambda: FusionBefore(16, 2, 5),
        lambda: FusionAfter(16, 2, 5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype(form, dtype):
    out = form().to(dtype)(torch.randn(3, 5, 16, dtype=dtype))
    assert (out[0] if isinstance(out, tuple) else out).dtype == dtype


@pytest.mark.parametrize("form", FUSIONS)
@pytest.mark.parametrize("shape", [(5, 16), (2, 5, 17), (2, 6, 16), (2, 1, 5, 16)])
def test_bad_tokens(form, shape):
    with pytest.raises(ValueError, match="got tokens of shape"):
        form(16, 2, 5)(torch.zeros(shape))


def test_bad_tokens_of_a_layer():
    with pytest.raises(ValueError, match="got tokens of shape"):
        TransformerLayer(16, 2)(torch.zeros(2, 5, 15))


@pytest.mark.parametrize("heads", [0, -1, 3, 32])
def test_bad_heads(heads):
    with pytest.raises(ValueError, match="heads"):
        check_heads(16, heads)
    for form in (TransformerLayer, FusionBefore, FusionAfter):
        with pytest.raises(ValueError, match="heads"):
            form(16, heads)
