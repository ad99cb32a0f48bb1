"""Interventions that reset weights, in whole or in part, or the optimizer's state."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from plasticity.interventions.base import (
    Array,
    Context,
    GradientStep,
    Intervention,
    Rollout,
    State,
    TrainState,
    reset_moments,
)
from plasticity.networks import MEMORIES, Params, depth_of, layer_index
from plasticity.struct import field, static_field

__all__ = [
    "FIRE",
    "Freeze",
    "HareTortoise",
    "ResetAll",
    "ResetFinal",
    "ResetLayers",
    "ResetOptimizer",
    "SelectiveWeightReinitialization",
    "ShrinkPerturb",
    "SoftShrinkPerturb",
]


class ResetAll(Intervention):
    """Reinitializes every parameter at each shift: the control with a fresh network in each round.

    The optimizer's state is reset as well. Running statistics of observations and rewards, if the
    agent has them, are kept unless `agent.reset_statistics=true`. The predictor of an intrinsic
    reward is kept too, unless this method is also in `intrinsic.intervention`.
    """

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        params = context.init_params(context.key)
        return state, TrainState(params, context.optimizer.init(params))


class Freeze(Intervention):
    """Stops learning after some rounds while acting goes on: the control of a frozen learner.

    The parameters after each update are those before it, so that the agent acts in later rounds as
    it did at the end of the last one that it learned in. What another method does at a shift is
    kept, as are running statistics of observations, which go on. Gradients are still computed and
    measured.

    Attributes:
      after: the number of rounds to learn in; with 0 the agent is never trained.
    """

    needs_policy: ClassVar[bool] = True  # the parameters that collected the rollout

    after: int = field(1, kind=int, ge=0)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        frozen = context.round >= self.after
        params = jax.tree.map(
            lambda before, after: jnp.where(frozen, before, after),
            rollout.params,
            train_state.params,
        )
        return state, train_state._replace(params=params)


class ResetFinal(Intervention):
    """Reinitializes the policy and value heads at each shift (Nikishin et al. 2022).

    Heads that another method has added are reinitialized as well. The heads' moments are set to
    zero; all other moments and Adam's step count are kept. The paper resets at a fixed interval:
    see `ResetLayers`.
    """

    # All that is in no torso, and is no recurrent layer, counts as a head.
    needs_units: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state, _redraw(train_state, last_layers(train_state.params, 1), True, context)


class ResetLayers(Intervention):
    """Reinitializes the last layers at a fixed interval, not at shifts (Nikishin et al. 2022).

    All heads together count as one layer, the last. The layer before it is the last hidden layer
    (of each torso, if there are two), with its normalization and the parameters of its activation.
    Moments of reinitialized parameters are set to zero; other moments and Adam's step count are
    kept. Recurrent layers, if there are any, are the layer between those two. The paper's agents
    relearn from their replay buffers; PPO has none, and must relearn from the next rollouts.

    Attributes:
      last: the number of layers; all, if the network has fewer.
      every: updates of the agent between two resets. 200 updates are about 2e5 environment steps
        with the study's settings, the interval at which the authors reset the whole of SAC.
    """

    needs_units: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    last: int = static_field(1, ge=1)
    every: int = field(200, kind=int, ge=1)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        return state, _redraw(train_state, last_layers(train_state.params, self.last), due, context)


class ResetOptimizer(Intervention):
    """Resets the whole optimizer state, moments and Adam's count (Asadi et al. 2023).

    It resets at every shift and, if `every` is set, at a fixed interval. No parameter is changed.
    The paper resets whenever the target network changes; the equivalent for PPO is a new rollout.
    At a shift, the optimizer is reset under every method, unless `agent.reset_optimizer=false`;
    without an interval, this method therefore equals `warm_start`. After a reset, Adam's first step
    is about the learning rate for every weight, whatever its gradient. The whole state is reset,
    including the step count that seeds the noise of other methods.

    Attributes:
      every: updates of the agent between two resets; 0 to reset at shifts only.
    """

    every: int = field(0, kind=int, ge=0)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (self.every > 0) & ((context.update + 1) % jnp.maximum(self.every, 1) == 0)
        initial = context.optimizer.init(train_state.params)
        opt_state = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), initial, train_state.opt_state
        )
        return state, train_state._replace(opt_state=opt_state)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state, train_state._replace(opt_state=context.optimizer.init(train_state.params))


class FIRE(Intervention):
    """Replaces every weight matrix by its nearest orthogonal one at each shift (Han et al. 2026).

    Frobenius-isometry reinitialization: the polar factor of W, which is U V' where W = U S V', is
    approximated by Newton-Schulz iterations X <- 1.5 X - 0.5 X X'X from X = W / ||W||, and scaled
    by sqrt(outputs / inputs). A convolution is a matrix [inputs, outputs] at each position of its
    kernel, and is divided by the number of positions. Kernels of all layers are replaced, heads
    included; biases and norms are kept. The optimizer's state is reset.

    This is the authors' code for SAC and for supervised learning. Theirs for DQN does so for
    convolutions only, and redraws all fully connected layers. After ten iterations, singular values
    that were less than a hundredth of ||W|| are still short of 1, as there.

    Attributes:
      iterations: the number of iterations.
    """

    iterations: int = static_field(10, ge=1, le=1000)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        def replace(path: tuple[Any, ...], leaf: Array) -> Array:
            if path[-1].key != "kernel":
                return leaf
            inputs, outputs = leaf.shape[-2:]
            matrices = leaf.reshape(-1, inputs, outputs)
            scale = math.sqrt(outputs / inputs) / len(matrices)
            nearest = jax.vmap(lambda x: polar_factor(x, self.iterations))(matrices)
            return scale * nearest.reshape(leaf.shape)

        params = jax.tree.map_with_path(replace, train_state.params)
        return state, TrainState(params, context.optimizer.init(params))


class SelectiveWeightReinitialization(Intervention):
    """Redraws the least useful single weights at a fixed interval (Hernandez-Garcia et al. 2025).

    The utility of a weight w after a gradient step is |w g|, with g the gradient of the minibatch's
    whole loss before clipping, or |w|; of these a running average u <- decay * u + (1 - decay) *
    utility, without bias correction. At the interval, "proportional" pruning redraws in each tensor
    of n entries the n * fraction with the smallest utility, a fractional weight with that
    probability; "threshold" pruning redraws those whose utility is at most fraction times the mean
    of the tensor. Biases and norms are tensors as well. Utilities of a tensor of which weights have
    been redrawn begin at 0 again; the optimizer's moments are kept. All this is as in the authors'
    code, which counts the interval in gradient steps and redraws from the distribution at the
    beginning, as here. Their best utility is that with the gradient.

    Attributes:
      fraction: the fraction of the weights, or of the mean utility. We know of no published value
        for PPO.
      decay: the decay of the running utility; 0 for that of the last gradient step alone.
      every: updates of the agent between two reinitializations.
      utility: "gradient" for |w g|, "magnitude" for |w|.
      pruning: "proportional" or "threshold".
    """

    fraction: float = field(0.01, ge=0, le=1)
    decay: float = field(0.0, ge=0, lt=1)
    every: int = field(10, kind=int, ge=1)
    utility: str = static_field("gradient", choices=("gradient", "magnitude"))
    pruning: str = static_field("proportional", choices=("proportional", "threshold"))

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns the utility of each weight: a tree like the parameters."""
        return jax.tree.map(jnp.zeros_like, train_state.params)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        def update(old: Array, weight: Array, gradient: Array) -> Array:
            new = jnp.abs(weight * gradient if self.utility == "gradient" else weight)
            return self.decay * old + (1 - self.decay) * new

        return jax.tree.map(update, state, train_state.params, step.gradients), train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        fresh_key, number_key = jax.random.split(context.key)

        def is_useless(utility: Array, key: Array) -> Array:
            flat = utility.reshape(-1)
            if self.pruning == "threshold":
                return utility <= self.fraction * jnp.mean(flat)
            number = jnp.floor(flat.size * self.fraction + jax.random.uniform(key))
            rank = jnp.argsort(jnp.argsort(flat))
            return (rank < number).reshape(utility.shape)

        def reinitialize() -> tuple[State, TrainState]:
            leaves, structure = jax.tree.flatten(state)
            keys = jax.random.split(number_key, len(leaves))
            mask = jax.tree.unflatten(structure, list(map(is_useless, leaves, keys)))
            fresh = context.init_params(fresh_key)
            params = jax.tree.map(jnp.where, mask, fresh, train_state.params)
            utility = jax.tree.map(lambda x, redrawn: jnp.where(redrawn.any(), 0.0, x), state, mask)
            return utility, train_state._replace(params=params)

        return jax.lax.cond(due, reinitialize, lambda: (state, train_state))


