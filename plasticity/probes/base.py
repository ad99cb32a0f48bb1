"""What a probe is: a pure function of the network's state on a fixed batch of observations."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp

from plasticity.networks import Output, Params
from plasticity.networks.linalg import after
from plasticity.struct import Chain, Struct, static_field

Array = jax.Array
Batch = Any  # transitions, `plasticity.interventions.Batch`; probes only take some of them


@dataclass(frozen=True)
class View:
    """What a probe may look at. What costs something is computed when first looked at.

    Attributes:
      params: the parameters now.
      prev_params: those before the last update.
      round_params: those that the round began with.
      initial_params: those that the lifetime began with.
      observation: the probe batch, [B, ...], met under random actions; the same all round long.
      key: randomness for this moment.
      apply: the network, of parameters and observations [B, ...].
      effective_params: the parameters that it computes with, of those that are trained.
      init_params: draws parameters from their initial distribution, by key.
      per_sample_loss: the loss of each of some transitions, from parameters and these. [B].
      make_batch: makes `batch`.
    """

    params: Params
    prev_params: Params
    round_params: Params
    initial_params: Params
    observation: Array
    key: Array
    apply: Callable[[Params, Array], Output]
    effective_params: Callable[[Params], Params]
    init_params: Callable[[Array], Params]
    per_sample_loss: Callable[[Params, Batch], Array]
    make_batch: Callable[[], Batch]
    _decomposed: list[Array] = field(default_factory=list, init=False)

    @cached_property
    def output(self) -> Output:
        """The network's output on the probe batch."""
        return self.apply(self.params, self.observation)

    @cached_property
    def previous_output(self) -> Output:
        """The same before the last update."""
        return self.apply(self.prev_params, self.observation)

    @cached_property
    def singular_values(self) -> dict[str, Array]:
        """Of each hidden layer's activations on the probe batch, positions being rows. [d]."""
        return {
            name: self.run_serialized(singular_values, x.reshape(-1, x.shape[-1]))
            for name, x in self.output.activations.items()
        }

    def run_serialized(self, decompose: Callable[[Array], Array], matrix: Array) -> Array:
        """`decompose(matrix)`, once all that were asked for before are done: see `after`."""
        if self._decomposed:
            matrix = after(matrix, self._decomposed[-1])
        self._decomposed.append(decompose(matrix))
        return self._decomposed[-1]

    @cached_property
    def batch(self) -> Batch:
        """Transitions met by the policy, [T * N, ...], advantages normalised over all of them.

        In compiled environments those of a new rollout; on the host those of the last update.
        """
        return self.make_batch()

    def take(self, indices: Array) -> Batch:
        """Some of `batch`: [*indices.shape, ...]."""
        return jax.tree.map(lambda x: x[indices], self.batch)

    def sample(self, size: int) -> Batch:
        """`size` transitions of `batch`, drawn without replacement; all if there are fewer."""
        return self.take(jax.random.permutation(self.key, len(self.batch.action))[:size])


def singular_values(matrix: Array) -> Array:
    """The singular values of a matrix, the largest first."""
    return jnp.linalg.svd(matrix, full_matrices=False, compute_uv=False)


class Probe(Struct):
    """Measures a network, layer by layer and in aggregate.

    The first line of its docstring says what it measures, and the docstring names its paper, as
    (Author et al. year), where there is one: `python -m plasticity.cli.methods` lists them.

    Attributes:
      every: PPO updates between two measurements; 0 for the schedule's `probe_every`. The end of
        a round is always measured.
    """

    every: int = static_field(0, ge=0, kw_only=True)

    def __call__(self, view: View) -> dict[str, Array]:
        """A scalar for each layer measured, by name, and for "all" of them together."""
        raise NotImplementedError


class Probes(Chain[Probe]):
    """The probes of a run; each is a metric of its own in the results table."""

    def __call__(self, view: View) -> dict[str, dict[str, Array]]:
        """metric -> layer -> scalar."""
        return {name: probe(view) for name, probe in zip(self.names, self.parts, strict=True)}

    def only(self, names: Collection[str]) -> Self:
        """Those of the probes that are named."""
        kept = [(p, name) for p, name in zip(self.parts, self.names, strict=True) if name in names]
        return type(self)(tuple(p for p, _ in kept), tuple(name for _, name in kept))
