"""A probe of how well the network can still be trained."""

import jax
import jax.numpy as jnp
import optax

from plasticity.networks import Params
from plasticity.probes.base import Array, Probe, View
from plasticity.struct import field, static_field


class Trainability(Probe):
    """The loss that a copy reaches on random targets; low is trainable (Lyle et al. 2023).

    The targets of the probe batch are a + sin(1e5 f(x)), with f a network drawn at random and a the
    mean over the batch of what the copy says at first. Every output is trained, logits (or the
    means of numbers) and value alike, so that each torso is; the loss is the mean squared error
    over outputs and batch, of which 0.5 or so is the variance of the targets. The random networks
    are the same for every run of an architecture and at every moment. "fresh" is the loss reached
    from the parameters that the lifetime began with: the paper's loss of plasticity is the
    difference of the two.

    Full-batch Adam from a fresh state. The paper has its agents' optimisers, 2000 steps and 10
    targets; the defaults are cheaper. Expensive: 2 * `targets` * `steps` gradients of the whole
    probe batch.

    Attributes:
      steps: of Adam.
      targets: sets of targets, each for a copy of its own; the loss is their mean.
      learning_rate: of Adam.
    """

    steps: int = static_field(100, ge=1)
    targets: int = static_field(1, ge=1)
    learning_rate: float = field(1e-3, gt=0)

    def __call__(self, view: View) -> dict[str, Array]:
        def outputs(params: Params) -> Array:
            output = view.apply(params, view.observation)
            return jnp.concatenate([output.policy.outputs, output.value[:, None]], axis=-1)

        # Not of view.key, which changes: curves compare only if the task stays the same. Nor in
        # low precision, of which 1e5 would leave no digit right.
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), self.targets)
        with jax.default_matmul_precision("highest"):
            waves = jnp.sin(1e5 * jax.vmap(lambda key: outputs(view.init_params(key)))(keys))

        optimizer = optax.adam(self.learning_rate)

        def reached(start: Params, wave: Array) -> Array:
            target = jnp.mean(outputs(start), axis=0) + wave

            def loss(params: Params) -> Array:
                return jnp.mean(jnp.square(outputs(params) - target))

            def step(_: Array, carry: tuple[Params, optax.OptState]) -> tuple[Params, Params]:
                params, state = carry
                updates, state = optimizer.update(jax.grad(loss)(params), state, params)
                return optax.apply_updates(params, updates), state

            params, _ = jax.lax.fori_loop(0, self.steps, step, (start, optimizer.init(start)))
            return loss(params)

        starts = jax.tree.map(lambda *x: jnp.stack(x), view.params, view.initial_params)
        of_targets = jax.vmap(reached, in_axes=(None, 0))
        losses = jax.vmap(of_targets, in_axes=(0, None))(starts, waves)
        present, fresh = jnp.mean(losses, axis=1)
        return {"all": present, "fresh": fresh}
