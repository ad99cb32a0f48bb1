"""A probe of the curvature of the loss."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from plasticity.probes.base import Array, Probe, View
from plasticity.struct import static_field

__all__ = ["HessianEigenvalue"]


class HessianEigenvalue(Probe):
    """The largest eigenvalue of the Hessian of the agent's loss: its sharpness (Lyle et al. 2023).

    This is the algebraically largest eigenvalue, also if a negative one has a larger magnitude. The
    Lanczos method computes it from a random direction and approaches it from below, up to
    rounding. The loss is the mean over transitions of a rollout, without the terms of
    interventions. Costs about 2 * `iterations` gradients of `size` transitions.

    Attributes:
      iterations: number of products of the Hessian and a vector.
      size: number of transitions; all, if the rollout has fewer.
    """

    iterations: int = static_field(30, ge=2)
    size: int = static_field(512, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        batch = view.sample(self.size)
        flat_params, unravel = ravel_pytree(view.params)

        def loss(flat_params: Array) -> Array:
            return jnp.mean(view.per_sample_loss(unravel(flat_params), batch))

        _, hessian_product = jax.linearize(jax.grad(loss), flat_params)
        start = jax.random.normal(
            jax.random.fold_in(view.key, 0), flat_params.shape, flat_params.dtype
        )

        def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, ...], Array]:
            prev_direction, direction, prev_norm = carry
            product = hessian_product(direction) - prev_norm * prev_direction
            diagonal = jnp.vdot(direction, product)
            residual = product - diagonal * direction
            norm = jnp.linalg.norm(residual)
            next_direction = residual / jnp.where(norm == 0, 1.0, norm)
            is_valid = jnp.any(direction != 0)
            return (direction, next_direction, norm), jnp.stack([diagonal, norm, is_valid])

        # Directions are neither stored nor orthogonalized against all earlier ones. The cost is
        # duplicates of eigenvalues that have converged, which do not change the largest.
        zeros = jnp.zeros_like(flat_params)
        carry = (zeros, start / jnp.linalg.norm(start), jnp.zeros((), flat_params.dtype))
        _, (diagonal, norm, is_valid) = jax.tree.map(
            jnp.transpose, jax.lax.scan(step, carry, length=self.iterations)
        )
        # After the Krylov space is exhausted, zeros on the diagonal would be false eigenvalues.
        diagonal = jnp.where(is_valid > 0, diagonal, diagonal[0])
        tridiagonal = jnp.diag(diagonal) + jnp.diag(norm[:-1], 1) + jnp.diag(norm[:-1], -1)
        return {"all": view.run_serialized(jnp.linalg.eigvalsh, tridiagonal)[-1]}
