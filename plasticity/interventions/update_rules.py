"""Interventions that change the update rule, or put another in its place."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.interventions.base import (
    Array,
    Context,
    Intervention,
    Optimizer,
    Rollout,
    State,
    TrainState,
)
from plasticity.interventions.optimizer import Adam
from plasticity.networks import Params
from plasticity.networks.linalg import after
from plasticity.struct import SettingError, field, static_field

Factors = tuple[Array, ...]  # of one parameter, for each of its axes: [n, n], or a diagonal [n]


class EqualBetas(Intervention):
    """Gives Adam's two averages the same decay (Dohare et al. 2023).

    No entry of a step is then longer than the learning rate, however gradients grow. All else is
    PPO's Adam.

    Attributes:
      beta: the decay, in the place of both.
    """

    beta: float = field(0.99, ge=0, lt=1)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        def equal(adam: Adam) -> Adam:
            return adam._replace(b1=self.beta, b2=self.beta)

        changed = optimizer.replace_adam(
            type(self).__name__, lambda adam: optax.scale_by_adam(*equal(adam))
        )
        return changed._replace(adam=optimizer.adam and equal(optimizer.adam))


class AdamRel(Intervention):
    """Begins Adam's time step again at 0 with every PPO update (Ellis et al. 2024).

    The moments are kept; only the count in their bias corrections begins anew. That makes steps
    shorter early in an update with Adam's usual coefficients, but longer with equal ones. What
    has one objective, and so one local time, is a PPO update with all of its epochs. Other counts
    in the optimiser's state go on.
    """

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return optimizer._replace(wrappers=(*optimizer.wrappers, self._around))

    def _around(self, rule: optax.GradientTransformation) -> optax.GradientTransformation:
        state = jax.eval_shape(rule.init, {"kernel": jnp.zeros((1, 1))})
        if not any(map(_is_adam, jax.tree.leaves(state, is_leaf=_is_adam))):
            raise SettingError("intervention", "AdamRel", "must have Adam, which another replaces")
        return rule

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        def anew(part: Any) -> Any:
            return part._replace(count=jnp.zeros_like(part.count)) if _is_adam(part) else part

        opt_state = jax.tree.map(anew, train_state.opt_state, is_leaf=_is_adam)
        return state, train_state._replace(opt_state=opt_state)


class TRACState(NamedTuple):
    """What TRAC carries from step to step."""

    base: optax.OptState  # of the rule that is scaled
    displacement: Params  # the sum of that rule's changes
    variance: Array  # [n], of each discount
    sigma: Array  # [n]
    scale: Array  # []


class TRAC(Intervention):
    """Scales the whole distance from a reference by a tuned factor (Muppidi et al. 2024).

    The base rule, Adam with its learning rate and decay, is evaluated at the parameters and sums
    up its changes in a displacement D. With h the inner product of the clipped gradient and D,
    before this step's change, each discount b has v <- b^2 v + h^2, sigma <- b sigma - h and a
    share epsilon / erfi(1 / sqrt(2)) * erfi(sigma / (sqrt(2 v) + epsilon)). The parameters are
    the reference plus S D, S being the sum of the shares where that is positive, and else 0.

    D is carried, as in the paper; the published code divides it out of the parameters, which
    rounds it off while S is small and forgets it where S is 0. The reference is what the
    parameters were without S D, so edits by other methods move it and are not undone; where
    moments are cleared, so is D. The reference, D and the discounts' states are the optimiser's
    and begin anew at a shift, which they never do in the paper: for that, turn
    `agent.reset_optimizer` off.

    Attributes:
      epsilon: what S begins with, about.
      discounts: of the tuners, one each.
    """

    epsilon: float = field(1e-8, gt=0)
    discounts: tuple[float, ...] = static_field(
        (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999), ge=0, lt=1, least=1
    )

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return optimizer._replace(wrappers=(*optimizer.wrappers, self._around))

    def _around(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
        discounts = jnp.array(self.discounts)

        def init(params: Params) -> TRACState:
            zeros = jnp.zeros_like(discounts)
            return TRACState(
                base=base.init(params),
                displacement=optax.tree.zeros_like(params),
                variance=zeros,
                sigma=zeros + self.epsilon,
                scale=zeros[0],
            )

        def update(
            gradient: Params, state: TRACState, params: Params | None = None
        ) -> tuple[Params, TRACState]:
            change, inner = base.update(gradient, state.base, params)
            gain = optax.tree.vdot(gradient, state.displacement)
            displacement = optax.tree.add(state.displacement, change)
            variance = discounts**2 * state.variance + gain**2
            sigma = discounts * state.sigma - gain
            argument = sigma / (math.sqrt(2) * jnp.sqrt(variance) + self.epsilon)
            shares = self.epsilon / erfi(math.sqrt(0.5)) * erfi(argument)
            scale = jnp.maximum(jnp.sum(shares), 0.0)
            move = jax.tree.map(
                lambda new, old: scale * new - state.scale * old, displacement, state.displacement
            )
            return move, TRACState(inner, displacement, variance, sigma, scale)

        return optax.GradientTransformation(init, update)


class UPGDState(NamedTuple):
    """What UPGD carries from step to step."""

    steps: Array  # int32 []
    utility: Params  # averaged, not yet corrected for its beginning at 0
    adam: optax.OptState


class UPGD(Intervention):
    """Protects useful weights and perturbs the others, on Adam (Elsayed & Mahmood 2024).

    The utility of a weight, -gradient * weight with the clipped gradient, is averaged and
    corrected for its beginning at 0 as Adam's moments are; U is its sigmoid after division by the
    greatest of all parameters. The direction is 2 (1 - U) (Adam's + noise), plus the decay
    times the weight: the adaptive version that the authors run with PPO, here with Adam's
    coefficients from the agent. Their code divides by the greatest utility *before* correction,
    so that for about 1 / (1 - decay) steps each U is near 0 or 1; both are corrected here. Where
    no utility is positive, those below zero leave their weights unprotected. Utilities are
    cleared along with the moments, and begin anew at a shift.

    An update takes about twice as long as without: a normal number is drawn for each parameter
    at each step.

    Attributes:
      utility_decay: of the average of utilities.
      noise: the standard deviation of the perturbation, before the learning rate.
      decay: the decoupled weight decay.
    """

    utility_decay: float = field(0.999, ge=0, lt=1)
    noise: float = field(1e-3, ge=0)
    decay: float = field(1e-3, ge=0)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        optimizer, key = optimizer.split()

        def make(adam: Adam) -> optax.GradientTransformation:
            return optax.chain(
                self._protecting(optax.scale_by_adam(*adam), key),
                optax.add_decayed_weights(self.decay),
            )

        return optimizer.replace_adam(type(self).__name__, make)

    def _protecting(
        self, adam: optax.GradientTransformation, key: Array
    ) -> optax.GradientTransformation:
        def init(params: Params) -> UPGDState:
            zeros = optax.tree.zeros_like(params)
            return UPGDState(jnp.zeros((), jnp.int32), zeros, adam.init(params))

        def update(
            gradient: Params, state: UPGDState, params: Params | None = None
        ) -> tuple[Params, UPGDState]:
            steps = state.steps + 1
            direction, inner = adam.update(gradient, state.adam, params)
            worth = jax.tree.map(lambda g, x: -g * x, gradient, params)
            utility = optax.tree.update_moment(worth, state.utility, self.utility_decay, 1)
            corrected = optax.tree.bias_correction(utility, self.utility_decay, steps)
            greatest = optax.tree.max(corrected)
            greatest = jnp.maximum(greatest, jnp.finfo(greatest.dtype).tiny)
            noise = optax.tree.random_like(jax.random.fold_in(key, state.steps), gradient)
            protected = jax.tree.map(
                lambda u, d, n: 2 * jax.nn.sigmoid(-u / greatest) * (d + self.noise * n),
                corrected,
                direction,
                noise,
            )
            return protected, UPGDState(steps, utility, inner)

        return optax.GradientTransformation(init, update)


class KronState(NamedTuple):
    """What Kron carries from step to step."""

    steps: Array  # int32 []
    waited: Array  # int32 []: steps since the factors were last fitted
    momentum: Params
    factors: tuple[Factors, ...]  # of each parameter, in the order of the tree's leaves


class Kron(Intervention):
    """Preconditions momentum by fitted Kronecker factors in Adam's place, PSGD's Kron (Li 2018).

    A parameter has an upper triangular factor Q for each axis; P = Q'Q of all axes is fitted so
    that P g is white, g being the bias-corrected momentum. A fit is one relative gradient step
    on E[g'Pg + v'P^-1 v], v normal: with A = Q g and B = Q^-T v along all axes, and A_i, B_i
    unfolded at axis i, Q_i <- Q_i - rate * triu(A_i A_i' - B_i B_i') Q_i / |A_i A_i' + B_i B_i'|
    with a lower bound of the spectral norm. Biases, axes of one entry and axes longer than
    `max_size` have diagonal factors. In one fit of a hundred the factors of a parameter are
    brought to equal maximum. Then P g is scaled down to a root mean square of at most `max_rms`.

    These are the equations and defaults of the published JAX code (psgd_jax), except that its
    noise is the same for every seed, and that a parameter whose gradient is all zeros keeps its
    factors, which there grow without bound. The momentum is cleared as Adam's would be; the
    factors are not, and begin anew at a shift.

    It is expensive: a fit has a triangular solve and matrix products of each axis's size, cubic
    in the longest, which is often the observation's, and runs in a stack compute one at every
    step, even where the schedule skips it. On Gather an update takes about eleven times as long
    as without, three times with a `max_size` below the observation's 363 entries.

    Attributes:
      decay: of the momentum.
      rate: the step size of the factors.
      scale: what P's square root begins with, times the identity.
      min_probability: fits a step, finally; they begin with one a step.
      anneal: how fast fits become rarer, exponentially.
      anneal_from: the steps that go before that.
      max_rms: the bound on the root mean square of each parameter's direction.
      max_size: the longest axis to have a triangular factor.
    """

    decay: float = field(0.9, ge=0, lt=1)
    rate: float = field(0.1, gt=0)
    scale: float = field(1.0, gt=0)
    min_probability: float = field(0.03, gt=0, le=1)
    anneal: float = field(1e-3, ge=0)
    anneal_from: int = field(500, kind=int, ge=0)
    max_rms: float = field(1.1, gt=0)
    max_size: int = static_field(8192, ge=1)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        optimizer, key = optimizer.split()
        rule = optax.GradientTransformation(self._init, partial(self._update, key))
        return optimizer.replace_adam(type(self).__name__, lambda _: rule)

    def _init(self, params: Params) -> KronState:
        def factors(x: Array) -> Factors:
            scale = self.scale ** (1 / max(x.ndim, 1))
            dense = [x.ndim > 1 and 1 < n <= self.max_size for n in x.shape or (1,)]
            return tuple(
                scale * (jnp.eye(n, dtype=x.dtype) if full else jnp.ones(n, x.dtype))
                for n, full in zip(x.shape or (1,), dense, strict=True)
            )

        none = jnp.zeros((), jnp.int32)
        # optax.tree.map_params calls this with a tree of no leaves, and leaves alone what
        # is then a leaf itself.
        all_factors: Any = tuple(map(factors, jax.tree.leaves(params))) or none
        return KronState(none, none, optax.tree.zeros_like(params), all_factors)

    def _update(
        self, key: Array, gradient: Params, state: KronState, params: Params | None = None
    ) -> tuple[Params, KronState]:
        steps = state.steps + 1
        momentum = optax.tree.update_moment(gradient, state.momentum, self.decay, 1)
        corrected = optax.tree.bias_correction(momentum, self.decay, steps)
        leaves, structure = jax.tree.flatten(corrected)
        tensors = [jnp.atleast_1d(x) for x in leaves]

        def fit() -> tuple[Factors, ...]:
            keys = jax.random.split(jax.random.fold_in(key, state.steps), len(tensors))
            new: list[Factors] = []
            for one, qs, x in zip(keys, state.factors, tensors, strict=True):
                in_turn = tuple(after(q, new[-1][0]) for q in qs) if new else qs
                new.append(self._fitted(one, in_turn, x))
            return tuple(new)

        annealed = jnp.exp(-self.anneal * (steps - self.anneal_from))
        due = state.waited + 1 >= 1 / jnp.clip(annealed, self.min_probability, 1.0)
        factors = jax.lax.cond(due, fit, lambda: state.factors)

        def direction(qs: Factors, x: Array) -> Array:
            white = along_axes(transposed(qs), along_axes(qs, x))
            return white / jnp.maximum(1.0, jnp.sqrt(jnp.mean(white**2)) / self.max_rms)

        directions = [
            direction(qs, x).reshape(leaf.shape)
            for qs, x, leaf in zip(factors, tensors, leaves, strict=True)
        ]
        waited = jnp.where(due, 0, state.waited + 1)
        return jax.tree.unflatten(structure, directions), KronState(
            steps, waited, momentum, factors
        )

    def _fitted(self, key: Array, qs: Factors, x: Array) -> Factors:
        balance_key, noise_key = jax.random.split(key)
        if len(qs) > 1:
            sizes = jnp.stack([jnp.max(jnp.abs(q)) for q in qs])
            even = jnp.exp(jnp.mean(jnp.log(sizes))) / sizes
            due = jax.random.bernoulli(balance_key, 0.01)
            qs = tuple(q * jnp.where(due, ratio, 1.0) for q, ratio in zip(qs, even, strict=True))
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        size = jnp.mean(jnp.abs(x))
        damping = math.sqrt(jnp.finfo(jnp.float32).eps) * size
        new = fitted(qs, x + damping * noise, noise, self.rate)
        return tuple(jnp.where(size > 0, one, q) for one, q in zip(new, qs, strict=True))


def _is_adam(part: Any) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def erfi(x: Array | float) -> Array:
    """The imaginary error function of x, within -9 and 9 so that it is finite in float32."""
    x = jnp.clip(x, -9.0, 9.0)
    return 2 / math.sqrt(math.pi) * jnp.exp(x**2) * jax.scipy.special.dawsn(x)


def fitted(qs: Factors, g: Array, v: Array, rate: Array | float) -> Factors:
    """The factors of a preconditioner after a step towards one that whitens.

    Args:
      qs: the factors before.
      g: a gradient.
      v: normal noise of its shape.
      rate: the step size, relative to the factors.
    """
    a, b = along_axes(qs, g), along_axes(transposed(qs), v, inverse=True)

    def step(axis: int, q: Array) -> Array:
        one, other = gram(a, axis, q.ndim), gram(b, axis, q.ndim)
        bound = norm_bound(one + other)
        share = rate * (one - other) / jnp.maximum(bound, jnp.finfo(q.dtype).tiny)
        return q - (jnp.triu(share) @ q if q.ndim > 1 else share * q)

    return tuple(step(axis, q) for axis, q in enumerate(qs))


def transposed(qs: Sequence[Array]) -> Factors:
    """Each factor's transpose."""
    return tuple(q.T for q in qs)


def along_axes(qs: Sequence[Array], x: Array, inverse: bool = False) -> Array:
    """Applies to each axis of `x` its matrix of `qs`, or the inverse of lower triangular ones."""
    for axis, q in enumerate(qs):
        columns = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        if q.ndim == 1:
            columns = columns / q[:, None] if inverse else columns * q[:, None]
        elif inverse:
            columns = jax.scipy.linalg.solve_triangular(q, columns, lower=True)
        else:
            columns = q @ columns
        rest = [n for i, n in enumerate(x.shape) if i != axis]
        x = jnp.moveaxis(columns.reshape(x.shape[axis], *rest), 0, axis)
    return x


def gram(x: Array, axis: int, ndim: int) -> Array:
    """The inner products of the slices of `x` at `axis` [n, n]; their squares alone if `ndim` 1."""
    slices = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return slices @ slices.T if ndim > 1 else jnp.sum(slices**2, axis=1)


def norm_bound(matrix: Array) -> Array:
    """A lower bound of the spectral norm of a symmetric matrix; of a diagonal one it is exact.

    Of Li: two steps of power iteration, from the unit vector whose column is the longest.
    """
    greatest = jnp.max(jnp.abs(matrix))
    if matrix.ndim == 1:
        return greatest
    unit = matrix / jnp.where(greatest > 0, greatest, 1.0)
    x = unit @ unit[:, jnp.argmax(jnp.sum(unit**2, axis=0))]
    length = jnp.linalg.norm(x)
    return greatest * jnp.linalg.norm(unit @ (x / jnp.where(length > 0, length, 1.0)))
