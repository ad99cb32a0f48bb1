"""Conversion of trained actor-critic networks to integers.

Weights have one scale for each output channel. Activations have one scale for each operator, from
the largest magnitude in a calibration batch; what exceeds it later is clipped. The inputs of norms
and activation functions, sums, attention scores and the outputs of heads have 15 bits: their scale
is four times the largest magnitude over 2^14 - 1, so that four times as much still fits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from plasticity.integer import operators
from plasticity.integer.arithmetic import (
    MAX_BITS,
    dequantize,
    dyadic,
    quantized_max,
    relative_error,
)
from plasticity.integer.float_operators import FloatOperator, separate_operators
from plasticity.integer.policy import (
    GELU,
    AddPositions,
    AttentionScores,
    AttentionSum,
    AttentionWeights,
    Gate,
    IntegerConv,
    IntegerDense,
    IntegerNorm,
    IntegerPolicy,
    MaxPool,
    MeanToken,
    ObjectTokens,
    Operator,
    PrependSummary,
    ReLU,
    ResidualSum,
    Round,
    SelectTokens,
    SummaryToken,
    Tanh,
    run_operators,
)
from plasticity.networks import (
    BaseNetwork,
    Categorical,
    Gaussian,
    Mosaic,
    Network,
    Output,
    Params,
    check_network,
)
from plasticity.networks.tokens import Tokenizer, TokenShape
from plasticity.struct import TARGET, Range, SettingError

__all__ = [
    "BITS",
    "Conversion",
    "Quantizer",
    "check_convertible",
    "convert",
    "make_output",
    "operator_errors",
]

Array = jax.Array

BITS = Range(int, ge=2, le=8)
HEADROOM = 4  # of numbers of 15 bits, over the largest that calibration finds
_NORM_EPSILON = 1e-5  # of all norms of `plasticity.networks`
_NORMS = ("none", "layer_norm", "rms_norm")
_ACTIVATIONS = ("relu", "gelu", "tanh")
_MAX_PLACES = 128  # rows or columns of a grid: their numbers are int8
_SAME_SCALE = ("max_pool", "summary_token", "mean_token")  # kinds whose result has their input's
# Kinds whose results are int8; all others are int32 of 15 bits, but for `softmax`.
_FEW_BITS = (*_ACTIVATIONS, "round", "gate", "attention_sum")


class Quantizer(struct.PyTreeNode):
    """Quantizes observations: round((x - offset) / scale), clipped to [-bound, bound]. int8.

    All three are float32 and broadcast against an observation. Where the network sees observations
    normalized, the offset is their mean, and the scale has the standard deviation as a factor.
    """

    offset: Any
    scale: Any
    bound: Any

    def of_normalized(self, mean: Array, std: Array) -> "Quantizer":
        """Returns the quantizer of x for which this is the quantizer of (x - mean) / std."""
        return self.replace(offset=mean + std * self.offset, scale=std * self.scale)

    def __call__(self, x: Array) -> Array:
        """Computes int8 from float32, of equal shape."""
        q = jnp.round((x - self.offset) / self.scale)
        return jnp.clip(q, -self.bound, self.bound).astype(jnp.int8)


class Conversion(NamedTuple):
    """An integer policy, the network that it was made of, and the scales of its integers.

    Attributes:
      policy: the integer policy.
      quantizer: makes integers of observations.
      scales: by what the observation, and the result of each operator, is to be multiplied to be
        that of the network. An array where the columns of a token have scales of their own.
      bits: the bits of weights and activations.
      operators: the operators of the trained network, as those of `policy`.
      log_std: the logarithms of the standard deviations of continuous actions [A]; None if actions
        are discrete.
    """

    policy: IntegerPolicy
    quantizer: Quantizer
    scales: tuple[Any, ...]
    bits: int
    operators: tuple[FloatOperator, ...]
    log_std: np.ndarray | None

    @property
    def policy_scale(self) -> float:
        """The scale of the policy's head."""
        return float(self.scales[self.policy.policy])

    @property
    def value_scale(self) -> float:
        """The scale of the value."""
        return float(self.scales[-1])

    def quantize(self, observation: Array) -> Array:
        """Quantizes observations. int8."""
        return self.quantizer(observation)

    def output(self, head: Array, value: Array) -> Output:
        """Returns the distribution and value that integer outputs stand for."""
        return make_output(head, value, self.policy_scale, self.value_scale, self.log_std)


