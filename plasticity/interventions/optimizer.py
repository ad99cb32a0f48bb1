"""The update rule in the form that interventions change, before it is built."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from plasticity.struct import SettingError

Array = jax.Array


class Adam(NamedTuple):
    """The coefficients of Adam."""

    b1: Array | float = 0.9
    b2: Array | float = 0.999
    eps: Array | float = 1e-8


class Optimizer(NamedTuple):
    """The update rule, as three stages that are applied in order.

    `direction` begins with Adam, or with the transformation that `replace_adam` has put in its
    place; a decoupled weight decay goes to its end. Functions that wrap a whole optimizer go into
    `wrappers`, and so also wrap what later methods add to `direction` and `step`. They do not wrap
    `gradient`. A transformation that draws noise takes a key from `split`; that key is the same for
    a whole round, and the transformation must fold its step count into it.
    """

    gradient: tuple[optax.GradientTransformation, ...]  # on the raw gradient: clipping
    direction: tuple[optax.GradientTransformation, ...]  # gradient to direction: Adam
    step: tuple[optax.GradientTransformation, ...]  # direction to step: the learning rate
    key: Array
    adam: Adam | None = Adam()  # the Adam that `direction` begins with; None if there is none
    wrappers: tuple[
        Callable[[optax.GradientTransformation], optax.GradientTransformation], ...
    ] = ()

    def build(self) -> optax.GradientTransformation:
        """Chains the three stages into one transformation."""
        rule = optax.chain(*self.direction, *self.step)
        for wrap in self.wrappers:
            rule = wrap(rule)
        return optax.chain(*self.gradient, rule)

    def split(self) -> tuple["Optimizer", Array]:
        """Returns an optimizer with a new key, and another key for the caller."""
        key, caller_key = jax.random.split(self.key)
        return self._replace(key=key), caller_key

    def replace_adam(
        self, method: str, make: Callable[[Adam], optax.GradientTransformation]
    ) -> "Optimizer":
        """Returns an optimizer with another transformation in Adam's place.

        Args:
          method: the name of the method that replaces Adam, for the error.
          make: makes the transformation from Adam's coefficients.

        Raises:
          SettingError: Adam has been replaced already.
        """
        if self.adam is None:
            raise SettingError(
                "intervention", method, "must have Adam, which another method replaces"
            )
        return self._replace(direction=(make(self.adam), *self.direction[1:]), adam=None)
