"""What a policy is: a distribution over actions for each observation of a batch.

Two kinds share one interface. Actions are drawn from noise that is made beforehand, so that a
rollout's can be drawn outside of its loop.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Categorical(NamedTuple):
    """One of A discrete actions, int32 [...]."""

    logits: Array  # [..., A]

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """What `act` draws from, of shape [..., A]."""
        return jax.random.gumbel(key, shape)

    def act(self, noise: Array) -> Array:
        """An action of each distribution."""
        return jnp.argmax(self.logits + noise, axis=-1)

    def log_prob(self, action: Array) -> Array:
        """log pi(action). [...]."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]

    def entropy(self) -> Array:
        """In nats. [...]."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl_divergence(self, other: Any) -> Array:
        """KL(self || other), of another policy of this kind. [...]."""
        own, others = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(own) * (own - others), axis=-1)

    def greedy_action_differs(self, other: Any) -> Array:
        """Whether the likeliest action is another one. bool [...]."""
        return jnp.argmax(self.logits, axis=-1) != jnp.argmax(other.logits, axis=-1)

    @property
    def outputs(self) -> Array:
        """What the head computes for each action. [..., A]."""
        return self.logits

    @property
    def centered_logits(self) -> Array:
        """The same without what no probability depends on. [..., A]."""
        return self.logits - jnp.mean(self.logits, axis=-1, keepdims=True)


class Gaussian(NamedTuple):
    """A numbers, float32 [..., A], each normally distributed by itself.

    The standard deviations are parameters of their own, alike for all observations. An action is
    not bounded; an environment cuts it to [-1, 1].
    """

    mean: Array  # [..., A]
    log_std: Array  # [A]

    @staticmethod
    def noise(key: Array, shape: tuple[int, ...]) -> Array:
        """What `act` draws from, of shape [..., A]."""
        return jax.random.normal(key, shape)

    def act(self, noise: Array) -> Array:
        """An action of each distribution."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array) -> Array:
        """The logarithm of the density at an action. [...]."""
        away = (action - self.mean) * jnp.exp(-self.log_std)
        each = -0.5 * jnp.square(away) - self.log_std - 0.5 * math.log(2 * math.pi)
        return jnp.sum(each, axis=-1)

    def entropy(self) -> Array:
        """The differential entropy, in nats. [...]."""
        each = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.broadcast_to(jnp.sum(each), self.mean.shape[:-1])

    def kl_divergence(self, other: Any) -> Array:
        """KL(self || other), of another policy of this kind. [...]."""
        wider = self.log_std - other.log_std
        away = (self.mean - other.mean) * jnp.exp(-other.log_std)
        each = 0.5 * (jnp.exp(2 * wider) + jnp.square(away) - 1) - wider
        return jnp.sum(each, axis=-1)

    def greedy_action_differs(self, other: Any) -> Array:
        """Whether one of the means is off by a standard deviation of `other`. bool [...]."""
        away = jnp.abs(self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.any(away >= 1, axis=-1)

    @property
    def outputs(self) -> Array:
        """What the head computes for each number. [..., A]."""
        return self.mean

    @property
    def centered_logits(self) -> Array:
        """All of it. [..., A]."""
        return self.mean


Policy = Categorical | Gaussian


def policy_class(continuous: bool) -> type[Categorical] | type[Gaussian]:
    """The kind of policy that acts in numbers, or in discrete actions."""
    return Gaussian if continuous else Categorical
