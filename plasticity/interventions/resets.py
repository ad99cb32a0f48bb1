"""Interventions that put fresh weights in the place of learnt ones, wholly or by a share."""

import jax

from plasticity.interventions.base import Context, Intervention, Learner, State
from plasticity.spec import setting


class ResetAll(Intervention):
    """Draws every parameter anew at each shift: the upper control, with no past at all."""

    def on_shift(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        return state, learner._replace(params=context.fresh(context.key))


class ResetFinal(Intervention):
    """Draws the policy's and the value's heads anew at each shift (Nikishin et al. 2022)."""

    def on_shift(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        fresh = context.fresh(context.key)
        heads = {name: fresh[name] for name in ("policy", "value")}
        return state, learner._replace(params={**learner.params, **heads})


class ShrinkPerturb(Intervention):
    """theta <- shrink * theta + perturb * theta_fresh at each shift (Ash & Adams 2020).

    Attributes:
      shrink: what is kept of the parameters.
      perturb: the share of a draw from the initial distribution that is added.
    """

    shrink: float = setting(0.5, ge=0, le=1)
    perturb: float = setting(0.5, ge=0, le=1)

    def on_shift(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        fresh = context.fresh(context.key)
        params = jax.tree.map(
            lambda old, new: self.shrink * old + self.perturb * new, learner.params, fresh
        )
        return state, learner._replace(params=params)


class SoftShrinkPerturb(Intervention):
    """theta <- (1 - rate) * theta + rate * theta_fresh after every gradient step.

    A fresh network is drawn for each step (Juliani & Ash 2024). The optimiser's moments are
    left as they are.

    Attributes:
      rate: the share of the fresh network.
    """

    rate: float = setting(1e-6, ge=0, le=1)

    def after_step(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        fresh = context.fresh(context.key)
        # Not (1 - rate) * old: a rate of 1e-6 would be 1 % off in float32.
        params = jax.tree.map(lambda old, new: old + self.rate * (new - old), learner.params, fresh)
        return state, learner._replace(params=params)
