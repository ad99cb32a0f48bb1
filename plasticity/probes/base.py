"""What a probe is: a pure function of the network's state on a fixed batch of observations."""

from typing import NamedTuple

import jax

from plasticity.networks import Output, Params
from plasticity.spec import Parts, Spec

Array = jax.Array


class View(NamedTuple):
    """What a probe may look at."""

    params: Params
    initial_params: Params  # those that the lifetime began with
    observations: Array  # the probe batch, [B, ...]
    output: Output  # of the network on the probe batch


class Probe(Spec):
    """Measures a network, layer by layer and in aggregate."""

    def __call__(self, view: View) -> dict[str, Array]:
        """A scalar for each layer measured, by name, and for "all" of them together."""
        raise NotImplementedError


class Probes(Parts[Probe]):
    """The probes of a run; each is a metric of its own in the results table."""

    def __call__(self, view: View) -> dict[str, dict[str, Array]]:
        """metric -> layer -> scalar."""
        return {name: probe(view) for name, probe in zip(self.names, self.parts, strict=True)}
