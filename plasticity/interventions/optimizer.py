"""The update rule as interventions see it, before it is built."""

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

    `direction` begins with Adam, or with what a method has put in its place by `replace_adam`; a
    decoupled weight decay goes to its end. What wraps a whole optimizer goes into `wrappers`, and
    so also wraps what later methods add to `direction` and `step`. A transformation that draws
    noise takes a key of its own from `split`; that key is the same for a whole round, and the
    transformation must fold its step count into it.
    """

    gradient: tuple[optax.GradientTransformation, ...]  # on the raw gradient: clipping
    direction: tuple[optax.GradientTransformation, ...]  # gradient to direction: Adam
    step: tuple[optax.GradientTransformation, ...]  # direction to step: the learning rate
    key: Array
    adam: Adam | None = Adam()  # that `direction` begins with; None where it does not
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
        """Returns an optimizer with another key, and a key for the caller alone."""
        key, own = jax.random.split(self.key)
        return self._replace(key=key), own

    def replace_adam(
        self, method: str, make: Callable[[Adam], optax.GradientTransformation]
    ) -> "Optimizer":
        """Returns an optimizer with another transformation in Adam's place.

        Args:
          method: the name of the method that asks, for the error.
          make: makes the transformation, from Adam's coefficients.

        Raises:
          SettingError: Adam has been replaced already.
        """
        if self.adam is None:
            raise SettingError(
                "intervention", method, "must have Adam, which another method replaces"
            )
        return self._replace(direction=(make(self.adam), *self.direction[1:]), adam=None)
