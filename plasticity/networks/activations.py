"""Activation functions, by name or by import path."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.struct import SettingError, locate

__all__ = ["ACTIVATIONS", "Activation", "get_activation"]

Array = jax.Array


def crelu(x: Array) -> Array:
    """Computes concatenated ReLU, [relu(x), relu(-x)]: [..., n] -> [..., 2n]."""
    return jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1)


def fourier(x: Array) -> Array:
    """Computes Fourier features, [sin(x), cos(x)]: [..., n] -> [..., 2n]."""
    return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)


def gelu(x: Array) -> Array:
    """Computes exact GELU, x Phi(x), with the normal distribution function itself."""
    return nn.gelu(x, approximate=False)


def smooth_leaky_relu(x: Array) -> Array:
    """Computes a x + (1 - a) x sigmoid(c x / p), with a = 0.1, c = 5 and p = 3."""
    return 0.1 * x + 0.9 * x * nn.sigmoid(5 / 3 * x)


class Rational(nn.Module):
    """The rational function sum_i a_i x^i / (1 + sum_j |b_j x^j|), i = 0..5, j = 1..4.

    All a and b are trained. They are initialized to the coefficients that the authors of the Padé
    activation units publish for leaky ReLU with slope 0.01, which are within 0.03 of it on
    [-3, 3]. Outside, both ends continue with a slope of about 0.7.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = self.param("numerator", lambda key: jnp.array(LEAKY_RELU_NUMERATOR))
        b = self.param("denominator", lambda key: jnp.array(LEAKY_RELU_DENOMINATOR))
        magnitude = jnp.abs(x)
        numerator = jnp.polyval(a[::-1], x)
        return numerator / (1 + magnitude * jnp.polyval(jnp.abs(b)[::-1], magnitude))


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
    """An activation function.

    Attributes:
      apply: a function; or the class of a Flax module, if it has parameters.
      widening: number of outputs for each input.
    """

    apply: Callable[[Array], Array] | type[nn.Module]
    widening: int = 1

    def build(self, name: str) -> Callable[[Array], Array]:
        """Returns the function; or a module of the given name, which holds the parameters."""
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


def get_activation(name: str, key: str = "network.activation") -> Activation:
    """Returns an activation function.

    Args:
      name: a name in `ACTIVATIONS`; or the import path of an `Activation`, of a function of
        arrays [..., n], or of a Flax module class without required fields. The latter two keep
        the shape, unless they have an attribute `widening`: the number of outputs for each input.
      key: the setting's key, for errors.

    Raises:
      SettingError: there is no such function, or its outputs have another shape.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    allowed = f"must be one of {', '.join(ACTIVATIONS)}, or the import path of a function"
    if "." not in name:
        raise SettingError(key, name, allowed)
    try:
        located = locate(name, key)
    except SettingError as error:
        raise SettingError(key, name, f"{allowed} ({error.__cause__})") from error
    if not isinstance(located, Activation):
        is_module = isinstance(located, type) and issubclass(located, nn.Module)
        is_function = callable(located) and not isinstance(located, type | nn.Module)
        if not (is_module or is_function):
            raise SettingError(key, name, allowed)
        located = Activation(located, getattr(located, "widening", 1))
    _check_shape(located, name, key)
    return located


def _check_shape(activation: Activation, name: str, key: str) -> None:
    """Raises `SettingError` if an activation fails, or its outputs are not `widening` times n."""

    def apply(x: Array) -> Any:
        if isinstance(activation.apply, type):
            return activation.apply().init_with_output(jax.random.key(0), x)[0]
        return activation.apply(x)

    x = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    widening = activation.widening
    allowed = f"must map arrays [..., n] to [..., {widening} * n] for widening={widening}"
    try:
        output = jax.eval_shape(apply, x)
    except Exception as error:  # the user's function may raise any
        reason = str(error).strip().partition("\n")[0]
        raise SettingError(key, name, f"{allowed} ({type(error).__name__}: {reason})") from error
    shape = getattr(output, "shape", None)
    if shape != (2, 3, 4 * widening):
        raise SettingError(key, name, f"{allowed}, but maps {x.shape} to {shape}")
