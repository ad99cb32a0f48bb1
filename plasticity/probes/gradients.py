"""Probes of how well the gradients of the loss on different transitions agree.

Gradients are raw, before clipping and Adam, at the current parameters. The loss is the agent's,
without the terms of interventions. Transitions are from a rollout of the current policy; PPO
normalizes advantages over the whole rollout.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from plasticity.interventions.context import Batch
from plasticity.networks import Params, by_layer
from plasticity.probes.base import Array, Probe, View
from plasticity.probes.ranks import effective_rank
from plasticity.struct import static_field

__all__ = ["GradientCosine", "GradientCovarianceRank"]


class GradientCosine(Probe):
    """The mean cosine between the gradients of different minibatches of one rollout.

    If it is negative, learning from one minibatch undoes learning from another: interference (cf.
    Lyle et al. 2023). It increases with the size of minibatches, so compare equal sizes only.
    Minibatches share no transition; if there are too few transitions, each minibatch is smaller.
    Gradients that are zero are left out; it is 0 if fewer than two are left. "all" takes each
    gradient as one vector.

    Attributes:
      minibatches: number of minibatches.
      size: transitions per minibatch.
    """

    minibatches: int = static_field(8, ge=2)
    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        batch = view.sample(self.minibatches * self.size)
        total = len(batch.action)
        count = min(self.minibatches, total)
        minibatches = jax.tree.map(
            lambda x: x[: total // count * count].reshape(count, -1, *x.shape[1:]), batch
        )

        def loss(params: Params, minibatch: Batch) -> Array:
            return jnp.mean(view.per_sample_loss(params, minibatch))

        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(view.params, minibatches)
        products = {name: _inner_products(layer) for name, layer in by_layer(gradients).items()}
        products["all"] = jnp.sum(jnp.stack(list(products.values())), axis=0)
        return {name: mean_off_diagonal(product) for name, product in products.items()}


class GradientCovarianceRank(Probe):
    """The effective rank of the cosines between the gradients of single transitions.

    The matrix C_ij = <g_i, g_j> / (|g_i| |g_j|) is what Lyle et al. (2023) call the gradient
    covariance, although it is neither centered nor a covariance; they plot the matrix itself. The
    rank is that of its eigenvalues (Roy & Vetterli 2007), which are the squared singular values of
    the normalized gradients. It is between 1, if all gradients are collinear, and `size`, if all
    are orthogonal; 0 if all are zero. Costs a gradient of `size`^2 transitions.

    Attributes:
      size: number of transitions; all, if the rollout has fewer.
    """

    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        batch = view.sample(self.size)
        products = gram(lambda params: view.per_sample_loss(params, batch)[:, None], view.params)
        return {"all": spectral_rank(view.run_serialized(jnp.linalg.eigvalsh, cosines(products)))}


def gram(outputs: Callable[[Params], Array], params: Params) -> Array:
    """Computes the inner products of samples' gradients, summed over outputs. [n, n].

    K_ij = sum_a <d output_ia / d params, d output_ja / d params>. One row at a time: all gradients
    together would take n * m times the memory of the parameters.

    Args:
      outputs: a function of parameters that returns [n, m]: n samples, m outputs.
      params: the parameters to differentiate at.
    """
    value, jvp = jax.linearize(outputs, params)
    vjp = jax.linear_transpose(jvp, params)
    num_samples, num_outputs = value.shape

    def row(index: Array) -> Array:
        one_hot = jnp.zeros_like(value).at[index // num_outputs, index % num_outputs].set(1.0)
        return jvp(*vjp(one_hot))[:, index % num_outputs]

    rows = jax.lax.map(row, jnp.arange(value.size))
    return rows.reshape(num_samples, num_outputs, num_samples).sum(axis=1)


def cosines(products: Array) -> Array:
    """Computes cosines from inner products [n, n]; 0 if either vector is zero. [n, n]."""
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))
    inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1.0), 0.0)
    return products * inverse[:, None] * inverse


def mean_off_diagonal(products: Array) -> Array:
    """Computes the mean cosine of two different vectors from inner products [n, n].

    Vectors that are zero are left out.
    """
    count = jnp.sum(jnp.diagonal(products) > 0)
    pairs = jnp.maximum(count * (count - 1.0), 1.0)
    cosine = cosines(products)
    return (jnp.sum(cosine) - jnp.trace(cosine)) / pairs


def spectral_rank(eigenvalues: Array) -> Array:
    """Computes the effective rank of a positive semidefinite matrix from its eigenvalues [n]."""
    # Rounding may make some negative.
    return effective_rank(jnp.maximum(eigenvalues, 0.0))


def _inner_products(gradients: Params) -> Array:
    """Computes the inner products [n, n] of n trees stacked along the first axis."""
    flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(gradients)]
    return jnp.sum(jnp.stack([x @ x.T for x in flat]), axis=0)
