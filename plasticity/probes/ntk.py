"""A probe of the empirical neural tangent kernel."""

import jax.numpy as jnp

from plasticity.networks import Params
from plasticity.probes.base import Array, Probe, View
from plasticity.probes.gradients import gram, spectral_rank
from plasticity.struct import static_field


class NTKRank(Probe):
    """The effective rank of the empirical neural tangent kernel (cf. Tang et al. 2025).

    K_ij = sum_a <grad f_a(x_i), grad f_a(x_j)> over observations of the probe batch, not
    normalised; its rank is the exp of the entropy of its eigenvalues' shares (Roy & Vetterli
    2007). "value" is the kernel of the value; "policy" that of the logits without their mean
    over actions, which no probability depends on, or of the means of actions that are numbers;
    "all" that of both: the sum of the two. Between 1 and `size`, or 0 where nothing has a
    gradient. As expensive as a gradient of (actions + 1) * `size`^2 observations.

    Attributes:
      size: how many observations; all, if the probe batch has fewer.
    """

    size: int = static_field(64, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        # The probe batch is in random order.
        observations = view.observation[: self.size]

        def policy(params: Params) -> Array:
            return view.apply(params, observations).policy.centered_logits

        def value(params: Params) -> Array:
            return view.apply(params, observations).value[:, None]

        kernels = {"policy": gram(policy, view.params), "value": gram(value, view.params)}
        kernels["all"] = kernels["policy"] + kernels["value"]
        return {
            name: spectral_rank(view.run_serialized(jnp.linalg.eigvalsh, kernel))
            for name, kernel in kernels.items()
        }
