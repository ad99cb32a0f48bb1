"""Interventions that hold the weights near zero, near where they began, or well conditioned.

What is added to the loss is in the gradient that is clipped and that Adam rescales.
"""

import jax
import jax.numpy as jnp
import optax

from plasticity.interventions.base import (
    Array,
    Context,
    GradientStep,
    Intervention,
    Optimizer,
    State,
    TrainState,
)
from plasticity.networks import Params, at, by_layer, connections
from plasticity.struct import field, static_field


class RegenerativeL2(Intervention):
    """Adds coefficient * ||theta - theta_0||_2 to the loss: the norm itself, not its square.

    One norm over all parameters together, towards those that the lifetime began with, as in
    the code of Juliani & Ash (2024); Kumar et al. (2023) published the square.

    Attributes:
      coefficient: the weight of the norm in the loss.
    """

    coefficient: float = field(0.01, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * _norm(optax.tree.sub(params, state))


class RegenerativeW2(Intervention):
    """Adds coefficient * ||sort(theta) - sort(theta_0)||_2 to the loss, each tensor sorted.

    The entries of a tensor may trade places for nothing: what is held is their distribution, in
    the Wasserstein metric. One norm over all parameters together, not squared, as in the code
    of Juliani & Ash (2024). Every tensor is sorted at every gradient step, which makes an update
    several times as long on a CPU.

    Attributes:
      coefficient: the weight of the norm in the loss.
    """

    coefficient: float = field(0.01, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return jax.tree.map(_sorted, train_state.params)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * _norm(jax.tree.map(_from_match, params, state))


class L2(Intervention):
    """Adds coefficient * ||theta||^2 to the loss: the plain L2 penalty (Kumar et al. 2023).

    The squares of all trained parameters are summed, with no half before them; the authors' code
    has one, and leaves normalisation layers out. `L2Norm` is the decoupled decay instead.

    Attributes:
      coefficient: the weight of the squared norm, half of PyTorch's coupled weight decay that does
        the same; the default is within the authors' sweep, 1e-5
        to 1e-2, which had no reinforcement learning in it.
    """

    coefficient: float = field(1e-4, ge=0)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * optax.tree.norm(params, squared=True)


class L2Init(Intervention):
    """Adds coefficient * ||theta - theta_0||^2 to the loss, as published (Kumar et al. 2023).

    Towards the parameters that the lifetime began with, whatever becomes of them later. The
    squares of all trained parameters are summed, with no half before them; the authors' code
    has one, and leaves normalisation layers out. `RegenerativeL2` is the norm, not squared.

    Attributes:
      coefficient: the weight of the squared distance; the default is within the authors' sweep,
        1e-5 to 1e-2, which had no reinforcement learning in it.
    """

    coefficient: float = field(1e-4, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * optax.tree.norm(optax.tree.sub(params, state), squared=True)


class Wasserstein(Intervention):
    """Adds coefficient * W_2^2 between each tensor's entries now and at first to the loss.

    The distributional regulariser of (Lewandowski et al. 2023): both tensors are sorted, and the
    squared differences summed. They are not averaged over a tensor's entries, as the distance of
    two empirical distributions would be, so this is `L2Init` but for the entries' order, and
    never more than that. All trained parameters take part, each tensor by itself.
    `RegenerativeW2` is one norm over all tensors, not squared. Both sort every tensor at every
    gradient step, which makes an update several times as long on a CPU.

    Attributes:
      coefficient: the weight of the squared distances; the default is that of `L2Init`.
    """

    coefficient: float = field(1e-4, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return jax.tree.map(_sorted, train_state.params)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        way = jax.tree.map(_from_match, params, state)
        return self.coefficient * optax.tree.norm(way, squared=True)


class Parseval(Intervention):
    """Adds coefficient * ||W W^T - s I||^2 of each hidden layer to the loss (Chung et al. 2024).

    W is [units, inputs] and the norm Frobenius': the weights into any two units of a layer are
    drawn towards right angles, and those into one unit towards a squared length of s. Every
    hidden layer of every torso counts, the first included; biases and heads do not. As in the
    authors' code, a layer's term is multiplied by (64 / units)^2, the coefficient having been
    tuned at 64 units. The paper's diagonal layers, an option there, are not part of this.

    The authors draw weights orthogonal with gain sqrt(2), at which the term is zero unless a layer
    has more units than inputs. Here they are drawn uniformly, so that a unit's have a squared
    length of 1/3 on average and those of two units nearly a right angle. A scale of 2 therefore
    draws this network to where the authors' begins; one of 1/3 holds it near its own beginning.

    Attributes:
      coefficient: the weight of the terms; the authors take 1e-3 or, on two of four suites, 1e-4.
      scale: the squared length s; the authors' default is 2.
    """

    coefficient: float = field(1e-3, ge=0)
    scale: float = field(2.0, gt=0)

    def penalty(self, state: State, params: Params, context: Context) -> Array:
        terms = []
        params = context.effective_params(params)
        for layer in connections(params).values():
            for path in layer.incoming:
                if path[-1] == "kernel":
                    kernel = _matrix(at(params, path))
                    units = kernel.shape[-1]
                    away = kernel.T @ kernel - self.scale * jnp.eye(units)
                    terms.append((64 / units) ** 2 * jnp.sum(jnp.square(away)))
        return self.coefficient * sum(terms, jnp.zeros(()))


class SpectralRegularization(Intervention):
    """Draws each layer's largest singular value towards 1 (Lewandowski et al. 2024).

    Adds coefficient * sum over layers of (sigma_max(W)^power - 1)^2 + (||b||^power)^2 to the loss,
    heads included. The scale of a normalisation is read as what multiplies each unit by itself,
    and adds (|g|^power - 1)^2 for each; its offset counts as a bias.

    sigma_max comes from power iteration: a right singular vector v is kept for each kernel, found
    by 100 iterations at first and refined by one after every gradient step. sigma = ||W v|| with v
    held constant, whose gradient is u v^T, that of sigma_max where v has converged. What redraws
    weights leaves v behind for some steps, in which sigma is too small and never too large.

    Attributes:
      coefficient: the weight of the terms; no published value for PPO is known to us.
      power: the exponent k of the norms.
    """

    coefficient: float = field(1e-3, ge=0)
    power: int = static_field(2, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        """A unit vector for each kernel, by layer: [outputs]."""
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
    """AdamW's decoupled decay: theta <- theta - learning_rate * decay * theta at every step.

    Loshchilov & Hutter (2019).

    Attributes:
      decay: the weight decay.
    """

    decay: float = field(1e-3, ge=0)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        decay = optax.add_decayed_weights(self.decay)
        return optimizer._replace(direction=(*optimizer.direction, decay))


def _sorted(tensor: Array) -> Array:
    return jnp.sort(tensor.reshape(-1))


def _from_match(tensor: Array, target: Array) -> Array:
    """Each entry's way from that of the sorted `target` [n] which has its rank. [n].

    Its squares are those of sort(tensor) - target, and so is their gradient, but that entries
    which are equal share the middle of what they are matched with.
    """
    ordinals = _ordinals(tensor.reshape(-1))
    in_order = jnp.sort(ordinals)
    first, end = (jnp.searchsorted(in_order, ordinals, side=side) for side in ("left", "right"))
    match = (target[first] + target[end - 1]) / 2
    return tensor.reshape(-1) - jax.lax.stop_gradient(match)


def _ordinals(numbers: Array) -> Array:
    """Unsigned integers in the order of the numbers; a CPU sorts them six times as fast."""
    kind = jnp.dtype(f"uint{numbers.dtype.itemsize * 8}")
    sign = jnp.asarray(1 << (numbers.dtype.itemsize * 8 - 1), kind)
    bits = jax.lax.bitcast_convert_type(numbers + 0.0, kind)  # of -0.0 and 0.0 the same
    return jnp.where(bits < sign, bits | sign, ~bits)


def _linear(params: Params) -> dict[str, Params]:
    """The layers that have a kernel, heads included, by name."""
    return {name: leaves for name, leaves in by_layer(params).items() if "kernel" in leaves}


def _matrix(kernel: Array) -> Array:
    """A kernel as the matrix from all that a unit sees to the units."""
    return kernel.reshape(-1, kernel.shape[-1])


def _power_iteration(kernel: Array, vector: Array) -> Array:
    """One step of `vector` [outputs] towards the singular vector; the same where there is none."""
    turned = kernel.T @ (kernel @ vector)
    length = _norm(turned)
    return jnp.where(length > 0, turned / jnp.where(length > 0, length, 1.0), vector)


def _norm(tree: Params) -> Array:
    """The 2-norm of all entries together, with gradient 0 where all of them are 0."""
    squared = optax.tree.norm(tree, squared=True)
    moved = squared > 0
    return jnp.where(moved, jnp.sqrt(jnp.where(moved, squared, 1.0)), 0.0)
