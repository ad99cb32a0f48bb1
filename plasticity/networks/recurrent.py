"""Recurrent layers: the memory of a network. Shapes: n environments, T steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.memory import Memory, reset_memory
from plasticity.networks.torso import Dense, linear_params
from plasticity.scan import scan

__all__ = ["CELLS", "Recurrent", "RecurrentLayer"]

Array = jax.Array


class LSTMState(NamedTuple):
    """The memory of an LSTM."""

    hidden: Array  # [n, units]: its output
    cell: Array  # [n, units]


def gru(hidden: Array, inputs: Array, recurrent: Callable[[Array], Array]) -> Array:
    """Computes a step of a gated recurrent unit (Cho et al. 2014), as PyTorch's `nn.GRU` does.

    Args:
      hidden: the memory, which is the output, [n, units].
      inputs: the linear layer of the input, [n, 3 * units]: reset gate, update gate, candidate.
      recurrent: the linear layer of `hidden`, of the same parts.
    """
    reset_in, update_in, new_in = jnp.split(inputs, 3, axis=-1)
    reset_rec, update_rec, new_rec = jnp.split(recurrent(hidden), 3, axis=-1)
    new = jnp.tanh(new_in + nn.sigmoid(reset_in + reset_rec) * new_rec)
    update = nn.sigmoid(update_in + update_rec)
    return (1 - update) * new + update * hidden


def lstm(state: LSTMState, inputs: Array, recurrent: Callable[[Array], Array]) -> LSTMState:
    """Computes a step of a long short-term memory, as PyTorch's `nn.LSTM` does.

    That of Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000).

    Args:
      state: the memory.
      inputs: the linear layer of the input, [n, 4 * units]: input gate, forget gate, candidate,
        output gate.
      recurrent: the linear layer of `state.hidden`, of the same parts.
    """
    parts = jnp.split(inputs + recurrent(state.hidden), 4, axis=-1)
    keep, forget, output = (nn.sigmoid(parts[i]) for i in (0, 1, 3))
    cell = forget * state.cell + keep * jnp.tanh(parts[2])
    return LSTMState(output * jnp.tanh(cell), cell)


class Cell(NamedTuple):
    """A recurrent cell.

    Attributes:
      step: computes the memory after a step, see `gru` and `lstm`.
      parts: how many linear functions of the input, and of the last output, a unit has.
      empty: returns the memory at the beginning of an episode, from the shape [n, units].
      output: returns a memory's output, [n, units].
    """

    step: Callable[[Any, Array, Callable[[Array], Array]], Any]
    parts: int
    empty: Callable[[tuple[int, int]], Any]
    output: Callable[[Any], Array]


CELLS: dict[str, Cell] = {
    "gru": Cell(gru, 3, jnp.zeros, lambda hidden: hidden),
    "lstm": Cell(
        lstm,
        4,
        lambda shape: LSTMState(jnp.zeros(shape), jnp.zeros(shape)),
        lambda state: state.hidden,
    ),
}


class Recurrent(NamedTuple):
    """The kind of a recurrent layer.

    Attributes:
      cell: a name in `CELLS`.
      units: the size of its output.
    """

    cell: str
    units: int

    def build(self, name: str) -> "RecurrentLayer":
        """Builds the layer."""
        return RecurrentLayer(self, name=name)

    def empty(self, batch_size: int) -> Memory:
        """Returns the memory at the beginning of an episode, [batch_size, ...]."""
        return CELLS[self.cell].empty((batch_size, self.units))


class RecurrentLayer(nn.Module):
    """A recurrent layer, with the linear layers `input` and `recurrent`."""

    kind: Recurrent

    @nn.compact
    def __call__(
        self, x: Array, memory: Memory | None = None, not_done: Array | None = None
    ) -> tuple[Array, Memory]:
        """Returns the outputs of a step or of a sequence, and the memory after it.

        Args:
          x: [n, features], or [n, T, features].
          memory: before the first step, [n, ...]; empty if not given.
          not_done: bool [n, T]; None for single steps, after which nothing is emptied.
        """
        cell, units = self.kind
        # The products of inputs are those of the whole sequence at once.
        products = Dense(CELLS[cell].parts * units, name="input")(x)
        if memory is None:
            empty = self.kind.empty(len(x))
            memory = jax.tree.map(lambda array: array.astype(products.dtype), empty)
        return Recurrence(cell, name="recurrent")(products, memory, not_done)


class Recurrence(nn.Module):
    """The part of a recurrent layer that is computed step by step."""

    cell: str

    @nn.compact
    def __call__(
        self, products: Array, memory: Memory, not_done: Array | None
    ) -> tuple[Array, Memory]:
        cell = CELLS[self.cell]
        units = products.shape[-1] // cell.parts
        kernel, bias = linear_params(self, units, products.shape[-1])

        def step(memory: Memory, products: Array) -> Memory:
            return cell.step(memory, products, lambda hidden: hidden @ kernel + bias)

        if not_done is None:
            memory = step(memory, products)
            return cell.output(memory), memory

        def step_and_reset(memory: Memory, inputs: tuple[Array, Array]) -> tuple[Memory, Array]:
            products, not_done = inputs
            memory = step(memory, products)
            return reset_memory(memory, ~not_done), cell.output(memory)

        by_time = jnp.swapaxes(products, 0, 1), not_done.T
        memory, outputs = scan(step_and_reset, memory, by_time, gpu_unroll=10)
        return jnp.swapaxes(outputs, 0, 1), memory