def make_output(
    head: Array,
    value: Array,
    policy_scale: Array | float,
    value_scale: Array | float,
    log_std: Any = None,
) -> Output:
    """Returns the distribution and value that the outputs of an integer policy stand for.

    Args:
      head: the logits, or the means of continuous actions, int32 [B, A].
      value: int32 [B].
      policy_scale: the scale of `head`.
      value_scale: the scale of `value`.
      log_std: the logarithms of standard deviations [A]; None if actions are discrete.
    """
    outputs = dequantize(head, policy_scale)
    policy = Categorical(outputs) if log_std is None else Gaussian(outputs, jnp.asarray(log_std))
    return Output(policy, dequantize(value, value_scale), {}, {})


def check_convertible(
    network: BaseNetwork, observation_shape: tuple[int, ...] | None = None
) -> None:
    """Raises `SettingError` if a network has no integer form.

    Args:
      network: the network, as interventions change it.
      observation_shape: the shape of one observation, if it is known.
    """
    if type(network) not in (Network, Mosaic):
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        allowed = "must be plasticity.networks.Network or .Mosaic"
        raise SettingError(f"network.{TARGET}", kind, allowed)
    for key, known in (
        ("activation", _ACTIVATIONS),
        ("norm", _NORMS),
        ("value_head", ("scalar",)),
    ):
        value = getattr(network, key)
        if value not in known:
            allowed = f"must be one of {', '.join(known)} to have an integer form"
            raise SettingError(f"network.{key}", value, allowed)
    if isinstance(network, Mosaic) and observation_shape is not None:
        places = max(Tokenizer(observation_shape, network.patch).grid)
        if places > _MAX_PLACES:
            allowed = f"has an integer form for at most {_MAX_PLACES} places along an axis"
            raise SettingError(f"network.{TARGET}", "Mosaic", f"{allowed}, not {places}")


def convert(
    network: BaseNetwork,
    params: Params,
    observation: Array,
    bits: int = 8,
    observation_shape: tuple[int, ...] | None = None,
) -> Conversion:
    """Converts a trained network to integers.

    Args:
      network: the network, as interventions change it.
      params: the parameters that it computes with (`Interventions.effective_params`).
      observation: the calibration batch as the network sees it, [B, *observation_shape].
      bits: of weights, observations and activations, from 2 to 8.
      observation_shape: that of the environment, if it says more than the batch: a `TokenShape`.

    Raises:
      SettingError: the network has no integer form, the parameters are not its own, or they or the
        batch are empty or not finite.
    """
    if bits not in BITS:
        raise SettingError("bits", bits, f"must be {BITS}")
    shape = tuple(observation.shape[1:]) if observation_shape is None else observation_shape
    check_convertible(network, shape)
    if not observation.size:
        raise SettingError("calibration", list(observation.shape), "must have observations")
    if not np.isfinite(observation).all():
        raise SettingError("calibration", "batch", "must be finite; some observations are not")
    params = jax.tree.map(np.asarray, params)
    _check_params(network, params, shape)
    separated = separate_operators(network, params, shape)
    quantizer = _make_quantizer(network, shape, observation, bits)
    x = jnp.asarray(observation, jnp.float32)
    largest, shapes = _calibrate(separated.operators, x)
    smallest = _smallest_scales(separated.operators, shapes)
    integers: list[Operator] = []
    scales: list[Any] = [quantizer.scale]
    for number, operator in enumerate(separated.operators, start=1):
        site = _Site(
            operator,
            input_scales=[scales[i] for i in operator.inputs],
            input_shapes=[shapes[i] for i in operator.inputs],
            bits=bits,
        )
        largest_of_all = max(largest[i] for i in (number, *operator.inputs))
        scale = _output_scale(site, shapes[number], largest[number], largest_of_all)
        if operator.kind not in _SAME_SCALE:
            scale = np.maximum(scale, smallest[number])
        integers.append(_CONVERTERS[operator.kind](site._replace(output_scale=scale)))
        scales.append(scale)
    policy = IntegerPolicy(
        operators=tuple(integers),
        inputs=tuple(operator.inputs for operator in separated.operators),
        policy=separated.policy,
        continuous="log_std" in params["policy"],
    )
    return Conversion(
        policy,
        quantizer,
        tuple(scales),
        bits,
        separated.operators,
        params["policy"].get("log_std"),
    )


