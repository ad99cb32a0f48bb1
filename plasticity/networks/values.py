"""Categorical values: distributions over bins of returns, in place of a number.

Bins are of equal width. The value is the mean of the distribution, and its loss the cross-entropy
to a projection of the target onto the bins.
"""

from abc import abstractmethod
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

__all__ = ["VALUE_DISTRIBUTIONS", "Bins", "CategoricalValue", "HLGauss", "TwoHot"]

Array = jax.Array


class Bins(NamedTuple):
    """The bins of categorical values, and how targets are projected onto them."""

    number: int  # K
    low: float
    high: float
    sigma: float = 0.75  # of HL-Gauss, in widths of a bin


class CategoricalValue(flax.struct.PyTreeNode):
    """A distribution over K bins of returns, for each observation of a batch."""

    logits: Array  # [..., K]
    bins: Bins = flax.struct.field(pytree_node=False)

    @property
    @abstractmethod
    def centers(self) -> Array:
        """The return that each bin stands for. [K]."""

    @abstractmethod
    def project(self, target: Array) -> Array:
        """Computes the probabilities of the bins that a target stands for. [...] -> [..., K].

        Targets beyond the range of the bins count as its ends.
        """

    @property
    def mean(self) -> Array:
        """The expected return. [...]."""
        return jnp.sum(jax.nn.softmax(self.logits) * self.centers, axis=-1)

    def loss(self, target: Array) -> Array:
        """Returns the cross-entropy to the projection of a target, [...] in nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(self.project(target) * log_probs, axis=-1)

    def _clip(self, target: Array) -> Array:
        """Returns targets within the range of the bins, [..., 1]."""
        return jnp.clip(target, self.bins.low, self.bins.high)[..., None]


class TwoHot(CategoricalValue):
    """Returns are split between the two nearest of K points, from `low` to `high`.

    The projection has the target as its mean. It is that of MuZero (Schrittwieser et al. 2020) and
    DreamerV3 (Hafner et al. 2023), without their transformations of the target: there is no symlog
    and no square root, as in the two-hot baseline of Farebrother et al. (2024).
    """

    @property
    def centers(self) -> Array:
        number, low, high, _ = self.bins
        return jnp.linspace(low, high, number, dtype=self.logits.dtype)

    def project(self, target: Array) -> Array:
        number, low, high, _ = self.bins
        distance = jnp.abs(self._clip(target) - self.centers) * ((number - 1) / (high - low))
        return jnp.maximum(1 - distance, 0)


class HLGauss(CategoricalValue):
    """Returns are spread over K bins by a normal distribution (Imani & White 2018).

    As in Farebrother et al. (2024), who choose a standard deviation of 0.75 widths of a bin. What
    the distribution has outside of the bins is cut off, and the rest divided by its sum: targets
    within some two bins of an end are drawn away from it, so the range should be a little wider
    than that of the returns.
    """

    @property
    def centers(self) -> Array:
        edges = self._edges
        return (edges[:-1] + edges[1:]) / 2

    @property
    def _edges(self) -> Array:
        number, low, high, _ = self.bins
        return jnp.linspace(low, high, number + 1, dtype=self.logits.dtype)

    def project(self, target: Array) -> Array:
        number, low, high, sigma = self.bins
        z = (self._edges - self._clip(target)) * (number / ((high - low) * sigma))
        below = jax.scipy.stats.norm.cdf(z)
        return (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])


VALUE_DISTRIBUTIONS: dict[str, type[CategoricalValue]] = {"two_hot": TwoHot, "hl_gauss": HLGauss}
