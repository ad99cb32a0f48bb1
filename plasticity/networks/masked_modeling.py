"""Masked modeling of tokens, as BERT is trained (Devlin et al. 2019).

Of the valid tokens some are chosen at random, and an encoder predicts their features. Of the chosen
ones 80 % have a trained mask in place of their features, 10 % have the features of another token,
and 10 % are left as they are, each token drawn on its own. That is the rule of the collator of
Hugging Face's transformers, which MosaicBERT's published code uses (Portes et al. 2023), with 30 %
of the tokens chosen for training and 15 % for evaluation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from plasticity.networks.base import BaseNetwork, Output, Params
from plasticity.networks.tokens import Tokens
from plasticity.struct import TARGET, SettingError, fields

__all__ = ["masked_modeling_loss", "with_masked_modeling"]

Array = jax.Array

_MASKED, _REPLACED = 0.8, 0.1  # of the chosen tokens; the others are left
_FIELD = "masked_modeling"


def with_masked_modeling(network: BaseNetwork) -> BaseNetwork:
    """Returns a network that also predicts the features of its tokens.

    Raises:
      SettingError: the network has no tokens.
    """
    if _FIELD not in dict(fields(network)):
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        raise SettingError(
            f"network.{TARGET}",
            kind,
            f"must be an encoder of tokens with the field {_FIELD}, as network=mosaic, for masked "
            "modeling",
        )
    changes: dict[str, Any] = {_FIELD: True}
    return network.replace(**changes)


def masked_modeling_loss(
    apply: Callable[[Params, Any], Output],
    params: Params,
    tokens: Tokens,
    rate: Array | float,
    key: Array,
) -> Array:
    """Computes the error with which a network predicts the features of tokens chosen at random.

    It is the mean square over features and chosen tokens; 0 if none is chosen. It is no
    cross-entropy, although features of objects are one-hot, since a shift may permute features of
    different kinds, and since entries of vectors and pixels are continuous. What says where a token
    is stays known to the network, and is not predicted.

    Args:
      apply: computes the network's output from parameters and tokens.
      params: the parameters.
      tokens: the tokens of B observations, as in `Output.tokens`.
      rate: the fraction of the valid tokens that are chosen.
      key: randomness.

    Returns:
      The loss, [].
    """
    corrupted, chosen = corrupt_tokens(tokens, rate, key)
    predicted = apply(params, corrupted).tokens
    assert predicted is not None  # as `with_masked_modeling` provides for
    error = jnp.mean(jnp.square(predicted.features - tokens.features), axis=-1)
    return jnp.sum(jnp.where(chosen, error, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)


def corrupt_tokens(tokens: Tokens, rate: Array | float, key: Array) -> tuple[Tokens, Array]:
    """Chooses tokens at random, and masks or replaces the features of most of them.

    Args:
      tokens: the tokens of B observations, [B, T, ...].
      rate: the fraction of the valid tokens that are chosen.
      key: randomness.

    Returns:
      The tokens, and which of them were chosen, bool [B, T].
    """
    choice_key, treatment_key, other_key = jax.random.split(key, 3)
    shape = tokens.valid.shape
    chosen = tokens.valid & jax.random.bernoulli(choice_key, rate, shape)
    treatment = jax.random.uniform(treatment_key, shape)
    masked = chosen & (treatment < _MASKED)
    replaced = chosen & (treatment >= _MASKED) & (treatment < _MASKED + _REPLACED)
    other = _draw_others(tokens, other_key)
    features = jnp.where(replaced[..., None], other, tokens.features)
    features = jnp.where(masked[..., None], 0, features)
    return tokens._replace(features=features, masked=masked), chosen


def _draw_others(tokens: Tokens, key: Array) -> Array:
    """Returns, for each valid token, the features of another one of the batch. [B, T, F].

    All others are equally likely. Where there is no other, they are the token's own.
    """
    valid = tokens.valid.reshape(-1)
    features = tokens.features.reshape(len(valid), -1)
    rank = jnp.cumsum(valid) - 1  # among the valid tokens
    count = jnp.maximum(rank[-1] + 1, 1)
    steps = 1 + jax.random.randint(key, valid.shape, 0, jnp.maximum(count - 1, 1))
    (index,) = jnp.nonzero(valid, size=len(valid), fill_value=0)
    return features[index[(rank + steps) % count]].reshape(tokens.features.shape)
