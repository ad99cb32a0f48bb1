"""Distributions over actions, one for each observation of a batch.

Both classes have one interface. Actions are computed from noise drawn beforehand, so that a
rollout can draw all its noise outside of its loop.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Categorical", "Distribution", "Gaussian", "distribution_class"]

Array = jax.Array


class Categorical(NamedTuple):
    """A distribution over A discrete actions, int32 [...]."""

    logits: Array  # [..., A]

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """Draws Gumbel noise for `act`, of shape [..., A]."""
        return jax.random.gumbel(key, shape)

    def act(self, noise: Array) -> Array:
        """Returns a sampled action of each distribution. int32 [...]."""
        return jnp.argmax(self.logits + noise, axis=-1)

    def log_prob(self, action: Array) -> Array:
        """Returns log pi(action). [...]."""
        log_probs = jax.nn.log_softmax(self.logits)
        # A comparison and a sum are fused with what is around them, a gather and its gradient not.
        is_action = jnp.arange(self.logits.shape[-1]) == action[..., None]
        return jnp.sum(jnp.where(is_action, log_probs, 0.0), axis=-1)

    def entropy(self) -> Array:
        """Returns the entropy in nats. [...]."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl_divergence(self, other: Any) -> Array:
        """Returns KL(self || other), where `other` is a `Categorical` too. [...]."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    def greedy_action_differs(self, other: Any) -> Array:
        """Returns whether the most probable actions differ. bool [...]."""
        return jnp.argmax(self.logits, axis=-1) != jnp.argmax(other.logits, axis=-1)

    @property
    def outputs(self) -> Array:
        """The outputs of the policy head: the logits. [..., A]."""
        return self.logits

    @property
    def centered_logits(self) -> Array:
        """The logits minus their mean over actions, on which no probability depends. [..., A]."""
        return self.logits - jnp.mean(self.logits, axis=-1, keepdims=True)


class Gaussian(NamedTuple):
    """Independent normal distributions over continuous actions of A dimensions, float32 [..., A].

    The standard deviations are parameters, the same for all observations. Actions are unbounded;
    environments clip them to [-1, 1].
    """

    mean: Array  # [..., A]
    log_std: Array  # [A]

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """Draws standard normal noise for `act`, of shape [..., A]."""
        return jax.random.normal(key, shape)

    def act(self, noise: Array) -> Array:
        """Returns a sampled action of each distribution. [..., A]."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        """Returns the log density at an action. [...]."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        log_prob = -0.5 * jnp.square(z) - self.log_std - 0.5 * math.log(2 * math.pi)
        return jnp.sum(log_prob, axis=-1)

    def entropy(self) -> Array:
        """Returns the differential entropy in nats. [...]."""
        entropy = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.broadcast_to(jnp.sum(entropy), self.mean.shape[:-1])

    def kl_divergence(self, other: Any) -> Array:
        """Returns KL(self || other), where `other` is a `Gaussian` too. [...]."""
        log_ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        kl = 0.5 * (jnp.exp(2 * log_ratio) + jnp.square(z) - 1) - log_ratio
        return jnp.sum(kl, axis=-1)

    def greedy_action_differs(self, other: Any) -> Array:
        """Returns whether any mean is off by a standard deviation of `other`. bool [...]."""
        z = jnp.abs(self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.any(z >= 1, axis=-1)

    @property
    def outputs(self) -> Array:
        """The outputs of the policy head: the means. [..., A]."""
        return self.mean

    @property
    def centered_logits(self) -> Array:
        """The means: all of them matter. [..., A]."""
        return self.mean


Distribution = Categorical | Gaussian


def distribution_class(continuous: bool) -> type[Categorical] | type[Gaussian]:
    """Returns the class of distributions over continuous or over discrete actions."""
    return Gaussian if continuous else Categorical
