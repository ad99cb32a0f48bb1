"""Probes of how the gradients of PPO's loss on different transitions agree.

Gradients are raw, before clipping and Adam, at the present parameters; the loss is PPO's alone,
without what interventions add. Advantages are normalised over the whole rollout. On the host the
rollout is that of before the last update, and transitions that the update clipped count as zero
for the policy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from plasticity.networks import Params, by_layer
from plasticity.probes.base import Array, Batch, Probe, View
from plasticity.probes.ranks import effective_rank
from plasticity.struct import static_field


class GradientCosine(Probe):
    """The mean cosine between the gradients of different minibatches of one rollout.

    Below 0 what one minibatch learns undoes another's: interference (cf. Lyle et al. 2023). It
    rises with the size of minibatches, so only equal sizes compare. Minibatches share no
    transition; where there are too few for all of them, each is smaller. Gradients of zero take
    no part; 0 where fewer than two are left. "all" takes each gradient as one vector.

    Attributes:
      minibatches: how many.
      size: transitions in each.
    """

    minibatches: int = static_field(8, ge=2)
    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        batch = view.sample(self.minibatches * self.size)
        total = len(batch.action)
        count = min(self.minibatches, total)
        each = jax.tree.map(
            lambda x: x[: total // count * count].reshape(count, -1, *x.shape[1:]), batch
        )

        def loss(params: Params, batch: Batch) -> Array:
            return jnp.mean(view.per_sample_loss(params, batch))

        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(view.params, each)
        products = {name: _products(layer) for name, layer in by_layer(gradients).items()}
        products["all"] = jnp.sum(jnp.stack(list(products.values())), axis=0)
        return {name: mean_off_diagonal(product) for name, product in products.items()}


class GradientCovarianceRank(Probe):
    """The effective rank of the cosines between the gradients of single transitions.

    The matrix C_ij = <g_i, g_j> / (|g_i| |g_j|) is the gradient covariance of Lyle et al.
    (2023), neither centred nor a covariance; they show it as it is. Its rank is taken of its
    eigenvalues (Roy & Vetterli 2007), which are the squared singular values of the normalised
    gradients. Between 1, where all of them are collinear, and `size`, where all are orthogonal;
    0 where all are zero. As expensive as a gradient of `size`^2 transitions.

    Attributes:
      size: how many transitions; all, if the rollout has fewer.
    """

    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        batch = view.sample(self.size)
        products = gram(lambda params: view.per_sample_loss(params, batch)[:, None], view.params)
        return {"all": spectral_rank(view.run_serialized(jnp.linalg.eigvalsh, cosines(products)))}


def gram(outputs: Callable[[Params], Array], params: Params) -> Array:
    """The inner products of samples' gradients, summed over outputs. [n, m] -> [n, n].

    K_ij = sum_a <d output_ia / d params, d output_ja / d params>, a row at a time: together the
    gradients would take n * m times the space of the parameters.

    Args:
      outputs: of parameters, [n, m].
      params: where to differentiate.
    """
    value, forward = jax.linearize(outputs, params)
    backward = jax.linear_transpose(forward, params)
    samples, width = value.shape

    def row(index: Array) -> Array:
        one = jnp.zeros_like(value).at[index // width, index % width].set(1.0)
        return forward(*backward(one))[:, index % width]

    return jax.lax.map(row, jnp.arange(value.size)).reshape(samples, width, samples).sum(axis=1)


def cosines(products: Array) -> Array:
    """The cosines that belong to inner products [n, n]; 0 with a vector of zero."""
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))
    inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1.0), 0.0)
    return products * inverse[:, None] * inverse


def mean_off_diagonal(products: Array) -> Array:
    """The mean cosine of two different vectors with inner products [n, n], zeros left out."""
    count = jnp.sum(jnp.diagonal(products) > 0)
    pairs = jnp.maximum(count * (count - 1.0), 1.0)
    similar = cosines(products)
    return (jnp.sum(similar) - jnp.trace(similar)) / pairs


def spectral_rank(eigenvalues: Array) -> Array:
    """The effective rank of a positive semidefinite matrix, of its eigenvalues [n]."""
    # Rounding may leave some below zero.
    return effective_rank(jnp.maximum(eigenvalues, 0.0))


def _products(gradients: Params) -> Array:
    """The inner products [n, n] of n trees stacked along the first axis."""
    flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(gradients)]
    return jnp.sum(jnp.stack([x @ x.T for x in flat]), axis=0)
