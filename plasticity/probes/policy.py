"""Probes of what the last update did to policy and value, and of how far off the value is.

An update is a whole one, of all its epochs and gradient steps and what interventions did after
it. Before the first update of a round there is no change.
"""

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View


class PolicyKL(Probe):
    """KL(before || after) of the policy over the last update, the mean over the probe batch."""

    def __call__(self, view: View) -> dict[str, Array]:
        return {"all": jnp.mean(view.previous_output.policy.kl_divergence(view.output.policy))}


class PolicyChurn(Probe):
    """The share of the probe batch whose likeliest action the last update changed.

    Schaul et al. (2022), who compare greedy policies one gradient step apart; here it is an
    update of PPO, which has many. Of a policy over numbers, the share at which it moved a mean by
    a standard deviation or more.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return {
            "all": jnp.mean(view.previous_output.policy.greedy_action_differs(view.output.policy))
        }


class ValueChurn(Probe):
    """The root mean square, over the probe batch, of the last update's change of the value.

    Over a whole update of PPO; the square of it is the measure of Tang & Berseth (2024), who
    take one gradient step.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        change = view.output.value - view.previous_output.value
        return {"all": jnp.sqrt(jnp.mean(jnp.square(change)))}


class CriticError(Probe):
    """The root mean squared error of the value, against the lambda-returns of a rollout.

    In compiled environments the rollout is the present policy's, and the returns are
    bootstrapped from the present value; on the host both are of before the last update.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        value = view.apply(view.params, view.batch.observation).value
        return {"all": jnp.sqrt(jnp.mean(jnp.square(value - view.batch.target)))}
