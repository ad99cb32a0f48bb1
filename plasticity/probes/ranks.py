"""Probes of the rank of a layer's features: how many dimensions they use.

All are computed from a layer's activations on the probe batch, [B, units], neither centered nor
scaled. They are 0 if all activations are zero, and at most min(B, units). "all" is the mean over
the hidden layers.
"""

from collections.abc import Callable

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View
from plasticity.struct import field

__all__ = ["ApproximateRank", "EffectiveRank", "FeatureRank", "Srank", "StableRank"]


class EffectiveRank(Probe):
    """The exponential of the entropy of the normalized singular values (Roy & Vetterli 2007)."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_layers(view, effective_rank)


class StableRank(Probe):
    """The squared Frobenius norm of a layer's features over their squared spectral norm.

    Rudelson & Vershynin (2007) call it numerical rank. Much published code calls a different
    measure the stable rank: see `Srank`.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_layers(view, stable_rank)


class Srank(Probe):
    """The number of singular values that sum to 1 - `delta` of the total (Kumar et al. 2020).

    It counts the singular values themselves, not their squares as `ApproximateRank` does.

    Attributes:
      delta: the fraction of the sum that may be missing.
    """

    delta: float = field(0.01, gt=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_layers(view, lambda sigma: num_leading(sigma, 1 - self.delta))


class ApproximateRank(Probe):
    """The number of principal components with most of the squared norm (Yang et al. 2020).

    It counts squared singular values of features that are not centered, as Moalla et al. (2024)
    do: the components are those of the second moment, not of the covariance.

    Attributes:
      threshold: the fraction of the squared norm that the components must reach.
    """

    threshold: float = field(0.99, gt=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_layers(view, lambda sigma: num_leading(jnp.square(sigma), self.threshold))


class FeatureRank(Probe):
    """The number of singular values of features / sqrt(B) above epsilon (Lyle et al. 2022).

    This is the only rank here that grows with the scale of the features.

    Attributes:
      epsilon: the threshold.
    """

    epsilon: float = field(0.01, ge=0)

    def __call__(self, view: View) -> dict[str, Array]:
        def rank(sigma: Array, num_rows: int) -> Array:
            exceeds = sigma / jnp.sqrt(num_rows) > self.epsilon
            return jnp.sum(jnp.where(jnp.isnan(sigma), sigma, exceeds))

        num_rows = {name: x.size // x.shape[-1] for name, x in view.output.activations.items()}
        return _with_mean(
            {name: rank(sigma, num_rows[name]) for name, sigma in view.singular_values.items()}
        )


def effective_rank(sigma: Array) -> Array:
    """Computes the effective rank from singular values `sigma` [d]. Between 1 and d, or 0."""
    total = jnp.sum(sigma)
    p = sigma / jnp.where(total == 0, 1.0, total)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p == 0, 1.0, p)))
    return jnp.where(total == 0, 0.0, jnp.exp(entropy))


def stable_rank(sigma: Array) -> Array:
    """Computes the stable rank from singular values `sigma` [d]. Between 1 and d, or 0."""
    largest = jnp.max(sigma)
    # The ratio is taken before the square, because squares of small numbers underflow.
    return jnp.sum(jnp.square(sigma / jnp.where(largest == 0, 1.0, largest)))


def num_leading(weights: Array, fraction: Array | float) -> Array:
    """Counts the fewest leading entries whose sum is at least a fraction of the total.

    Args:
      weights: numbers >= 0 in descending order, [d].
      fraction: the fraction.

    Returns:
      The count, []. It is 0 if all entries are 0, and NaN if any is NaN.
    """
    total = jnp.sum(weights)
    # The last entry is not compared: by rounding, even the sum of all could fall short.
    num_short = jnp.sum(jnp.cumsum(weights)[:-1] < fraction * total)
    # NaN, as after divergence, is passed on: the count would be 1.
    return jnp.where(total > 0, 1.0 + num_short, total)


def _map_layers(view: View, rank: Callable[[Array], Array]) -> dict[str, Array]:
    """Computes a rank from the singular values [d] of each layer, and the mean over layers."""
    return _with_mean({name: rank(sigma) for name, sigma in view.singular_values.items()})


def _with_mean(layers: dict[str, Array]) -> dict[str, Array]:
    return {**layers, "all": jnp.mean(jnp.stack(list(layers.values())))} if layers else {}
