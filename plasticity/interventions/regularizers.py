"""Interventions that penalize weights for their norm, distance to earlier ones, or spectrum.

The terms are part of the loss, apart from `L2Norm`: their gradient is clipped and rescaled by Adam.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.interventions.base import (
    Array,
    Context,
    GradientStep,
    Intervention,
    Optimizer,
    Rollout,
    State,
    TrainState,
)
from plasticity.networks import (
    Output,
    Params,
    Sequences,
    at,
    attention_kernels,
    by_layer,
    connections,
)
from plasticity.struct import field, static_field

__all__ = [
    "EWC",
    "L2",
    "L2Init",
    "L2Norm",
    "Parseval",
    "RegenerativeL2",
    "RegenerativeW2",
    "SpectralRegularization",
    "Wasserstein",
]


class RegenerativeL2(Intervention):
    """Adds coefficient * ||theta - theta_0||_2 to the loss: the norm itself, not its square.

    theta_0 are the parameters at the beginning of the run. It is one norm over all parameters
    together, as in the code of Juliani & Ash (2024); Kumar et al. (2023) published the square.

    The default is the study's for its gridworld. It is not in the published configuration, which is
    CoinRun's and has 0.01, but in the names of the gridworld's runs: `l2-init-4`, beside CoinRun's
    `l2-init`: strong evidence, but no proof. With 0.01 an agent learns a quarter of it there.

    Attributes:
      coefficient: the weight of the norm in the loss.
    """

    coefficient: float = field(1e-4, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * _norm(optax.tree.sub(params, state))


class RegenerativeW2(Intervention):
    """Adds coefficient * ||sort(theta) - sort(theta_0)||_2 to the loss, each tensor sorted.

    Sorting makes the term independent of the order of a tensor's entries: it is the Wasserstein
    distance between the distributions of its current and initial entries. It is one norm over all
    parameters together, not squared, as in the code of Juliani & Ash (2024). Every tensor is sorted
    at every gradient step, which makes an update several times as long on a CPU.

    Attributes:
      coefficient: the weight of the norm in the loss.
    """

    coefficient: float = field(0.01, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return jax.tree.map(_sorted, train_state.params)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * _norm(jax.tree.map(_difference_of_sorted, params, state))


class L2(Intervention):
    """Adds coefficient * ||theta||^2 to the loss, the plain L2 penalty (Kumar et al. 2023).

    The squares of all trained parameters are summed, without a factor 1/2. The authors' code has
    that factor and leaves normalization layers out. `L2Norm` is the decoupled decay instead.

    Attributes:
      coefficient: the weight of the squared norm, half of the equivalent coupled weight decay of
        PyTorch; the default is within the authors' sweep, 1e-5 to 1e-2, which included no
        reinforcement learning.
    """

    coefficient: float = field(1e-4, ge=0)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * optax.tree.norm(params, squared=True)


class L2Init(Intervention):
    """Adds coefficient * ||theta - theta_0||^2 to the loss, as published (Kumar et al. 2023).

    theta_0 are the parameters at the beginning of the run; later resets do not change them. The
    squares of all trained parameters are summed, without a factor 1/2. The authors' code has that
    factor and leaves normalization layers out. `RegenerativeL2` is the norm, not squared.

    Attributes:
      coefficient: the weight of the squared distance; the default is within the authors' sweep,
        1e-5 to 1e-2, which included no reinforcement learning.
    """

    coefficient: float = field(1e-4, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * optax.tree.norm(optax.tree.sub(params, state), squared=True)


class Wasserstein(Intervention):
    """Adds coefficient * W_2^2 between each tensor's current and initial entries to the loss.

    This is the distributional regularizer of Lewandowski et al. (2023): both tensors are sorted,
    and the squared differences are summed. They are not divided by the number of entries, unlike
    the distance of two empirical distributions. The term therefore equals that of `L2Init` after
    sorting, and is never larger. Each trained tensor is sorted separately. `RegenerativeW2` is one
    norm over all tensors, not squared. Both sort every tensor at every
    gradient step, which makes an update several times as long on a CPU.

    Attributes:
      coefficient: the weight of the squared distances; the default is that of `L2Init`.
    """

    coefficient: float = field(1e-4, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return jax.tree.map(_sorted, train_state.params)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        difference = jax.tree.map(_difference_of_sorted, params, state)
        return self.coefficient * optax.tree.norm(difference, squared=True)


class EWCState(NamedTuple):
    """The state of elastic weight consolidation, each a tree like the parameters."""

    fisher: Params  # the sum over the rounds that are over
    center: Params  # the mean of their last parameters, weighted by the Fisher information
    latest: Params  # the Fisher information under the last update's rollout


class EWC(Intervention):
    """Penalizes changes of weights that policies of earlier rounds need (Kirkpatrick et al. 2017).

    Elastic weight consolidation, the baseline against forgetting. Adds
    coefficient / 2 * sum over rounds r that are over of F_r (theta - theta_r)^2 to the loss, where
    theta_r are the parameters at the end of round r and F_r is the diagonal of the policy's Fisher
    information there: the mean over observations of (d log pi(a | s) / d theta)^2, with actions
    drawn from pi. There is no penalty in the first round. The terms of all rounds are kept in two
    trees as one quadratic function, equal to their sum up to a constant.

    Value heads, on which no policy depends, are free, as those of critics are in Continual World
    (Wolczyk et al. 2021). Observations are drawn from the rollout of each update, since none knows
    whether it is the round's last, and F is that of the last one. This costs as many backward
    passes of one observation each. If the network has a memory, whole sequences are drawn, and the
    derivative is that of the sum of log pi over a sequence.

    Attributes:
      coefficient: the weight of the penalty; 400 is the paper's on Atari, and those of Continual
        World are from 1e1 to 1e5.
      samples: the observations of which F is the mean.
    """

    needs_policy: ClassVar[bool] = True

    coefficient: float = field(400.0, ge=0)
    samples: int = static_field(128, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        zeros = jax.tree.map(jnp.zeros_like, train_state.params)
        return EWCState(fisher=zeros, center=train_state.params, latest=zeros)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        terms = jax.tree.map(
            lambda fisher, center, x: jnp.sum(fisher * jnp.square(x - center)),
            state.fisher,
            state.center,
            params,
        )
        return 0.5 * self.coefficient * optax.tree.sum(terms)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        index_key, action_key = jax.random.split(context.key)
        observation = rollout.batch.observation
        steps = observation.not_done.shape[1] if isinstance(observation, Sequences) else 1
        number = -(-self.samples // steps)
        indices = jax.random.randint(index_key, (number,), 0, len(observation))
        latest = fisher_information(
            train_state.params, observation[indices], action_key, context.apply
        )
        return state._replace(latest=latest), train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        def move(fisher: Array, latest: Array, center: Array, params: Array) -> Array:
            total = fisher + latest
            share = latest / jnp.where(total > 0, total, 1.0)
            return center + share * (params - center)

        center = jax.tree.map(move, state.fisher, state.latest, state.center, train_state.params)
        fisher = optax.tree.add(state.fisher, state.latest)
        return state._replace(fisher=fisher, center=center), train_state


class Parseval(Intervention):
    """Adds coefficient * ||W W^T - s I||^2 of each hidden layer to the loss (Chung et al. 2024).

    W is [units, inputs] and the norm is the Frobenius norm. The incoming weights of any two units
    of a layer are pulled towards orthogonality, and those of each unit towards a squared norm of s.
    All hidden layers of all torsos are included, also the first, and queries, keys, values and
    outputs of attention; biases, embeddings, recurrent layers and heads are not. As in the authors'
    code, a layer's term is multiplied by (64 / units)^2, since the coefficient was
    tuned at 64 units. The paper's optional diagonal layers are not included.

    The authors draw orthogonal weights with gain sqrt(2), for which the term is zero unless a
    layer has more units than inputs. Here, weights are drawn uniformly: those of a unit have a
    squared norm of 1/3 on average, and those of two units are nearly orthogonal. A scale of 2
    therefore pulls the weights towards the authors' initialization; a scale of 1/3 keeps them near
    the initialization here.

    Attributes:
      coefficient: the weight of the terms; the authors use 1e-3 or, on two of four suites, 1e-4.
      scale: the squared norm s; the authors' default is 2.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    coefficient: float = field(1e-3, ge=0)
    scale: float = field(2.0, gt=0)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        terms = []
        params = context.effective_params(params)
        incoming = [path for layer in connections(params).values() for path in layer.incoming]
        for path in [*incoming, *attention_kernels(params)]:
            if path[-1] == "kernel":
                kernel = _matrix(at(params, path))
                units = kernel.shape[-1]
                error = kernel.T @ kernel - self.scale * jnp.eye(units)
                terms.append((64 / units) ** 2 * jnp.sum(jnp.square(error)))
        return self.coefficient * sum(terms, jnp.zeros(()))


