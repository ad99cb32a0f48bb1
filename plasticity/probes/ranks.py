"""Probes of how many dimensions the features of a layer really use.

All are of a layer's activations on the probe batch, [B, units], neither centred nor scaled, and
0 where all of them are zero; none can exceed the smaller of B and units. "all" is the mean over
the hidden layers.
"""

from collections.abc import Callable

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View
from plasticity.struct import field


class EffectiveRank(Probe):
    """exp of the entropy of a layer's normalised singular values (Roy & Vetterli 2007)."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_layers(view, effective_rank)


class StableRank(Probe):
    """The squared Frobenius norm of a layer's features over their squared spectral norm.

    Rudelson & Vershynin (2007), who call it numerical rank. What much of the literature's code
    calls stable rank is `Srank`.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_layers(view, stable_rank)


class Srank(Probe):
    """How many singular values make up all but `delta` of their sum (Kumar et al. 2020).

    The singular values themselves, not their squares as in `ApproximateRank`.

    Attributes:
      delta: the share of the sum that may be missing.
    """

    delta: float = field(0.01, gt=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_layers(view, lambda sigma: leading(sigma, 1 - self.delta))


class ApproximateRank(Probe):
    """How many directions hold a share of the features' squared norm (Yang et al. 2020).

    Squared singular values, of features that are not centred, as Moalla et al. (2024) have it:
    principal components of the second moment, and not of the covariance.

    Attributes:
      threshold: the share.
    """

    threshold: float = field(0.99, gt=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_layers(view, lambda sigma: leading(jnp.square(sigma), self.threshold))


class FeatureRank(Probe):
    """How many singular values of a layer's features / sqrt(B) exceed epsilon (Lyle et al. 2022).

    Alone among the ranks it grows with the scale of the features.

    Attributes:
      epsilon: the threshold.
    """

    epsilon: float = field(0.01, ge=0)

    def __call__(self, view: View) -> dict[str, Array]:
        def rank(sigma: Array, rows: int) -> Array:
            exceed = sigma / jnp.sqrt(rows) > self.epsilon
            return jnp.sum(jnp.where(jnp.isnan(sigma), sigma, exceed))

        rows = {name: x.size // x.shape[-1] for name, x in view.output.activations.items()}
        return _with_mean({name: rank(x, rows[name]) for name, x in view.singular_values.items()})


def effective_rank(sigma: Array) -> Array:
    """The effective rank of a matrix with singular values `sigma` [d]. Between 1 and d, or 0."""
    total = jnp.sum(sigma)
    share = sigma / jnp.where(total == 0, 1.0, total)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share == 0, 1.0, share)))
    return jnp.where(total == 0, 0.0, jnp.exp(entropy))


def stable_rank(sigma: Array) -> Array:
    """The stable rank of a matrix with singular values `sigma` [d]. Between 1 and d, or 0."""
    largest = jnp.max(sigma)
    # The ratio first: squares of small numbers underflow.
    return jnp.sum(jnp.square(sigma / jnp.where(largest == 0, 1.0, largest)))


def leading(weights: Array, share: Array | float) -> Array:
    """The fewest of `weights` [d], largest first, whose sum is at least that share of all."""
    total = jnp.sum(weights)
    # The last one is not asked: rounding could leave even all of them short of the whole.
    short = jnp.sum(jnp.cumsum(weights)[:-1] < share * total)
    # What has diverged has no rank: neither 0 nor 1.
    return jnp.where(total > 0, 1.0 + short, total)


def _of_layers(view: View, rank: Callable[[Array], Array]) -> dict[str, Array]:
    return _with_mean({name: rank(sigma) for name, sigma in view.singular_values.items()})


def _with_mean(of_layers: dict[str, Array]) -> dict[str, Array]:
    return {**of_layers, "all": jnp.mean(jnp.stack(list(of_layers.values())))}
