"""Interventions that change or replace the update rule."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.interventions.base import (
    Array,
    ComputeGradient,
    Context,
    Intervention,
    Optimizer,
    Rollout,
    State,
    TrainState,
)
from plasticity.interventions.optimizer import Adam
from plasticity.networks import Params
from plasticity.networks.linalg import sequence_after
from plasticity.struct import SettingError, field, static_field

__all__ = ["SAM", "TRAC", "UPGD", "AdamRel", "EqualBetas", "Kron"]

Factors = tuple[Array, ...]  # of one parameter: for each axis a matrix [n, n] or a diagonal [n]


class EqualBetas(Intervention):
    """Gives Adam's two averages the same decay (Dohare et al. 2023).

    With equal decays, no entry of a step exceeds the learning rate, however fast gradients grow.
    Adam's other coefficients are not changed.

    Attributes:
      beta: the decay of both averages, b1 and b2.
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
    """Resets Adam's step count to 0 at every update of the agent (Ellis et al. 2024).

    Only the count in the bias correction of the moments is reset; the moments are kept. The first
    gradient steps of an update are then shorter with Adam's usual coefficients, and longer if b1
    and b2 are equal. The objective changes with each new rollout, so the count starts there and
    runs through all epochs. Other counts in the optimizer's state are kept.
    """

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return optimizer._replace(wrappers=(*optimizer.wrappers, self._require_adam))

    def _require_adam(self, rule: optax.GradientTransformation) -> optax.GradientTransformation:
        state = jax.eval_shape(rule.init, {"kernel": jnp.zeros((1, 1))})
        if not any(map(_is_adam, jax.tree.leaves(state, is_leaf=_is_adam))):
            raise SettingError(
                "intervention",
                type(self).__name__,
                "must have Adam, which another method replaces",
            )
        return rule

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        def reset_count(part: Any) -> Any:
            return part._replace(count=jnp.zeros_like(part.count)) if _is_adam(part) else part

        opt_state = jax.tree.map(reset_count, train_state.opt_state, is_leaf=_is_adam)
        return state, train_state._replace(opt_state=opt_state)


class SAM(Intervention):
    """Takes the gradient where the loss is nearly largest within a radius (Foret et al. 2021).

    Sharpness-aware minimization, as Lee et al. (2023) use it against plasticity loss: with g the
    gradient of the minibatch's loss at the parameters theta, the step is made from theta with the
    gradient at theta + rho * g / ||g||, of the same minibatch, where the norm is over all
    parameters together. Terms that other methods add to the loss are part of it. Metrics and
    activations are those at theta, `gradient_norm` apart.

    An update takes about twice as long, since every gradient is computed twice.

    Attributes:
      rho: the radius, 0.05 in the paper.
    """

    rho: float = field(0.05, ge=0)

    def gradient(self, compute: ComputeGradient) -> ComputeGradient:
        def compute_within_radius(params: Params) -> tuple[Params, Any]:
            gradient, aux = compute(params)
            norm = optax.tree.norm(gradient)
            step = self.rho / jnp.where(norm > 0, norm, 1.0)
            return compute(optax.tree.add_scale(params, step, gradient))[0], aux

        return compute_within_radius


class TRACState(NamedTuple):
    """The state of TRAC, with n discounts."""

    base: optax.OptState  # of the rule that is scaled
    displacement: Params  # the sum of that rule's updates
    variance: Array  # [n]
    sigma: Array  # [n]
    scale: Array  # []


