"""Probes of the empirical neural tangent kernel."""

import jax.numpy as jnp

from plasticity.networks import Params
from plasticity.probes.base import Array, Probe, View
from plasticity.probes.gradients import gram, spectral_rank
from plasticity.struct import static_field

__all__ = ["NTKConditionNumber", "NTKRank"]


class NTKRank(Probe):
    """The effective rank of the empirical neural tangent kernel (cf. Tang et al. 2025).

    The kernel is K_ij = sum_a <grad f_a(x_i), grad f_a(x_j)> over observations of the probe batch,
    not normalized. Its rank is the exponential of the entropy of its normalized eigenvalues (Roy &
    Vetterli 2007). "value" is the kernel of the value. "policy" is that of the logits minus their
    mean over actions, on which no probability depends; or of the means of continuous actions.
    "all" is the sum of the two kernels. The rank is between 1 and `size`, or 0 if all gradients are
    zero. Costs a gradient of (actions + 1) * `size`^2 observations.

    Attributes:
      size: number of observations; all, if the probe batch has fewer.
    """

    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return {
            name: spectral_rank(eigenvalues)
            for name, eigenvalues in _eigenvalues(view, self.size).items()
        }


class NTKConditionNumber(Probe):
    """The condition number of the empirical neural tangent kernel (Xiao et al. 2020).

    The largest eigenvalue over the smallest, of the kernels of `NTKRank`. Where it is large, some
    functions of the observations are learned far more slowly than others. Eigenvalues that rounding
    hides count as the smallest that it does not, so that it is at most 2^23 / n for n observations;
    it is 0 if all gradients are zero. Costs what `NTKRank` does.

    Attributes:
      size: number of observations; all, if the probe batch has fewer.
    """

    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        def condition(eigenvalues: Array) -> Array:
            largest = jnp.max(eigenvalues)
            least = jnp.finfo(eigenvalues.dtype).eps * len(eigenvalues) * largest
            smallest = jnp.maximum(jnp.min(eigenvalues), least)
            return largest / jnp.where(smallest > 0, smallest, 1.0)

        return {
            name: condition(eigenvalues)
            for name, eigenvalues in _eigenvalues(view, self.size).items()
        }


def _eigenvalues(view: View, size: int) -> dict[str, Array]:
    """Returns the eigenvalues [n] of the kernels of policy, value and both, ascending."""
    observations = view.observation[:size]  # the probe batch is in random order

    def policy(params: Params) -> Array:
        return view.apply(params, observations).policy.centered_logits

    def value(params: Params) -> Array:
        return view.apply(params, observations).value[:, None]

    kernels = {"policy": gram(policy, view.params), "value": gram(value, view.params)}
    kernels["all"] = kernels["policy"] + kernels["value"]
    return {
        name: view.run_serialized(jnp.linalg.eigvalsh, kernel) for name, kernel in kernels.items()
    }
