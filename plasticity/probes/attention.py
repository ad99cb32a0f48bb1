"""Probes of attention encoders, as `Mosaic`. Other networks report nothing.

Padding does not count. "all" is the mean over layers.
"""

import jax.numpy as jnp

from plasticity.networks import connections, masked_modeling_loss, singular_values
from plasticity.networks.attention import AttentionLayer
from plasticity.probes.base import Array, Probe, View
from plasticity.probes.ranks import effective_rank
from plasticity.struct import field

__all__ = ["AttentionEntropy", "ClosedGates", "MaskedModelingLoss", "TokenRank"]


class AttentionEntropy(Probe):
    """The entropy of attention weights in nats, the mean over tokens and heads (Zhai et al. 2023).

    It is 0 where each token attends to one only, and at most the logarithm of their number.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        layers = view.output.attention or {}
        return _with_mean({name: _entropy(layer) for name, layer in layers.items()})


class TokenRank(Probe):
    """The effective rank of the tokens after each block, of all observations together.

    It is that of `EffectiveRank`, with a row for each token. Attention draws tokens together, to a
    rank of 1 in the limit, which residual connections and MLPs prevent (Dong et al. 2021).
    """

    def __call__(self, view: View) -> dict[str, Array]:
        layers = view.output.attention or {}
        ranks = {}
        for name, layer in layers.items():
            rows = layer.tokens.reshape(-1, layer.tokens.shape[-1])
            ranks[name] = effective_rank(view.run_serialized(singular_values, rows))
        return _with_mean(ranks)


class ClosedGates(Probe):
    """The fraction of gated linear units whose gate is shut on all tokens (Shazeer 2020).

    GELU is never 0 on a whole batch, so that `DeadUnits` finds no such unit. A gate is shut if its
    preactivation is below -`threshold`; at 3, GELU is 0.004 at most from there on.

    Attributes:
      threshold: minus the preactivation.
    """

    threshold: float = field(3.0, ge=0)

    def __call__(self, view: View) -> dict[str, Array]:
        gated = [
            name
            for name, layer in connections(view.params).items()
            if any(path[-2].startswith("up_") for path in layer.incoming)
        ]
        shut = {}
        for name in gated:
            x = view.output.preactivations[name]
            shut[name] = jnp.all(x.reshape(-1, x.shape[-1]) < -self.threshold, axis=0)
        return _with_mean({name: jnp.mean(x.astype(jnp.float32)) for name, x in shut.items()})


class MaskedModelingLoss(Probe):
    """The mean squared error of the predicted features of masked tokens (Devlin et al. 2019).

    It is that of the intervention `MaskedModeling`, on the probe batch: tokens are chosen anew at
    each measurement, and 15 % of them, as in MosaicBERT's evaluation (Portes et al. 2023). Networks
    without that intervention report nothing.

    Attributes:
      rate: the fraction of the valid tokens that are chosen.
    """

    rate: float = field(0.15, gt=0, le=1)

    def __call__(self, view: View) -> dict[str, Array]:
        predicted = view.output.tokens
        if predicted is None:
            return {}
        loss = masked_modeling_loss(view.apply, view.params, predicted.tokens, self.rate, view.key)
        return {"all": loss}


def _entropy(layer: AttentionLayer) -> Array:
    """Computes the mean entropy over heads and valid queries. []."""
    weights = layer.weights
    entropy = -jnp.sum(weights * jnp.log(jnp.where(weights > 0, weights, 1.0)), axis=-1)
    queries = jnp.broadcast_to(layer.valid[:, None], entropy.shape)
    return jnp.sum(jnp.where(queries, entropy, 0.0)) / jnp.maximum(jnp.sum(queries), 1)


def _with_mean(layers: dict[str, Array]) -> dict[str, Array]:
    return {**layers, "all": jnp.mean(jnp.stack(list(layers.values())))} if layers else {}