def operator_errors(conversion: Conversion, observation: Array) -> list[dict[str, Any]]:
    """Measures the error of each operator of an integer policy on a batch of observations.

    Args:
      conversion: the integer policy, whose quantizer is that of what the network sees.
      observation: the batch as the network sees it.

    Returns:
      A row for each operator, in order of computation, with the keys `layer`, `operator`, and two
      relative errors: the root mean square of the difference to the trained network over that of
      the trained network's result. `added_error` is that of the operator alone, which is compared
      with the trained operator on the same quantized input; `total_error` is that of all so far.
    """
    names = [("observation", "quantize"), *((x.layer, x.kind) for x in conversion.operators)]
    x = jnp.asarray(observation, jnp.float32)
    measure = jax.jit(partial(_errors, conversion.operators, conversion.scales))
    errors = measure(conversion.policy, conversion.quantize(x), x)
    return [
        {
            "layer": layer,
            "operator": kind,
            "added_error": float(added),
            "total_error": float(total),
        }
        for (layer, kind), (added, total) in zip(names, errors, strict=True)
    ]


def _errors(
    floats: Sequence[FloatOperator],
    scales: Sequence[Any],
    policy: IntegerPolicy,
    q: Array,
    x: Array,
) -> list[tuple[Array, Array]]:
    """Computes the added and the total error of each operator on observations x, quantized q."""
    integer_results = run_operators(policy.operators, policy.inputs, q)
    float_results = run_operators([operator.apply for operator in floats], policy.inputs, x)
    results = [dequantize(q, scale) for q, scale in zip(integer_results, scales, strict=True)]
    error = relative_error(results[0], x)
    errors = [(error, error)]
    for operator, result, exact in zip(floats, results[1:], float_results[1:], strict=True):
        alone = operator.apply(*(results[i] for i in operator.inputs))
        errors.append((relative_error(result, alone), relative_error(result, exact)))
    return errors


