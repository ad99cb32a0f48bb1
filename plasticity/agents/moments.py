"""Running means and variances, by which what an agent sees and earns is brought to one scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Moments(NamedTuple):
    """Of all that has been met so far, entry by entry."""

    mean: Array  # float32 [...]
    variance: Array  # float32 [...]
    weight: Array  # float32 []: of how many

    def normalized(self, x: Array, limit: float) -> Array:
        """Entries of mean 0 and variance 1, cut to [-limit, limit]. [..., *shape]."""
        scaled = (x - self.mean) * jax.lax.rsqrt(self.variance + 1e-8)
        return jnp.clip(scaled, -limit, limit)

    def including(self, x: Array) -> "Moments":
        """With another batch [B, *shape], merged as by Chan et al. (1979)."""
        size, mean, variance = x.shape[0], jnp.mean(x, axis=0), jnp.var(x, axis=0)
        weight = self.weight + size
        away = mean - self.mean
        squares = self.variance * self.weight + variance * size
        squares += jnp.square(away) * self.weight * size / weight
        return Moments(self.mean + away * size / weight, squares / weight, weight)


def moments(shape: tuple[int, ...]) -> Moments:
    """Before anything has been met: mean 0 and variance 1, of next to no weight."""
    return Moments(jnp.zeros(shape), jnp.ones(shape), jnp.asarray(1e-4))


class Returns(NamedTuple):
    """The scale of what is earned: the deviation of discounted sums of rewards so far.

    As in the code of Burda et al. (2018) and in Gymnasium's `NormalizeReward`: the sums run
    forwards, each step's being gamma times the last one's and its reward.
    """

    moments: Moments  # of the sums; []
    sums: Array  # float32 [N], of each environment's last step

    @property
    def scale(self) -> Array:
        """What rewards are divided by. []."""
        return jnp.sqrt(self.moments.variance + 1e-8)

    def including(self, reward: Array, goes_on: Array, gamma: Array | float) -> "Returns":
        """With another rollout.

        Args:
          reward: [T, N].
          goes_on: whether the next step is credited to the same sum, bool [T, N].
          gamma: the discount.
        """

        def add(sums: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            reward, goes_on = step
            sums = gamma * sums + reward
            return sums * goes_on, sums

        last, every = jax.lax.scan(add, self.sums, (reward, goes_on))
        return Returns(self.moments.including(every.reshape(-1)), last)


def returns(num_envs: int) -> Returns:
    """Before anything has been earned."""
    return Returns(moments(()), jnp.zeros(num_envs))
