"""The interface of probes: pure functions of a network's parameters and outputs."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.interventions.context import Batch
from plasticity.networks import Output, Params, sequence_after, singular_values
from plasticity.struct import Chain, SettingError, Struct, static_field

__all__ = ["Probe", "Probes", "View"]

Array = jax.Array


@dataclass(frozen=True)
class View:
    """The arguments of a probe. Derived quantities are computed when first accessed.

    Attributes:
      params: the current parameters.
      prev_params: the parameters before the last update of the agent.
      round_params: the parameters at the beginning of the round.
      initial_params: the parameters at the beginning of the run.
      observation: the probe batch, [B, ...]: observations under random actions, fixed during a
        round. A network with memory reads each of them as the first of an episode.
      key: randomness for this measurement.
      apply: computes the network's output from trained parameters and observations [B, ...], or
        sequences; of an encoder also from `Tokens`, see `Output.tokens`.
      effective_params: computes the parameters that the network uses from the trained ones.
      init_params: draws parameters from their initial distribution, with a key.
      per_sample_loss: computes the agent's loss of each transition, from parameters and a batch.
        [B]; of sequences, the mean over the steps of each.
      compute_batch: computes `batch`.
      project: projects trained parameters as the network does: a probe that trains a copy calls it
        after every step, see `BaseNetwork.project`.
    """

    params: Params
    prev_params: Params
    round_params: Params
    initial_params: Params
    observation: Array
    key: Array
    apply: Callable[[Params, Any], Output]
    effective_params: Callable[[Params], Params]
    init_params: Callable[[Array], Params]
    per_sample_loss: Callable[[Params, Batch], Array]
    compute_batch: Callable[[], Batch]
    project: Callable[[Params], Params] = lambda params: params
    _serialized: list[Array] = field(default_factory=list, init=False)

    @cached_property
    def output(self) -> Output:
        """The network's output on the probe batch."""
        return self.apply(self.params, self.observation)

    @cached_property
    def prev_output(self) -> Output:
        """The network's output on the probe batch before the last update of the agent."""
        return self.apply(self.prev_params, self.observation)

    @cached_property
    def singular_values(self) -> dict[str, Array]:
        """The singular values [d] of each hidden layer's activations on the probe batch.

        Rows are observations, and positions if the layer is convolutional; columns are units.
        """
        return {
            name: self.run_serialized(singular_values, x.reshape(-1, x.shape[-1]))
            for name, x in self.output.activations.items()
        }

    def run_serialized(self, function: Callable[[Array], Array], matrix: Array) -> Array:
        """Returns `function(matrix)`, computed after all earlier calls of this method.

        Use it for matrix decompositions: see `plasticity.networks.linalg.sequence_after`.
        """
        if self._serialized:
            matrix = sequence_after(matrix, self._serialized[-1])
        self._serialized.append(function(matrix))
        return self._serialized[-1]

    @cached_property
    def batch(self) -> Batch:
        """A rollout of the current policy from the beginning of episodes, [T * N, ...].

        If the network has a memory, its samples are N sequences, and [N, T, ...]. The same with JAX
        and host environments. The agent prepares the advantages: PPO normalizes them over all
        transitions.
        """
        return self.compute_batch()

    def take(self, indices: Array) -> Batch:
        """Returns the samples of `batch` at some indices. [*indices.shape, ...]."""
        return jax.tree.map(lambda x: x[indices], self.batch)

    def sample(self, size: int) -> Batch:
        """Draws `size` samples of `batch` without replacement; all if there are fewer."""
        return self.take(jax.random.permutation(self.key, len(self.batch.action))[:size])


class Probe(Struct):
    """Base class of probes. A probe measures a network, layer by layer and in aggregate.

    The first line of its docstring says what it measures, and the docstring names its paper as
    (Author et al. year), if there is one: `python -m experiments.methods` lists both.

    Attributes:
      every: updates of the agent between two measurements; 0 for the schedule's `probe_every`. The
        end of a round is always measured.
    """

    every: int = static_field(0, ge=0, kw_only=True)

    @abstractmethod
    def __call__(self, view: View) -> dict[str, Array]:
        """Returns a scalar for each measured layer by name, and for "all" of them together."""
        raise NotImplementedError


class Probes(Chain[Probe]):
    """The probes of a run. Each is a metric in the results table."""

    def __call__(self, view: View) -> dict[str, dict[str, Array]]:
        """Returns the scalars of each probe: metric -> layer -> scalar.

        Raises:
          SettingError: a probe returns anything else.
        """
        return {
            name: _check_scalars(probe(view), name, probe)
            for name, probe in zip(self.names, self.parts, strict=True)
        }

    def only(self, names: Collection[str]) -> Self:
        """Returns the probes of the given names."""
        kept = [(p, name) for p, name in zip(self.parts, self.names, strict=True) if name in names]
        return type(self)(tuple(p for p, _ in kept), tuple(name for _, name in kept))


def _check_scalars(result: object, name: str, probe: Probe) -> dict[str, Array]:
    """Returns what a probe has measured, if that is a scalar for each layer by name."""
    if not isinstance(result, Mapping):
        found = f"returned {_describe(result)}"
    else:
        wrong = [
            f"{_describe(value)} for {layer!r}"
            for layer, value in result.items()
            if not isinstance(layer, str) or not _is_scalar(value)
        ]
        if not wrong:
            return dict(result)
        found = f"returned {wrong[0]}"
    raise SettingError(
        f"probes.{name}",
        type(probe).__name__,
        f"must return a real scalar for each layer by name, such as {{'all': 0.5}}, but {found}",
    )


def _is_scalar(value: object) -> bool:
    """Returns whether a value is a number, or an array of no axes that holds one."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
        return False
    return jnp.ndim(value) == 0 and not jnp.iscomplexobj(value)


def _describe(value: object) -> str:
    """Describes a value, arrays by their dtype and shape."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}" if value else repr(value)
