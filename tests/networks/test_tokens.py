"""Tokens: layouts, unpadding, and what becomes of vectors and images."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.networks.tokens import (
    Tokenizer,
    Tokens,
    TokenShape,
    join_tokens,
    repeat_valid,
    unpad,
)
from plasticity.struct import SettingError

VALID = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 0]], bool)
RNG = np.random.default_rng(0)


def padded(features=2):
    """Tokens of four observations, of which those of padding are NaN."""
    x = RNG.normal(size=(*VALID.shape, features))
    position = RNG.integers(0, 9, (*VALID.shape, 2)).astype(float)
    return Tokens(np.where(VALID[..., None], x, np.nan), position, VALID)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_unpad_keeps_every_valid_token_in_order(size):
    """Would catch a token that is lost or moved elsewhere: pad(unpad(x)) = x * mask."""
    tokens = padded()
    kept = unpad(jax.tree.map(jnp.asarray, tokens), size)
    again = np.zeros(tokens.features.shape)
    for row, valid in enumerate(VALID):
        count = valid.sum()
        np.testing.assert_array_equal(kept.valid[row], np.arange(size) < count)
        again[row, np.flatnonzero(valid)] = kept.features[row, :count]
        np.testing.assert_array_equal(kept.position[row, :count], tokens.position[row, valid])
    np.testing.assert_allclose(again, np.where(VALID[..., None], tokens.features, 0), rtol=1e-6)
    assert not np.any(np.asarray(kept.features)[~np.asarray(kept.valid)])


def test_repeat_valid_counts_valid_tokens_alone():
    """Would catch padding among the rows that probes average over."""
    x = np.arange(20.0).reshape(4, 5, 1)
    rows = np.asarray(repeat_valid(jnp.asarray(x), jnp.asarray(VALID)))[..., 0]
    np.testing.assert_array_equal(rows[0], [1, 2, 4, 1, 2])
    np.testing.assert_array_equal(rows[1], [5] * 5)
    np.testing.assert_array_equal(rows[3], [15, 16, 18, 15, 16])


def test_tokens_of_objects_hide_what_is_in_padding():
    """Would catch columns that are read in another order than written, or NaN that leaks."""
    valid, position = np.array([True, False]), np.array([[0, 2], [1, 1]])
    features = np.array([[3.0, 4.0], [np.nan, 6.0]])
    x = join_tokens(jnp.asarray(valid), position, jnp.asarray(features))
    np.testing.assert_array_equal(x, [[1, 0, 2, 3, 4], [0, 1, 1, 0, 0]])
    broken = x.at[1, 1:].set(jnp.nan)
    shape = TokenShape(2, 2, grid=(2, 3), max_tokens=1)
    tokens = Tokenizer(shape)(broken[None])
    np.testing.assert_array_equal(tokens.valid, [[True, False]])
    np.testing.assert_array_equal(tokens.position, [[[0, 2], [0, 0]]])
    np.testing.assert_array_equal(tokens.features, [[[3, 4], [0, 0]]])
    # The last two are the coordinates, from -1 to 1.
    inputs = Tokenizer(shape).inputs(tokens)
    np.testing.assert_array_equal(inputs, [[[3, 4, -1, 1], [0, 0, 0, 0]]])


def test_tokens_of_a_vector_are_its_entries():
    """Would catch entries that a set of tokens could not tell apart."""
    tokenizer = Tokenizer((3,))
    tokens = tokenizer(jnp.array([[5.0, 6, 7]]))
    np.testing.assert_array_equal(tokens.features[0, :, 0], [5, 6, 7])
    np.testing.assert_array_equal(
        tokenizer.inputs(tokens)[0], np.concatenate([np.diag([5.0, 6, 7]), np.eye(3)], axis=1)
    )
    np.testing.assert_array_equal(tokenizer.inputs(unpad(tokens, 4))[0, 3], [0] * 6)
    np.testing.assert_array_equal(tokens.position[0], [[0, 0], [1, 0], [2, 0]])
    assert tokens.valid.all()


def test_tokens_of_an_image_are_its_patches():
    """Would catch patches that mix rows and columns, or images whose size is no multiple."""
    image = np.arange(4 * 6 * 2.0).reshape(1, 4, 6, 2)
    tokenizer = Tokenizer((4, 6, 2), patch=2)
    tokens = tokenizer(jnp.asarray(image))
    assert tokens.features.shape == (1, 6, 8)
    np.testing.assert_array_equal(tokens.features[0, 4], image[0, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(tokens.position[0, 4], [1, 1])
    np.testing.assert_array_equal(tokenizer.inputs(tokens)[0, 4, 8:], [1, 0])
    for shape, key in (((4, 6, 2), "network.patch=4"), ((300,), "at most 256"), ((), "no tokens")):
        with pytest.raises(SettingError, match=key):
            Tokenizer(shape, patch=4).check()


def test_token_shape_is_a_tuple_with_a_layout():
    """Would catch a layout that is lost on the way to a process, or taken for another."""
    shape = TokenShape(9, 2, grid=(3, 3), max_tokens=4)
    again = pickle.loads(pickle.dumps(shape))
    assert again == shape
    assert hash(again) == hash(shape)
    assert again.grid == (3, 3)
    assert shape != (9, 5)
    assert shape != TokenShape(9, 2, grid=(3, 3), max_tokens=5)
    assert (2, *shape) == (2, 9, 5)
    assert shape.features == 2
    assert jax.eval_shape(lambda: jnp.zeros(shape)).shape == (9, 5)