class HareTortoise(Intervention):
    """Sets the weights to their moving average at a fixed interval (Lee et al. 2024).

    The trained network is the hare, its moving average the tortoise. After every gradient step,
    tortoise <- decay * tortoise + (1 - decay) * hare; the tortoise starts as a copy of the hare. At
    a fixed interval, the hare's weights are set to the tortoise's. This happens after an update,
    so that a rollout is always learned from by the network that collected it. The hare collects the
    rollouts, because PPO is on-policy. Adam's moments are kept, as in the authors' code.

    Nothing happens at a shift: the tortoise is kept, as in the authors' code, and partly restores
    weights that another method has reset there.

    Attributes:
      decay: the decay of the average per gradient step.
      every: updates of the agent between two resets of the hare. If these are far fewer than
        1 / (1 - decay) gradient steps, the hare stays near its previous weights and only learns
        more slowly. The default is about that many, at the study's 51 gradient steps per update.
    """

    decay: float = field(0.999, ge=0, le=1)
    every: int = field(20, kind=int, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        tortoise = jax.tree.map(
            lambda slow, fast: slow + (1 - self.decay) * (fast - slow), state, train_state.params
        )
        return tortoise, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        params = jax.tree.map(
            lambda slow, fast: jnp.where(due, slow, fast), state, train_state.params
        )
        return state, train_state._replace(params=params)


class ShrinkPerturb(Intervention):
    """Shrinks all weights and adds newly drawn, scaled ones at each shift (Ash & Adams 2020).

    theta <- shrink * theta + perturb * theta_new, with theta_new drawn from the initial
    distribution. The optimizer's moments are kept.

    Attributes:
      shrink: the factor of the current parameters.
      perturb: the factor of the newly drawn parameters.
    """

    shrink: float = field(0.5, ge=0, le=1)
    perturb: float = field(0.5, ge=0, le=1)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        fresh = context.init_params(context.key)
        params = jax.tree.map(
            lambda old, new: self.shrink * old + self.perturb * new, train_state.params, fresh
        )
        return state, train_state._replace(params=params)


class SoftShrinkPerturb(Intervention):
    """Shrinks and perturbs all weights slightly after every gradient step (Juliani & Ash 2024).

    theta <- (1 - rate) * theta + rate * theta_new, with a new network drawn from the initial
    distribution for each step. The optimizer's moments are kept.

    Attributes:
      rate: the fraction of the newly drawn parameters.
    """

    rate: float = field(1e-6, ge=0, le=1)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        fresh = context.init_params(context.key)
        # Not (1 - rate) * old: a rate of 1e-6 would be 1 % off in float32.
        params = jax.tree.map(
            lambda old, new: old + self.rate * (new - old), train_state.params, fresh
        )
        return state, train_state._replace(params=params)


def polar_factor(matrix: Array, iterations: int) -> Array:
    """Approximates U V' of a matrix U S V' [m, n] by Newton-Schulz iterations. [m, n].

    Singular values are divided by the Frobenius norm first. An iteration takes each nearer to 1,
    and a small one to 1.5 times its value; 0 remains 0.

    Args:
      matrix: the matrix.
      iterations: their number.
    """
    norm = jnp.linalg.norm(matrix)
    x = matrix / jnp.where(norm > 0, norm, 1.0)
    x = x if x.shape[0] >= x.shape[1] else x.T  # so that the products are small
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.T @ x)
    return x if x.shape == matrix.shape else x.T


def last_layers(params: Params, last: int) -> Params:
    """Returns which parameters belong to the last layers: a tree like `params`, of bools.

    Args:
      params: the parameters.
      last: how many layers; the heads together are the last one, and recurrent layers the one
        before it.
    """
    memories = [name for name in MEMORIES if name in params]

    def fill(part: Params, value: bool) -> Params:
        return jax.tree.map(lambda _: value, part)

    def mask_torso(torso: Params) -> Params:
        first = depth_of(torso) + 1 + bool(memories) - last
        return {name: fill(layer, layer_index(name) >= first) for name, layer in torso.items()}

    return {
        name: mask_torso(part)
        if name in ("torso", "value_torso")
        else fill(part, last > (name in memories))
        for name, part in params.items()
    }


def _redraw(
    train_state: TrainState, mask: Params, due: Array | bool, context: Context
) -> TrainState:
    """Reinitializes the parameters that `mask` marks and resets their moments, if `due`."""
    mask = jax.tree.map(lambda marked: marked & jnp.asarray(due), mask)
    fresh = context.init_params(context.key)
    params = jax.tree.map(jnp.where, mask, fresh, train_state.params)
    return TrainState(params, reset_moments(train_state, mask, context))