class TRAC(Intervention):
    """Scales the distance from the initial parameters adaptively (Muppidi et al. 2024).

    The updates of the base optimizer (Adam with its learning rate and weight decay) are summed in a
    displacement D. The parameters are the reference plus S D, with a scale S that is tuned online.
    At each step, let h be the inner product of the clipped gradient and D, before D is updated. For
    each discount b, v <- b^2 v + h^2 and sigma <- b sigma - h, and S is the sum over discounts of
    epsilon / erfi(1 / sqrt(2)) * erfi(sigma / (sqrt(2 v) + epsilon)), or 0 if that is negative.

    D is stored, as in the paper; the published code computes it from the parameters by division by
    S, which is inexact for small S and impossible for S = 0. The reference is the parameters minus
    S D, so that changes by other methods move the reference and are not undone. Methods that reset
    moments reset D as well. The reference, D and the statistics v and sigma are part of the
    optimizer's state and are reset at a shift, which the paper does not do; set
    `agent.reset_optimizer=false` to keep them.

    Attributes:
      epsilon: approximately the initial S.
      discounts: the discounts b.
    """

    epsilon: float = field(1e-8, gt=0)
    discounts: tuple[float, ...] = static_field(
        (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999), ge=0, lt=1, least=1
    )

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return optimizer._replace(wrappers=(*optimizer.wrappers, self._scale))

    def _scale(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
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

        def step(
            gradient: Params, state: TRACState, params: Params | None = None
        ) -> tuple[Params, TRACState]:
            update, base_state = base.update(gradient, state.base, params)
            gain = optax.tree.vdot(gradient, state.displacement)
            displacement = optax.tree.add(state.displacement, update)
            variance = discounts**2 * state.variance + gain**2
            sigma = discounts * state.sigma - gain
            argument = sigma / (math.sqrt(2) * jnp.sqrt(variance) + self.epsilon)
            terms = self.epsilon / erfi(math.sqrt(0.5)) * erfi(argument)
            scale = jnp.maximum(jnp.sum(terms), 0.0)
            scaled = jax.tree.map(
                lambda new, old: scale * new - state.scale * old, displacement, state.displacement
            )
            return scaled, TRACState(base_state, displacement, variance, sigma, scale)

        return optax.GradientTransformation(init, step)


class UPGDState(NamedTuple):
    """The state of UPGD."""

    steps: Array  # int32 []
    utility: Params  # the running average, before bias correction
    adam: optax.OptState


class UPGD(Intervention):
    """Updates useful weights less and perturbs the others more (Elsayed & Mahmood 2024).

    Utility-based perturbed gradient descent on top of Adam. The utility of a weight is
    -gradient * weight, with the clipped gradient, as a running average with bias correction like
    Adam's moments. U is the sigmoid of the utility divided by the largest utility of all
    parameters. The direction is 2 (1 - U) (d + noise), where d is Adam's direction, plus the decay
    times the weight. This is the adaptive version that the authors use with PPO, here with the
    agent's coefficients of Adam. Their code divides by the largest utility before its bias
    correction, so that U is near 0 or 1 for about 1 / (1 - decay) steps; here, both are corrected.
    If no utility is positive, weights with negative utility are not protected. Utilities are reset
    together with the moments, and at a shift.

    An update takes about twice as long as without this method, because a normal number is drawn for
    each parameter at each step.

    Attributes:
      utility_decay: the decay of the running average of utilities.
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
                self._protect(optax.scale_by_adam(*adam), key),
                optax.add_decayed_weights(self.decay),
            )

        return optimizer.replace_adam(type(self).__name__, make)

    def _protect(
        self, adam: optax.GradientTransformation, key: Array
    ) -> optax.GradientTransformation:
        def init(params: Params) -> UPGDState:
            zeros = optax.tree.zeros_like(params)
            return UPGDState(jnp.zeros((), jnp.int32), zeros, adam.init(params))

        def update(
            gradient: Params, state: UPGDState, params: Params | None = None
        ) -> tuple[Params, UPGDState]:
            steps = state.steps + 1
            direction, adam_state = adam.update(gradient, state.adam, params)
            sample = jax.tree.map(lambda g, x: -g * x, gradient, params)
            utility = optax.tree.update_moment(sample, state.utility, self.utility_decay, 1)
            corrected = optax.tree.bias_correction(utility, self.utility_decay, steps)
            largest = optax.tree.max(corrected)
            largest = jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)
            noise = optax.tree.random_like(jax.random.fold_in(key, state.steps), gradient)
            protected = jax.tree.map(
                lambda u, d, n: 2 * jax.nn.sigmoid(-u / largest) * (d + self.noise * n),
                corrected,
                direction,
                noise,
            )
            return protected, UPGDState(steps, utility, adam_state)

        return optax.GradientTransformation(init, update)


class KronState(NamedTuple):
    """The state of Kron."""

    steps: Array  # int32 []
    steps_since_fit: Array  # int32 []: since the factors were last fitted
    momentum: Params
    factors: tuple[Factors, ...]  # of each parameter, in the order of the tree's leaves


class Kron(Intervention):
    """Replaces Adam by momentum with a Kronecker-factored preconditioner: PSGD Kron (Li 2018).

    Each axis of a parameter has an upper triangular factor Q. The preconditioner P = Q'Q (over all
    axes) is fitted so that P g is white, where g is the bias-corrected momentum. A fit is one
    relative gradient step on E[g'Pg + v'P^-1 v], with v normal: let A = Q g and B = Q^-T v along
    all axes, and A_i, B_i their unfoldings at axis i; then Q_i <- Q_i - rate * triu(A_i A_i' - B_i
    B_i') Q_i / |A_i A_i' + B_i B_i'|, where |.| is a lower bound of the spectral norm. Biases, axes
    of one entry and axes longer than `max_size` have diagonal factors. In one of a hundred fits,
    the factors of a parameter are rescaled to equal maximum. P g is scaled down to a root mean
    square of at most `max_rms`.

    These are the equations and defaults of the published JAX code (psgd_jax), with two exceptions.
    There, the noise v is the same for every seed, and the factors grow without bound while the
    gradient of a parameter is all zeros; here, they are then kept. Methods that reset Adam's
    moments reset the momentum; the factors are kept, and are reset at a shift.

    This is expensive: a fit has a triangular solve and matrix products for each axis, cubic in the
    longest axis, which is often that of the observation. Stacked runs compute a fit at every step,
    even when the schedule skips it. On Gather, an update takes about eleven times as long as with
    Adam, or three times with a `max_size` below the observation's 363 entries.

    Attributes:
      decay: the decay of the momentum.
      rate: the step size of the factors.
      scale: the initial product of all Q is the identity times this.
      min_probability: the final number of fits per step; initially it is 1.
      anneal: the exponential rate at which the number of fits per step decays.
      anneal_from: the step at which this decay begins.
      max_rms: the bound on the root mean square of each parameter's direction.
      max_size: the longest axis with a triangular factor.
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

        zero = jnp.zeros((), jnp.int32)
        # optax.tree.map_params calls this with a tree without leaves: a single leaf in place of
        # the factors then keeps it from mapping over them.
        all_factors: Any = tuple(map(factors, jax.tree.leaves(params))) or zero
        return KronState(zero, zero, optax.tree.zeros_like(params), all_factors)

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
            for leaf_key, qs, x in zip(keys, state.factors, tensors, strict=True):
                ordered = tuple(sequence_after(q, new[-1][0]) for q in qs) if new else qs
                new.append(self._fit(leaf_key, ordered, x))
            return tuple(new)

        annealed = jnp.exp(-self.anneal * (steps - self.anneal_from))
        due = state.steps_since_fit + 1 >= 1 / jnp.clip(annealed, self.min_probability, 1.0)
        factors = jax.lax.cond(due, fit, lambda: state.factors)

        def direction(qs: Factors, x: Array) -> Array:
            white = apply_along_axes(transpose(qs), apply_along_axes(qs, x))
            return white / jnp.maximum(1.0, jnp.sqrt(jnp.mean(white**2)) / self.max_rms)

        directions = [
            direction(qs, x).reshape(leaf.shape)
            for qs, x, leaf in zip(factors, tensors, leaves, strict=True)
        ]
        steps_since_fit = jnp.where(due, 0, state.steps_since_fit + 1)
        return jax.tree.unflatten(structure, directions), KronState(
            steps, steps_since_fit, momentum, factors
        )

    def _fit(self, key: Array, qs: Factors, x: Array) -> Factors:
        balance_key, noise_key = jax.random.split(key)
        if len(qs) > 1:
            maxima = jnp.stack([jnp.max(jnp.abs(q)) for q in qs])
            ratios = jnp.exp(jnp.mean(jnp.log(maxima))) / maxima
            due = jax.random.bernoulli(balance_key, 0.01)
            qs = tuple(q * jnp.where(due, ratio, 1.0) for q, ratio in zip(qs, ratios, strict=True))
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        size = jnp.mean(jnp.abs(x))
        damping = math.sqrt(jnp.finfo(jnp.float32).eps) * size
        new = fit_factors(qs, x + damping * noise, noise, self.rate)
        return tuple(jnp.where(size > 0, fitted, q) for fitted, q in zip(new, qs, strict=True))


def _is_adam(part: Any) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def erfi(x: Array | float) -> Array:
    """Computes the imaginary error function of x clipped to [-9, 9], where float32 is finite."""
    x = jnp.clip(x, -9.0, 9.0)
    return 2 / math.sqrt(math.pi) * jnp.exp(x**2) * jax.scipy.special.dawsn(x)


def fit_factors(qs: Factors, g: Array, v: Array, rate: Array | float) -> Factors:
    """Makes one gradient step of a preconditioner's factors towards whitening.

    Args:
      qs: the factors before.
      g: the gradient to whiten.
      v: normal noise of the shape of `g`.
      rate: the step size, relative to the factors.
    """
    a, b = apply_along_axes(qs, g), apply_along_axes(transpose(qs), v, inverse=True)

    def step(axis: int, q: Array) -> Array:
        aa, bb = gram(a, axis, q.ndim), gram(b, axis, q.ndim)
        bound = norm_bound(aa + bb)
        change = rate * (aa - bb) / jnp.maximum(bound, jnp.finfo(q.dtype).tiny)
        return q - (jnp.triu(change) @ q if q.ndim > 1 else change * q)

    return tuple(step(axis, q) for axis, q in enumerate(qs))


def transpose(qs: Sequence[Array]) -> Factors:
    """Transposes each factor."""
    return tuple(q.T for q in qs)


def apply_along_axes(qs: Sequence[Array], x: Array, inverse: bool = False) -> Array:
    """Multiplies each axis of `x` by its matrix in `qs`.

    Args:
      qs: a matrix [n, n] or a diagonal [n] for each axis.
      x: the tensor.
      inverse: whether to multiply by the inverses; matrices must then be lower triangular.
    """
    for axis, q in enumerate(qs):
        columns = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        if q.ndim == 1:
            columns = columns / q[:, None] if inverse else columns * q[:, None]
        elif inverse:
            columns = jax.scipy.linalg.solve_triangular(q, columns, lower=True)
        else:
            columns = q @ columns
        other_sizes = [n for i, n in enumerate(x.shape) if i != axis]
        x = jnp.moveaxis(columns.reshape(x.shape[axis], *other_sizes), 0, axis)
    return x


def gram(x: Array, axis: int, ndim: int) -> Array:
    """Computes inner products of slices of `x` along `axis` [n, n]; if `ndim` is 1, squares [n]."""
    slices = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return slices @ slices.T if ndim > 1 else jnp.sum(slices**2, axis=1)


def norm_bound(matrix: Array) -> Array:
    """Computes a lower bound of the spectral norm of a symmetric matrix [n, n].

    As in Li's code: two steps of power iteration, from the unit vector of the longest column. For
    a diagonal [n] the norm is exact.
    """
    largest = jnp.max(jnp.abs(matrix))
    if matrix.ndim == 1:
        return largest
    scaled = matrix / jnp.where(largest > 0, largest, 1.0)
    x = scaled @ scaled[:, jnp.argmax(jnp.sum(scaled**2, axis=0))]
    length = jnp.linalg.norm(x)
    return largest * jnp.linalg.norm(scaled @ (x / jnp.where(length > 0, length, 1.0)))