def _check_params(network: BaseNetwork, params: Params, observation_shape: tuple[int, ...]) -> None:
    """Raises `SettingError` if parameters are not those of a network, or not finite."""
    num_actions = params["policy"]["bias"].shape[-1] if "policy" in params else 1
    expected = check_network(
        network,
        observation_shape,
        num_actions,
        continuous="log_std" in params.get("policy", {}),
        intrinsic="intrinsic_value" in params,
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


def _make_quantizer(
    network: BaseNetwork, shape: tuple[int, ...], observation: Array, bits: int
) -> Quantizer:
    """Returns the quantizer of a calibration batch.

    The flags and positions of object tokens are whole numbers, which stay as they are. The features
    of tokens share their scale with what the tokenizer adds to them, which is at most 1.
    """
    features, least, whole_numbers = np.asarray(observation), 0.0, slice(0)
    if isinstance(network, Mosaic):
        if isinstance(shape, TokenShape):
            features, whole_numbers = features[..., 3:], slice(3)
        if len(shape) != 2 or isinstance(shape, TokenShape):
            least = 1.0
    scale = _scale(max(np.abs(features).max(), least), bits)
    scales, bounds = np.full(shape[-1:], scale), np.full(shape[-1:], quantized_max(bits))
    scales[whole_numbers], bounds[whole_numbers] = 1.0, quantized_max(8)
    return Quantizer(*(np.asarray(x, np.float32) for x in (np.zeros(()), scales, bounds)))


def _calibrate(
    floats: Sequence[FloatOperator], x: Array
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Returns the largest magnitude of the observation and of each operator's result, and shapes.

    Shapes are those of one observation, without an axis of the batch.
    """
    apply, inputs = (
        tuple(getattr(operator, name) for operator in floats) for name in ("apply", "inputs")
    )
    run = partial(run_operators, apply, inputs)
    largest = jax.jit(lambda x: [jnp.max(jnp.abs(result)) for result in run(x)])(x)
    return [float(one) for one in largest], [x.shape[1:] for x in jax.eval_shape(run, x)]


def _smallest_scales(
    floats: Sequence[FloatOperator], shapes: Sequence[tuple[int, ...]]
) -> dict[int, float]:
    """Returns the smallest scale that the result of each operator may have.

    A norm needs one (see `min_norm_scale`) of its input. Other scales may be of any size.
    """
    smallest = dict.fromkeys(range(len(floats) + 1), 0.0)
    for number, operator in reversed(list(enumerate(floats, start=1))):
        first = operator.inputs[0]
        if operator.kind in _NORMS:
            size = _norm_size(operator, shapes[first])
            smallest[first] = max(smallest[first], operators.min_norm_scale(size, _NORM_EPSILON))
        elif operator.kind in _SAME_SCALE:
            smallest[first] = max(smallest[first], smallest[number])
    return smallest


def _norm_size(operator: FloatOperator, shape: tuple[int, ...]) -> int:
    return math.prod(shape[-operator.settings["num_axes"] :])


def _output_scale(
    site: "_Site", shape: tuple[int, ...], largest: float, largest_of_all: float
) -> Any:
    """Returns the scale of an operator's result.

    Args:
      site: the operator, without that scale.
      shape: the shape of the result.
      largest: the largest magnitude of the result in the trained network.
      largest_of_all: that of its inputs as well.
    """
    kind = site.operator.kind
    if kind in _SAME_SCALE:
        return site.input_scales[0]
    if kind in ("object_tokens", "select_tokens"):
        scale = np.full(shape[-1], site.input_scale)
        scale[:3] = 1.0
        return scale
    if kind == "softmax":
        return 2.0**-operators.SOFTMAX_FRACTION_BITS
    if kind in _FEW_BITS:
        return _scale(largest, site.bits)
    if kind == "residual_sum":  # whose terms must fit as well
        largest = largest_of_all
    return HEADROOM * _scale(largest, MAX_BITS)


class _Site(NamedTuple):
    """What the conversion of an operator depends on.

    Attributes:
      operator: the operator.
      input_scales: the scales of its inputs.
      input_shapes: their shapes, of one observation.
      bits: of weights and activations.
      output_scale: the scale of its result.
    """

    operator: FloatOperator
    input_scales: Sequence[Any]
    input_shapes: Sequence[tuple[int, ...]]
    bits: int
    output_scale: Any = None

    @property
    def input_scale(self) -> float:
        """The scale of the first input; of tokens, that of features."""
        return float(np.ravel(self.input_scales[0])[-1])

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.operator.settings


def _linear(site: _Site) -> IntegerDense:
    kernel, bias, kernel_scale = _quantize_kernel(site)
    return IntegerDense(kernel, bias, dyadic(site.input_scale * kernel_scale / site.output_scale))


def _convolution(site: _Site) -> IntegerConv:
    kernel, bias, kernel_scale = _quantize_kernel(site)
    rescale = dyadic(site.input_scale * kernel_scale / site.output_scale)
    return IntegerConv(kernel, bias, rescale, **site.settings)


def _norm(site: _Site) -> IntegerNorm:
    operator, params = site.operator, site.operator.params
    size, center = _norm_size(operator, site.input_shapes[0]), operator.kind == "layer_norm"
    _check_size(operator.layer, size, operators.MAX_NORM_SIZE)
    unit = math.sqrt(size) * 2.0**-operators.NORM_FRACTION_BITS
    gain = np.asarray(params["scale"], np.float64)
    offset = np.asarray(params.get("bias", np.zeros_like(gain)), np.float64)
    return IntegerNorm(
        epsilon=np.int32(operators.norm_epsilon(site.input_scale, size, _NORM_EPSILON, center)),
        rescale=dyadic(gain * unit / site.output_scale),
        bias=_round_to_int32(offset / site.output_scale),
        center=center,
        num_axes=operator.settings["num_axes"],
    )


def _relu(site: _Site) -> ReLU:
    return ReLU(dyadic(site.input_scale / site.output_scale), site.bits)


def _gelu(site: _Site) -> GELU:
    unit = site.input_scale * 2.0**-operators.GELU_FRACTION_BITS
    argument = operators.gelu_argument(site.input_scale)
    return GELU(argument, dyadic(unit / site.output_scale), site.bits)


def _tanh(site: _Site) -> Tanh:
    unit = 2.0**-operators.TANH_FRACTION_BITS
    argument = operators.tanh_argument(site.input_scale)
    return Tanh(argument, dyadic(unit / site.output_scale), site.bits)


def _round(site: _Site) -> Round:
    return Round(dyadic(site.input_scale / site.output_scale), site.bits)


def _residual_sum(site: _Site) -> ResidualSum:
    return ResidualSum(
        *(
            operators.residual_argument(scale, site.output_scale, MAX_BITS)
            for scale in site.input_scales
        )
    )


def _gate(site: _Site) -> Gate:
    return Gate(dyadic(math.prod(site.input_scales) / site.output_scale), site.bits)


def _object_tokens(site: _Site) -> ObjectTokens:
    last = np.maximum(np.asarray(site.settings["grid"], np.int32) - 1, 1)
    rescale = dyadic(1 / (last * site.input_scale))
    return ObjectTokens(rescale, last, site.bits, site.settings["size"])


def _select_tokens(site: _Site) -> SelectTokens:
    """Converts the tokens of a vector, a sequence or an image.

    A token's entry is one of the observation's, or a constant: the number of the entry is found by
    looking at an observation of numbers.
    """
    shape = site.input_shapes[0]
    numbers = 1 + jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(1, *shape)
    constant, numbered = (
        np.asarray(site.operator.apply(x))[0] for x in (jnp.zeros_like(numbers), numbers)
    )
    index = np.round(numbered - constant).astype(np.int32) - 1
    return SelectTokens(index, np.round(constant / site.output_scale).astype(np.int8))


def _add_positions(site: _Site) -> AddPositions:
    table = np.asarray(site.operator.params["table"], np.float64)
    table_scale = _scale(table, site.bits)
    x_scale, y_scale = (
        operators.residual_argument(scale, site.output_scale, MAX_BITS)
        for scale in (site.input_scale, table_scale)
    )
    rounded = np.round(table / table_scale).astype(np.int8)
    return AddPositions(rounded, x_scale, y_scale, site.settings["columns"])


def _prepend_summary(site: _Site) -> PrependSummary:
    summary = _round_to_int32(site.operator.params["summary"] / site.output_scale)
    return PrependSummary(summary, dyadic(site.input_scale / site.output_scale))


def _attention_scores(site: _Site) -> AttentionScores:
    heads = site.settings["heads"]
    size = site.input_shapes[0][-1] // heads
    product_scale = math.prod(site.input_scales[:2]) / math.sqrt(size)
    slopes = site.operator.params.get("slopes")
    return AttentionScores(
        rescale=dyadic(product_scale / site.output_scale),
        slopes=None if slopes is None else dyadic(slopes[:, None, None] / site.output_scale),
        heads=heads,
    )


def _softmax(site: _Site) -> AttentionWeights:
    return AttentionWeights(operators.softmax_argument(site.input_scale))


def _attention_sum(site: _Site) -> AttentionSum:
    return AttentionSum(dyadic(math.prod(site.input_scales) / site.output_scale), site.bits)


_CONVERTERS: Mapping[str, Callable[[_Site], Operator]] = {
    "linear": _linear,
    "convolution": _convolution,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "relu": _relu,
    "gelu": _gelu,
    "tanh": _tanh,
    "round": _round,
    "residual_sum": _residual_sum,
    "max_pool": lambda site: MaxPool(),
    "gate": _gate,
    "object_tokens": _object_tokens,
    "select_tokens": _select_tokens,
    "add_positions": _add_positions,
    "prepend_summary": _prepend_summary,
    "attention_scores": _attention_scores,
    "softmax": _softmax,
    "attention_sum": _attention_sum,
    "summary_token": lambda site: SummaryToken(),
    "mean_token": lambda site: MeanToken(),
}


def _quantize_kernel(site: _Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the kernel and bias of a linear operator in integers, and the kernel's scales.

    The scale of a channel is that of its weights, or larger where the bias, which is in units of
    the product of both scales, would exceed 2^30.
    """
    params, scale = site.operator.params, site.input_scale
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    _check_size(site.operator.layer, math.prod(kernel.shape[:-1]), operators.MAX_INPUTS)
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    kernel_scale = np.maximum(
        largest / quantized_max(site.bits), np.abs(bias) / (scale * operators.MAX_BIAS)
    )
    kernel_scale = np.where(kernel_scale == 0, 1.0, kernel_scale)
    return (
        np.round(kernel / kernel_scale).astype(np.int8),
        np.round(bias / (scale * kernel_scale)).astype(np.int32),
        kernel_scale,
    )


def _round_to_int32(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x), -(2**30), 2**30).astype(np.int32)


def _check_size(layer: str, size: int, largest: int) -> None:
    if size > largest:
        raise SettingError(f"params.{layer}", f"{size} inputs", f"must have at most {largest}")


def _scale(x: Any, bits: int) -> float:
    """Returns the scale of a calibration batch; 1 if it is all 0. Such that it is a float32."""
    scale = float(np.float32(np.abs(np.asarray(x)).max() / quantized_max(bits)))
    return scale or 1.0
