"""Running normalization of observations and rewards."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from plasticity.scan import scan

Array = jax.Array

CLIP = 10.0  # normalized observations and rewards are clipped to [-CLIP, CLIP]


class RunningMeanStd(NamedTuple):
    """Running mean and variance, entry by entry."""

    mean: Array  # float32 [...]
    variance: Array  # float32 [...]
    num_samples: Array  # float32 []

    @classmethod
    def init(cls, shape: tuple[int, ...]) -> Self:
        """Returns mean 0 and variance 1 with a negligible count."""
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.asarray(1e-4))

    def normalize(self, x: Array, clip: Array | float = CLIP) -> Array:
        """Subtracts the mean, divides by the standard deviation and clips to [-clip, clip].

        Args:
          x: [..., *shape].
          clip: the bound, in standard deviations.
        """
        scaled = (x - self.mean) * jax.lax.rsqrt(self.variance + 1e-8)
        return jnp.clip(scaled, -clip, clip)

    @property
    def std(self) -> Array:
        """The standard deviation by which `normalize` divides. float32 [...]."""
        return jnp.sqrt(self.variance + 1e-8)

    def update(self, x: Array) -> Self:
        """Merges a batch [B, *shape] into the statistics (Chan et al. 1979)."""
        size, mean, variance = x.shape[0], jnp.mean(x, axis=0), jnp.var(x, axis=0)
        num_samples = self.num_samples + size
        delta = mean - self.mean
        squares = self.variance * self.num_samples + variance * size
        squares += jnp.square(delta) * self.num_samples * size / num_samples
        return self._replace(
            mean=self.mean + delta * size / num_samples,
            variance=squares / num_samples,
            num_samples=num_samples,
        )


class RewardScaler(NamedTuple):
    """Scales rewards by the standard deviation of their running discounted sum.

    As in the code of Burda et al. (2018) and in Gymnasium's `NormalizeReward`: the sum runs
    forwards in time, each step's being gamma times the last one's plus its reward.
    """

    stats: RunningMeanStd  # of the sums; []
    sums: Array  # float32 [N]: each environment's sum after its last step

    @classmethod
    def init(cls, num_envs: int) -> Self:
        """Returns the scaler before any reward: a scale of 1."""
        return cls(RunningMeanStd.init(()), jnp.zeros(num_envs))

    @property
    def scale(self) -> Array:
        """The number that rewards are divided by. []."""
        return jnp.sqrt(self.stats.variance + 1e-8)

    def normalize(self, reward: Array) -> Array:
        """Divides rewards by the scale and clips them."""
        return jnp.clip(reward / self.scale, -CLIP, CLIP)

    def reset_sums(self) -> Self:
        """Sets the sums to 0, as where all episodes end, and keeps the statistics."""
        return self._replace(sums=jnp.zeros_like(self.sums))

    def update(self, reward: Array, not_done: Array, gamma: Array | float) -> Self:
        """Merges the rewards of a rollout.

        Args:
          reward: [T, N].
          not_done: whether the episode continues after the step, bool [T, N].
          gamma: the discount.
        """

        def add(sums: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            reward, not_done = step
            sums = gamma * sums + reward
            return sums * not_done, sums

        last, every = scan(add, self.sums, (reward, not_done), gpu_unroll=10)
        return self._replace(stats=self.stats.update(every.reshape(-1)), sums=last)
