"""Conversion of trained actor-critic networks to integers.

Weights have one scale for each output channel. Activations have one scale for each layer, from the
largest magnitude in a calibration batch; what exceeds it later is clipped. The inputs of norms and
activation functions, and the outputs of heads, have 15 bits: their scale is four times the
largest magnitude over 2^14 - 1, so that four times as much still fits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.integer import operators
from plasticity.integer.arithmetic import (
    MAX_BITS,
    dequantize,
    dyadic,
    quantize,
    quantized_max,
    relative_error,
)
from plasticity.integer.policy import (
    GELU,
    IntegerConv,
    IntegerDense,
    IntegerNorm,
    IntegerPolicy,
    Operator,
    ReLU,
    Tanh,
)
from plasticity.networks import (
    ACTIVATIONS,
    NORMS,
    BaseNetwork,
    Categorical,
    Network,
    Output,
    Params,
    check_network,
    convolve,
)
from plasticity.struct import TARGET, Range, SettingError

__all__ = [
    "BITS",
    "Conversion",
    "FloatOperator",
    "Scales",
    "check_convertible",
    "convert",
    "operator_errors",
]

Array = jax.Array

BITS = Range(int, ge=2, le=8)
HEADROOM = 4  # of preactivations and outputs of heads, over the largest that calibration finds
_NORM_EPSILON = 1e-5  # of the norms in `plasticity.networks.torso`
_NORMS = ("none", "layer_norm", "rms_norm")
_ACTIVATIONS = ("relu", "gelu", "tanh")


class FloatOperator(NamedTuple):
    """An operator of the trained network, which an integer operator replaces.

    Attributes:
      layer: the name of its linear layer, as in `Output.activations`.
      kind: linear, convolution, layer_norm, rms_norm, relu, gelu or tanh.
      apply: computes it on a batch.
      params: its parameters, as host arrays.
      settings: the stride and padding of a convolution.
    """

    layer: str
    kind: str
    apply: Callable[[Array], Array]
    params: Mapping[str, np.ndarray] = {}
    settings: Mapping[str, int] = {}


class Scales(NamedTuple):
    """What the integers of a policy are to be multiplied by.

    Attributes:
      observation: the scale of observations.
      torso: the scale of the result of each operator.
      policy: the scale of the logits.
      value_torso: as `torso`; empty if the value shares the policy's.
      value: the scale of the value.
    """

    observation: float
    torso: tuple[float, ...]
    policy: float
    value_torso: tuple[float, ...]
    value: float


class Conversion(NamedTuple):
    """An integer policy, the network that it was made of, and its scales.

    Attributes:
      policy: the integer policy.
      scales: the scales of its inputs and results.
      bits: the bits of weights and activations.
      torso: the operators of the trained network, as all following.
      value_torso: those of the value; empty if it shares the policy's.
      heads: of the policy and of the value.
    """

    policy: IntegerPolicy
    scales: Scales
    bits: int
    torso: tuple[FloatOperator, ...]
    value_torso: tuple[FloatOperator, ...]
    heads: tuple[FloatOperator, FloatOperator]

    def quantize(self, observation: Array) -> Array:
        """Quantizes observations. int8."""
        return quantize(observation, self.scales.observation, self.bits)

    def output(self, logits: Array, value: Array) -> Output:
        """Returns the distribution and value that integer outputs stand for."""
        return Output(
            Categorical(dequantize(logits, self.scales.policy)),
            dequantize(value, self.scales.value),
            {},
            {},
        )


def check_convertible(network: BaseNetwork, continuous: bool = False) -> None:
    """Raises `SettingError` if a network has no integer form.

    Args:
      network: the network, as interventions change it.
      continuous: whether actions are continuous.
    """
    if type(network) is not Network:
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        raise SettingError(f"network.{TARGET}", kind, "must be plasticity.networks.Network")
    for key, value, known in (
        ("activation", network.activation, _ACTIVATIONS),
        ("norm", network.norm, _NORMS),
    ):
        if value not in known:
            allowed = f"must be one of {', '.join(known)} to have an integer form"
            raise SettingError(f"network.{key}", value, allowed)
    if network.channels and network.blocks:
        raise SettingError("network.blocks", network.blocks, "must be 0 to have an integer form")
    if network.value_head != "scalar":
        raise SettingError(
            "network.value_head", network.value_head, "must be scalar to have an integer form"
        )
    if continuous:
        raise SettingError("env", "continuous actions", "must be discrete to have an integer form")


def convert(network: Network, params: Params, observation: Array, bits: int = 8) -> Conversion:
    """Converts a trained network to integers.

    Args:
      network: the network, as interventions change it.
      params: the parameters that it computes with (`Interventions.effective_params`).
      observation: the calibration batch, [B, *observation_shape].
      bits: of weights, observations and activations, from 2 to 8.

    Raises:
      SettingError: the network has no integer form, the parameters are not its own, or they or the
        batch are empty or not finite.
    """
    if bits not in BITS:
        raise SettingError("bits", bits, f"must be {BITS}")
    check_convertible(network)
    if not observation.size:
        raise SettingError("calibration", list(observation.shape), "must have observations")
    if not np.isfinite(observation).all():
        raise SettingError("calibration", "batch", "must be finite; some observations are not")
    shape = tuple(observation.shape[1:])
    params = jax.tree.map(np.asarray, params)
    _check_params(network, params, shape)
    settings = network.torso(shape).convolutions
    torso = _torso_operators(network, params["torso"], settings, "")
    value_torso = _torso_operators(network, params.get("value_torso", {}), settings, "value_")
    heads = _linear("policy", params["policy"]), _linear("value", params["value"])
    scale = _scale(observation, bits)
    x = jnp.asarray(observation, jnp.float32)
    integers, scales, features = _convert_all(torso, x, scale, bits)
    value_integers, value_scales, value_features = integers, scales, features
    if value_torso:
        value_integers, value_scales, value_features = _convert_all(value_torso, x, scale, bits)
    policy_head, policy_scale = _convert_head(heads[0], features, scales[-1], bits)
    value_head, value_scale = _convert_head(heads[1], value_features, value_scales[-1], bits)
    policy = IntegerPolicy(
        torso=integers,
        policy=policy_head,
        value_torso=value_integers if value_torso else None,
        value=value_head,
    )
    return Conversion(
        policy,
        Scales(scale, scales, policy_scale, value_scales if value_torso else (), value_scale),
        bits,
        torso,
        value_torso,
        heads,
    )


def operator_errors(conversion: Conversion, observation: Array) -> list[dict[str, Any]]:
    """Measures the error of each operator of an integer policy on a batch of observations.

    Returns:
      A row for each operator, in order of computation, with the keys `layer`, `operator`, and two
      relative errors: the root mean square of the difference to the trained network over that of
      the trained network's result. `added_error` is that of the operator alone, which is compared
      with the trained operator on the same quantized input; `total_error` is that of all so far.
    """
    names = [("observation", "quantize")]
    names += [(x.layer, x.kind) for x in (*conversion.torso, conversion.heads[0])]
    names += [(x.layer, x.kind) for x in (*conversion.value_torso, conversion.heads[1])]
    errors = jax.jit(partial(_errors, conversion))(jnp.asarray(observation, jnp.float32))
    return [
        {
            "layer": layer,
            "operator": kind,
            "added_error": float(added),
            "total_error": float(total),
        }
        for (layer, kind), (added, total) in zip(names, errors, strict=True)
    ]


def _errors(conversion: Conversion, observation: Array) -> list[tuple[Array, Array]]:
    """Computes the added and the total error of each operator, those of the value at the end."""
    policy, scales = conversion.policy, conversion.scales
    q = conversion.quantize(observation)
    error = relative_error(dequantize(q, scales.observation), observation)
    errors = [(error, error)]

    def follow(
        floats: Sequence[FloatOperator],
        integers: Sequence[Operator],
        output_scales: Sequence[float],
        inputs: tuple[Array, Array, float],
    ) -> tuple[Array, Array, float]:
        x, q, scale = inputs
        for operator, integer, output_scale in zip(floats, integers, output_scales, strict=True):
            alone = operator.apply(dequantize(q, scale))
            x, q, scale = operator.apply(x), integer(q), output_scale
            result = dequantize(q, scale)
            errors.append((relative_error(result, alone), relative_error(result, x)))
        return x, q, scale

    inputs = observation, q, scales.observation
    features = value_features = follow(conversion.torso, policy.torso, scales.torso, inputs)
    follow(conversion.heads[:1], [policy.policy], [scales.policy], features)
    if policy.value_torso is not None:
        value_features = follow(
            conversion.value_torso, policy.value_torso, scales.value_torso, inputs
        )
    follow(conversion.heads[1:], [policy.value], [scales.value], value_features)
    return errors


def _check_params(network: Network, params: Params, observation_shape: tuple[int, ...]) -> None:
    """Raises `SettingError` if parameters are not those of a network, or not finite."""
    num_actions = params["policy"]["bias"].shape[-1] if "policy" in params else 1
    expected = check_network(
        network, observation_shape, num_actions, intrinsic="intrinsic_value" in params
    )
    shapes, needed = (
        {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}
        for leaves in map(jax.tree.leaves_with_path, (params, expected))
    )
    for name in sorted(shapes.keys() | needed.keys()):
        if shapes.get(name) != needed.get(name):
            found, allowed = (
                f"{list(shape)}" if shape is not None else "nothing"
                for shape in (shapes.get(name), needed.get(name))
            )
            raise SettingError(f"params.{name}", found, f"must be {allowed}, as in the network")
    for path, x in jax.tree.leaves_with_path(params):
        if not np.isfinite(x).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise SettingError(f"params.{name}", "not finite", "must be finite")


def _torso_operators(
    network: Network, params: Params, convolutions: Sequence[Any], prefix: str
) -> tuple[FloatOperator, ...]:
    """Returns the operators of a torso; none if it has no parameters."""
    result: list[FloatOperator] = []
    names = sorted((name for name in params if name.startswith("hidden_")), key=_index)
    for name in names:
        number, layer = _index(name), prefix + name
        if number < len(convolutions):
            result.append(_convolution(layer, params[name], convolutions[number]))
        else:
            result.append(_linear(layer, params[name]))
        if network.norm != "none":
            norm_params = params[f"norm_{number}"]
            result.append(
                FloatOperator(layer, network.norm, _norm(network.norm, norm_params), norm_params)
            )
        activation: Any = ACTIVATIONS[network.activation].apply
        result.append(FloatOperator(layer, network.activation, activation))
    return tuple(result)


def _index(name: str) -> int:
    return int(name.removeprefix("hidden_"))


def _linear(layer: str, params: Params) -> FloatOperator:
    def apply(x: Array) -> Array:
        return x.reshape(x.shape[0], -1) @ params["kernel"] + params["bias"]

    return FloatOperator(layer, "linear", apply, params)


def _convolution(layer: str, params: Params, size: Any) -> FloatOperator:
    def apply(x: Array) -> Array:
        return convolve(x, params["kernel"], size.stride, size.padding) + params["bias"]

    settings = {"stride": size.stride, "padding": size.padding}
    return FloatOperator(layer, "convolution", apply, params, settings)


def _norm(name: str, params: Params) -> Callable[[Array], Array]:
    build = NORMS[name]
    assert build is not None

    def apply(x: Array) -> Array:
        y: Any = build(name, range(1 - x.ndim, 0)).apply({"params": params}, x)
        return y

    return apply


def _convert_all(
    floats: Sequence[FloatOperator], x: Array, scale: float, bits: int
) -> tuple[tuple[Operator, ...], tuple[float, ...], Array]:
    """Converts operators one after the other.

    Args:
      floats: the operators.
      x: the first one's input, of the calibration batch.
      scale: its scale.
      bits: of weights and activations.

    Returns:
      Integer operators, the scales of their results, and the last result in the trained network.
    """
    integers, scales = [], []
    following = [operator.kind for operator in floats[1:]] + [""]
    for operator, next_kind in zip(floats, following, strict=True):
        y = operator.apply(x)
        if operator.kind in ACTIVATIONS:
            output_scale = _scale(y, bits)
        else:
            output_scale = HEADROOM * _scale(y, MAX_BITS)
        if next_kind in NORMS:
            smallest = operators.min_norm_scale(y[0].size, _NORM_EPSILON)
            output_scale = max(output_scale, smallest)
        integers.append(_convert_one(operator, x, scale, output_scale, bits))
        scales.append(output_scale)
        x, scale = y, output_scale
    return tuple(integers), tuple(scales), x


def _convert_head(
    head: FloatOperator, x: Array, scale: float, bits: int
) -> tuple[IntegerDense, float]:
    """Converts a linear head. Returns it and the scale of its result."""
    output_scale = HEADROOM * _scale(head.apply(x), MAX_BITS)
    return _convert_linear(head, scale, output_scale, bits), output_scale


def _convert_linear(
    operator: FloatOperator, scale: float, output_scale: float, bits: int
) -> IntegerDense:
    kernel, bias, kernel_scale = _quantize_kernel(operator, scale, bits)
    return IntegerDense(kernel, bias, dyadic(scale * kernel_scale / output_scale))


def _convert_one(
    operator: FloatOperator, x: Array, scale: float, output_scale: float, bits: int
) -> Operator:
    kind, params = operator.kind, operator.params
    if kind == "linear":
        return _convert_linear(operator, scale, output_scale, bits)
    if kind == "convolution":
        kernel, bias, kernel_scale = _quantize_kernel(operator, scale, bits)
        rescale = dyadic(scale * kernel_scale / output_scale)
        return IntegerConv(kernel, bias, rescale, **operator.settings)
    if kind in ("layer_norm", "rms_norm"):
        size, center = x[0].size, kind == "layer_norm"
        _check_size(operator.layer, size, operators.MAX_NORM_SIZE)
        unit = math.sqrt(size) * 2.0**-operators.NORM_FRACTION_BITS
        gain = np.asarray(params["scale"], np.float64)
        offset = np.asarray(params.get("bias", np.zeros_like(gain)), np.float64)
        return IntegerNorm(
            epsilon=np.int32(operators.norm_epsilon(scale, size, _NORM_EPSILON, center)),
            rescale=dyadic(gain * unit / output_scale),
            bias=np.clip(np.round(offset / output_scale), -(2**30), 2**30).astype(np.int32),
            center=center,
        )
    if kind == "relu":
        return ReLU(dyadic(scale / output_scale), bits)
    if kind == "gelu":
        unit = scale * 2.0**-operators.GELU_FRACTION_BITS
        return GELU(operators.gelu_argument(scale), dyadic(unit / output_scale), bits)
    unit = 2.0**-operators.TANH_FRACTION_BITS
    return Tanh(operators.tanh_argument(scale), dyadic(unit / output_scale), bits)


def _quantize_kernel(
    operator: FloatOperator, scale: float, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the kernel and bias of a linear operator in integers, and the kernel's scales.

    The scale of a channel is that of its weights, or larger where the bias, which is in units of
    the product of both scales, would exceed 2^30.
    """
    kernel, bias = (np.asarray(operator.params[name], np.float64) for name in ("kernel", "bias"))
    _check_size(operator.layer, math.prod(kernel.shape[:-1]), operators.MAX_INPUTS)
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    kernel_scale = np.maximum(
        largest / quantized_max(bits), np.abs(bias) / (scale * operators.MAX_BIAS)
    )
    kernel_scale = np.where(kernel_scale == 0, 1.0, kernel_scale)
    return (
        np.round(kernel / kernel_scale).astype(np.int8),
        np.round(bias / (scale * kernel_scale)).astype(np.int32),
        kernel_scale,
    )


def _check_size(layer: str, size: int, largest: int) -> None:
    if size > largest:
        raise SettingError(f"params.{layer}", f"{size} inputs", f"must have at most {largest}")


def _scale(x: Any, bits: int) -> float:
    """Returns the scale of a calibration batch; 1 if it is all 0. Such that it is a float32."""
    scale = float(np.float32(np.abs(np.asarray(x)).max() / quantized_max(bits)))
    return scale or 1.0
