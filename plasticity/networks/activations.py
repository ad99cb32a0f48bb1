"""Activations: functions of a layer's preactivations, or modules that have parameters too."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def crelu(x: Array) -> Array:
    """Both sides of ReLU: [..., n] -> [..., 2n]."""
    return jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1)


def fourier(x: Array) -> Array:
    """A sine and a cosine of each input: [..., n] -> [..., 2n]."""
    return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)


def gelu(x: Array) -> Array:
    """x Phi(x), of the normal distribution function itself and not its tanh approximation."""
    return nn.gelu(x, approximate=False)


def smooth_leaky_relu(x: Array) -> Array:
    """a x + (1 - a) x sigmoid(c x / p), with a = 0.1, c = 5 and p = 3."""
    return 0.1 * x + 0.9 * x * nn.sigmoid(5 / 3 * x)


class Rational(nn.Module):
    """sum_i a_i x^i / (1 + sum_j |b_j x^j|), i = 0..5, j = 1..4, all a and b learnt.

    The coefficients begin as those that the authors of the Padé activation units publish for
    leaky ReLU with slope 0.01: within 0.03 of it on [-3, 3]. Beyond, both ends go on with a
    slope of about 0.7.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = self.param("numerator", lambda key: jnp.array(LEAKY_RELU_NUMERATOR))
        b = self.param("denominator", lambda key: jnp.array(LEAKY_RELU_DENOMINATOR))
        size = jnp.abs(x)
        above = jnp.polyval(a[::-1], x)
        return above / (1 + size * jnp.polyval(jnp.abs(b)[::-1], size))


LEAKY_RELU_NUMERATOR = (  # a_0 to a_5
    0.029792778657264946,
    0.6183735264987601,
    2.323309062531321,
    3.051936237265109,
    1.4854203263828845,
    0.2510244961111299,
)
LEAKY_RELU_DENOMINATOR = (  # b_1 to b_4
    -1.1419548357285474,
    4.393159974992486,
    0.8714712309957245,
    0.34719662339598834,
)


class Activation(NamedTuple):
    """A nonlinearity.

    Attributes:
      apply: a function; or the class of a Flax module, where there is something to learn.
      widening: how many outputs it has for each input.
    """

    apply: Callable[[Array], Array] | type[nn.Module]
    widening: int = 1

    def named(self, name: str) -> Callable[[Array], Array]:
        """The function; or a module of this name, which has parameters of its own."""
        return self.apply(name=name) if isinstance(self.apply, type) else self.apply


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(nn.relu),
    "leaky_relu": Activation(nn.leaky_relu),  # slope 0.01
    "smooth_leaky_relu": Activation(smooth_leaky_relu),
    "gelu": Activation(gelu),
    "tanh": Activation(jnp.tanh),
    "rational": Activation(Rational),
    "crelu": Activation(crelu, widening=2),
    "fourier": Activation(fourier, widening=2),
}