class SpectralRegularization(Intervention):
    """Pulls each layer's largest singular value towards 1 (Lewandowski et al. 2024).

    Adds coefficient * sum over layers of (sigma_max(W)^power - 1)^2 + (||b||^power)^2 to the loss,
    heads included. The scale of a normalization is treated as a separate factor of each unit and
    adds (|g|^power - 1)^2 for each; its offset counts as a bias.

    sigma_max is computed by power iteration: a right singular vector v is kept for each kernel,
    initialized by 100 iterations and refined by one after every gradient step. sigma = ||W v|| with
    v held constant has the gradient u v^T, that of sigma_max once v has converged. After other
    methods redraw weights v is inaccurate for some steps; sigma is then too small, never too large.

    Attributes:
      coefficient: the weight of the terms; we know of no published value for PPO.
      power: the exponent k of the norms.
    """

    coefficient: float = field(1e-3, ge=0)
    power: int = static_field(2, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns a unit vector [outputs] for each kernel, by layer."""
        vectors = {}
        effective = context.effective_params(train_state.params)
        for i, (layer, leaves) in enumerate(_linear(effective).items()):
            kernel = _matrix(leaves["kernel"])
            key = jax.random.fold_in(context.key, i)
            vector = jax.random.normal(key, kernel.shape[-1:], kernel.dtype)
            vector = vector / jnp.linalg.norm(vector)
            vectors[layer] = jax.lax.fori_loop(
                0, 100, lambda _, v, kernel=kernel: _power_iteration(kernel, v), vector
            )
        return vectors

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        terms = []
        for layer, leaves in by_layer(context.effective_params(params)).items():
            if layer in state:
                sigma = _norm(_matrix(leaves["kernel"]) @ state[layer])
                terms.append(jnp.square(sigma**self.power - 1))
            elif "scale" in leaves:
                terms.append(jnp.sum(jnp.square(jnp.abs(leaves["scale"]) ** self.power - 1)))
            if "bias" in leaves:
                terms.append(jnp.sum(jnp.square(leaves["bias"])) ** self.power)
        return self.coefficient * sum(terms, jnp.zeros(()))

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        vectors = {
            layer: _power_iteration(_matrix(leaves["kernel"]), state[layer])
            for layer, leaves in _linear(context.effective_params(train_state.params)).items()
        }
        return vectors, train_state


class L2Norm(Intervention):
    """Applies decoupled weight decay, as in AdamW (Loshchilov & Hutter 2019).

    theta <- theta - learning_rate * decay * theta at every gradient step.

    Attributes:
      decay: the weight decay.
    """

    decay: float = field(1e-3, ge=0)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        decay = optax.add_decayed_weights(self.decay)
        return optimizer._replace(direction=(*optimizer.direction, decay))


def fisher_information(
    params: Params,
    observation: Any,
    key: Array,
    apply: Callable[[Params, Any], Output],
) -> Params:
    """Estimates the diagonal of a policy's Fisher information, from one action an observation.

    Args:
      params: the parameters.
      observation: [B, ...], or sequences.
      key: randomness for the actions.
      apply: computes the network's output.

    Returns:
      The mean of the squared derivatives of log pi(a | s), a tree like the parameters.
    """
    policy = apply(params, observation).policy
    action = policy.act(policy.noise(key, policy.outputs.shape))

    def log_prob(params: Params, observation: Any, action: Array) -> Array:
        return jnp.sum(apply(params, observation[None]).policy.log_prob(action[None])[0])

    def add(total: Params, inputs: tuple[Any, Array]) -> tuple[Params, None]:
        gradients = jax.vmap(jax.grad(log_prob), in_axes=(None, 0, 0))(params, *inputs)
        squares = jax.tree.map(lambda x: jnp.sum(jnp.square(x), axis=0), gradients)
        return optax.tree.add(total, squares), None

    # In chunks, for a gradient of all observations at once is many times the network's size.
    chunk = math.gcd(len(observation), 16)
    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), (observation, action))
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks)
    return optax.tree.scale(1 / math.prod(policy.outputs.shape[:-1]), total)


def _sorted(tensor: Array) -> Array:
    return jnp.sort(tensor.reshape(-1))


def _difference_of_sorted(tensor: Array, target: Array) -> Array:
    """Computes each entry's difference to the entry of equal rank of the sorted `target` [n]. [n].

    The sum of its squares, and the gradient of that, are those of sort(tensor) - target, in the
    order of `tensor`. Entries that are equal get the mean of the first and last target matched.
    """
    ordinals = _ordinals(tensor.reshape(-1))
    in_order = jnp.sort(ordinals)
    first, end = (jnp.searchsorted(in_order, ordinals, side=side) for side in ("left", "right"))
    match = (target[first] + target[end - 1]) / 2
    return tensor.reshape(-1) - jax.lax.stop_gradient(match)


def _ordinals(numbers: Array) -> Array:
    """Maps floats to unsigned integers of equal order, which a CPU sorts six times as fast."""
    dtype = jnp.dtype(f"uint{numbers.dtype.itemsize * 8}")
    sign = jnp.asarray(1 << (numbers.dtype.itemsize * 8 - 1), dtype)
    bits = jax.lax.bitcast_convert_type(numbers + 0.0, dtype)  # -0.0 becomes 0.0
    return jnp.where(bits < sign, bits | sign, ~bits)


def _linear(params: Params) -> dict[str, Params]:
    """Returns the layers that have a kernel, heads included, by name."""
    return {name: leaves for name, leaves in by_layer(params).items() if "kernel" in leaves}


def _matrix(kernel: Array) -> Array:
    """Reshapes a kernel to a matrix [inputs of a unit, units]."""
    return kernel.reshape(-1, kernel.shape[-1])


def _power_iteration(kernel: Array, vector: Array) -> Array:
    """Makes a step of `vector` [outputs] to the singular vector; returns it if W v is 0."""
    product = kernel.T @ (kernel @ vector)
    length = _norm(product)
    return jnp.where(length > 0, product / jnp.where(length > 0, length, 1.0), vector)


def _norm(tree: Params) -> Array:
    """Computes the 2-norm of all entries together, with gradient 0 where all of them are 0."""
    squared = optax.tree.norm(tree, squared=True)
    nonzero = squared > 0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1.0)), 0.0)
