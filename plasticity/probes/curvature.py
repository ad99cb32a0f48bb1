"""A probe of the curvature of the loss."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from plasticity.probes.base import Array, Probe, View
from plasticity.struct import static_field


class HessianEigenvalue(Probe):
    """The largest eigenvalue of the Hessian of PPO's loss: its sharpness (Lyle et al. 2023).

    The algebraically largest, whatever larger negative ones there are, by Lanczos' method from a
    random direction; from below, and up to rounding. The loss is the mean over transitions of a
    rollout, without what interventions add. As expensive as about twice as many gradients of
    `size` transitions as there are iterations.

    Attributes:
      iterations: products of the Hessian and a vector.
      size: how many transitions; all, if the rollout has fewer.
    """

    iterations: int = static_field(30, ge=2)
    size: int = static_field(512, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        batch = view.sample(self.size)
        flat, unravel = ravel_pytree(view.params)

        def loss(flat: Array) -> Array:
            return jnp.mean(view.per_sample_loss(unravel(flat), batch))

        _, product = jax.linearize(jax.grad(loss), flat)
        start = jax.random.normal(jax.random.fold_in(view.key, 0), flat.shape, flat.dtype)

        def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, ...], Array]:
            previous, direction, coupling = carry
            image = product(direction) - coupling * previous
            diagonal = jnp.vdot(direction, image)
            rest = image - diagonal * direction
            norm = jnp.linalg.norm(rest)
            following = rest / jnp.where(norm == 0, 1.0, norm)
            alive = jnp.any(direction != 0)
            return (direction, following, norm), jnp.stack([diagonal, norm, alive])

        # Directions are not kept, nor made orthogonal to all of those before: what that costs is
        # copies of eigenvalues already found, which the largest does not mind.
        nothing = jnp.zeros_like(flat)
        carry = (nothing, start / jnp.linalg.norm(start), jnp.zeros((), flat.dtype))
        _, (diagonal, norm, alive) = jax.tree.map(
            jnp.transpose, jax.lax.scan(step, carry, length=self.iterations)
        )
        # Where directions run out, nothing may stand for an eigenvalue of zero.
        diagonal = jnp.where(alive > 0, diagonal, diagonal[0])
        tridiagonal = jnp.diag(diagonal) + jnp.diag(norm[:-1], 1) + jnp.diag(norm[:-1], -1)
        return {"all": view.run_serialized(jnp.linalg.eigvalsh, tridiagonal)[-1]}
