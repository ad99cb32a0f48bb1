"""Probes of how many dimensions the features of a layer really use."""

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View


class EffectiveRank(Probe):
    """exp of the entropy of a layer's normalised singular values (Roy & Vetterli 2007).

    Of the activations [B, units], neither centred nor scaled. 0 where all of them are zero.
    "all" is the mean over the hidden layers.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        ranks = {name: effective_rank(sigma) for name, sigma in view.singular_values.items()}
        return {**ranks, "all": jnp.mean(jnp.stack(list(ranks.values())))}


def effective_rank(sigma: Array) -> Array:
    """The effective rank of a matrix with singular values `sigma` [d]. Between 1 and d, or 0."""
    total = jnp.sum(sigma)
    share = sigma / jnp.where(total == 0, 1.0, total)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share == 0, 1.0, share)))
    return jnp.where(total == 0, 0.0, jnp.exp(entropy))
