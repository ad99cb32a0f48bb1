"""Masked modeling of tokens: which are chosen, what becomes of them, and the loss."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.networks import Mosaic, Network, TokenShape
from plasticity.networks.masked_modeling import (
    corrupt_tokens,
    masked_modeling_loss,
    with_masked_modeling,
)
from plasticity.networks.tokens import Tokens
from plasticity.struct import SettingError

RNG = np.random.default_rng(0)
corrupt = jax.jit(corrupt_tokens)


def tokens_of(batch, length=20):
    """Tokens of which half are valid. Each valid one has a number of its own for features."""
    valid = RNG.random((batch, length)) < 0.5
    features = np.where(valid, 1 + np.arange(valid.size).reshape(valid.shape), 0)[..., None]
    position = RNG.integers(0, 5, (*valid.shape, 2)) * valid[..., None]
    return jax.tree.map(jnp.asarray, Tokens(features.astype(float), position.astype(float), valid))


def test_corrupt_tokens_has_the_ratios_of_bert():
    """Would catch padding that is chosen, other ratios, or a token that replaces itself."""
    tokens = tokens_of(1000)
    corrupted, chosen = jax.device_get(corrupt(tokens, 0.3, jax.random.key(1)))
    valid, before, after = (
        np.asarray(x) for x in (tokens.valid, tokens.features[..., 0], corrupted.features[..., 0])
    )
    assert not chosen[~valid].any()
    assert chosen[valid].mean() == pytest.approx(0.3, abs=0.02)
    masked = corrupted.masked
    replaced = ~masked & (after != before)
    assert masked[chosen].mean() == pytest.approx(0.8, abs=0.02)
    assert replaced[chosen].mean() == pytest.approx(0.1, abs=0.02)
    assert not (masked | replaced)[~chosen].any()
    assert not after[masked].any()
    assert np.isin(after[replaced], before[valid]).all()
    # Any of them, and not those of the same observation or place alone.
    assert np.corrcoef(after[replaced], before[replaced])[0, 1] == pytest.approx(0, abs=0.1)
    for name in ("position", "valid"):
        np.testing.assert_array_equal(getattr(corrupted, name), getattr(tokens, name))


def test_corrupt_tokens_of_a_single_token_leaves_its_features():
    """Would catch an index out of range, or a division by the number of other tokens."""
    one = Tokens(jnp.full((1, 1, 1), 5.0), jnp.zeros((1, 1, 2)), jnp.ones((1, 1), bool))
    for seed in range(20):
        corrupted, chosen = corrupt(one, 1.0, jax.random.key(seed))
        assert chosen.all()
        assert corrupted.features[0, 0, 0] == (0 if corrupted.masked[0, 0] else 5)


def test_masked_modeling_loss_is_that_of_chosen_tokens_alone():
    """Would catch tokens that count without being chosen, and a mean over all of them."""
    tokens = tokens_of(50)

    def apply(params, corrupted):
        return SimpleNamespace(tokens=SimpleNamespace(features=params + corrupted.features))

    key = jax.random.key(3)
    corrupted, chosen = corrupt(tokens, 0.15, key)
    known = np.square(2 + corrupted.features - tokens.features)[np.asarray(chosen)].mean()
    loss = jax.jit(lambda rate: masked_modeling_loss(apply, 2.0, tokens, rate, key))
    assert float(loss(0.15)) == pytest.approx(known, rel=1e-5)
    assert loss(0.0) == 0


def test_encoder_predicts_from_its_last_block_what_it_cannot_read():
    """Would catch features of a masked token that are read, or predictions of another token."""
    shape = TokenShape(6, 3, grid=(3, 3), max_tokens=4)
    network = with_masked_modeling(Mosaic(width=8, depth=1, heads=2, mlp_width=8))
    x = np.zeros((2, *shape), np.float32)
    x[:, 1:5, 0], x[:, 1:5, 1:] = 1, RNG.integers(0, 3, (2, 4, 5))
    module = network.build(shape, 4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: 0.3 * RNG.normal(size=leaf.shape), shapes)
    apply = jax.jit(module.apply)
    clean = apply(variables, x)
    tokens, valid = clean.tokens.tokens, np.asarray(clean.tokens.tokens.valid)
    np.testing.assert_array_equal(tokens.features[valid], x[:, 1:5, 3:].reshape(-1, 3))
    linear = variables["params"]["torso"]["prediction_1"]
    last = clean.attention["attention_0"].tokens[:, -valid.shape[1] :]
    np.testing.assert_allclose(
        clean.tokens.features[valid], (last @ linear["kernel"] + linear["bias"])[valid], atol=1e-5
    )

    def predict(tokens):
        masked = np.zeros(valid.shape, bool) if tokens.masked is None else tokens.masked
        return np.asarray(apply(variables, tokens._replace(masked=masked)).tokens.features)

    np.testing.assert_allclose(predict(tokens), clean.tokens.features, atol=1e-6)
    masked = np.zeros(valid.shape, bool)
    masked[:, 1] = True
    hidden = tokens._replace(features=tokens.features.at[:, 1].set(0), masked=masked)
    moved = hidden._replace(position=hidden.position.at[:, 1].add(1))
    unmasked = hidden._replace(masked=None)
    for other in (tokens, moved, unmasked):
        assert np.abs(predict(hidden) - predict(other))[:, 1].max() > 1e-3


def test_networks_without_tokens_are_refused():
    """Would catch a network that is trained without the loss that was asked for."""
    with pytest.raises(SettingError, match=r"network\._target_=.*Network': must be an encoder of"):
        with_masked_modeling(Network())
