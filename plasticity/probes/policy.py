"""Probes of the changes of policy and value by the last update, and of the error of the value.

An update is a whole update of the agent: all its epochs and gradient steps, and what interventions
do after it. Before the first update of a round there is no change.
"""

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View
from plasticity.struct import field

__all__ = ["CriticError", "PolicyChurn", "PolicyKL", "RatioBeyondClip", "ValueChurn"]


class PolicyKL(Probe):
    """KL(before || after) of the policy over the last update, the mean over the probe batch."""

    def __call__(self, view: View) -> dict[str, Array]:
        return {"all": jnp.mean(view.prev_output.policy.kl_divergence(view.output.policy))}


class PolicyChurn(Probe):
    """The fraction of the probe batch whose greedy action the last update changed.

    Schaul et al. (2022) compare greedy policies one gradient step apart; here it is a whole update
    of the agent, which may have many. For continuous actions it is the fraction at which the update
    moved any mean by a standard deviation or more.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return {"all": jnp.mean(view.prev_output.policy.greedy_action_differs(view.output.policy))}


class RatioBeyondClip(Probe):
    """How far the last update has moved probability ratios beyond PPO's clip (Moalla et al. 2024).

    The ratio is pi_after(a | s) / pi_before(a | s), for one action of the policy before the update
    at each observation of the probe batch; theirs are those of the rollout. "all" is the fraction
    of ratios outside of [1 - clip_eps, 1 + clip_eps]; "above" the mean of those above it, "below"
    of those below it, or the edge itself if there are none. Beyond the clip the loss has no
    gradient that would bring a ratio back.

    Attributes:
      clip_eps: the clipping range; give it that of the agent.
    """

    clip_eps: float = field(0.2, gt=0)

    def __call__(self, view: View) -> dict[str, Array]:
        before, after = view.prev_output.policy, view.output.policy
        action = before.act(before.noise(view.key, before.outputs.shape))
        ratio = jnp.exp(after.log_prob(action) - before.log_prob(action))

        def mean_of(mask: Array, edge: Array | float) -> Array:
            total = jnp.sum(jnp.where(mask, ratio, 0.0))
            return jnp.where(jnp.any(mask), total / jnp.maximum(jnp.sum(mask), 1), edge)

        low, high = 1 - self.clip_eps, 1 + self.clip_eps
        above, below = ratio > high, ratio < low
        return {
            "all": jnp.mean(above | below),
            "above": mean_of(above, high),
            "below": mean_of(below, low),
        }


class ValueChurn(Probe):
    """The root mean square change of the value in the last update, over the probe batch.

    Its square is the measure of Tang & Berseth (2024), who take one gradient step; here it is a
    whole update of the agent.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        change = view.output.value - view.prev_output.value
        return {"all": jnp.sqrt(jnp.mean(jnp.square(change)))}


class CriticError(Probe):
    """The root mean squared error of the value estimate against the lambda-returns of a rollout.

    The rollout is of the current policy, and its returns are bootstrapped from the current value.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        value = view.apply(view.params, view.batch.observation).value
        return {"all": jnp.sqrt(jnp.mean(jnp.square(value - view.batch.target)))}
