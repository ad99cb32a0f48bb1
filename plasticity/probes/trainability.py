"""Probes of how well the network can still be trained, by training copies of it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from plasticity.networks import Params
from plasticity.probes.base import Array, Probe, View
from plasticity.struct import field, static_field

__all__ = ["Capacity", "Trainability"]


class Trainability(Probe):
    """The final loss of a copy that is trained on random targets (Lyle et al. 2023).

    A low loss means that the network can still be trained.

    The targets on the probe batch are a + sin(1e5 f(x)), where f is a randomly drawn network and a
    is the mean over the batch of the copy's outputs before training. All outputs are trained: the
    logits (or the means of continuous actions) and the value, so that each torso is. The loss is
    the mean squared error over outputs and batch; the variance of the targets contributes about
    0.5 to it. The random networks are the same for every run of an architecture and at every
    measurement. "fresh" is the final loss from the parameters at the beginning of the run: the
    paper's loss of plasticity is the difference of the two.

    Training is full-batch Adam from a newly initialized state. The paper uses the optimizers of its
    agents, 2000 steps and 10 targets; the defaults here are cheaper. Costs 2 * `targets` * `steps`
    gradients of the whole probe batch, which is expensive.

    Attributes:
      steps: number of steps of Adam.
      targets: number of sets of targets, each for another copy; the loss is their mean.
      learning_rate: learning rate of Adam.
    """

    steps: int = static_field(100, ge=1)
    targets: int = static_field(1, ge=1)
    learning_rate: float = field(1e-3, gt=0)

    def __call__(self, view: View) -> dict[str, Array]:
        def outputs(params: Params) -> Array:
            output = view.apply(params, view.observation)
            return jnp.concatenate([output.policy.outputs, output.value[:, None]], axis=-1)

        keys = jax.random.split(_target_key(), self.targets)
        waves = jnp.sin(1e5 * jax.vmap(lambda key: outputs(view.init_params(key)))(keys))

        optimizer = optax.adam(self.learning_rate)

        def final_loss(initial_params: Params, wave: Array) -> Array:
            target = jnp.mean(outputs(initial_params), axis=0) + wave

            def loss(params: Params) -> Array:
                return jnp.mean(jnp.square(outputs(params) - target))

            return _train(loss, initial_params, optimizer, self.steps, view.project)

        starts = _stack(view.params, view.initial_params)
        over_targets = jax.vmap(final_loss, in_axes=(None, 0))
        losses = jax.vmap(over_targets, in_axes=(0, None))(starts, waves)
        current, fresh = jnp.mean(losses, axis=1)
        return {"all": current, "fresh": fresh}


class Capacity(Probe):
    """The losses of copies that learn a random policy and a random value (Moalla et al. 2024).

    One copy learns the policy of a randomly drawn network, by the loss KL(target || policy), and
    another the value of that network, by the squared error; both on the probe batch, of which the
    losses are means. "policy" and "value" are the final losses from the current parameters,
    "fresh_policy" and "fresh_value" those from the parameters at the beginning of the run. A loss
    above that of the fresh copy means that capacity was lost. As each copy learns one of the two,
    a torso that both share is measured for each.

    The random network is the same for every run of an architecture and at every measurement.
    Training is by full-batch Adam from a newly initialized state, with a learning rate that falls
    linearly to 0. The authors train on minibatches of rollouts that their checkpoints collect, for
    several epochs. Costs 4 * `steps` gradients of the whole probe batch, which is expensive.

    Attributes:
      steps: number of steps of Adam.
      learning_rate: the first learning rate.
    """

    steps: int = static_field(100, ge=1)
    learning_rate: float = field(1e-3, gt=0)

    def __call__(self, view: View) -> dict[str, Array]:
        target = view.apply(view.init_params(_target_key()), view.observation)
        optimizer = optax.adam(optax.linear_schedule(self.learning_rate, 0.0, self.steps))

        def policy_loss(params: Params) -> Array:
            policy = view.apply(params, view.observation).policy
            return jnp.mean(target.policy.kl_divergence(policy))

        def value_loss(params: Params) -> Array:
            value = view.apply(params, view.observation).value
            return jnp.mean(jnp.square(value - target.value))

        starts = _stack(view.params, view.initial_params)
        losses = {}
        for name, loss in (("policy", policy_loss), ("value", value_loss)):
            train = partial(
                _train, loss, optimizer=optimizer, steps=self.steps, project=view.project
            )
            losses[name], losses[f"fresh_{name}"] = jax.vmap(train)(starts)
        return losses


def _target_key() -> Array:
    """Returns the key from which random targets are drawn.

    It is fixed, unlike `view.key`: curves are comparable only if the targets stay the same.
    """
    return jax.random.key(0, impl="threefry2x32")


def _stack(*params: Params) -> Params:
    return jax.tree.map(lambda *x: jnp.stack(x), *params)


def _train(
    loss: Callable[[Params], Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
    project: Callable[[Params], Params],
) -> Array:
    """Returns the loss of parameters after some steps of an optimizer on it, each projected."""

    def step(_: Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, optax.OptState]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return project(optax.apply_updates(params, updates)), opt_state

    params, _ = jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))
    return loss(params)
